"""Run folders made up for tests: written as text, by nothing of the project."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

METRICS = (
    "sequences",
    "seconds",
    "train/loss",
    "train/wrong_bits_per_sequence",
    "val/loss",
    "val/wrong_bits_per_sequence",
    "learning_rate",
)
LENGTHS = (
    "length",
    "memory_size",
    "checkpoint",
    "sequences",
    "wrong_bits_per_sequence",
    "wrong_bits_sd",
    "bits_per_sequence",
    "accuracy",
    "exact",
)


def make_run(
    folder: Path,
    curve: dict[int, float],
    lengths: list[tuple[Any, ...]] | None = None,
    kinds: dict[str, list[tuple[Any, ...]]] | None = None,
    config: dict[str, Any] | None = None,
    **result: Any,
) -> Path:
    """Write a run folder.

    Args:
        folder: Of the run, `<model>/seed_<n>`.
        curve: Wrong bits in validation by sequences; training has twice, the losses a tenth.
        lengths: Rows of eval/lengths.csv; None for no evaluation.
        kinds: Rows of eval/results.csv in its place, by the kind of sequence.
        config: More of config.yaml.
        result: More of result.json.

    """
    seed = int(folder.name.removeprefix("seed_"))
    folder.mkdir(parents=True)
    described = {"seed": seed, "task": {"name": "copy"}, "model": {"name": "ntm"}, **(config or {})}
    (folder / "config.yaml").write_text(json.dumps(described))
    rows = [
        (at, at / 10, wrong / 5, 2 * wrong, wrong / 10, wrong, 0.001) for at, wrong in curve.items()
    ]
    (folder / "metrics.csv").write_text(table(METRICS, rows))
    told = {
        "status": "finished",
        "seed": seed,
        "sequences": max(curve, default=0),
        "sequences_to_solve": None,
        "stages": [{"range": [1, 20], "sequences": 1, "wrong_bits_per_sequence": 0.0}],
        "wrong_bits_per_sequence": 1.0,
        "bits_per_sequence": 2.0,
        "seconds": 10.0,
        "sequences_per_second": 100.0,
        "parameters": 1234,
        **result,
    }
    (folder / "result.json").write_text(json.dumps(told))
    if lengths is not None:
        (folder / "eval").mkdir()
        (folder / "eval" / "lengths.csv").write_text(table(LENGTHS, lengths))
    if kinds is not None:
        (folder / "eval").mkdir()
        rows = [(row[0], kind, *row[1:]) for kind, of_kind in kinds.items() for row in of_kind]
        header = (LENGTHS[0], "kind", *LENGTHS[1:])
        (folder / "eval" / "results.csv").write_text(table(header, rows))
    return folder


def table(header: tuple[str, ...], rows: list[tuple[Any, ...]]) -> str:
    return "".join(",".join(map(str, row)) + "\n" for row in [header, *rows])


def evaluated(length: int, wrong: float, exact: float, memory: Any = 128) -> tuple[Any, ...]:
    """A row of eval/lengths.csv for best.ckpt."""
    return (length, memory, "best", 100, wrong, 0.5, 2 * wrong, 1 - wrong / 1000, exact)
