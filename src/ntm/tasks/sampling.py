"""Batches as functions of their number, and the fixed sets; nothing is stored.

Batch k of a split is a function of (seed, split, k, difficulty range) and of nothing else, so
resuming, worker processes and the number of devices change nothing.
"""

from __future__ import annotations

import math

import numpy as np

from ntm.tasks.task import Batch, Task

TRAINING, VALIDATION, TEST, EVALUATION = range(4)
"""The splits, as they enter the seed of a batch."""
VALIDATION_SEQUENCES = 640
TEST_SEQUENCES = 2000


def sample(
    task: Task,
    split: int,
    index: int,
    batch_size: int,
    difficulties: tuple[int, int],
    seed: int = 0,
) -> Batch:
    """Batch ``index`` of a split: the same for the same arguments, on every machine."""
    entropy = np.random.SeedSequence([seed, split, index, *difficulties])
    batch = task.sample(np.random.Generator(np.random.Philox(entropy)), batch_size, difficulties)
    # Into torch's own aligned memory: where NumPy's lies differs from process to process, and
    # matrix products round differently with it.
    return Batch(*(part.clone() for part in batch))


def fixed_set(task: Task, split: int, at_least: int) -> list[Batch]:
    """The same sequences for every model and seed: one batch for each difficulty of the task."""
    lowest, highest = task.difficulties
    each = math.ceil(at_least / (highest - lowest + 1))
    return [sample(task, split, 0, each, (d, d)) for d in range(lowest, highest + 1)]


def rows(batch: Batch, rank: int, world_size: int) -> Batch:
    """Rows rank, rank + world_size, … of a batch."""
    return batch if world_size == 1 else Batch(*(part[:, rank::world_size] for part in batch))
