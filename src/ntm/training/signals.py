"""Ctrl-C, SIGTERM and a terminal that goes away: a run that is asked to stop ends whole."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from ntm.tasks import Batch
from ntm.training.devices import in_any


class Interrupted(Exception):
    """The run was asked to stop; everything up to the last validation is on disk."""


HANGUP = getattr(signal, "SIGHUP", signal.SIGTERM)
"""What a terminal that is closed sends; Windows has none."""


def _ignored(number: int) -> bool:
    """Whether whoever started the process wants it to go on, as nohup does."""
    return number == HANGUP and signal.getsignal(number) is signal.SIG_IGN


class StopOnSignal(Callback):
    """Ctrl-C, SIGTERM and SIGHUP end the run after its step; a second one ends it at once."""

    def __init__(self) -> None:
        self._received: list[int] = []
        self._before: dict[int, Any] = {}
        self._listens = False

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Listen; only the main thread can."""
        if threading.current_thread() is not threading.main_thread():
            return
        self._listens = True
        for number in {signal.SIGINT, signal.SIGTERM, HANGUP}:
            if not _ignored(number):
                self._before[number] = signal.signal(number, self._receive)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Listen alone: Lightning has since put a handler that waits for the other processes."""
        if self._listens:
            signal.signal(signal.SIGTERM, self._receive)

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Likewise; there is nothing to finish here."""
        if threading.current_thread() is threading.main_thread():
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
        if in_any(trainer, bool(self._received)):
            raise Interrupted(signal.Signals([*self._received, signal.SIGTERM][0]).name)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Let a run that was stopped write what it leaves: it may be told twice, see `StopOnSignal`."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {n: signal.signal(n, signal.SIG_IGN) for n in {signal.SIGINT, signal.SIGTERM, HANGUP}}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def terminable() -> Iterator[None]:
    """Make SIGTERM and SIGHUP leave as Ctrl-C does, also where `StopOnSignal` does not listen."""
    unheard = [n for n in {signal.SIGTERM, HANGUP} if signal.getsignal(n) is signal.SIG_DFL]
    if threading.current_thread() is not threading.main_thread():
        unheard = []
    for number in unheard:  # Lightning then also ends the other processes of the run
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number in unheard:
            signal.signal(number, signal.SIG_DFL)
