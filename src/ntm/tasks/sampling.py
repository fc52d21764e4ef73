"""Batches as functions of their number, and the fixed sets; nothing is stored.

Batch k of a split is a function of (seed, split, k, ranges) and of nothing else, so
resuming, worker processes and the number of devices change nothing.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from torch import Tensor

from ntm.tasks.kinds import DRAWN, Shape
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


class Places(NamedTuple):
    """Where in a sequence each of its free bits stands."""

    bits: np.ndarray
    """As they were drawn, 0 or 1, (bits,)."""
    inputs: np.ndarray
    """Which bit stands there, (T, I); −1: none."""
    targets: np.ndarray
    """Likewise, (T, O)."""


def places_at(task: Task, split: int, point: Point, kind: str = DRAWN) -> Places | None:
    """The free bits of the sequence that `sample_at` draws with a batch of one.

    The task draws once more, with a number for each bit in its place. None where that gives
    another sequence: the task looks at its bits (how it was drawn depends on them), or has them
    from elsewhere than `Task.vectors_of`.
    """
    first = 1000  # above whatever else inputs hold
    drawn = np.zeros(0)

    def numbered(rng: np.random.Generator, kind: str, shape: Shape) -> np.ndarray:
        nonlocal drawn
        drawn = task.vectors_of(rng, kind, shape).ravel()
        return first + np.arange(drawn.size).reshape(shape)

    numbering = copy.copy(task)
    numbering.vectors_of = numbered  # type: ignore[method-assign]
    batch, numbers = (sample_at(each, split, 1, point, kind) for each in (task, numbering))
    if not drawn.size or any(a.shape != b.shape for a, b in zip(batch, numbers, strict=True)):
        return None
    found = []
    for values, places in zip(batch[:2], numbers[:2], strict=True):
        which = np.where(places[:, 0] >= first, places[:, 0] - first, -1).astype(int)
        if not np.array_equal(np.where(which < 0, places[:, 0], drawn[which]), values[:, 0]):
            return None
        found.append(which)
    return Places(drawn.astype(int), *found)


def fixed_set(task: Task, split: int, at_least: int) -> list[Batch]:
    """The same sequences for every model and seed: one batch for each of the task's points."""
    points = task.points()
    each = math.ceil(at_least / len(points))
    return [sample_at(task, split, each, point) for point in points]


def rows(batch: Batch, rank: int, world_size: int) -> Batch:
    """Rows rank, rank + world_size, … of a batch."""
    return batch if world_size == 1 else Batch(*(part[:, rank::world_size] for part in batch))


def joined(shares: Sequence[Tensor]) -> Tensor:
    """A part of a batch, (T, B, …), from what `rows` gives each of its ranks, in their order."""
    first = shares[0]
    shape = [first.shape[0], sum(share.shape[1] for share in shares), *first.shape[2:]]
    whole = first.new_empty(shape)
    for rank, share in enumerate(shares):
        whole[:, rank :: len(shares)] = share
    return whole
