"""What a run writes at every validation: metrics, events, checkpoints."""

from __future__ import annotations

import io
import logging
import math
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Checkpoint
from pytorch_lightning.plugins.io import TorchCheckpointIO

from ntm.folders.locks import Held, Lock
from ntm.folders.runs import RunFolder, append_row, in_words, write_whole, writing
from ntm.tasks import Batch, Goal
from ntm.training.data import data_of, sequences_seen
from ntm.training.devices import in_any
from ntm.training.learner import Diverged, Learner
from ntm.training.loggers import Service
from ntm.training.stages import Stages

logger = logging.getLogger("ntm")

RECORDED = (
    "train/loss",
    "train/wrong_bits_per_sequence",
    "train/skipped_steps",
    "val/loss",
    "val/wrong_bits_per_sequence",
    "val/bits_per_sequence",
    "val/bits_above_optimum",
    "val/accuracy",
)
"""Columns of metrics.csv that come from the learner, those that a task has."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint whole or not at all."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None
    ) -> None:
        """Write beside the target, see it to the disk, rename.

        Raises:
            OSError: It cannot be written, with the system's reason; what was there is still there.

        """
        content = io.BytesIO()  # torch's own writer would not say that the disk is full
        torch.save(checkpoint, content)
        write_whole(Path(path), content.getbuffer())


class Record(Checkpoint):
    """Writes, at every validation: the metrics, the events, best.ckpt, and last.ckpt at the end.

    In this order, so that a run that is killed in between goes on from the checkpoint before and
    comes to the same files again.

    Args:
        folder: The run's.
        keep_every: Also keep a checkpoint every so many sequences; null for none.
        keep_last: How many of those, the newest.

    """

    def __init__(self, folder: RunFolder, keep_every: int | None, keep_last: int) -> None:
        self.folder = folder
        self.keep_every = keep_every
        self.keep_last = keep_last
        self.history: list[tuple[int, float]] = []
        """(sequences, the goal's metric) of every validation."""
        self.training_seconds = 0.0
        self.earlier_seconds = 0.0
        """Wall time of the command before it was last resumed."""
        self.best = (math.inf, math.inf)
        self.lock: Lock | None = None
        """Of the folder, to be held whenever something is written; the first process has it."""
        self._started = time.monotonic()
        self._epoch_started = 0.0

    @property
    def seconds(self) -> float:
        """Wall time of the command so far, summed over resumptions."""
        return self.earlier_seconds + time.monotonic() - self._started

    def begin(self, started: float, earlier: float) -> None:
        """Count the command's time from ``started``, by the monotonic clock, after ``earlier``."""
        self._started = started
        self.earlier_seconds = earlier

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the time."""
        self._epoch_started = time.monotonic()

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Make what is random in an epoch depend on the seed and the epoch alone."""
        # Not when the epoch starts: making a loader's iterator still draws from the generator.
        if batch_idx == 0:
            keys = [data_of(trainer).seed, trainer.current_epoch, trainer.global_rank]
            drawn = np.random.SeedSequence(keys).generate_state(1, np.uint64)[0]
            torch.manual_seed(int(drawn >> 1))

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Training time ends where validation begins."""
        self.training_seconds += time.monotonic() - self._epoch_started

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the records of the interval that ends here."""
        if in_any(trainer, self.lock is not None and not self.lock.holds()):
            if self.lock is not None:
                self.lock.check()
            raise Held(f"{self.folder.path} was lost by the first process of this run")
        sequences = sequences_seen(trainer)
        values = {name: float(value) for name, value in trainer.callback_metrics.items()}
        for name in ("train/loss", "val/loss"):
            if not math.isfinite(values[name]):
                raise Diverged(f"{name} is {values[name]} after {sequences} sequences")
        goal = data_of(trainer).task.solved
        achieved = values[f"val/{goal.metric}"]
        self._tell_if_worse(sequences, achieved, goal, values["val/loss"])
        self.history.append((sequences, achieved))
        score = (achieved, values["val/loss"])
        is_best = score <= self.best
        self.best = min(score, self.best)
        if trainer.is_global_zero:
            assert isinstance(pl_module, Learner)
            values["train/skipped_steps"] = pl_module.skipped_steps
            self._write_row(trainer, sequences, values)
        if is_best:
            trainer.save_checkpoint(self.folder.best)
        trainer.save_checkpoint(self.folder.last)
        if trainer.is_global_zero:
            self._keep(sequences)
            self.folder.write_result(sequences=sequences, seconds=round(self.seconds, 1))

    def _tell_if_worse(self, sequences: int, achieved: float, goal: Goal, loss: float) -> None:
        """Say what the mean over a run would hide: that it got worse than it was."""
        before = self.history[-1][1] if self.history else math.inf
        if before < goal.below <= achieved:
            logger.warning(
                "no longer solved after %s sequences: %.3g %s in validation, %.3g before",
                f"{sequences:,}", achieved, in_words(goal.metric), before,
            )  # fmt: skip
        if loss > 2 * math.log(2):
            logger.warning(
                "worse than guessing after %s sequences: a loss of %.3g in validation; a coin "
                "for every bit costs %.3g", f"{sequences:,}", loss, math.log(2),
            )  # fmt: skip

    def _write_row(self, trainer: pl.Trainer, sequences: int, values: dict[str, float]) -> None:
        stages = next(c for c in trainer.callbacks if isinstance(c, Stages))  # type: ignore[attr-defined]
        goal, numbers = data_of(trainer).task.solved, data_of(trainer).task.numbers
        values = {
            **{name: values[name] for name in RECORDED if name in values},
            **{f"stage/max_{n}": high for n, (_, high) in zip(numbers, stages.ranges, strict=True)},
            f"stage/{goal.metric}": stages.score,
            "learning_rate": trainer.optimizers[0].param_groups[0]["lr"],
        }
        append_row(
            self.folder.metrics,
            {"sequences": sequences, "seconds": round(self.seconds, 1), **values},
        )
        for log in trainer.loggers:
            if isinstance(log, Service):
                log.catch_up()
                continue
            known = {name: value for name, value in values.items() if not math.isnan(value)}
            log.log_metrics(known, step=sequences)
            log.save()

    def _keep(self, sequences: int) -> None:
        if self.keep_every is None:
            return
        before = self.history[-2][0] if len(self.history) > 1 else 0
        if sequences // self.keep_every > before // self.keep_every:
            with writing(self.folder.checkpoints / f"seq_{sequences}.ckpt") as part:
                shutil.copyfile(self.folder.last, part)
        for path in self.folder.kept()[: -self.keep_last]:
            path.unlink()

    def state_dict(self) -> dict[str, Any]:
        """Plain values to go on from."""
        return {
            "history": self.history,
            "best": self.best,
            "training_seconds": self.training_seconds,
            "seconds": self.seconds,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.history = [tuple(entry) for entry in state_dict["history"]]
        self.best = tuple(state_dict["best"])
        self.training_seconds = state_dict["training_seconds"]
        # After the checkpoint it may have gone on for a while.
        self.earlier_seconds = max(self.earlier_seconds, state_dict["seconds"])


def solved_at(history: list[tuple[int, float]], below: float) -> tuple[int | None, int | None]:
    """When a run solved its task.

    Args:
        history: (sequences, the goal's metric) of every validation, in order.
        below: The goal's bound.

    Returns:
        ``sequences_to_first_solve``, the first validation below the bound, and
        ``sequences_to_solve``, the first from which all later ones stay below; None if there is
        none.

    """
    first = next((at for at, achieved in history if achieved < below), None)
    solved = None
    for at, achieved in reversed(history):
        if achieved >= below:
            break
        solved = at
    return first, solved
