"""The data of one run: fresh training sequences every epoch, fixed validation and test sets."""

from __future__ import annotations

import math
from collections.abc import Collection

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Dataset

from ntm.tasks import Batch, Point, Ranges, Task
from ntm.tasks.sampling import (
    TEST,
    TEST_SEQUENCES,
    TRAINING,
    VALIDATION,
    VALIDATION_SEQUENCES,
    fixed_set,
    rows,
    sample,
)

_FIXED = {"val": (VALIDATION, VALIDATION_SEQUENCES), "test": (TEST, TEST_SEQUENCES)}
"""Split and size of the fixed sets."""


class _TrainingBatches(Dataset[Batch]):
    """Batch k of the training split, this process's rows of it."""

    def __init__(
        self,
        task: Task,
        seed: int,
        batch_size: int,
        ranges: Ranges,
        rank: int,
        world_size: int,
    ) -> None:
        self.task = task
        self.seed = seed
        self.batch_size = batch_size
        self.ranges = ranges
        self.rank = rank
        self.world_size = world_size

    def __getitem__(self, k: int) -> Batch:
        batch = sample(self.task, TRAINING, k, self.batch_size, self.ranges, self.seed)
        return rows(batch, self.rank, self.world_size)


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
        self.ranges = task.ranges
        """Those of the next training batches; changed only where an epoch ends."""
        self.points = task.points()
        """That of every validation and test batch, in order."""
        self._sets: dict[str, list[Batch]] = {}

    def sequences_after(self, epoch: int) -> int:
        """Sequences seen when an epoch, counted from 0, has ended."""
        return min((epoch + 1) * self.batches_per_epoch, self.batches) * self.batch_size

    def optimum(self, stage: str, points: Collection[Point] | None = None) -> float | None:
        """Bits per sequence of the best possible predictor on a fixed set; None: not known.

        Args:
            stage: ``val`` or ``test``.
            points: Those that count; None for all.

        """
        known = [
            float(optimum.double().mean())
            for point, batch in zip(self.points, self._set(stage), strict=True)
            if points is None or point in points
            if (optimum := self.task.optimum(batch)) is not None
        ]
        return sum(known) / len(known) if known else None

    def train_dataloader(self) -> DataLoader[Batch]:
        """The batches of the current epoch; k counts from the run's start."""
        assert self.trainer is not None
        first = self.trainer.current_epoch * self.batches_per_epoch
        batches = _TrainingBatches(
            self.task,
            self.seed,
            self.batch_size,
            self.ranges,
            self.trainer.global_rank,
            self.trainer.world_size,
        )
        indices = range(first, min(first + self.batches_per_epoch, self.batches))
        return DataLoader(batches, batch_size=None, sampler=indices, num_workers=self.num_workers)

    def val_dataloader(self) -> DataLoader[Batch]:
        """One batch for each of the task's points, 640 sequences or more.

        With ``fast_dev_run`` a ``batch_size`` of them a point.
        """
        return self._fixed("val")

    def test_dataloader(self) -> DataLoader[Batch]:
        """Likewise, 2,000 sequences or more that training never touches."""
        return self._fixed("test")

    def _set(self, stage: str) -> list[Batch]:
        if stage not in self._sets:
            split, size = _FIXED[stage]
            if self.trainer and self.trainer.fast_dev_run:  # type: ignore[attr-defined]
                size = len(self.points) * self.batch_size
            with torch.inference_mode(False):  # kept: what it makes is of no use in training
                self._sets[stage] = fixed_set(self.task, split, size)
        return self._sets[stage]

    def _fixed(self, stage: str) -> DataLoader[Batch]:
        assert self.trainer is not None
        rank, world_size = self.trainer.global_rank, self.trainer.world_size
        return DataLoader(
            [rows(batch, rank, world_size) for batch in self._set(stage)],  # type: ignore[arg-type]
            batch_size=None,
        )


def data_of(trainer: pl.Trainer) -> SequenceData:
    """The data of a run, from its Trainer."""
    data: SequenceData = trainer.datamodule  # type: ignore[attr-defined]
    return data


def sequences_seen(trainer: pl.Trainer, batches: int | None = None) -> int:
    """Sequences seen, ``batches`` batches into the current epoch; absent, where it ends.

    A callback may have ended it early.
    """
    data = data_of(trainer)
    if batches is None:
        batches = trainer.fit_loop.epoch_loop.batch_idx + 1
    done = min(trainer.current_epoch * data.batches_per_epoch + batches, data.batches)
    return done * data.batch_size
