"""A small version of each task is learned: far better than by chance, in half a minute at most."""

from __future__ import annotations

import pytest
from written import result, rows

from ntm.commands.configuration import build
from ntm.folders.runs import RunFolder

QUICK = [
    "callbacks.pictures_every=null", "callbacks.figures=false", "evaluation.sequences=20",
    "validate_every=1000",
]  # fmt: skip
SMALL: dict[str, tuple[list[str], float]] = {
    "copy": (["task.max_length=10", "optimizer.decay=none", "sequences=7000"], 0.5),
    "repeat_copy": (
        ["task.bits=3", "task.max_length=3", "task.max_repeats=3", "sequences=4000"],
        0.55,
    ),
    "associative_recall": (
        ["task.bits=3", "task.vectors=2", "task.max_items=3", "sequences=8000"],
        0.7,
    ),
    "dynamic_ngrams": (["task.steps=40", "task.context=1", "sequences=1500"], 0.95),
    "priority_sort": (
        [
            "task.bits=2",
            "task.min_items=2",
            "task.max_items=2",
            "curriculum.grow=null",
            "sequences=6000",
        ],
        0.5,
    ),
}
"""What makes it small, and the share of chance that its cost must be below."""


@pytest.mark.parametrize(
    "task",
    [pytest.param(task, marks=[] if task == "copy" else pytest.mark.slow) for task in SMALL],
)
def test_is_learned(task, run_command, tmp_path):
    overrides, share = SMALL[task]
    assert run_command("run_train", f"task={task}", *overrides, *QUICK) == 0
    folder = tmp_path / "outputs" / task / "ntm" / "seed_0"
    made = build(RunFolder(folder).read_config().task, "task")
    points = made.points()
    chance = sum(map(made.chance, points)) / len(points)
    reached = result(folder)["bits_per_sequence"]
    begun = float(rows(folder)[0]["val/bits_per_sequence"])
    assert reached < share * chance, (begun, reached, chance)


@pytest.mark.slow
def test_the_mix_decides_whether_zeros_are_copied(run_command, tmp_path):
    """In 12,000 sequences of up to ten vectors: 10 to 43 bits without it, 1 to 2 with it."""
    sizes = ["task.max_length=10", "model.network.memory_size=32", "sequences=12000"]
    asked = ["evaluation.at=[10]", "evaluation.kinds=[zeros]", *QUICK]
    bits = {}
    for mix in (0.0, 0.5):
        trained = run_command("run_train", *sizes, *asked, f"task.mix={mix}", f"name=mix_{mix}")
        assert trained == 0
        folder = RunFolder(tmp_path / "outputs" / f"mix_{mix}" / "ntm" / "seed_0")
        (row,) = folder.read_evaluations()
        assert row["kind"] == "zeros"
        bits[mix] = float(row["bits_per_sequence"])
    assert bits[0.5] < bits[0.0] / 3, bits
