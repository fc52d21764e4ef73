"""The face of a run in a terminal: what it says, how it ended, its exit status."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from ntm.commands.command import DONE, FAILED, HELD, INTERRUPTED
from ntm.commands.configuration import ConfigurationError, one_line, quoted
from ntm.commands.streams import show
from ntm.folders.locks import Held
from ntm.folders.runs import RunFolder
from ntm.training.run import train
from ntm.training.signals import Interrupted
from ntm.views.evaluation import tables

logger = logging.getLogger("ntm")


def run_job(config: DictConfig, started: float | None = None) -> int:
    """Train a run, say how it went, and return the exit status of the command.

    Raises:
        ConfigurationError: The configuration cannot be; nothing is written.

    """
    with console_log():
        try:
            result = train(config, started)
        except ConfigurationError:
            raise
        except Interrupted:
            return INTERRUPTED
        except Held as held:
            print(f"held: {held}", file=sys.stderr)
            return HELD
        except Exception as error:
            print(f"failed: {type(error).__name__}: {one_line(error)}", file=sys.stderr)
            return FAILED
    if result:
        report(config, result)
    return DONE


def report(config: DictConfig, result: dict[str, Any]) -> None:
    """Print what a run came to, and how to look at it."""
    folder = RunFolder(config.folder)
    console = Console(markup=False)
    facts = Table(
        show_header=False, title=f"{result['task']}, {result['model']}, seed {result['seed']}"
    )
    facts.add_column(style="dim")
    facts.add_column()
    solve = result["sequences_to_solve"]
    facts.add_row("solved at", f"{solve:,} sequences" if solve else "not solved")
    above = result.get("bits_above_optimum")
    facts.add_row(
        "test set, best.ckpt",
        f"{result['wrong_bits_per_sequence']:.3f} wrong bits, "
        f"{result['bits_per_sequence']:.3f} bits per sequence"
        + ("" if above is None else f", {above:.3f} above the optimum"),
    )
    facts.add_row(
        "trained",
        f"{result['sequences']:,} sequences in {result['seconds']:.0f} s, "
        f"{result['sequences_per_second']:,.0f}/s in training",
    )
    if result.get("stopped"):
        facts.add_row("stopped by", result["stopped"])
    if result.get("skipped_steps"):
        facts.add_row("skipped", f"{result['skipped_steps']:,} steps, gradient not finite")
    facts.add_row("parameters", f"{result['parameters']:,}")
    facts.add_row("folder", str(folder.path))
    console.print(facts)
    rows = [row for row in folder.read_evaluations() if row["checkpoint"] == "best"]
    if rows:
        for shown in tables(rows):
            show(shown)
    beside = quoted(folder.path.parent.parent)
    console.print(f"Curves and pictures: tensorboard --logdir {beside}", soft_wrap=True)


@contextmanager
def console_log() -> Iterator[None]:
    """Show what the project says on stderr."""
    handler = _StderrHandler()
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)


class _StderrHandler(logging.Handler):
    """Writes to whatever stderr is now, so that lines go above a progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        print(self.format(record), file=sys.stderr)
