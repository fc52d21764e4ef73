"""Moves a run through the stages of its curriculum."""

from __future__ import annotations

import logging
import math
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from ntm.metrics import SequenceMetrics
from ntm.tasks import Batch
from ntm.training.curriculum import Curriculum
from ntm.training.data import data_of

logger = logging.getLogger("ntm")


class Stages(Callback):
    """Moves the data through the curriculum's stages, each judged on its own difficulties."""

    def __init__(self, curriculum: Curriculum) -> None:
        self.curriculum = curriculum
        self.wrong_bits = math.nan
        """Wrong bits per sequence on the stage's own difficulties, at the last validation."""
        self.highest = curriculum.difficulties[1]
        """The hardest of those."""
        self._metrics = SequenceMetrics()

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Set the first range, or that of the stage that goes on; count where training is."""
        data_of(trainer).difficulties = self.curriculum.difficulties
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
        """Count a batch if its difficulty is one of the stage's."""
        low, high = self.curriculum.difficulties
        if low <= data_of(trainer).validation_difficulty(batch_idx) <= high:
            self._metrics.update(*outputs)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Move on if it is time; the next epoch's data then has the new range."""
        self.wrong_bits = float(self._metrics.compute()["wrong_bits_per_sequence"])
        self.highest = self.curriculum.difficulties[1]
        sequences = data_of(trainer).sequences_after(trainer.current_epoch)
        if self.curriculum.update(sequences, self.wrong_bits):
            low, high = self.curriculum.difficulties
            logger.info("stage %d begins: %d to %d", self.curriculum.stage, low, high)
            data_of(trainer).difficulties = self.curriculum.difficulties

    def state_dict(self) -> dict[str, Any]:
        """Plain values to go on from."""
        return {"curriculum": self.curriculum.state_dict(), "wrong_bits": self.wrong_bits}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.curriculum.load_state_dict(state_dict["curriculum"])
        self.wrong_bits = state_dict["wrong_bits"]
