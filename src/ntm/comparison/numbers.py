"""Models compared over their seeds: numbers from run folders alone, for tables and figures."""

from __future__ import annotations

import itertools
import math
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from omegaconf import DictConfig

from ntm.commands.configuration import ConfigurationError, differences, one_line
from ntm.folders import runs
from ntm.folders.runs import RunFolder, read_rows

CURVES = (
    "train/wrong_bits_per_sequence",
    "val/wrong_bits_per_sequence",
    "train/loss",
    "val/loss",
)
"""Columns of metrics.csv that are drawn."""
RESAMPLINGS = 10_000
CONFIDENCE = 0.95
BOOTSTRAP_SEED = 0


@dataclass(frozen=True)
class Run:
    """What a run folder says of its run."""

    path: Path
    name: str
    """Of the folder: ``seed_3``."""
    config: DictConfig
    result: dict[str, Any]
    """result.json; empty where there is none that can be read."""
    metrics: dict[str, np.ndarray]
    """metrics.csv by column, one value a validation; empty where there is none."""
    difficulty: str
    """What evaluations are listed by: ``length``."""
    evaluations: list[dict[str, float]]
    """Rows of eval/results.csv for best.ckpt; what is absent is nan."""

    @property
    def status(self) -> str:
        """As in result.json, or ``no result`` before there is one."""
        return str(self.result.get("status", "no result"))

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return self.status == runs.FINISHED

    @property
    def sequences(self) -> int:
        """Sequences seen at the last validation."""
        return int(self.metrics["sequences"][-1]) if self.metrics else 0


@dataclass(frozen=True)
class Model:
    """Runs that differ in their seed: those in one folder."""

    label: str
    path: Path
    runs: list[Run]

    @property
    def ended(self) -> list[Run]:
        """Runs with a verdict: finished, or failed and so never solved."""
        return [run for run in self.runs if run.finished or run.status == runs.FAILED]

    def results(self, key: str) -> np.ndarray:
        """A number of result.json, of each finished run that has it."""
        values = [run.result.get(key) for run in self.runs if run.finished]
        return np.array([v for v in values if isinstance(v, (int, float))], float)

    def sequences_to_solve(self) -> np.ndarray:
        """Of each run that ended, ``inf`` where it did not solve its task."""
        solved = [run.result.get("sequences_to_solve") for run in self.ended]
        return np.array([math.inf if value is None else value for value in solved], float)

    def training_range(self) -> tuple[int, int] | None:
        """Least and greatest difficulty that its runs trained on, where they say so."""
        stages = [stage for run in self.runs for stage in run.result.get("stages", [])]
        if not stages:
            return None
        # Of the one number, or the first; runs of before name none.
        found = [stage.get("range") or next(iter(stage["ranges"].values())) for stage in stages]
        lows, highs = zip(*found, strict=True)
        return min(lows), max(highs)


@dataclass(frozen=True)
class Comparison:
    """All runs below a folder, by model."""

    root: Path
    models: list[Model]
    notes: list[str]
    """What a reader should know of runs that are unfinished, damaged or unlike the others."""

    @property
    def difficulty(self) -> str:
        """What evaluations are listed by: ``length``."""
        names = [run.difficulty for model in self.models for run in model.runs if run.evaluations]
        return names[0] if names else "length"


class Band(NamedTuple):
    """A metric over the runs of a model, at the validations that they share."""

    sequences: np.ndarray
    runs: np.ndarray
    """How many runs got as far."""
    mean: np.ndarray
    sd: np.ndarray
    """Sample standard deviation over runs; nan for a single one."""
    median: np.ndarray
    lower_quartile: np.ndarray
    upper_quartile: np.ndarray


class Difference(NamedTuple):
    """A quantity of two models, and how sure their difference is."""

    quantity: str
    first: str
    second: str
    first_mean: float
    second_mean: float
    difference: float
    low: float
    """Ends of the confidence interval; nan where a model has a single run."""
    high: float
    first_runs: int
    second_runs: int


def find_runs(root: str | Path) -> list[Path]:
    """Every run folder below ``root``, in order of path.

    Raises:
        ConfigurationError: There is none.

    """
    if not Path(root).is_dir():
        why = "is a file" if Path(root).exists() else "does not exist"
        raise ConfigurationError(f"runs must be a folder of run folders, got {root}, which {why}")
    if (Path(root) / "config.yaml").is_file():
        raise ConfigurationError(
            f"runs must be a folder of run folders, got the run folder {root} itself; "
            f"give the folder above, {Path(root).resolve().parent}"
        )
    found = []
    for path, folders, files in os.walk(root):
        if "config.yaml" in files:
            found.append(Path(path))
            folders.clear()  # what lies in a run folder is the run's
        folders.sort(key=_natural)
    if not found:
        raise ConfigurationError(
            f"runs must be a folder of run folders, got {root}, in which no folder has a "
            "config.yaml; run_train.py makes them"
        )
    return found


def compare(root: str | Path) -> Comparison:
    """Read every run below a folder; what cannot be read is noted and left out.

    Raises:
        ConfigurationError: There is no run that can be read.

    """
    root = Path(root)
    notes: list[str] = []
    read = [read_run(path, str(path.relative_to(root)), notes) for path in find_runs(root)]
    found = [run for run in read if run is not None]
    if not found:
        raise ConfigurationError(f"runs must hold a run that can be read: {'; '.join(notes)}")
    by_folder: dict[Path, list[Run]] = {}
    for run in found:
        by_folder.setdefault(run.path.parent, []).append(run)
    models = []
    for path, members in by_folder.items():
        label = path.resolve().name if path == root else str(path.relative_to(root))
        models.append(Model(label, path, members))
    for model in models:
        notes += _remarks(model)
    return Comparison(root, models, notes)


def read_run(path: Path, label: str, notes: list[str]) -> Run | None:
    """A run from its folder; adds to ``notes`` what cannot be read.

    Returns:
        None where config.yaml does not describe a run.

    """
    folder = RunFolder(path)

    def attempt(what: Path, read: Callable[[], Any], otherwise: Any, lacks: str) -> Any:
        try:
            return read()
        except FileNotFoundError:
            return otherwise
        except Exception as error:  # a damaged file can raise anything
            reason = f"{type(error).__name__}: {one_line(error)}"[:160]
            notes.append(f"{label}: {what.relative_to(path)} cannot be read ({reason}); {lacks}")
            return otherwise

    config = attempt(folder.config, folder.read_config, None, "the run is left out")
    if config is None:
        return None
    if not {"task", "model", "seed"} <= set(config):
        notes.append(f"{label}: config.yaml is not that of a run; left out")
        return None
    result = attempt(folder.result, lambda: _mapping(folder.read_result()), {}, "no results")
    metrics = attempt(folder.metrics, lambda: read_metrics(folder.metrics), {}, "no curve")
    table = folder.evaluations
    if not table.is_file():  # a run of before
        table = table.with_name("lengths.csv")
    numbers, evaluations = attempt(
        table, lambda: read_evaluations(folder), (["length"], []), "no evaluations"
    )
    difficulty = numbers[0]
    if len(numbers) > 1 and evaluations:
        notes.append(
            f"{label}: its evaluations are by {' and '.join(numbers)} and stand in "
            f"{table.relative_to(path)}; charts and tables here are by one number"
        )
        evaluations = []
    return Run(path, path.name, config, result, metrics, difficulty, evaluations)


def read_metrics(path: Path) -> dict[str, np.ndarray]:
    """The columns of a metrics.csv as numbers; empty before the first validation.

    Raises:
        ValueError: A value is no number, a column is missing, or rows are out of order.

    """
    table = read_rows(path)
    if not table:
        if path.stat().st_size:
            raise ValueError("no whole line")
        return {}
    absent = [name for name in ("sequences", *CURVES) if name not in table[0]]
    if absent:
        raise ValueError(f"no column {', '.join(absent)}")
    columns = {name: _numbers(name, (row[name] for row in table)) for name in table[0]}
    if (np.diff(columns["sequences"]) <= 0).any():
        raise ValueError("sequences do not grow")
    return columns


def read_evaluations(folder: RunFolder) -> tuple[list[str], list[dict[str, float]]]:
    """The task's numbers, and rows of results.csv for best.ckpt on sequences as drawn."""
    table = [
        row
        for row in folder.read_evaluations()
        if row["checkpoint"] == "best" and row["kind"] == "drawn"
    ]
    if not table:
        return ["length"], []
    columns = list(table[0])
    rows = [
        {name: float(row[name] or "nan") for name in columns if name not in ("checkpoint", "kind")}
        for row in table
    ]
    return columns[: columns.index("kind")], rows


def band(model: Model, column: str) -> Band:
    """A metric over the runs of a model.

    A point is one where every run that got as far was validated. Beyond the end of the shortest
    run the numbers are over fewer runs.
    """
    curves = [
        dict(zip(run.metrics["sequences"].tolist(), run.metrics[column].tolist(), strict=True))
        for run in model.runs
        if column in run.metrics
    ]
    ends = [max(curve) for curve in curves]
    shared: list[float] = []
    values: list[list[float]] = []
    for at in sorted({at for curve in curves for at in curve}):
        due = [curve for curve, end in zip(curves, ends, strict=True) if end >= at]
        if all(at in curve for curve in due):
            shared.append(at)
            values.append([curve[at] for curve in due])
    quartiles = [np.percentile(v, (25, 50, 75)) for v in values]
    lower, median, upper = np.array(quartiles, float).reshape(-1, 3).T
    return Band(
        np.array(shared, int),
        np.array([len(v) for v in values], int),
        np.array([np.mean(v) for v in values], float),
        np.array([_sd(v) for v in values], float),
        median,
        lower,
        upper,
    )


def model_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """One row a model: what its seeds came to. None stands for what there is no number of."""
    return [_model_row(model) for model in comparison.models]


def run_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """One row a run."""
    keys = (
        "sequences_to_first_solve",
        "sequences_to_solve",
        "wrong_bits_per_sequence",
        "bits_per_sequence",
        "seconds",
        "sequences_per_second",
        "parameters",
    )
    return [
        {
            "model": model.label,
            "run": run.name,
            "seed": run.config.seed,
            "status": run.status,
            "sequences": run.sequences,
            **{key: _known(run.result.get(key)) for key in keys},
        }
        for model in comparison.models
        for run in model.runs
    ]


def length_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """One row a model, memory size and length: its runs with best.ckpt there."""
    rows = []
    for model in comparison.models:
        for (size, length), evaluated in evaluations(model).items():
            wrong = [row["wrong_bits_per_sequence"] for row in evaluated]
            exact = [row["exact"] for row in evaluated]
            rows.append(
                {
                    "model": model.label,
                    "memory_size": None if size is None else int(size),
                    comparison.difficulty: int(length),
                    "runs": len(evaluated),
                    "sequences_each": int(min(row["sequences"] for row in evaluated)),
                    "wrong_bits_mean": float(np.mean(wrong)),
                    "wrong_bits_sd": _known(_sd(wrong)),
                    "wrong_bits_median": float(np.median(wrong)),
                    "wrong_bits_worst": max(wrong),
                    "bits_mean": float(np.mean([row["bits_per_sequence"] for row in evaluated])),
                    "accuracy_mean": float(np.mean([row["accuracy"] for row in evaluated])),
                    "exact_mean": float(np.mean(exact)),
                    "exact_sd": _known(_sd(exact)),
                    "runs_without_error": sum(value == 0 for value in wrong),
                }
            )
    return rows


def curve_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """One row a model, metric and validation: what `band` says."""
    return [
        {
            "model": model.label,
            "metric": column,
            **dict(zip(Band._fields, map(_known, point), strict=True)),
        }
        for model in comparison.models
        for column in CURVES
        for point in zip(*(part.tolist() for part in band(model, column)), strict=True)
    ]


def difference_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """One row a quantity and pair of models, second minus first, with its interval."""
    pairs = itertools.combinations(comparison.models, 2)
    found = [d for first, second in pairs for d in _differences(comparison, first, second)]
    return [{name: _known(value) for name, value in d._asdict().items()} for d in found]


def evaluations(model: Model) -> dict[tuple[float | None, float], list[dict[str, float]]]:
    """Rows of a model's runs by (memory size, length), in this order."""
    by_setting: dict[tuple[float | None, float], list[dict[str, float]]] = {}
    for run in model.runs:
        for row in run.evaluations:
            size = None if math.isnan(row["memory_size"]) else row["memory_size"]
            by_setting.setdefault((size, row[run.difficulty]), []).append(row)
    return dict(sorted(by_setting.items(), key=lambda item: (item[0][0] or 0, item[0][1])))


def bootstrap(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """Interval for the difference of means, second minus first: the percentile bootstrap.

    The values of each are drawn anew with replacement, apart from the other's; the generator
    starts from the same seed at every call.

    Returns:
        The ends of the interval; nan where one of them has a single value, which has no spread.

    """
    if min(len(first), len(second)) < 2:
        return math.nan, math.nan
    rng = np.random.default_rng(BOOTSTRAP_SEED)
    means = []
    for values in (first, second):
        drawn = rng.integers(0, len(values), (RESAMPLINGS, len(values)))
        means.append(values[drawn].mean(1))
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(means[1] - means[0], (tail, 100 - tail))
    return float(low), float(high)


def _model_row(model: Model) -> dict[str, Any]:
    solve = model.sequences_to_solve()
    wrong, bits = model.results("wrong_bits_per_sequence"), model.results("bits_per_sequence")
    seconds, speed = model.results("seconds"), model.results("sequences_per_second")
    return {
        "model": model.label,
        "runs": len(model.runs),
        "finished": sum(run.finished for run in model.runs),
        "failed": sum(run.status == runs.FAILED for run in model.runs),
        "unfinished": len(model.runs) - len(model.ended),
        "solved": int(np.isfinite(solve).sum()),
        "sequences_to_solve_median": _known(np.median(solve)) if len(solve) else None,
        "sequences_to_solve_worst": _known(max(solve, default=math.nan)),
        "wrong_bits_mean": _mean(wrong),
        "wrong_bits_sd": _known(_sd(wrong)),
        "bits_mean": _mean(bits),
        "bits_sd": _known(_sd(bits)),
        "seconds_mean": _mean(seconds),
        "seconds_sd": _known(_sd(seconds)),
        "sequences_per_second_mean": _mean(speed),
        "parameters": _shared(model, "parameters"),
        "engine": _shared(model, "engine"),
        "accelerator": _shared(model, "accelerator"),
        "threads": _shared(model, "threads"),
    }


def _difference(quantity: str, first: Model, second: Model, *values: np.ndarray) -> Difference:
    one, other = values
    low, high = bootstrap(one, other)
    means = float(one.mean()), float(other.mean())
    return Difference(
        quantity,
        first.label,
        second.label,
        *means,
        means[1] - means[0],
        low,
        high,
        *map(len, values),
    )


def _differences(comparison: Comparison, first: Model, second: Model) -> Iterable[Difference]:
    solve = first.sequences_to_solve(), second.sequences_to_solve()
    measured = {"share of runs solved": tuple(np.isfinite(s).astype(float) for s in solve)}
    if all(np.isfinite(s).all() for s in solve):  # no mean else
        measured["sequences to solve"] = solve
    for key in ("wrong_bits_per_sequence", "bits_per_sequence"):
        name = f"{key.replace('_', ' ')}, test set"
        measured[name] = first.results(key), second.results(key)
    for quantity, values in measured.items():
        if all(map(len, values)):
            yield _difference(quantity, first, second, *values)
    pairs = itertools.product(evaluations(first).items(), evaluations(second).items())
    for ((size, length), rows), ((other_size, other_length), other_rows) in pairs:
        if length != other_length:
            continue
        sizes = " against ".join(f"{s:.0f}" for s in (size, other_size) if s is not None)
        where = f"{comparison.difficulty} {length:.0f}" + (f", memory {sizes}" if sizes else "")
        for name, key in (("wrong bits", "wrong_bits_per_sequence"), ("share exact", "exact")):
            values = tuple(np.array([row[key] for row in r]) for r in (rows, other_rows))
            yield _difference(f"{name}, {where}", first, second, *values)


def _remarks(model: Model) -> list[str]:
    """What a reader should know of a model's runs."""
    remarks = []
    for run in model.runs:
        if not run.finished:
            reason = f" ({run.result['reason']})" if run.result.get("reason") else ""
            remarks.append(
                f"{model.label}/{run.name}: {run.status}{reason}, "
                f"{run.sequences:,} sequences so far"
            )
        elif not run.evaluations:
            remarks.append(f"{model.label}/{run.name}: no evaluation of best.ckpt")
    unlike = {
        key
        for one, other in itertools.pairwise(model.runs)
        for key in differences(one.config, other.config)
    } - {"seed"}
    if unlike:
        remarks.append(f"{model.label}: its runs differ in {', '.join(sorted(unlike))}")
    validated = {at for run in model.runs if run.metrics for at in run.metrics["sequences"]}
    shared = len(band(model, CURVES[0]).sequences)
    if shared < len(validated):
        remarks.append(
            f"{model.label}: its runs were validated at different points; means stand at the "
            f"{shared} of {len(validated)} that they share"
        )
    if len(model.runs) == 1:
        remarks.append(f"{model.label}: a single run, which says nothing of the spread over seeds")
    return remarks


def _shared(model: Model, key: str) -> Any:
    """A setting that the model's runs have in common; where they differ, all of theirs."""
    values = {run.result[key] for run in model.runs if run.result.get(key) is not None}
    if len(values) <= 1:
        return next(iter(values), None)
    return ", ".join(sorted(map(str, values)))


def _numbers(name: str, values: Iterable[str]) -> np.ndarray:
    try:
        return np.array([float(value) for value in values])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} is not a number in every line") from error


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"expected the entries of a run, got {type(value).__name__}")
    return value


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None


def _sd(values: Sequence[float] | np.ndarray) -> float:
    """Sample standard deviation; nan for fewer than two."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def _known(value: Any) -> Any:
    """The value, None where it is no finite number: CSV then has nothing there, JSON null."""
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    return value


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts seed_2 before seed_10."""
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]
