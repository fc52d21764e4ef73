"""A sweep on this machine: which runs it has, what each would do, and what they came to.

`scripts/multiple_train.sh` starts the runs; it asks here before the first and after the last:

    python -m ntm.training.sweeps plan <configs> <models> <seeds> <override>...
    python -m ntm.training.sweeps killed <run folder> <reason>
    python -m ntm.training.sweeps table    with the jobs on its standard input
"""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from omegaconf import DictConfig

from ntm.commands import command
from ntm.commands.configuration import (
    FREE,
    ConfigurationError,
    check_values,
    flatten,
    plain,
    quoted,
    telling_apart,
)
from ntm.commands.streams import show
from ntm.folders import runs
from ntm.folders.locks import Held, Lock, holder_of
from ntm.folders.runs import RunFolder

PARENT = "NTM_SWEEP"
"""Environment variable: the process number of the script that started a run."""

FINISHED, RESUMED, SKIPPED = "finished", "resumed", "skipped"
FAILED, HELD, INTERRUPTED, WAITING = "failed", "held", "interrupted", "not started"
"""What can become of a job."""


@dataclass
class Job:
    """One run of a sweep."""

    model: str
    seed: int
    folder: str
    sequences: int
    """Training budget."""
    state: str
    """In a plan, what `RunFolder.standing` says; afterwards, what became of the run."""
    note: str = "-"
    """Who holds the run, or why it failed."""

    @property
    def label(self) -> str:
        """The run in few words."""
        return f"{self.model} seed {self.seed}"

    def line(self) -> str:
        """The job on one line, its fields divided by tabs; none of them is empty."""
        return "\t".join(map(str, astuple(self)))

    @classmethod
    def read(cls, line: str) -> Job:
        """The job on a line that `line` made."""
        model, seed, folder, sequences, state, note = line.rstrip("\n").split("\t", 5)
        return cls(model, int(seed), folder, int(sequences), state, note)


def numbers(text: str, key: str) -> list[int]:
    """The numbers of a list such as ``0-9`` or ``1,4,7``, each once.

    Raises:
        ConfigurationError: It is no such list; ``key`` is what it was given for.

    """
    found: list[int] = []
    for item in text.split(","):
        match = re.fullmatch(r"\s*(\d+)(?:-(\d+))?\s*", item)
        low, high = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if low > high:
            raise ConfigurationError(f"{key} must be such as 0-9 or 1,4,7, got {text!r}")
        found += range(low, high + 1)
    return list(dict.fromkeys(found))


class Plan:
    """Jobs that were checked, with what each would do; writes nothing."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self._configs: list[DictConfig] = []

    def add(self, config: DictConfig) -> None:
        """Check what can be told of a job at once, and remember it.

        Raises:
            ConfigurationError: Names the first key that cannot be.

        """
        check_values(config)
        if config.init_from is not None:
            RunFolder.existing(config.init_from, "init_from")
        self._configs.append(config)

    def settle(self) -> None:
        """Check all that was added, and find what each job would do; loads torch and Lightning.

        Raises:
            ConfigurationError: A configuration cannot be, its folder holds another run, or two
                jobs would write into one folder.

        """
        values = [flatten(plain(config)) for config in self._configs]
        _check_folders(self._configs, values)
        kinds = [_kind(said) for said in values]
        one_of_each: dict[str, DictConfig] = {}
        for kind, config in zip(kinds, self._configs, strict=True):
            one_of_each.setdefault(kind, config)
        found = _found(one_of_each)
        for kind, config in zip(kinds, self._configs, strict=True):
            config.engine, config.evaluation.at, config.evaluation.kinds = found[kind]
            self.jobs.append(_job(config))

    def skips(self, folder: str) -> bool:
        """Whether the run of a folder is one of several, and was finished from the start."""
        states = {job.folder: job.state for job in self.jobs}
        return len(states) > 1 and states.get(folder) == runs.SKIP


def _kind(values: dict[str, Any]) -> str:
    """All that a configuration says, but for its seed and what changes no run."""
    return repr([(k, v) for k, v in values.items() if k.split(".")[0] not in (*FREE, "seed")])


def _found(configs: dict[str, DictConfig]) -> dict[str, tuple[str, Any, Any]]:
    """Engine, points and kinds of each, once all of them can be built."""
    from ntm.training.parts import build_parts

    for config in configs.values():
        build_parts(config)
    from ntm.training.assembly import prepare  # loads Lightning, longer than torch

    settled = {kind: prepare(config).config for kind, config in configs.items()}
    return {
        kind: (config.engine, config.evaluation.at, config.evaluation.kinds)
        for kind, config in settled.items()
    }


def _job(config: DictConfig) -> Job:
    folder = RunFolder(config.folder)
    whole = -(-config.sequences // config.batch_size) * config.batch_size
    state = runs.START if config.trainer.fast_dev_run else folder.standing(config)
    held = None if state == runs.SKIP else holder_of(folder.path)
    return Job(config.model.name, config.seed, config.folder, whole, state, held or "-")


def _check_folders(configs: Sequence[DictConfig], values: Sequence[dict[str, Any]]) -> None:
    """Refuse jobs that would write into one folder: names two, and what tells all apart."""
    folders: dict[str, list[dict[str, Any]]] = {}
    for config, said in zip(configs, values, strict=True):
        folders.setdefault(os.path.realpath(config.folder), []).append(said)
    shared = [same for same in folders.values() if len(same) > 1]
    if not shared:
        return
    differing = {key: None for same in shared for key in _apart(same)}
    first, second, *_ = shared[0]
    folder = first["folder"]
    apart = _apart([first, second])
    if not apart:
        raise ConfigurationError(f"{folder} is the folder of two runs that are the same run")
    one, other = (" ".join(f"{key}={job.get(key)}" for key in apart) for job in (first, second))
    name = "_".join(["${task.name}", *(f"${{{key}}}" for key in differing)])
    raise ConfigurationError(
        f"{one} and {other} would share the folder {folder}; add \"name='{name}'\", "
        "which gives each run its own"
    )


def _apart(configs: Sequence[dict[str, Any]]) -> list[str]:
    """The fewest keys of all runs that tell them apart; all they differ in if none do."""
    keys = {key: None for config in configs for key in config if key.split(".")[0] not in FREE}
    shared = [key for key in keys if all(key in config for config in configs)]
    differing = [key for key in keys if len({repr(config.get(key)) for config in configs}) > 1]
    return telling_apart(configs, shared) or differing


def plan(
    configs: Path, models: Sequence[str], seeds: Sequence[int], overrides: Sequence[str]
) -> tuple[list[Job], int, list[str]]:
    """Check every job of a sweep, and tell what each would do; writes nothing.

    Args:
        configs: The folder of configurations.
        models: Choices of the group ``model``.
        seeds: Of every model.
        overrides: Of every job.

    Returns:
        The jobs, model by model, the threads that each uses, and the GPUs to share them out over.

    Raises:
        ConfigurationError: A job's configuration cannot be, or its folder holds another run.

    """
    if not models:
        raise ConfigurationError("MODELS must name one model or more, such as 'ntm lstm'")
    for override in overrides:
        variable = {"model": "MODELS", "seed": "SEEDS"}.get(override.partition("=")[0])
        if variable:
            raise ConfigurationError(
                f"{override} must be given before the command, as {variable}=…"
            )
    given = [[f"model={model}", *overrides, f"seed={seed}"] for model in models for seed in seeds]
    configurations = list(command.configurations(configs, "train", given))
    checked = Plan()
    for config in configurations:
        checked.add(config)
    checked.settle()
    from ntm.accelerators import gpus  # loads torch

    one_device = all(str(config.trainer.devices) == "1" for config in configurations)
    spread = gpus() if one_device and any(map(_may_use_a_gpu, configurations)) else []
    return checked.jobs, max(config.threads for config in configurations), spread


def _may_use_a_gpu(config: DictConfig) -> bool:
    return config.trainer.accelerator != "cpu"


def outcome(planned: Job) -> Job:
    """What became of a planned job, as far as its run folder tells."""
    folder = RunFolder(planned.folder)
    result = folder.read_result()
    status = result.get("status")
    holder = holder_of(folder.path)
    if planned.state == runs.SKIP:
        state = SKIPPED
    elif status == runs.FINISHED:
        state = RESUMED if planned.state == runs.RESUME else FINISHED
    elif holder:
        state = HELD
    elif status == runs.FAILED:
        state = FAILED
    else:
        state = WAITING if status is None else INTERRUPTED
    return Job(**{**vars(planned), "state": state, "note": holder or result.get("reason") or "-"})


def killed(folder: RunFolder, reason: str) -> None:
    """Put into result.json why a run's process ended without a word."""
    if folder.read_result().get("status") != runs.RUNNING:
        return
    try:
        with Lock(folder.path):
            folder.write_result(status=runs.FAILED, reason=reason)
    except Held:
        pass  # another sweep goes on with it


def table(jobs: Sequence[Job]) -> None:
    """Print what every job came to, each model in a line, and what is to be done."""
    from rich.console import Console
    from rich.table import Table

    results = [RunFolder(job.folder).read_result() for job in jobs]
    several = len({(job.model, job.seed) for job in jobs}) < len(jobs)
    titles = [_title(job, several) for job in jobs]
    shown = Table(title=f"{len(jobs)} runs")
    shown.add_column("run", no_wrap=True)
    shown.add_column("state")
    goals = {runs.reached(result)[0] for result in results if _is_finished(result)}
    goal = goals.pop() if len(goals) == 1 else "at the end"
    for name in ("solved at", goal, "sequences", "time"):
        shown.add_column(name, justify="right")
    for title, one, result in zip(titles, jobs, results, strict=True):
        shown.add_row(f"{title} seed {one.seed}", *_cells(one, result))
    console = Console(markup=False, highlight=False)
    show(shown)
    for title in dict.fromkeys(titles):
        of_title = [r for own, r in zip(titles, results, strict=True) if own == title]
        console.print(_summary(title, of_title), soft_wrap=True)
    for title, one in zip(titles, jobs, strict=True):
        if one.state in (FAILED, HELD):
            failed = f"{one.state}: {title} seed {one.seed}: {one.note}"
            console.print(failed, markup=False, soft_wrap=True)
    open_ = sum(one.state not in (FINISHED, RESUMED, SKIPPED) for one in jobs)
    if open_:
        console.print(f"The same command again goes on with {open_} of {len(jobs)} runs.")
    names = {Path(job.folder).parent.parent for job in jobs}
    root = os.path.commonpath(names) if several else Path(jobs[0].folder).parent.parent
    console.print(f"Curves and pictures: tensorboard --logdir {quoted(root)}", soft_wrap=True)


def _title(job: Job, several: bool) -> str:
    """Runs that differ in their seed: their model, and the name where there are several."""
    return f"{Path(job.folder).parent.parent.name} {job.model}" if several else job.model


def _cells(one: Job, result: dict[str, Any]) -> tuple[str, ...]:
    done = result.get("sequences")
    seconds = result.get("seconds")
    solved, reached = "", ""
    if _is_finished(result):
        at = result["sequences_to_solve"]
        solved, reached = f"{at:,}" if at else "no", f"{runs.reached(result)[1]:.3f}"
    whole = done is None or done >= one.sequences
    return (
        one.state,
        solved,
        reached,
        "" if done is None else f"{done:,}" if whole else f"{done:,} of {one.sequences:,}",
        "" if seconds is None else duration(seconds),
    )


def _is_finished(result: dict[str, Any]) -> bool:
    return result.get("status") == runs.FINISHED


def _summary(model: str, results: list[dict[str, Any]]) -> str:
    finished = [result for result in results if _is_finished(result)]
    solved = sorted(r["sequences_to_solve"] for r in finished if r["sequences_to_solve"])
    text = f"{model}: {len(finished)} of {len(results)} finished, {len(solved)} solved"
    if not solved:
        return text
    return f"{text}, at {solved[0]:,} to {solved[-1]:,} sequences, median {median(solved):,.0f}"


def duration(seconds: float) -> str:
    """Seconds as minutes and seconds, with hours where there are any: ``2:05``, ``1:02:05``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def end_with_script() -> None:
    """In a run that the script started: end, by SIGTERM, when the script is gone."""
    # Taken out: the script is not the parent of processes that this one starts.
    parent = os.environ.pop(PARENT, None)
    if parent is not None:
        threading.Thread(target=_end_without, args=(int(parent),), daemon=True).start()


def _end_without(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)


def _main(task: str, *arguments: str) -> int:
    if task == "plan":
        configs, models, seeds, *overrides = arguments
        asked = models.split(), numbers(seeds, "SEEDS"), overrides
        jobs, threads, spread = plan(Path(configs), *asked)
        print(max(1, _cores() // threads), ",".join(spread) or "-", sep="\t")
        print(*(one.line() for one in jobs), sep="\n")
    elif task == "killed":
        killed(RunFolder(arguments[0]), arguments[1])
    elif task == "table":
        table([Job.read(line) for line in sys.stdin])
    return command.DONE


def _cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on every system
        return os.cpu_count() or 1


if __name__ == "__main__":
    try:
        sys.exit(_main(*sys.argv[1:]))
    except ConfigurationError as error:
        print(error, file=sys.stderr)
        sys.exit(command.WRONG)
    except KeyboardInterrupt:
        sys.exit(command.INTERRUPTED)
