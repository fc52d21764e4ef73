"""One run over several devices: which ways are right, and how its processes end together."""

from __future__ import annotations

import time
from collections.abc import Sequence
from subprocess import Popen
from typing import Any

import pytorch_lightning as pl
from omegaconf import DictConfig
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.strategies import DDPStrategy, SingleDeviceStrategy
from torch import Tensor

from ntm.commands.configuration import ConfigurationError
from ntm.tasks.sampling import joined

SECONDS_TO_TELL = 15
"""What the first process of a run is given to notice, write and say that another has died."""


def in_any(trainer: pl.Trainer, here: bool) -> bool:
    """Whether something is so in any process of a run; all of them must ask."""
    if trainer.world_size == 1:
        return here
    return trainer.strategy.reduce_boolean_decision(here, all=False)


def whole_batch(trainer: pl.Trainer, here: Sequence[Tensor]) -> list[Tensor]:
    """A batch of which each process of a run has some rows, put together; all of them must ask.

    Args:
        trainer: Of the run.
        here: Tensors (T, B, …), of this process's rows of the batch.

    """
    processes = trainer.world_size
    if processes == 1:
        return list(here)
    mine = [tensor.cpu() for tensor in here]
    parts = [trainer.strategy.broadcast(mine, src=rank) for rank in range(processes)]
    return [joined(shares) for shares in zip(*parts, strict=True)]


def check_devices(trainer: pl.Trainer, config: DictConfig) -> None:
    """Refuse ways of using several devices that would change what is trained.

    Raises:
        ConfigurationError: Names the key.

    """
    strategy, asked = trainer.strategy, config.trainer.strategy
    # Of the ways to start processes, this one alone repeats the command.
    start = asked.get("start_method", "popen") if isinstance(asked, DictConfig) else "popen"
    scripts = start == "popen" and "spawn" not in str(asked) and not _forks(trainer)
    ddp = isinstance(strategy, DDPStrategy) and scripts
    if not ddp and not isinstance(strategy, SingleDeviceStrategy):
        raise ConfigurationError(f"trainer.strategy must be auto or ddp, got {asked!r}")
    if config.batch_size < trainer.world_size:
        raise ConfigurationError(
            f"batch_size must be at least the number of devices, {trainer.world_size}, over which "
            f"it is shared out, got {config.batch_size}"
        )


def _forks(trainer: pl.Trainer) -> bool:
    launcher = trainer.strategy.launcher
    return launcher is not None and launcher.is_interactive_compatible


class TimeToTell(Callback):
    """Gives the first process of a run time to tell that another has died.

    Lightning kills it up to five seconds after, which may be before it has noticed.
    """

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """The other processes run; let their end be seen later."""
        started: list[Any] = getattr(trainer.strategy.launcher, "procs", [])
        started[:] = [p if isinstance(p, SeenLater) else SeenLater(p) for p in started]


class SeenLater:
    """A process whose failure shows after `SECONDS_TO_TELL`."""

    def __init__(self, process: Popen[Any]) -> None:
        self._process = process
        self._failed_at: float | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._process, name)

    @property
    def returncode(self) -> int | None:
        """As of the process, a failure late."""
        code = self._process.returncode
        if code and self._failed_at is None:
            self._failed_at = time.monotonic()
        late = self._failed_at is None or time.monotonic() - self._failed_at >= SECONDS_TO_TELL
        return code if late else None
