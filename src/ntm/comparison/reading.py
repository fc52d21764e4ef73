"""Run folders as a comparison reads them: what is damaged is said, and the others go on."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from ntm.commands.configuration import ConfigurationError, one_line
from ntm.folders import runs
from ntm.folders.runs import DRAWN, RunFolder, read_rows


@dataclass(frozen=True)
class Run:
    """What a run folder says of its run."""

    path: Path
    label: str
    """Its folder from that of the comparison: ``ntm/seed_3``."""
    config: DictConfig
    result: dict[str, Any]
    """result.json; empty where there is none that can be read."""
    metrics: dict[str, np.ndarray]
    """metrics.csv by column, one value a validation; empty where there is none."""
    numbers: tuple[str, ...]
    """The task's, which evaluations are listed by: ``length``."""
    kinds: dict[str, list[dict[str, float]]]
    """By kind of sequence, rows of eval/results.csv for best.ckpt; what is absent is nan."""

    @property
    def evaluations(self) -> list[dict[str, float]]:
        """The rows for sequences as drawn."""
        return self.kinds.get(DRAWN, [])

    @property
    def status(self) -> str:
        """As in result.json, or ``no result`` before there is one."""
        return str(self.result.get("status", "no result"))

    @property
    def finished(self) -> bool:
        """Whether the run came to its end."""
        return self.status == runs.FINISHED

    @property
    def ended(self) -> bool:
        """Whether there is a verdict: finished, or failed and so never solved."""
        return self.finished or self.status == runs.FAILED

    @property
    def task(self) -> str:
        """The name of its task."""
        return str(self.config.task.name)

    @property
    def solved_when(self) -> tuple[str, float]:
        """The metric that solves its task, and the bound that it must stay below."""
        goal = self.result.get("solved_when", runs.SOLVED_BEFORE)
        return goal["metric"], goal["below"]

    @property
    def ranges(self) -> dict[str, tuple[int, int]]:
        """Where its stages trained, by number; empty where it does not say."""
        found: dict[str, tuple[int, int]] = {}
        for stage in self.result.get("stages", []):
            # Runs of before name none, and have one.
            given = stage.get("ranges") or {self.numbers[0]: stage["range"]}
            for name, (low, high) in given.items():
                before = found.get(name, (low, high))
                found[name] = min(low, before[0]), max(high, before[1])
        return found

    @property
    def sequences(self) -> int:
        """Sequences seen at the last validation."""
        return int(self.metrics["sequences"][-1]) if self.metrics else 0


def read_runs(roots: Sequence[Path], notes: list[str]) -> list[Run]:
    """Every run below the folders; adds to ``notes`` what cannot be read.

    Raises:
        ConfigurationError: There is no run that can be read.

    """
    above = common_folder(roots)
    paths = dict.fromkeys(path for root in roots for path in find_runs(root))
    read = [read_run(path, os.path.relpath(path, above), notes) for path in paths]
    found = [run for run in read if run is not None]
    if not found:
        raise ConfigurationError(f"runs must hold a run that can be read: {'; '.join(notes)}")
    return found


def common_folder(roots: Sequence[Path]) -> Path:
    """The deepest folder that holds all of them; a single one is itself."""
    return roots[0] if len(roots) == 1 else Path(os.path.commonpath([r.resolve() for r in roots]))


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
    numbers, kinds = attempt(
        table, lambda: read_evaluations(folder), (["length"], {}), "no evaluations"
    )
    return Run(path, label, config, result, metrics, tuple(numbers), kinds)


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
    absent = [name for name in ("sequences", "train/loss", "val/loss") if name not in table[0]]
    if absent:
        raise ValueError(f"no column {', '.join(absent)}")
    columns = {name: _numbers(name, (row[name] for row in table)) for name in table[0]}
    if (np.diff(columns["sequences"]) <= 0).any():
        raise ValueError("sequences do not grow")
    return columns


def read_evaluations(
    folder: RunFolder,
) -> tuple[list[str], dict[str, list[dict[str, float]]]]:
    """The task's numbers, and rows of results.csv for best.ckpt by their kind."""
    table = [row for row in folder.read_evaluations() if row["checkpoint"] == "best"]
    if not table:
        return ["length"], {}
    columns = list(table[0])
    words = ("checkpoint", "kind")
    kinds: dict[str, list[dict[str, float]]] = {}
    for row in table:
        values = {name: float(row[name] or "nan") for name in columns if name not in words}
        kinds.setdefault(row["kind"], []).append(values)
    return columns[: columns.index("kind")], kinds


def _numbers(name: str, values: Iterable[str]) -> np.ndarray:
    try:
        # Nothing stands where a column came later.
        return np.array([math.nan if value == "" else float(value) for value in values])
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} is not a number in every line") from error


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"expected the entries of a run, got {type(value).__name__}")
    return value


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts seed_2 before seed_10."""
    parts = re.split(r"(\d+)", name)
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]
