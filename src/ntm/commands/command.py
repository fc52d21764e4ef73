"""From a command line to jobs: Hydra's part of the work, its errors in one line.

Exit status: 0 done, 1 a run failed, 2 the command or its configuration is wrong, 130 interrupted.
A run that another process is at fails a command of its own, and does not fail a sweep.
"""

from __future__ import annotations

import argparse
import atexit
import difflib
import os
import re
import shlex
import shutil
import signal
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

import hydra
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.hydra import Hydra
from hydra._internal.utils import get_args_parser
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ntm.commands import completion, launchers
from ntm.commands.configuration import ConfigurationError, check_governed, flatten, one_line
from ntm.commands.streams import lasting

DONE, FAILED, WRONG, INTERRUPTED = 0, 1, 2, 130
HELD = -1
"""Status of a job that was left to the process that is at it already."""
STARTED = time.monotonic()


def main(
    configs: Path,
    name: str,
    check: Callable[[DictConfig], None],
    job: Callable[[DictConfig, float], int],
    after: Callable[[], None] | None = None,
    ready: Callable[[], None] | None = None,
) -> int:
    """Run the command line `sys.argv` and return its exit status.

    Every job is checked before any starts.

    Args:
        configs: The folder of configurations.
        name: The primary configuration in it.
        check: Raises `ConfigurationError` for a job that cannot be; writes nothing.
        job: Does one job and returns its exit status; also gets the time it began, by the
            monotonic clock, which for the first job is that of the command.
        after: Called once all jobs of a sweep were run.
        ready: Called once all jobs are checked; raises `ConfigurationError` if they do not go
            together.

    """
    _find_a_home()
    with lasting():
        return _main(configs, name, check, job, after, ready)


def _find_a_home() -> None:
    """Give libraries a place for their settings where the user has none, as in some containers.

    Matplotlib cannot be imported without.
    """
    try:
        Path.home()
    except RuntimeError:
        if "MPLCONFIGDIR" not in os.environ:
            os.environ["MPLCONFIGDIR"] = place = tempfile.mkdtemp(prefix="matplotlib-")
            atexit.register(shutil.rmtree, place, ignore_errors=True)


def _main(
    configs: Path,
    name: str,
    check: Callable[[DictConfig], None],
    job: Callable[[DictConfig, float], int],
    after: Callable[[], None] | None,
    ready: Callable[[], None] | None,
) -> int:
    launchers.end_with_parent()
    own_process = launchers.OwnProcess(os.path.abspath(sys.argv[0]), os.getcwd())
    launched = False
    jobs: list[list[str]] = []
    composed: dict[tuple[str, ...], DictConfig] = {}
    try:
        arguments = _arguments()
        if arguments.help:
            print(help_screen(configs, name))
            return DONE
        if arguments.shell_completion and arguments.overrides == ["install=bash"]:
            print(completion.BASH)
            return DONE
        overrides = _with_config_dir(arguments)
        asks = ("hydra_help", "cfg", "info", "shell_completion")
        if not any(getattr(arguments, ask) for ask in asks):
            launched = _launched(configs, name, overrides, arguments.multirun)
            jobs = _jobs(configs, name, overrides, arguments.multirun)
            for config in configurations(configs, name, jobs, composed):
                check(config)
            if ready is not None:
                ready()
    except ConfigurationError as error:
        print(error, file=sys.stderr)
        return WRONG
    if launched:
        return _launch(configs, name, overrides, own_process)

    statuses: list[int] = []

    started_in = os.getcwd()

    def task(config: DictConfig, of_job: Sequence[str] | None = None) -> None:
        if INTERRUPTED in statuses:
            return  # the rest of a sweep does not begin
        if os.getcwd() != started_in:  # hydra.job.chdir
            os.chdir(started_in)
            print(f"paths are below {started_in}, where the command began", file=sys.stderr)
        if arguments.multirun and _several_devices(config):
            # Each of its processes repeats the command line, which must be of this run alone.
            signal.signal(signal.SIGTERM, signal.default_int_handler)
            statuses.append(own_process(config, of_job).exit_status)
            return
        try:
            statuses.append(job(config, time.monotonic() if statuses else STARTED))
        except ConfigurationError as error:
            print(error, file=sys.stderr)
            statuses.append(WRONG)

    os.environ["HYDRA_FULL_ERROR"] = "1"  # raise what is wrong instead of printing and leaving
    try:
        if jobs and not _sets_hydra(arguments):
            # As Hydra's basic launcher would; it composes every job twice more, 0.2 s a job.
            each = configurations(configs, name, jobs, composed)
            for of_job, config in zip(jobs, each, strict=True):
                task(config, of_job)
        else:
            hydra.main(version_base="1.3", config_path=str(configs), config_name=name)(task)()
    except (HydraException, OmegaConfBaseException) as error:
        print(one_line(error), file=sys.stderr)
        return WRONG
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        statuses.append(INTERRUPTED)
    if arguments.multirun and after is not None and statuses:
        after()
    if statuses == [HELD] and not arguments.multirun:
        return FAILED
    return max([DONE, *statuses])


def help_screen(configs: Path, name: str) -> str:
    """What a command takes, on one screen: `hydra.help.template`, the groups filled in."""
    text: str = compose(configs, name, [], with_hydra=True).hydra.help.template
    primary = OmegaConf.to_container(OmegaConf.load(configs / f"{name}.yaml"), resolve=False)
    assert isinstance(primary, dict)
    lines = []
    for entry in primary["defaults"]:
        group, default = next(iter(entry.items())) if isinstance(entry, dict) else ("", None)
        known = sorted(path.stem for path in (configs / group).glob("*.yaml")) if group else []
        if len(known) > 1:
            choices = ", ".join(sorted(known, key=lambda choice: choice != default))
            lines.append(textwrap.fill(f"  {group:<12}{choices}", 100, subsequent_indent=" " * 14))
    return text.replace("$GROUPS", "\n".join(lines))


def _with_config_dir(arguments: argparse.Namespace) -> list[str]:
    """The overrides of a command, ``--config-dir`` among them as the key that it stands for.

    Raises:
        ConfigurationError: There is no such folder.

    """
    if not arguments.config_dir:
        return list(arguments.overrides)
    folder = Path(arguments.config_dir).absolute()
    if not folder.is_dir():
        raise ConfigurationError(f"--config-dir must be a folder, got {arguments.config_dir}")
    key = "hydra.searchpath="
    given = [override for override in arguments.overrides if override.startswith(key)]
    more = given[-1].removeprefix(key).strip("[]") if given else ""
    places = ",".join([f"'file://{folder}'", *([more] if more else [])])
    others = [override for override in arguments.overrides if override not in given]
    return [*others, f"{key}[{places}]"]


def _sets_hydra(arguments: argparse.Namespace) -> bool:
    """Whether a command asks for a launcher, or anything else of Hydra's own."""
    own = ("package", "config_name", "config_path", "experimental_rerun")
    if any(getattr(arguments, option) for option in own):
        return True
    return any(override.lstrip("+~").startswith("hydra") for override in arguments.overrides)


def _several_devices(config: DictConfig) -> bool:
    return str(OmegaConf.select(config, "trainer.devices", default=1)) != "1"


def _launched(configs: Path, name: str, overrides: list[str], sweep: bool) -> bool:
    """Whether jobs go through a launcher other than Hydra's own.

    Raises:
        ConfigurationError: The launcher cannot do its work.

    """
    chosen = [override for override in overrides if override.startswith("hydra/launcher")]
    if chosen and not sweep:
        raise ConfigurationError(f"{chosen[0]} starts the jobs of a sweep: add -m")
    if not sweep:
        return False
    settings = [override for override in overrides if override.startswith("hydra")]
    launcher = compose(configs, name, settings, with_hydra=True).hydra.launcher
    if launchers.is_basic(launcher):
        return False
    launchers.check_launcher(launcher, os.getcwd())
    return True


def _arguments() -> argparse.Namespace:
    """What Hydra makes of the command line.

    Raises:
        ConfigurationError: It holds an option that is none.

    """

    def refuse(message: str) -> NoReturn:
        raise ConfigurationError(f"{message}; --help tells what there is")

    parser = get_args_parser()
    parser.error = refuse  # type: ignore[method-assign]
    arguments = parser.parse_args()
    shown = ("multirun", "cfg", "info", "shell_completion")
    given = [f"--{option}" for option in shown if getattr(arguments, option)]
    if len(given) > 1:
        raise ConfigurationError(f"only one of {' and '.join(given)} can be given")
    return arguments


def _hydra() -> Hydra:
    started = GlobalHydra.instance().hydra
    assert started is not None
    return started


def _launch(configs: Path, name: str, overrides: list[str], task: launchers.OwnProcess) -> int:
    """Hand the jobs of a sweep to its launcher, wait for all, and say which failed and why."""
    try:
        with hydra.initialize_config_dir(str(configs), job_name=name, version_base="1.3"):
            batches = _hydra().multirun(name, task, overrides)
    except KeyboardInterrupt:
        print("interrupted; what the launcher has begun may go on without it", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        print(
            f"failed: the launcher lost a job ({type(error).__name__}: {one_line(error)[:200]}); "
            "others may still run, the same command goes on with what is not finished",
            file=sys.stderr,
        )
        return FAILED
    outcomes: list[launchers.Outcome] = [job.return_value for batch in batches for job in batch]
    for outcome in outcomes:
        if outcome.status != DONE:
            swept = [override for override in outcome.overrides if override not in overrides]
            print(f"{' '.join(swept)}: {outcome.reason}", file=sys.stderr)
    done = sum(outcome.status == DONE for outcome in outcomes)
    print(f"{done} of {len(outcomes)} jobs finished", file=sys.stderr)
    return max(outcome.exit_status for outcome in outcomes)


def compose(configs: Path, name: str, overrides: list[str], with_hydra: bool = False) -> DictConfig:
    """The configuration that overrides lead to, on request with Hydra's own part.

    Raises:
        ConfigurationError: A key or value is unknown or of a wrong type.

    """
    try:
        with hydra.initialize_config_dir(str(configs), version_base="1.3"):
            config = hydra.compose(name, overrides, return_hydra_config=with_hydra)
        if not with_hydra:
            OmegaConf.to_container(config, resolve=True)  # what an interpolation names is there
        return config
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigurationError(_explain(error, configs, overrides)) from error
    except Exception as error:  # Hydra says a ValueError of a group that is null, and others
        null = [override for override in overrides if override.endswith("=null")]
        told = " ".join(null or overrides)
        raise ConfigurationError(f"cannot compose {told}: {one_line(error)}") from error


def configurations(
    configs: Path,
    name: str,
    jobs: Iterable[Sequence[str]],
    composed: dict[tuple[str, ...], DictConfig] | None = None,
) -> Iterator[DictConfig]:
    """The configurations of many jobs; what differs in the seed alone is composed once.

    Args:
        configs: The folder of configurations.
        name: The primary configuration in it.
        jobs: The overrides of each job.
        composed: What was composed before, by what is not the seed; grows.

    Raises:
        ConfigurationError: As `compose`, at the first such job.

    """
    composed = {} if composed is None else composed
    for job in jobs:
        seeds = [override for override in job if re.fullmatch(r"seed=(0|[1-9]\d*)", override)]
        others = tuple(override for override in job if override not in seeds)
        if others not in composed:
            composed[others] = compose(configs, name, list(others))
        config = composed[others].copy()
        if seeds:
            config.seed = int(seeds[-1].removeprefix("seed="))
        yield config


def _jobs(configs: Path, name: str, overrides: list[str], sweep: bool) -> list[list[str]]:
    """The overrides of every job of a command; a configuration may say what is swept over, too."""
    if not sweep:
        return [overrides]
    try:
        with hydra.initialize_config_dir(str(configs), version_base="1.3"):
            loader = GlobalHydra.instance().config_loader()
            parser = OverridesParser.create(config_loader=loader)
            parsed = parser.parse_overrides(overrides)
        same = [str(o.input_line) for o in parsed if not o.is_sweep_override()]
        sweeper = compose(configs, name, same, with_hydra=True).hydra.sweeper
        swept = [f"{key}={value}" for key, value in (sweeper.get("params") or {}).items()]
        with hydra.initialize_config_dir(str(configs), version_base="1.3"):
            loader = GlobalHydra.instance().config_loader()
            parser = OverridesParser.create(config_loader=loader)
            parsed = parser.parse_overrides([*swept, *overrides])
            batches = BasicSweeper.split_arguments(parsed, max_batch_size=None)
    except HydraException as error:
        raise ConfigurationError(_explain(error, configs, overrides)) from error
    return [list(job) for batch in batches for job in batch]


def _explain(error: Exception, configs: Path, overrides: list[str]) -> str:
    """One line that names the key, what it got and what it accepts."""
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, option = str(error.missing_cfg_file).rpartition("/")
        install = launchers.missing(option) if group == "hydra/launcher" else None
        if install:
            return install
        known = sorted(path.stem for path in (configs / group).glob("*.yaml"))
        return f"{group} must be one of {', '.join(known)}, got {option!r}"
    if isinstance(error, OverrideParseException):
        return _unread(error, overrides)
    given = dict(o.lstrip("+~").partition("=")[::2] for o in overrides)
    cause: BaseException = error
    while cause.__cause__ is not None and not isinstance(cause, OmegaConfBaseException):
        cause = cause.__cause__
    key = str(getattr(cause, "full_key", None) or "")
    if isinstance(error, ConfigCompositionException):
        # Hydra names the override only in its text; the key that is missing is one of those given.
        named = [k for k in given if f"'{k}" in str(error) or k == key]
        key = max(named, key=len, default=key)  # model.x rather than model
    if key.startswith("trainer."):
        check_governed(key.removeprefix("trainer."))
    if "not in struct" in str(cause) or "not in '" in str(cause):
        return _unknown(key, given.get(key), cause)
    if "Cannot merge" in str(cause) and key in given:
        # A list and names do not mix; Hydra can only take the one away and put the other there.
        return f"{key} is of another kind; to replace it: '~{key}' '+{key}={given[key]}'"
    message = str(cause).splitlines()[0]
    return f"{key}: {message}" if key else message


def _unread(error: OverrideParseException, overrides: list[str]) -> str:
    """Why an override cannot be read; what the shell took apart, with the quotes that it lacks."""
    broken = str(error.override)
    at = overrides.index(broken) if broken in overrides else len(overrides)
    for end in range(at + 1, len(overrides) + 1):
        whole = " ".join(overrides[at:end])
        if all(whole.count(a) == whole.count(b) for a, b in ("[]", "{}", "()")):
            if whole == broken:
                break
            return f"the shell took {whole!r} apart: quote it, as {shlex.quote(whole)}"
    key, equals, value = broken.partition("=")
    if not equals:
        return f"{broken!r} is no override: each is key=value, quoted where it has spaces"
    if "=" in value and not value.startswith(("[", "{", "'", '"')):
        quoted = shlex.quote(f"{key}='{value}'")
        return f"{broken!r} has two equals signs: quote the value, as {quoted}"
    return f"cannot read the override {broken!r}: {one_line(error)}"


def _unknown(key: str, value: str | None, cause: BaseException) -> str:
    parent = getattr(cause, "parent_node", None)
    known = sorted(map(str, parent)) if isinstance(parent, DictConfig) else []
    prefix, _, last = key.rpartition(".")
    close = difflib.get_close_matches(last, known, n=1)
    if not close and isinstance(parent, DictConfig):
        close = _elsewhere(parent, last)
    where = f"under {prefix}" if prefix else "at the top"
    meant = f"; did you mean {close[0]!r}?" if close else ";"
    got = f" (got {value!r})" if value is not None else ""
    return f"{key} is no key{got}{meant} Known {where}: {', '.join(known)}"


def _elsewhere(node: DictConfig, name: str) -> list[str]:
    """Whole keys of a configuration that end in a name, the shortest first."""
    root = node._get_root()
    keys = flatten(OmegaConf.to_container(root, resolve=False))
    found = [key for key in keys if key.rpartition(".")[2] == name]
    return sorted(found, key=lambda key: (key.count("."), key))
