"""Fresh training sequences every epoch, fixed validation and test sets; nothing is stored.

Batch k of a split is a function of (seed, split, k, difficulty range) and of nothing else, so
resuming, worker processes and the number of devices change nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytorch_lightning as pl
from torch.utils.data import DataLoader, Dataset

from ntm.tasks import Batch, Task

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


class _TrainingBatches(Dataset[Batch]):
    """Batch k of the training split, this process's rows of it."""

    def __init__(
        self,
        task: Task,
        seed: int,
        batch_size: int,
        difficulties: tuple[int, int],
        rank: int,
        world_size: int,
    ) -> None:
        self.task = task
        self.seed = seed
        self.batch_size = batch_size
        self.difficulties = difficulties
        self.rank = rank
        self.world_size = world_size

    def __getitem__(self, k: int) -> Batch:
        batch = sample(self.task, TRAINING, k, self.batch_size, self.difficulties, self.seed)
        return rows(batch, self.rank, self.world_size)


def rows(batch: Batch, rank: int, world_size: int) -> Batch:
    """Rows rank, rank + world_size, … of a batch."""
    return batch if world_size == 1 else Batch(*(part[:, rank::world_size] for part in batch))


class SequenceData(pl.LightningDataModule):
    """The data of one run. An epoch is the stretch between two validations.

    Args:
        task: Draws the sequences.
        seed: Of the training split only, at least 0.
        batch_size: Sequences in a batch, over all devices together.
        sequences: Training budget, rounded up to whole batches.
        validate_every: Sequences from one validation to the next, likewise.
        num_workers: Worker processes that draw batches; 0 draws them in the training process.

    """

    def __init__(
        self,
        task: Task,
        seed: int,
        batch_size: int,
        sequences: int,
        validate_every: int,
        num_workers: int = 0,
    ) -> None:
        super().__init__()
        self.task = task
        self.seed = seed
        self.batch_size = batch_size
        self.batches = math.ceil(sequences / batch_size)
        self.batches_per_epoch = min(math.ceil(validate_every / batch_size), self.batches)
        self.epochs = math.ceil(self.batches / self.batches_per_epoch)
        self.num_workers = num_workers
        self.difficulties = task.difficulties
        """The range of the next training batches; changed only where an epoch ends."""
        self._validation: list[Batch] = []

    def sequences_after(self, epoch: int) -> int:
        """Sequences seen when an epoch, counted from 0, has ended."""
        return min((epoch + 1) * self.batches_per_epoch, self.batches) * self.batch_size

    def validation_difficulty(self, index: int) -> int:
        """Difficulty of validation batch ``index``."""
        return self.task.difficulties[0] + index

    def train_dataloader(self) -> DataLoader[Batch]:
        """The batches of the current epoch; k counts from the run's start."""
        assert self.trainer is not None
        first = self.trainer.current_epoch * self.batches_per_epoch
        batches = _TrainingBatches(
            self.task,
            self.seed,
            self.batch_size,
            self.difficulties,
            self.trainer.global_rank,
            self.trainer.world_size,
        )
        indices = range(first, min(first + self.batches_per_epoch, self.batches))
        return DataLoader(batches, batch_size=None, sampler=indices, num_workers=self.num_workers)

    def val_dataloader(self) -> DataLoader[Batch]:
        """One batch for each difficulty of the task's whole range, 640 sequences or more."""
        if not self._validation:
            self._validation = fixed_set(self.task, VALIDATION, VALIDATION_SEQUENCES)
        return self._fixed(self._validation)

    def test_dataloader(self) -> DataLoader[Batch]:
        """Likewise, 2,000 sequences or more that training never touches."""
        return self._fixed(fixed_set(self.task, TEST, TEST_SEQUENCES))

    def _fixed(self, batches: Sequence[Batch]) -> DataLoader[Batch]:
        assert self.trainer is not None
        rank, world_size = self.trainer.global_rank, self.trainer.world_size
        return DataLoader(
            [rows(batch, rank, world_size) for batch in batches],  # type: ignore[arg-type]
            batch_size=None,
        )
