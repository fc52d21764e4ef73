"""What goes on beside training: stages, records, checkpoints, pictures, progress, interruption."""

from __future__ import annotations

import io
import logging
import math
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, Checkpoint, ProgressBar
from pytorch_lightning.loggers import TensorBoardLogger
from pytorch_lightning.plugins.io import TorchCheckpointIO
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from ntm import figures
from ntm.curriculum import Curriculum
from ntm.data import SequenceData
from ntm.learner import Learner
from ntm.locks import Held, Lock
from ntm.metrics import SOLVED_BELOW, SequenceMetrics
from ntm.probing import evaluate, inside
from ntm.runs import RunFolder, append_row, kept_at, write_whole, writing
from ntm.tasks import Batch

logger = logging.getLogger("ntm")


class Interrupted(Exception):
    """The run was asked to stop; everything up to the last validation is on disk."""


class Diverged(Exception):
    """The loss is no longer a number."""


class EventLog(TensorBoardLogger):
    """TensorBoard's events and nothing else: the run folder has its own config.yaml."""

    def __init__(self, save_dir: str, **arguments: Any) -> None:
        super().__init__(save_dir, name="", version="", default_hp_metric=False, **arguments)

    def save(self) -> None:
        """Flush the events."""
        self.experiment.flush()


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
        _data(trainer).difficulties = self.curriculum.difficulties
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
        if low <= _data(trainer).validation_difficulty(batch_idx) <= high:
            self._metrics.update(*outputs)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Move on if it is time; the next epoch's data then has the new range."""
        self.wrong_bits = float(self._metrics.compute()["wrong_bits_per_sequence"])
        self.highest = self.curriculum.difficulties[1]
        sequences = _data(trainer).sequences_after(trainer.current_epoch)
        if self.curriculum.update(sequences, self.wrong_bits):
            low, high = self.curriculum.difficulties
            logger.info("stage %d begins: %d to %d", self.curriculum.stage, low, high)
            _data(trainer).difficulties = self.curriculum.difficulties

    def state_dict(self) -> dict[str, Any]:
        """Plain values to go on from."""
        return {"curriculum": self.curriculum.state_dict(), "wrong_bits": self.wrong_bits}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self.curriculum.load_state_dict(state_dict["curriculum"])
        self.wrong_bits = state_dict["wrong_bits"]


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
        """(sequences, wrong bits per sequence) of every validation."""
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
            keys = [_data(trainer).seed, trainer.current_epoch, trainer.global_rank]
            drawn = np.random.SeedSequence(keys).generate_state(1, np.uint64)[0]
            torch.manual_seed(int(drawn >> 1))

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Training time ends where validation begins."""
        self.training_seconds += time.monotonic() - self._epoch_started

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the records of the interval that ends here."""
        if _in_any(trainer, self.lock is not None and not self.lock.holds()):
            if self.lock is not None:
                self.lock.check()
            raise Held(f"{self.folder.path} was lost by the first process of this run")
        sequences = _data(trainer).sequences_after(trainer.current_epoch)
        values = {name: float(value) for name, value in trainer.callback_metrics.items()}
        for name in ("train/loss", "val/loss"):
            if not math.isfinite(values[name]):
                raise Diverged(f"{name} is {values[name]} after {sequences} sequences")
        wrong = values["val/wrong_bits_per_sequence"]
        self.history.append((sequences, wrong))
        score = (wrong, values["val/loss"])
        is_best = score <= self.best
        self.best = min(score, self.best)
        if trainer.is_global_zero:
            self._write_row(trainer, sequences, values)
        if is_best:
            trainer.save_checkpoint(self.folder.best)
        trainer.save_checkpoint(self.folder.last)
        if trainer.is_global_zero:
            self._keep(sequences)
            self.folder.write_result(sequences=sequences, seconds=round(self.seconds, 1))

    def _write_row(self, trainer: pl.Trainer, sequences: int, values: dict[str, float]) -> None:
        stages = next(c for c in trainer.callbacks if isinstance(c, Stages))  # type: ignore[attr-defined]
        values = {
            "train/loss": values["train/loss"],
            "train/wrong_bits_per_sequence": values["train/wrong_bits_per_sequence"],
            "val/loss": values["val/loss"],
            "val/wrong_bits_per_sequence": values["val/wrong_bits_per_sequence"],
            "val/bits_per_sequence": values["val/bits_per_sequence"],
            "val/accuracy": values["val/accuracy"],
            "stage/highest": stages.highest,
            "stage/wrong_bits_per_sequence": stages.wrong_bits,
            "learning_rate": trainer.optimizers[0].param_groups[0]["lr"],
        }
        append_row(
            self.folder.metrics,
            {"sequences": sequences, "seconds": round(self.seconds, 1), **values},
        )
        for log in trainer.loggers:
            log.log_metrics(values, step=sequences)
            log.save()

    def _keep(self, sequences: int) -> None:
        if self.keep_every is None:
            return
        before = self.history[-2][0] if len(self.history) > 1 else 0
        if sequences // self.keep_every > before // self.keep_every:
            with writing(self.folder.checkpoints / f"seq_{sequences}.ckpt") as part:
                shutil.copyfile(self.folder.last, part)
        kept = sorted(self.folder.checkpoints.glob("seq_*.ckpt"), key=kept_at)
        for path in kept[: -self.keep_last]:
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


def solved_at(history: list[tuple[int, float]]) -> tuple[int | None, int | None]:
    """When a run solved its task.

    Args:
        history: (sequences, wrong bits per sequence) of every validation, in order.

    Returns:
        ``sequences_to_first_solve``, the first validation below 0.1, and ``sequences_to_solve``,
        the first from which all later ones stay below; None if there is none.

    """
    first = next((at for at, wrong in history if wrong < SOLVED_BELOW), None)
    solved = None
    for at, wrong in reversed(history):
        if wrong >= SOLVED_BELOW:
            break
        solved = at
    return first, solved


class Pictures(Callback):
    """Draws an answer, and what the machine did inside, for TensorBoard's IMAGES tab.

    Args:
        every: Sequences from one drawing to the next.

    """

    def __init__(self, every: int) -> None:
        self.every = every
        self._drawn_at = 0

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Draw if it is time, the first time at the first validation."""
        sequences = _data(trainer).sequences_after(trainer.current_epoch)
        first = trainer.current_epoch == 0
        if not trainer.is_global_zero or (sequences - self._drawn_at < self.every and not first):
            return
        self._drawn_at = sequences
        for log in trainer.loggers:
            if isinstance(log, TensorBoardLogger):
                self._draw(log, trainer, pl_module, sequences)

    def _draw(
        self, log: TensorBoardLogger, trainer: pl.Trainer, module: pl.LightningModule, step: int
    ) -> None:
        assert isinstance(module, Learner)
        task = _data(trainer).task
        length = task.difficulties[1]
        _, answers = evaluate(module.network, task, [length], 1)
        title = f"{task.difficulty} {length} after {step:,} sequences"
        drawn = {"answer": figures.draw_answer(answers[length], title)}
        seen = inside(module.network, task, length)
        if seen is not None:
            drawn["inside"] = figures.draw_inside(seen, title)
        for name, figure in drawn.items():
            image = figures.image_array(figure)
            log.experiment.add_image(name, image, step, dataformats="HWC")

    def state_dict(self) -> dict[str, Any]:
        """Plain values to go on from."""
        return {"drawn_at": self._drawn_at}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self._drawn_at = state_dict["drawn_at"]


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
        Console(stderr=True).print(table)


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
        done = _sequences(trainer)
        self._seen = (time.monotonic(), done)
        console = Console(stderr=True)
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
            total = _data(trainer).batches * _data(trainer).batch_size
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
        done = _sequences(trainer, batch_idx + 1)
        wrong = float(metrics.wrong / metrics.sequences)
        quality = f"loss {float(outputs['loss']):.4f}  wrong bits {wrong:.2f}"
        began, before = self._seen
        self._rate = (done - before) / max(now - began, 1e-9)
        self._progress.update(self._task, completed=done, rate=self._rate, quality=quality)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say how the validation went."""
        values = trainer.callback_metrics
        done = _data(trainer).sequences_after(trainer.current_epoch)
        began, before = self._seen
        logger.info(
            "%s  %7s sequences  %5.0f/s  loss %.4f  wrong bits: training %.2f, validation %.3f",
            self.label,
            f"{done:,}",
            (done - before) / max(time.monotonic() - began, 1e-9),
            values["train/loss"],
            values["train/wrong_bits_per_sequence"],
            values["val/wrong_bits_per_sequence"],
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


class StopOnSignal(Callback):
    """Ctrl-C and SIGTERM end the run after its step; a second one ends it at once."""

    def __init__(self) -> None:
        self._received: list[int] = []
        self._before: dict[int, Any] = {}
        self._listens = False

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Listen."""
        self._listens = True
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._receive)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Listen alone: Lightning has since put a handler that waits for the other processes."""
        signal.signal(signal.SIGTERM, self._receive)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Likewise; there is nothing to finish here."""
        signal.signal(signal.SIGTERM, signal.default_int_handler)

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
    ) -> None:
        """Stop here if asked to."""
        self._stop_if_asked(trainer)

    def on_validation_batch_end(self, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
        """Stop here if asked to."""
        self._stop_if_asked(trainer)

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Listen no more."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._listens = False

    def _receive(self, number: int, frame: Any) -> None:
        # The next of the same kind ends it at once; in a sweep, Ctrl-C comes from the terminal and,
        # as SIGTERM, from the script.
        signal.signal(number, self._before[number])
        if number in self._received or not self._listens:
            signal.raise_signal(number)  # Lightning put this handler back when it came down
        self._received.append(number)

    def _stop_if_asked(self, trainer: pl.Trainer) -> None:
        """Stop all processes of a run after the same step, whichever of them was asked."""
        if _in_any(trainer, bool(self._received)):
            raise Interrupted(signal.Signals([*self._received, signal.SIGTERM][0]).name)


def _in_any(trainer: pl.Trainer, here: bool) -> bool:
    """Whether something is so in any process of a run; all of them must ask."""
    if trainer.world_size == 1:
        return here
    return trainer.strategy.reduce_boolean_decision(here, all=False)


def _data(trainer: pl.Trainer) -> SequenceData:
    data: SequenceData = trainer.datamodule  # type: ignore[attr-defined]
    return data


def _sequences(trainer: pl.Trainer, batches: int = 0) -> int:
    """Sequences seen, ``batches`` batches into the current epoch."""
    data = _data(trainer)
    done = min(trainer.current_epoch * data.batches_per_epoch + batches, data.batches)
    return done * data.batch_size
