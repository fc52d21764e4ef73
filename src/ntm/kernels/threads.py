"""Sequences of a batch shared among torch's own threads.

torch's threads are those of GNU OpenMP where it has that (Linux), and they wait for work by turning
on the spot: threads of another pool would share their cores with them, and gain nothing. So the
compiled functions run in OpenMP's team; elsewhere in a pool of ours.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from typing import Any

import torch

Part = tuple[int, int]


def in_parts(function: Callable[..., None], batch_size: int, *arguments: Any) -> None:
    """Call function(begin, end, *arguments) so that the parts cover a batch, one a thread.

    Args:
        function: Compiled, and without Python's lock while it runs.
        batch_size: B.
        arguments: What follows begin and end.

    Raises:
        BaseException: The first that a part raised, after all have ended.

    """
    threads = min(torch.get_num_threads(), batch_size)
    if threads == 1:
        function(0, batch_size, *arguments)
        return
    parts = list(pairwise(batch_size * part // threads for part in range(threads + 1)))
    raised: list[BaseException] = []

    def run(part: Part) -> None:
        try:
            function(*part, *arguments)
        except BaseException as error:  # an interrupt too must not be lost in OpenMP
            raised.append(error)

    if _openmp() is None:
        list(_pool(threads).map(run, parts))
    else:
        _in_team(run, parts)
    if raised:
        raise raised[0]


def _in_team(run: Callable[[Part], None], parts: list[Part]) -> None:
    """Each part on a thread of OpenMP's, which may grant fewer threads than there are parts."""
    openmp = _openmp()

    def member(_: int | None) -> None:
        for part in parts[openmp.omp_get_thread_num() :: openmp.omp_get_num_threads()]:
            run(part)

    openmp.GOMP_parallel(_REGION(member), None, len(parts), 0)


_REGION = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


@cache
def _openmp() -> Any:
    """The library of GNU OpenMP that torch has loaded, or None."""
    try:
        return ctypes.CDLL("libgomp.so.1", mode=os.RTLD_NOLOAD | os.RTLD_NOW)
    except (AttributeError, OSError):  # no such flag on Windows; no such library on a Mac
        return None


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads, thread_name_prefix="ntm")
