"""What a person who waits for a run sees of it."""

from __future__ import annotations

import logging
import time
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback, ProgressBar
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from ntm.folders.runs import in_words
from ntm.tasks import Batch
from ntm.training.data import data_of, sequences_seen
from ntm.training.learner import Learner

logger = logging.getLogger("ntm")


class Summary(Callback):
    """Prints the parts of the network and their parameters before training."""

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print the table once."""
        if not trainer.is_global_zero:
            return
        assert isinstance(pl_module, Learner)
        network = pl_module.network
        total = sum(p.numel() for p in network.parameters())
        table = Table(title=f"{type(network).__name__}, {total:,} parameters")
        table.add_column("part")
        table.add_column("module")
        table.add_column("parameters", justify="right")
        for name, module in network.named_children():
            count = sum(p.numel() for p in module.parameters())
            table.add_row(name, type(module).__name__, f"{count:,}")
        own = sum(p.numel() for p in network.parameters(recurse=False))
        if own:
            table.add_row("learned initial state", "", f"{own:,}")
        Console(stderr=True, markup=False).print(table)


class Bar(ProgressBar):
    """One bar over the whole budget on a terminal; one line a validation wherever it goes."""

    def __init__(self, label: str) -> None:
        super().__init__()
        self.label = label
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._rate = 0.0
        self._shown_at = 0.0
        self._seen = (0.0, 0)

    def disable(self) -> None:
        """Another process shows it: `on_train_start` puts no bar up here, and the log is mute."""

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Put the bar up where somebody can see it."""
        done = sequences_seen(trainer, 0)
        self._seen = (time.monotonic(), done)
        console = Console(stderr=True, markup=False)
        if console.is_terminal and trainer.is_global_zero:
            self._progress = Progress(
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TextColumn("{task.completed:>7,.0f}/{task.total:,.0f} sequences"),
                TextColumn("{task.fields[rate]:>5,.0f}/s  {task.fields[quality]}"),
                TimeRemainingColumn(),
                console=console,
                refresh_per_second=4,
            )
            total = data_of(trainer).batches * data_of(trainer).batch_size
            self._task = self._progress.add_task(
                self.label, total=total, completed=done, rate=0.0, quality=""
            )
            self._progress.start()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        """Show where it stands, a few times a second: reading the loss waits for the device."""
        now = time.monotonic()
        if self._progress is None or self._task is None or now - self._shown_at < 0.25:
            return
        self._shown_at = now
        assert isinstance(pl_module, Learner)
        metrics = pl_module.train_metrics
        done = sequences_seen(trainer, batch_idx + 1)
        wrong = float(metrics.wrong / metrics.sequences)
        quality = f"loss {float(outputs['loss']):.4f}  wrong bits {wrong:.2f}"
        began, before = self._seen
        self._rate = (done - before) / max(now - began, 1e-9)
        self._progress.update(self._task, completed=done, rate=self._rate, quality=quality)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say how the validation went."""
        values, goal = trainer.callback_metrics, data_of(trainer).task.solved.metric
        done = sequences_seen(trainer)
        began, before = self._seen
        logger.info(
            "%s  %7s sequences  %5.0f/s  loss %.4f  wrong bits in training %.2f, "
            "validation: %.3f %s",
            self.label,
            f"{done:,}",
            (done - before) / max(time.monotonic() - began, 1e-9),
            values["train/loss"],
            values["train/wrong_bits_per_sequence"],
            values[f"val/{goal}"],
            in_words(goal),
        )

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the bar down."""
        self._stop()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Take the bar down."""
        self._stop()

    def _stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
