"""What a command says must not end it: a terminal may go away, or not know a letter."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any


class _Lasting:
    """A text stream that is silent once nobody listens."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except UnicodeError:
            raise  # somebody listens
        except (OSError, ValueError):
            self._fall_silent()
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError):
            self._fall_silent()

    def _fall_silent(self) -> None:
        """Send what is still to come, and what lies in the buffer, to nowhere."""
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


@contextmanager
def lasting() -> Iterator[None]:
    """Standard output and error whose end is no error, and that replace what they cannot encode."""
    before = sys.stdout, sys.stderr
    for stream in before:
        with suppress(AttributeError, OSError, ValueError):
            stream.reconfigure(errors="replace")  # type: ignore[union-attr]
    sys.stdout, sys.stderr = map(_Lasting, before)  # type: ignore[assignment]
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        sys.stdout, sys.stderr = before


def show(table: Any) -> None:
    """Print a table of `rich` so that every value is whole.

    Where it is wider than the terminal its headings are folded; what then still does not fit goes
    beyond the edge, where the terminal goes on in the next line.
    """
    from rich.cells import cell_len
    from rich.console import Console

    console = Console(markup=False, highlight=False)
    unbounded = console.options.update(max_width=10_000)
    if console.measure(table, options=unbounded).maximum > console.width:
        for column in table.columns:
            column.width = max([4, *(cell_len(str(cell)) for cell in column.cells)])
            column.overflow, column.no_wrap = "fold", False
        needed = 1 + sum(column.width + 3 for column in table.columns)
        console = Console(markup=False, highlight=False, width=max(needed, console.width))
    console.print(table)
