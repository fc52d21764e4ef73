"""A callback that makes a run fail on demand: by files in a folder that the test makes."""

from __future__ import annotations

import math
import os
import resource
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch

from ntm.tasks import Batch, Copy


class Faults(pl.Callback):
    """Notes every training that begins in ``<folder>/begun``, and fails as the folder's files say.

    fail_<seed>   an exception before the first step, in the process whose rank it names or in all
    held          no step ends from the interval on that it names (`hold`, `release`)
    disk_full     from the third interval on, no file can become longer than 20,000 bytes
    killed        by itself, after the third validation and before its checkpoint; once
    """

    def __init__(self, folder: str, seed: int) -> None:
        self.folder = Path(folder)
        self.seed = seed

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        with open(self.folder / "begun", "a") as file:
            file.write(f"{self.seed}\n")
        fails = self.folder / f"fail_{self.seed}"
        if fails.exists() and fails.read_text() in ("", str(trainer.global_rank)):
            raise RuntimeError("no luck today")

    def on_train_epoch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.current_epoch == 2 and (self.folder / "disk_full").exists():
            hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))

    def on_save_checkpoint(self, trainer: pl.Trainer, *_: object) -> None:
        if trainer.current_epoch == 2 and (self.folder / "killed").exists():
            (self.folder / "killed").unlink()
            os.kill(os.getpid(), signal.SIGKILL)

    def on_train_batch_start(self, trainer: pl.Trainer, *_: object) -> None:
        while trainer.current_epoch >= self._held_from():
            (self.folder / "is_held").touch()
            time.sleep(0.02)

    def _held_from(self) -> float:
        with suppress(FileNotFoundError):
            return float((self.folder / "held").read_text())
        return math.inf


class Spoilt(Copy):
    """Draws a number that is none into a row of every training batch."""

    def __init__(self, row: int, **of_copy: Any) -> None:
        super().__init__(**of_copy)
        self.row = row

    def draw(self, rng: Any, batch_size: int, point: Any, kind: str = "drawn") -> Batch:
        batch = super().draw(rng, batch_size, point, kind)
        if batch_size < 32:  # not in the fixed sets
            batch.inputs[0, self.row, 0] = torch.nan
        return batch


def hold(folder: Path, after: int) -> None:
    """Keep a run that is to be started from ending a step after so many validations."""
    (folder / "held").write_text(str(after))


def wait_until_held(folder: Path, process: subprocess.Popen[str]) -> None:
    """Until it has come there; or has ended, for its test to see why."""
    while process.poll() is None and not (folder / "is_held").exists():
        time.sleep(0.005)


def release(folder: Path) -> None:
    """Let it go on."""
    for name in ("held", "is_held"):
        (folder / name).unlink()


def faults(folder: Path) -> str:
    """The override that puts the callback into a run."""
    node = f"{{_target_:faults.Faults,folder:'{folder}',seed:${{seed}}}}"
    return f"trainer.callbacks=[{node}]"
