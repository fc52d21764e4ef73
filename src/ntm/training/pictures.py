"""Pictures of an answer and of the machine's inside while it trains."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import TensorBoardLogger

from ntm.training.data import data_of, sequences_seen
from ntm.training.learner import Learner
from ntm.training.loggers import Service
from ntm.views import figures
from ntm.views.probing import evaluate, inside, point_name


class Pictures(Callback):
    """Draws an answer, and what the machine did inside, for the loggers that show pictures.

    Args:
        every: Sequences from one drawing to the next.

    """

    def __init__(self, every: int) -> None:
        self.every = every
        self._drawn_at = 0

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw if it is time, the first time at the first validation."""
        sequences = sequences_seen(trainer)
        first = trainer.current_epoch == 0
        if not trainer.is_global_zero or (sequences - self._drawn_at < self.every and not first):
            return
        self._drawn_at = sequences
        shown = [log for log in trainer.loggers if isinstance(log, (TensorBoardLogger, Service))]
        if not shown:
            return
        for name, image in self._draw(trainer, pl_module, sequences).items():
            for log in shown:
                if isinstance(log, Service):
                    log.add_picture(name, image, sequences)
                else:
                    log.experiment.add_image(name, image, sequences, dataformats="HWC")

    def _draw(
        self, trainer: pl.Trainer, module: pl.LightningModule, step: int
    ) -> dict[str, np.ndarray]:
        """The pictures, by their names."""
        assert isinstance(module, Learner)
        task = data_of(trainer).task
        point = tuple(high for _, high in task.ranges)
        _, answers = evaluate(module.network, task, [point], 1)
        title = f"{task.label(point)} after {step:,} sequences"
        at = point_name(task, point)
        drawn = {f"answer/{at}": figures.draw_answer(answers[point], title)}
        seen = inside(module.network, task, point)
        if seen is not None:
            drawn[f"inside/{at}"] = figures.draw_inside(seen, title)
        return {name: figures.image_array(figure) for name, figure in drawn.items()}

    def state_dict(self) -> dict[str, Any]:
        """Plain values to go on from."""
        return {"drawn_at": self._drawn_at}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self._drawn_at = state_dict["drawn_at"]
