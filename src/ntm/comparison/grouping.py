"""Runs that belong together: by task, then by any keys of their configuration."""

from __future__ import annotations

import difflib
import itertools
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ntm.commands.configuration import ConfigurationError, differences, settings, telling_apart
from ntm.comparison.reading import Run, common_folder, read_runs

BARE = ("model.name", "task.name", "name")
"""Keys whose values say by themselves what they are."""
APART = ("seed", "name")
"""Keys that make no groups where other keys do."""


@dataclass(frozen=True)
class Group:
    """Runs that differ in their seed."""

    label: str
    """Of the values that its runs share: ``ntm, lr=0.001``."""
    runs: list[Run]

    @property
    def ended(self) -> list[Run]:
        """Runs with a verdict."""
        return [run for run in self.runs if run.ended]

    def results(self, key: str) -> np.ndarray:
        """A number of result.json, of each finished run that has it."""
        values = [run.result.get(key) for run in self.runs if run.finished]
        return np.array([v for v in values if isinstance(v, (int, float))], float)

    def sequences_to_solve(self) -> np.ndarray:
        """Of each run that ended, ``inf`` where it did not solve its task."""
        solved = [run.result.get("sequences_to_solve") for run in self.ended]
        return np.array([math.inf if value is None else value for value in solved], float)


@dataclass(frozen=True)
class Comparison:
    """All runs of one task, by group."""

    task: str
    root: Path
    """The folder that holds them."""
    groups: list[Group]
    notes: list[str]
    """What a reader should know of runs that are unfinished, damaged or unlike the others."""

    @cached_property
    def runs(self) -> list[Run]:
        """Those of all groups."""
        return [run for group in self.groups for run in group.runs]

    @cached_property
    def numbers(self) -> tuple[str, ...]:
        """What evaluations are listed by: ``length``."""
        found = [run.numbers for run in self.runs if run.evaluations]
        return found[0] if found else ("length",)

    @cached_property
    def solved_when(self) -> tuple[str, float]:
        """The metric that solves the task, and the bound that it must stay below."""
        told = [run.solved_when for run in self.runs if run.result]
        return told[0] if told else self.runs[0].solved_when

    @property
    def curves(self) -> list[str]:
        """Columns of metrics.csv that are drawn."""
        metric, _ = self.solved_when
        wanted = [f"train/{metric}", f"val/{metric}", "train/loss", "val/loss"]
        there = {column for run in self.runs for column in run.metrics}
        return [column for column in wanted if column in there or not there]

    def range(self, number: str) -> tuple[int, int] | None:
        """Where its runs trained, where they say so."""
        found = [run.ranges[number] for run in self.runs if number in run.ranges]
        return (min(low for low, _ in found), max(high for _, high in found)) if found else None


class Band(NamedTuple):
    """A metric over the runs of a group, at the validations that they share."""

    sequences: np.ndarray
    runs: np.ndarray
    """How many runs got as far."""
    mean: np.ndarray
    sd: np.ndarray
    """Sample standard deviation over runs; nan for a single one."""
    median: np.ndarray
    lower_quartile: np.ndarray
    upper_quartile: np.ndarray


def compare(
    roots: str | Path | Sequence[str | Path], by: Sequence[str] | None = None
) -> list[Comparison]:
    """Read every run below some folders and group it; what cannot be read is noted and left out.

    Args:
        roots: One folder or several.
        by: Keys of the configuration; None for the fewest that tell the runs of a task apart as
            well as all that differ between them, the seed aside.

    Returns:
        One for each task, in order of name.

    Raises:
        ConfigurationError: There is no run that can be read, or no run has one of the keys.

    """
    folders = [Path(r) for r in ([roots] if isinstance(roots, (str, Path)) else roots)]
    notes: list[str] = []
    found = read_runs(folders, notes)
    values = {run.path: _settings(run) for run in found}
    keys = None if by is None else [_key(given, list(values.values())) for given in by]
    above = common_folder(folders)
    comparisons = []
    for task in sorted({run.task for run in found}):
        members = [run for run in found if run.task == task]
        groups = _group(members, [values[run.path] for run in members], keys)
        remarks = [remark for group in groups for remark in _remarks(group)]
        # What could not be read may be of any task: it is said with the first.
        comparisons.append(Comparison(task, above, groups, notes + remarks))
        notes = []
    return comparisons


def band(group: Group, column: str) -> Band:
    """A metric over the runs of a group.

    A point is one where every run that got as far was validated. Beyond the end of the shortest
    run the numbers are over fewer runs.
    """
    curves = [
        dict(zip(run.metrics["sequences"].tolist(), run.metrics[column].tolist(), strict=True))
        for run in group.runs
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
        np.array([sd(v) for v in values], float),
        median,
        lower,
        upper,
    )


def _group(
    runs: Sequence[Run], values: Sequence[dict[str, Any]], keys: Sequence[str] | None
) -> list[Group]:
    keys = _differing(values) if keys is None else keys
    groups = []
    for places in _members(values, keys):
        first = values[places[0]]
        label = _label(first, keys) or str(first["model.name"])
        order = [_order(first.get(key)) for key in keys]
        groups.append((order, Group(label, [runs[place] for place in places])))
    return [group for _, group in sorted(groups, key=lambda pair: pair[0])]


def _differing(values: Sequence[dict[str, Any]]) -> list[str]:
    """The fewest keys that tell the runs apart as all do, the seed aside."""
    known = dict.fromkeys(key for one in values for key in one)
    # How a run is looked at when it is done makes it no other run.
    asked = [key for key in known if key not in APART and not key.startswith("evaluation.")]
    keys = telling_apart(values, asked)
    # Two names of one configuration are two groups: somebody gave them.
    named = [*keys, "name"]
    return named if len(_members(values, named)) > len(_members(values, keys)) else keys


def _members(values: Sequence[dict[str, Any]], keys: Sequence[str]) -> list[list[int]]:
    """Places of the runs that share the values of the keys."""
    found: dict[tuple[str, ...], list[int]] = {}
    for place, one in enumerate(values):
        found.setdefault(tuple(repr(one.get(key)) for key in keys), []).append(place)
    return list(found.values())


def _remarks(group: Group) -> list[str]:
    """What a reader should know of a group's runs."""
    remarks = []
    for run in group.runs:
        if not run.finished:
            reason = f" ({run.result['reason']})" if run.result.get("reason") else ""
            remarks.append(f"{run.label}: {run.status}{reason}, {run.sequences:,} sequences so far")
        elif not run.evaluations:
            remarks.append(f"{run.label}: no evaluation of best.ckpt")
    unlike = {
        key
        for one, other in itertools.pairwise(group.runs)
        for key in differences(one.config, other.config)
    } - {"seed"}
    if unlike:
        remarks.append(f"{group.label}: its runs differ in {', '.join(sorted(unlike))}")
    validated = {at for run in group.runs if run.metrics for at in run.metrics["sequences"]}
    shared = len(band(group, "val/loss").sequences)
    if shared < len(validated):
        remarks.append(
            f"{group.label}: its runs were validated at different points; means stand at the "
            f"{shared} of {len(validated)} that they share"
        )
    if len(group.runs) == 1:
        remarks.append(f"{group.label}: a single run, which says nothing of the spread over seeds")
    return remarks


def _settings(run: Run) -> dict[str, Any]:
    """What a run may be grouped by; a place of its own seed in a value is the same for all."""
    config, seed = run.config, run.config.seed
    values = settings(config) | {"name": config.get("name", run.task)}
    own = re.compile(rf"\bseed_{seed}\b")
    return {
        key: own.sub("seed_*", value) if isinstance(value, str) else value
        for key, value in values.items()
    }


def _key(given: str, values: Sequence[dict[str, Any]]) -> str:
    """The key that somebody means: ``model`` is ``model.name``.

    Raises:
        ConfigurationError: No run has it, or it holds several.

    """
    known = list(dict.fromkeys(key for one in values for key in one))
    for key in (given, f"{given}.name"):
        if key in known:
            return key
    inside = [key for key in known if key.startswith(f"{given}.")]
    if inside:
        raise ConfigurationError(
            f"by: {given} is a group of keys; name one, such as {min(inside, key=len)}"
        )
    near = difflib.get_close_matches(given, known, n=3, cutoff=0.5)
    near = near or [key for key in known if key.split(".")[-1] == given.split(".")[-1]][:3]
    advice = f"did you mean {' or '.join(near)}?" if near else "such as model or optimizer.lr"
    raise ConfigurationError(f"by must name keys that a run has, got {given!r}; {advice}")


def _label(values: dict[str, Any], keys: Sequence[str]) -> str:
    """Values by the last part of their keys, where that names one alone."""
    last = [key.split(".")[-1] for key in keys]
    parts = []
    for key, short in zip(keys, last, strict=True):
        if key not in values:
            continue
        value = _shown(values[key])
        name = key if last.count(short) > 1 else short
        parts.append(value if key in BARE else f"{name}={value}")
    return ", ".join(parts)


def _shown(value: Any) -> str:
    """As a command would have it."""
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)


def _order(value: Any) -> tuple[bool, float, str]:
    """Numbers by size, before words."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return not number, value if number else 0.0, str(value)


def sd(values: Sequence[float] | np.ndarray) -> float:
    """Sample standard deviation; nan for fewer than two, or where one is no finite number."""
    if len(values) < 2 or not np.isfinite(values).all():
        return math.nan
    return float(np.std(values, ddof=1))
