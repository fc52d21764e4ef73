"""Settings searched for by Optuna: a trial is the same seeds with other settings.

    python scripts/search.py 'optimizer.lr=tag(log,interval(1e-4,3e-2))' model=lstm
    python scripts/search.py … trials=20 seeds=100-102 name=lstm_rate sequences=10000

What is swept over is searched, in Hydra's words: `interval(a,b)`, `int(interval(a,b))`, either in
`tag(log,…)`, `range(a,b)`, `choice(a,b)` or `a,b`; the rest are overrides of `run_train.py`. Each
seed is a run of its own, `outputs/<name>/trial_<n>/seed_<seed>/`. A trial's value is the median
over its seeds of the task's own metric, each at its best validation. A trial that is worse than the
median of the others were at the same validation of the same seed is stopped.

The same command again goes on where it stopped, was killed too, and `trials=` may grow; given
several times at once, its processes share the trials. Exit status as of `run_train.py`.
"""

from __future__ import annotations

import math
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from filelock import BaseFileLock, FileLock, Timeout
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep
from hydra.errors import OverrideParseException
from rich.table import Table

from ntm.commands import command
from ntm.commands.command import DONE, FAILED, INTERRUPTED, WRONG
from ntm.commands.configuration import ConfigurationError, one_line
from ntm.commands.launchers import WATCHED
from ntm.commands.streams import show
from ntm.folders import runs
from ntm.folders.runs import RunFolder, in_words, read_rows
from ntm.training import sweeps
from ntm.training.assembly import prepare

try:
    import optuna
    from optuna import Study
    from optuna.distributions import (
        BaseDistribution,
        CategoricalDistribution,
        FloatDistribution,
        IntDistribution,
    )
    from optuna.pruners import MedianPruner
    from optuna.storages import BaseStorage, JournalStorage
    from optuna.storages.journal import JournalFileBackend
    from optuna.trial import FrozenTrial, Trial, TrialState
except ModuleNotFoundError:
    print("scripts/search.py needs Optuna: pip install -e '.[search]'", file=sys.stderr)
    sys.exit(WRONG)

ROOT = Path(__file__).resolve().parent.parent
QUIET = ["trainer.enable_progress_bar=false", "trainer.enable_model_summary=false"]
OWN = {"trials": "20", "seeds": "100-102", "name": "search"}
"""What is the search's and not the runs', with what it is if it is not given."""
DRAWN_BLINDLY = 5
"""Trials before the first that learns from others."""
NEVER_STOPPED = 4
"""Trials to be whole before the first is stopped for being worse."""
SECONDS_BETWEEN_LOOKS = 0.2


class Failed(Exception):
    """A run ended with another status than 0, for a reason that is not its settings'."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status


@dataclass(frozen=True)
class Search:
    """What a command asks for."""

    folder: Path
    trials: int
    seeds: list[int]
    space: dict[str, BaseDistribution]
    overrides: list[str]
    """Of every run."""
    metric: str = ""
    """What is to become small, of the task's goal: wrong_bits_per_sequence."""
    validations: int = 0
    """Of a run."""

    def of_run(self, number: int, seed: int, settings: dict[str, Any]) -> list[str]:
        """The overrides of one run."""
        place = as_unquoted("folder", str(self.folder / f"trial_{number:03d}" / f"seed_{seed}"))
        return [*self.overrides, *as_words(settings), f"seed={seed}", place]

    @property
    def asked(self) -> dict[str, Any]:
        """What may not change when a search goes on."""
        space = {key: str(values) for key, values in self.space.items()}
        return {"space": space, "overrides": sorted(self.overrides), "seeds": self.seeds}


def as_unquoted(key: str, value: str) -> str:
    """An override as Hydra reads it, from a program and not a shell."""
    quoted = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"{key}='{quoted}'"


def as_words(settings: dict[str, Any]) -> list[str]:
    """Settings as overrides."""
    shown = {key: str(v).lower() if isinstance(v, bool) else v for key, v in settings.items()}
    return [f"{key}={value}" for key, value in shown.items()]


def read(words: Sequence[str]) -> Search:
    """The search that a command line asks for, checked; writes nothing.

    Raises:
        ConfigurationError: It cannot be.

    """
    own = dict(OWN)
    rest = []
    for word in words:
        key, _, value = word.partition("=")
        if key in own:
            own[key] = value
        else:
            rest.append(word)
    if not own["trials"].isdigit() or int(own["trials"]) < 1:
        raise ConfigurationError(f"trials must be a number of at least 1, got {own['trials']!r}")
    try:
        parsed = OverridesParser.create().parse_overrides(rest)
    except OverrideParseException as error:
        raise ConfigurationError(f"cannot read {error.override!r}: {one_line(error)}") from error
    space = {str(o.key_or_group): distribution(o) for o in parsed if o.is_sweep_override()}
    if not space:
        raise ConfigurationError(
            "one key or more must be searched, such as "
            "'optimizer.lr=tag(log,interval(1e-4,3e-2))'; got none"
        )
    same = [str(o.input_line) for o in parsed if not o.is_sweep_override()]
    search = Search(
        Path("outputs") / own["name"],
        int(own["trials"]),
        sweeps.numbers(own["seeds"], "seeds"),
        space,
        [*same, f"name={own['name']}", *QUIET],
    )
    return checked(search)


def distribution(override: Override) -> BaseDistribution:
    """What Optuna draws from, for an override that Hydra would sweep over.

    Raises:
        ConfigurationError: It cannot be drawn from.

    """
    key, values = override.key_or_group, override.value()
    if key == "seed":
        raise ConfigurationError("seed is not searched: seeds=100-102 are those of every trial")
    try:
        if isinstance(values, IntervalSweep):
            whole = isinstance(values.start, int) and isinstance(values.end, int)
            kind = IntDistribution if whole else FloatDistribution
            return kind(values.start, values.end, log="log" in values.tags)
        if isinstance(values, RangeSweep) and isinstance(values.step, int):
            high = max(values.start, values.stop - 1)
            return IntDistribution(values.start, high, step=values.step)
        if isinstance(values, ChoiceSweep):
            return CategoricalDistribution(list(values.list))
    except (TypeError, ValueError) as error:
        raise ConfigurationError(f"{key} cannot be searched: {one_line(error)}") from error
    raise ConfigurationError(
        f"{key} must be interval(a,b), range(a,b) of whole numbers or choice(a,b), "
        f"got {override.input_line!r}"
    )


def checked(search: Search) -> Search:
    """The same with what its task says; both ends of everything searched are tried.

    Raises:
        ConfigurationError: A run could not begin.

    """
    for end in (0, -1):
        settings = {key: ends(values)[end] for key, values in search.space.items()}
        *given, _ = search.of_run(0, search.seeds[0], settings)
        free = as_unquoted("folder", str(search.folder / "none"))
        run = prepare(command.compose(ROOT / "configs", "train", [*given, free]))
    return replace(search, metric=run.task.solved.metric, validations=run.data.epochs)


def ends(values: BaseDistribution) -> tuple[Any, ...]:
    """The first and last of what is searched."""
    if isinstance(values, CategoricalDistribution):
        return values.choices
    assert isinstance(values, (FloatDistribution, IntDistribution))
    return values.low, values.high


def opened(search: Search) -> tuple[Study, BaseStorage]:
    """The search's trials so far, those of all processes that are at it, and where they are kept.

    Raises:
        ConfigurationError: They are of another search.

    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    warnings.filterwarnings("ignore", ".*already reported.*")  # a trial that goes on
    runs.check_writable(search.folder)
    search.folder.mkdir(parents=True, exist_ok=True)
    with FileLock(search.folder / "search.lock"):
        storage = JournalStorage(JournalFileBackend(str(search.folder / "search.journal")))
        study = optuna.create_study(
            study_name="search",
            storage=storage,
            pruner=MedianPruner(NEVER_STOPPED, search.validations // 4),
            load_if_exists=True,
        )
        before = study.user_attrs.get("asked", search.asked)
        study.set_user_attr("asked", before)
    differing = [key for key, value in search.asked.items() if before[key] != value]
    if differing:
        raise ConfigurationError(
            f"{search.folder} holds a search with other {' and '.join(differing)}: "
            "set name=… to search beside it"
        )
    return study, storage


def each_trial(study: Study, storage: BaseStorage, search: Search) -> Iterator[Trial]:
    """The trials of this process: those that one has left which is gone, then new ones."""
    while True:
        with FileLock(search.folder / "search.lock"):
            trial, lock = next_trial(study, storage, search)
        if trial is None:
            return
        try:
            yield trial
        finally:
            lock.release()


def next_trial(
    study: Study, storage: BaseStorage, search: Search
) -> tuple[Trial | None, BaseFileLock]:
    """One that nobody is at, and its lock, held; none if all are done or somebody's."""
    known = study.get_trials(deepcopy=False)
    lock = trial_lock(search, len(known))
    begun = [trial.number for trial in known if trial.state == TrialState.RUNNING]
    for number in begun:
        lock = trial_lock(search, number)
        with suppress(Timeout):
            lock.acquire(timeout=0)
            study.sampler = sampler(number)
            of_study = storage.get_study_id_from_name(study.study_name)
            trial = Trial(study, storage.get_trial_id_from_study_id_trial_number(of_study, number))
            draw(trial, search)
            return trial, lock
    if len(known) >= search.trials:
        return None, lock
    lock = trial_lock(search, len(known))
    lock.acquire()
    study.sampler = sampler(len(known))
    trial = study.ask()
    draw(trial, search)
    return trial, lock


def trial_lock(search: Search, number: int) -> BaseFileLock:
    """What the process that is at a trial holds; the system takes it from one that is gone."""
    return FileLock(search.folder / f"trial_{number:03d}.lock")


def sampler(number: int) -> optuna.samplers.BaseSampler:
    """What draws a trial: by its number, so that a search that was stopped draws the same."""
    return optuna.samplers.TPESampler(
        n_startup_trials=DRAWN_BLINDLY, constant_liar=True, seed=number
    )


def draw(trial: Trial, search: Search) -> None:
    """Draw what a trial does not have yet."""
    for key, values in search.space.items():
        if isinstance(values, CategoricalDistribution):
            trial.suggest_categorical(key, values.choices)
        elif isinstance(values, IntDistribution):
            trial.suggest_int(key, values.low, values.high, step=values.step, log=values.log)
        elif isinstance(values, FloatDistribution):
            trial.suggest_float(key, values.low, values.high, log=values.log)


def run_trial(study: Study, trial: Trial, search: Search) -> None:
    """Train every seed, unless it is stopped, and tell Optuna what it came to.

    Raises:
        Failed: A run failed for another reason than its settings.

    """
    settings = trial.params
    name = f"trial {trial.number} ({' '.join(as_words(settings))})"
    found = []
    for place, seed in enumerate(search.seeds):
        best, why = run_seed(trial, search, place, seed, settings)
        if why is not None:
            say(f"{name}: stopped at seed {seed}, {why}")
            trial.set_user_attr("stopped", f"seed {seed}: {why}")
            study.tell(trial, state=TrialState.PRUNED)
            return
        found.append(best)
        trial.set_user_attr(f"seed {seed}", best)
        say(f"{name}: seed {seed} {best:.4g}")
    study.tell(trial, median(found))


def run_seed(
    trial: Trial, search: Search, place: int, seed: int, settings: dict[str, Any]
) -> tuple[float, str | None]:
    """Train a seed: its best validation, and why it was stopped if it was."""
    overrides = search.of_run(trial.number, seed, settings)
    folder = RunFolder(search.folder / f"trial_{trial.number:03d}" / f"seed_{seed}")
    best = math.inf
    told = 0
    with Process(overrides) as process:
        running = True
        while running:
            running = process.runs()  # asked first: what it has written by then is all
            values = validations(folder, search.metric)
            for value in values[told:]:
                told, best = told + 1, min(best, value)
                trial.report(best, place * search.validations + told)
                if trial.should_prune():
                    return best, f"at {best:.4g} worse than the median after validation {told}"
    reason = str(folder.read_result().get("reason"))
    if process.status == FAILED and reason.startswith("Diverged"):
        return best, reason
    if process.status != DONE:
        raise Failed(process.status, process.last)
    return best, None


def validations(folder: RunFolder, metric: str) -> list[float]:
    """The task's metric at every validation so far."""
    if not folder.metrics.is_file():
        return []
    return [float(row[f"val/{metric}"]) for row in read_rows(folder.metrics)]


class Process:
    """One run, a command of its own, which ends with this process; stopped where it is left."""

    def __init__(self, overrides: list[str]) -> None:
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed when the run is over
        self._process = subprocess.Popen(
            [sys.executable, str(ROOT / "run_train.py"), *overrides],
            env=os.environ | {WATCHED: "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=self._said,
            start_new_session=True,
        )
        self.status = 0
        self.last = ""
        """The last line that it said."""

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.terminate()
        code = self._process.wait()
        self.status = code if code >= 0 else FAILED
        self._said.seek(0)
        lines = self._said.read().split("\n")
        self.last = next((line for line in reversed(lines) if line.strip()), f"killed ({code})")
        self._said.close()

    def runs(self) -> bool:
        """Whether it goes on, after a while."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(SECONDS_BETWEEN_LOOKS)
        return self._process.poll() is None


def say(line: str) -> None:
    """Say how it goes."""
    print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)


def report(study: Study, search: Search) -> None:
    """Print every trial, the best first, and the command that trains with its settings."""
    trials = sorted(study.get_trials(deepcopy=False), key=rank)
    table = Table(title=f"{in_words(search.metric)} at the best validation, by seed")
    for heading in ("trial", *search.space, "median", *map(str, search.seeds), ""):
        table.add_column(heading, no_wrap=True)
    for trial in trials:
        told = trial.user_attrs
        table.add_row(
            str(trial.number),
            *(in_short(trial.params.get(key)) for key in search.space),
            in_short(trial.value if trial.state == TrialState.COMPLETE else None),
            *(in_short(told.get(f"seed {seed}")) for seed in search.seeds),
            told.get("stopped", "" if trial.state == TrialState.COMPLETE else "not finished"),
        )
    show(table)
    if trials and trials[0].state == TrialState.COMPLETE:
        given = [word for word in search.overrides if word not in QUIET]
        best = shlex.join([*given[:-1], *as_words(trials[0].params)])
        print(f"The best: python run_train.py {best}")
    print(f"All of it: python run_compare.py runs={search.folder} 'by=[{','.join(search.space)}]'")


def rank(trial: FrozenTrial) -> tuple[bool, float, int]:
    """Whole trials first, by their value."""
    whole = trial.state == TrialState.COMPLETE
    return not whole, (trial.value or 0.0) if whole else 0.0, trial.number


def in_short(value: Any) -> str:
    """A value in a table."""
    return "–" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def main(words: Sequence[str]) -> int:
    """Search, print the table, and return the exit status."""
    if not words or set(words) & {"-h", "--help"}:
        print(__doc__)
        return DONE
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        search = read(words)
        study, storage = opened(search)
        for trial in each_trial(study, storage, search):
            run_trial(study, trial, search)
        report(study, search)
    except ConfigurationError as error:
        print(error, file=sys.stderr)
        return WRONG
    except Failed as failed:
        print(failed, file=sys.stderr)
        return failed.status
    except KeyboardInterrupt:
        print("interrupted; the same command goes on", file=sys.stderr)
        return INTERRUPTED
    return DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
