"""Compiling the CPU's functions once, keeping them on disk, and several processes at once.

Numba's cache can hand one process another's code when several write it at the same time, and
refuses to define a function where nothing can be written. So each version of the source, of Numba
and of the processor has a folder of its own, in it each kind of controller in each precision, which
is compiled under its lock; where no folder can be written the functions are compiled anew in each
process.
"""

from __future__ import annotations

import hashlib
import logging
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from filelock import FileLock

logger = logging.getLogger("ntm")

COMPILED = ("compiling", "conventions", "cpu", "jobs", "numerics")
"""Modules that what is kept depends on."""


class Kernels(NamedTuple):
    """Compiled functions of C; each takes the address of a job, see `ntm.kernels.calling`."""

    forward: Any
    backward: Any


@cache
def kernels(controller: str, dtype: str) -> Kernels:
    """What serves a controller in a precision, compiled.

    Args:
        controller: ``lstm``, ``feedforward``, or ``any``: the heads alone, one step at a time;
            ``step``: the same where every step stands for itself.
        dtype: ``float32`` or ``float64``.

    """
    folder = _cache_folder(f"{controller}-{dtype}")
    if folder is not None:
        try:
            with FileLock(folder / "lock"):
                return _compile(controller, dtype, folder)
        except OSError as error:  # a full disk, or a folder that was taken away
            logger.info("the cache of the fused engine cannot be used: %s", error)
    return _compile(controller, dtype, None)


def _compile(controller: str, dtype: str, folder: Path | None) -> Kernels:
    """Load a kind from its folder, or compile it and keep it there."""
    ready = None if folder is None else folder / "ready"
    if ready is None:
        logger.info("compiling the fused engine for this process alone: it cannot be kept")
    elif not ready.exists():
        logger.info("compiling the fused engine, once on this machine")
    with _helped(controller, dtype, folder) if ready and not ready.exists() else nullcontext():
        forward = compile_one(controller, dtype, 0, folder)
    made = Kernels(forward, compile_one(controller, dtype, 1, folder))
    if ready is not None:
        ready.touch()
    return made


def compile_one(controller: str, dtype: str, place: int, folder: Path | None) -> Any:
    """Load a function from a folder, or compile it and keep it there.

    Args:
        controller: As for `kernels`, and so is dtype.
        dtype: See there.
        place: In `Kernels`.
        folder: Held by this process, or by one that waits for it; None where nothing is kept.

    """
    import numba

    from ntm.kernels.cpu import FUNCTIONS, compiled

    config: Any = numba.config
    users, config.CACHE_DIR = config.CACHE_DIR, str(folder or "")
    try:
        function = FUNCTIONS[controller][place](getattr(np, dtype))
        return compiled(function, folder is not None).ctypes
    finally:
        config.CACHE_DIR = users


HELPER = """
import sys
sys.path[:] = sys.argv[5:]
from pathlib import Path
from ntm.kernels.compiling import compile_one
compile_one(sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]))
"""


@contextmanager
def _helped(controller: str, dtype: str, folder: Path | None) -> Iterator[None]:
    """Let another process compile the way back meanwhile: Numba takes one function at a time.

    What it does not come to is done afterwards.
    """
    task = [sys.executable, "-c", HELPER, controller, dtype, "1", str(folder), *sys.path]
    quiet = subprocess.DEVNULL
    try:
        helper = subprocess.Popen(task, stdin=quiet, stdout=quiet, stderr=quiet)
    except OSError:  # no interpreter of its own, or no room for one
        yield
        return
    try:
        yield
        helper.wait()
    finally:
        helper.kill()
        helper.wait()


def _cache_folder(name: str) -> Path | None:
    """Where this version's functions of a name are kept; None where nothing can be written."""
    import numba
    from llvmlite import binding

    here = Path(__file__).parent
    sources = [here / f"{name}.py" for name in COMPILED]
    processor = f"{binding.get_host_cpu_name()} {binding.get_host_cpu_features().flatten()}"
    versions = f"{numba.__version__} {np.__version__} {here} {processor}"
    text = versions.encode() + b"".join(path.read_bytes() for path in sources)
    try:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
        folder = Path(base) / "ntm" / hashlib.sha256(text).hexdigest()[:16] / name
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except (OSError, RuntimeError, KeyError):  # the user may have no home
        return None
