"""Numbers of a comparison, from its runs alone, for tables and figures."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ntm.comparison.grouping import Band, Comparison, Group, band, sd
from ntm.folders import runs
from ntm.folders.runs import in_words

RESAMPLINGS = 10_000
CONFIDENCE = 0.95
BOOTSTRAP_SEED = 0
NORMAL = 1.959963984540054
"""The normal law's quantile at the upper end of an interval of `CONFIDENCE`."""
WRONG, BITS, ABOVE_OPTIMUM = "wrong_bits_per_sequence", "bits_per_sequence", "bits_above_optimum"
Setting = tuple[float | None, tuple[int, ...]]
"""Memory size, None for a network without one, and point."""
EVERY_KIND = "every kind"
"""In the place of a kind: all that a run was shown at a point, taken together."""


class Difference(NamedTuple):
    """A quantity of two groups, and how sure their difference is."""

    quantity: str
    first: str
    second: str
    first_mean: float
    second_mean: float
    difference: float
    low: float
    """Ends of the confidence interval; nan where a group has a single run."""
    high: float
    first_runs: int
    second_runs: int


def group_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """One row a group: what its seeds came to. None stands for what there is no number of."""
    return [_group_row(group) for group in comparison.groups]


def run_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """One row a run."""
    keys = (
        "sequences_to_first_solve",
        "sequences_to_solve",
        WRONG,
        BITS,
        ABOVE_OPTIMUM,
        "seconds",
        "sequences_per_second",
        "parameters",
    )
    return [
        {
            "group": group.label,
            "run": run.label,
            "seed": run.config.seed,
            "status": run.status,
            "sequences": run.sequences,
            **{key: run.result.get(key) for key in keys},  # inf and nan are told as what they are
        }
        for group in comparison.groups
        for run in group.runs
    ]


def point_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """One row a group, memory size and point: its runs with best.ckpt there."""
    return [
        {
            "group": group.label,
            "memory_size": None if size is None else int(size),
            **dict(zip(comparison.numbers, point, strict=True)),
            "runs": len(evaluated),
            "sequences_each": int(min(row["sequences"] for row in evaluated)),
            **_spread("wrong_bits", [row[WRONG] for row in evaluated]),
            **_parts(evaluated),
            "bits_mean": float(np.mean([row[BITS] for row in evaluated])),
            **_spread("above_optimum", [row.get(ABOVE_OPTIMUM, math.nan) for row in evaluated]),
            "accuracy_mean": float(np.mean([row["accuracy"] for row in evaluated])),
            "exact_mean": float(np.mean([row["exact"] for row in evaluated])),
            "exact_sd": _known(sd([row["exact"] for row in evaluated])),
            "runs_without_error": sum(row[WRONG] == 0 for row in evaluated),
        }
        for group in comparison.groups
        for (size, point), evaluated in evaluations(comparison, group).items()
    ]


def kind_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """One row a group, kind of sequence, memory size and point; none where all are as drawn.

    Kind `EVERY_KIND` has what runs come to on all kinds that they were shown at a point: the mean
    over them, and how many runs are without an error on every one.
    """
    if all(set(run.kinds) <= {runs.DRAWN} for run in comparison.runs):
        return []
    return [
        {
            "group": group.label,
            "kind": kind,
            "memory_size": None if size is None else int(size),
            **dict(zip(comparison.numbers, point, strict=True)),
            "runs": len(evaluated),
            "sequences_each": int(min(row["sequences"] for row in evaluated)),
            **_spread("wrong_bits", [row[WRONG] for row in evaluated]),
            "exact_mean": float(np.mean([row["exact"] for row in evaluated])),
            "runs_without_error": sum(row[WRONG] == 0 for row in evaluated),
        }
        for group in comparison.groups
        for kind, by_setting in _by_kind(comparison, group).items()
        for (size, point), evaluated in by_setting.items()
    ]


def _by_kind(
    comparison: Comparison, group: Group
) -> dict[str, dict[Setting, list[dict[str, float]]]]:
    kinds = dict.fromkeys(kind for run in group.runs for kind in run.kinds)
    found = {kind: evaluations(comparison, group, kind) for kind in kinds}
    together: dict[Setting, list[dict[str, float]]] = {}
    for run in group.runs:
        shown: dict[Setting, list[dict[str, float]]] = {}
        for row in itertools.chain(*run.kinds.values()):
            shown.setdefault(_setting(comparison, row), []).append(row)
        for setting, rows in shown.items():
            names = (WRONG, "exact", "sequences")
            mean = {name: float(np.mean([row[name] for row in rows])) for name in names}
            together.setdefault(setting, []).append(mean)
    return found | {EVERY_KIND: _in_order(together)}


def curve_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """One row a group, metric and validation: what `band` says."""
    return [
        {
            "group": group.label,
            "metric": column,
            **dict(zip(Band._fields, map(_known, point), strict=True)),
        }
        for group in comparison.groups
        for column in comparison.curves
        for point in zip(*(part.tolist() for part in band(group, column)), strict=True)
    ]


def difference_rows(comparison: Comparison) -> list[dict[str, Any]]:
    """One row a quantity and pair of groups, second minus first, with its interval."""
    pairs = itertools.combinations(comparison.groups, 2)
    found = [d for first, second in pairs for d in _differences(comparison, first, second)]
    return [{name: _known(value) for name, value in d._asdict().items()} for d in found]


def evaluations(
    comparison: Comparison, group: Group, kind: str = runs.DRAWN
) -> dict[Setting, list[dict[str, float]]]:
    """Rows of a group's runs for a kind of sequence, by memory size and point, in this order."""
    by_setting: dict[Setting, list[dict[str, float]]] = {}
    for run in group.runs:
        for row in run.kinds.get(kind, []):
            by_setting.setdefault(_setting(comparison, row), []).append(row)
    return _in_order(by_setting)


def _setting(comparison: Comparison, row: dict[str, float]) -> Setting:
    size = None if math.isnan(row["memory_size"]) else row["memory_size"]
    return size, tuple(int(row[name]) for name in comparison.numbers)


def _in_order(
    by_setting: dict[Setting, list[dict[str, float]]],
) -> dict[Setting, list[dict[str, float]]]:
    return dict(sorted(by_setting.items(), key=lambda item: (item[0][0] or 0, item[0][1])))


def wilson(successes: int, trials: int) -> tuple[float, float]:
    """Interval for a share, at `CONFIDENCE`: Wilson 1927, which is sound for few trials too.

    Returns:
        Its ends, in [0, 1]; nan where there was no trial.

    """
    if trials == 0:
        return math.nan, math.nan
    share, z2 = successes / trials, NORMAL**2
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = math.sqrt(share * (1 - share) / trials + z2 / (4 * trials**2)) / (1 + z2 / trials)
    return max(0.0, centre - NORMAL * half), min(1.0, centre + NORMAL * half)


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


def _group_row(group: Group) -> dict[str, Any]:
    solve = group.sequences_to_solve()
    solved = int(np.isfinite(solve).sum())
    low, high = wilson(solved, len(solve))
    wrong, bits = group.results(WRONG), group.results(BITS)
    above, seconds = group.results(ABOVE_OPTIMUM), group.results("seconds")
    speed = group.results("sequences_per_second")
    return {
        "group": group.label,
        "runs": len(group.runs),
        "finished": sum(run.finished for run in group.runs),
        "failed": sum(run.status == runs.FAILED for run in group.runs),
        "unfinished": len(group.runs) - len(group.ended),
        "solved": solved,
        "solved_share_low": _known(low),
        "solved_share_high": _known(high),
        **{
            f"sequences_to_solve_{name}": _known(quantile(solve, share))
            for name, share in (("lower_quartile", 0.25), ("median", 0.5), ("upper_quartile", 0.75))
        },
        "sequences_to_solve_worst": _known(max(solve, default=math.nan)),
        "wrong_bits_mean": _mean(wrong),
        "wrong_bits_sd": _known(sd(wrong)),
        "bits_mean": _mean(bits),
        "bits_sd": _known(sd(bits)),
        "above_optimum_mean": _mean(above),
        "above_optimum_sd": _known(sd(above)),
        "seconds_mean": _mean(seconds),
        "seconds_sd": _known(sd(seconds)),
        "sequences_per_second_mean": _mean(speed),
        "parameters": _shared(group, "parameters"),
        "engine": _shared(group, "engine"),
        "accelerator": _shared(group, "accelerator"),
        "threads": _shared(group, "threads"),
    }


def quantile(values: np.ndarray, share: float) -> float:
    """Linear between neighbours, as NumPy's, where some are ``inf``; nan of none."""
    if not len(values):
        return math.nan
    place = share * (len(values) - 1)
    low, high = np.sort(values)[[math.floor(place), math.ceil(place)]].tolist()
    return low if low == high else low + (place % 1) * (high - low)


def _spread(name: str, values: Sequence[float]) -> dict[str, float | None]:
    return {
        f"{name}_mean": _known(np.mean(values)),
        f"{name}_sd": _known(sd(values)),
        f"{name}_median": _known(np.median(values)),
        f"{name}_worst": _known(max(values)),
    }


def _parts(evaluated: Sequence[dict[str, float]]) -> dict[str, float | None]:
    """Wrong bits of parts of the output that the task counts apart."""
    names = [n for n in evaluated[0] if n.startswith("wrong_") and n.endswith("_bits")]
    return {f"{name}_mean": _known(np.mean([row[name] for row in evaluated])) for name in names}


def _difference(quantity: str, first: Group, second: Group, *values: np.ndarray) -> Difference:
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


def _differences(comparison: Comparison, first: Group, second: Group) -> Iterable[Difference]:
    metric, _ = comparison.solved_when
    solve = first.sequences_to_solve(), second.sequences_to_solve()
    measured = {"share of runs solved": tuple(np.isfinite(s).astype(float) for s in solve)}
    if all(np.isfinite(s).all() for s in solve):  # no mean else
        measured["sequences to solve"] = solve
    for key in dict.fromkeys((metric, BITS)):
        name = f"{key.replace('_', ' ')}, test set"
        measured[name] = first.results(key), second.results(key)
    for quantity, values in measured.items():
        if all(map(len, values)):
            yield _difference(quantity, first, second, *values)
    both = (evaluations(comparison, group).items() for group in (first, second))
    for ((size, point), rows), ((other_size, other_point), other_rows) in itertools.product(*both):
        if point != other_point:
            continue
        sizes = " against ".join(f"{s:.0f}" for s in (size, other_size) if s is not None)
        numbers = zip(comparison.numbers, point, strict=True)
        where = ", ".join(f"{name} {value}" for name, value in numbers)
        where += f", memory {sizes}" if sizes else ""
        for name, key in ((in_words(metric), metric), ("share exact", "exact")):
            values = tuple(np.array([row[key] for row in r]) for r in (rows, other_rows))
            yield _difference(f"{name}, {where}", first, second, *values)


def _shared(group: Group, key: str) -> Any:
    """A setting that the group's runs have in common; where they differ, all of theirs."""
    values = {run.result[key] for run in group.runs if run.result.get(key) is not None}
    if len(values) <= 1:
        return next(iter(values), None)
    return ", ".join(sorted(map(str, values)))


def _mean(values: np.ndarray) -> float | None:
    return _known(values.mean()) if len(values) else None


def _known(value: Any) -> Any:
    """The value, None where it is no finite number: CSV then has nothing there, JSON null."""
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    return value
