"""Moves a run through the stages of its curriculum."""

from __future__ import annotations

import logging
import math
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from ntm.metrics import SequenceMetrics
from ntm.tasks import Batch, Point
from ntm.training.curriculum import Curriculum
from ntm.training.data import data_of, sequences_seen

logger = logging.getLogger("ntm")


class Stages(Callback):
    """Moves the data through the curriculum's stages, each judged on its own points."""

    def __init__(self, curriculum: Curriculum) -> None:
        self.curriculum = curriculum
        self.score = math.nan
        """The goal's metric on the stage's own points, at the last validation."""
        self.ranges = curriculum.ranges
        """Those of the stage that it is of."""
        self._metrics = SequenceMetrics()

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Set the first ranges, or those of the stage that goes on; count where training is."""
        data_of(trainer).ranges = self.curriculum.ranges
        self._metrics.to(pl_module.device)

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Begin counting anew."""
        self._metrics.reset()

    def on_validation_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Count a batch if its point is one of the stage's."""
        if self._has(data_of(trainer).points[batch_idx]):
            self._metrics.update(*outputs)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Move on if it is time; the next epoch's data then has the new ranges."""
        data = data_of(trainer)
        points = [point for point in data.points if self._has(point)]
        values = self._metrics.results(data.optimum("val", points)) if points else {}
        self.score = float(values.get(self.curriculum.goal.metric, math.nan))
        self.ranges = self.curriculum.ranges
        sequences = sequences_seen(trainer)
        if self.curriculum.update(sequences, self.score):
            numbers = zip(self.curriculum.numbers, self.curriculum.ranges, strict=True)
            told = ", ".join(f"{name} {low} to {high}" for name, (low, high) in numbers)
            logger.info("stage %d begins: %s", self.curriculum.stage, told)
            data.ranges = self.curriculum.ranges

    def _has(self, point: Point) -> bool:
        ranges = self.curriculum.ranges
        return all(low <= at <= high for at, (low, high) in zip(point, ranges, strict=True))

    def state_dict(self) -> dict[str, Any]:
        """Plain values to go on from."""
        return {"curriculum": self.curriculum.state_dict(), "score": self.score}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.curriculum.load_state_dict(state_dict["curriculum"])
        self.score = state_dict.get("score", math.nan)
