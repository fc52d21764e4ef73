"""Batches as functions of their number, and the fixed sets; nothing is stored.

Batch k of a split is a function of (seed, split, k, ranges) and of nothing else, so
resuming, worker processes and the number of devices change nothing.
"""

from __future__ import annotations

import itertools
import math

import numpy as np

from ntm.tasks.kinds import DRAWN
from ntm.tasks.task import Batch, Point, Ranges, Task

TRAINING, VALIDATION, TEST, EVALUATION = range(4)
"""The splits, as they enter the seed of a batch."""
ALIGNED = 64
"""Bytes at whose multiples torch's memory begins."""
VALIDATION_SEQUENCES = 640
TEST_SEQUENCES = 2000


def sample(
    task: Task,
    split: int,
    index: int,
    batch_size: int,
    ranges: Ranges,
    seed: int = 0,
    kind: str | None = None,
) -> Batch:
    """Batch ``index`` of a split: the same for the same arguments, on every machine.

    Of a kind if it is given; else training's are those that the task trains on, all others drawn.
    """
    if kind is None:
        kind = task.trained_on if split == TRAINING else DRAWN
    entropy = np.random.SeedSequence([seed, split, index, *itertools.chain(*ranges)])
    rng = np.random.Generator(np.random.Philox(entropy))
    batch = task.sample(rng, batch_size, ranges, kind)
    # As torch's own memory is aligned: where NumPy's lies differs from process to process, and
    # matrix products round differently with it.
    return Batch(*(part if part.data_ptr() % ALIGNED == 0 else part.clone() for part in batch))


def sample_at(task: Task, split: int, batch_size: int, point: Point, kind: str = DRAWN) -> Batch:
    """The first batch of a split at one point."""
    ranges = tuple((value, value) for value in point)
    return sample(task, split, 0, batch_size, ranges, kind=kind)


def fixed_set(task: Task, split: int, at_least: int) -> list[Batch]:
    """The same sequences for every model and seed: one batch for each of the task's points."""
    points = task.points()
    each = math.ceil(at_least / len(points))
    return [sample_at(task, split, each, point) for point in points]


def rows(batch: Batch, rank: int, world_size: int) -> Batch:
    """Rows rank, rank + world_size, … of a batch."""
    return batch if world_size == 1 else Batch(*(part[:, rank::world_size] for part in batch))
