"""Calling compiled functions, on torch's own threads.

A compiled function is one of C that takes the address of a job, a row of whole numbers (see
`ntm.kernels.conventions`). So threads of any library can run it without Python's lock, and calling
it costs next to nothing: arrays, passed one by one, would cost more than the arithmetic of a short
sequence.

torch's threads are those of GNU OpenMP where it has that (Linux), and they wait for work by turning
on the spot: threads of another pool would share their cores with them, and gain nothing. So the
compiled functions run in OpenMP's team; elsewhere in a pool of ours.
"""

from __future__ import annotations

import ctypes
import os
from array import array
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ntm.kernels.conventions import (
    CLAIMED,
    DENSE,
    LONGEST_BLOCK,
    ROOM,
    SCRATCH,
    STEP,
    WORKERS,
)


class Job:
    """What a compiled function is to do, by as many threads as torch has; can be done again.

    Args:
        function: Of `ntm.kernels.compiling.kernels`.
        sizes: B, T, L, I, H, N, M.
        layout: R, W, 2S + 1, codes of the key's and the add vector's activation, read_first.
        norm_floor: Least length of a vector in cosine similarity.
        dense: Tensors in the function's order; what is filled must be contiguous. None stands for
            what has no elements, or comes with `run`. What others hand in is for `check_alike`.
        loose: Likewise, of three dimensions; None stands for zeros.
        activation: Code of that of a feedforward controller.
        kept: Memories that the forward pass keeps.

    """

    def __init__(
        self,
        function: Any,
        sizes: Sequence[int],
        layout: Sequence[int],
        norm_floor: float,
        dense: Sequence[Tensor | None],
        loose: Sequence[Tensor | None],
        activation: int = 0,
        kept: int = 0,
    ) -> None:
        self.precision = next(one.dtype for one in dense if one is not None)
        self.function = function
        # Held: the function only knows where they lie.
        self.dense = [None if tensor is None else tensor.contiguous() for tensor in dense]
        self.loose = loose
        places = [0 if tensor is None else tensor.data_ptr() for tensor in self.dense]
        for tensor in loose:
            places += (0, 0, 0, 0) if tensor is None else (tensor.data_ptr(), *tensor.stride())
        self.threads, block = _shared(sizes[0])
        head = 0, 0, block, *sizes, *layout, activation, kept, 0, _bits(norm_floor**2), 0, 0
        self.row = array("q", (*head, *places))
        self.address = self.row.buffer_info()[0]
        function(self.address)  # without scratch it only says how much a thread needs
        self.scratch = _scratch(self.threads * self.row[ROOM])
        self.row[SCRATCH] = self.scratch.data_ptr()

    def run(
        self, step: int = 0, dense: Sequence[Tensor] = (), loose: Sequence[Tensor | None] = ()
    ) -> None:
        """Do it.

        Args:
            step: The time step, where only one is to be done.
            dense: For this time, in the last of the dense places.
            loose: Likewise; of two dimensions, the first of the three has length 1.

        """
        row = self.row
        lying = [tensor.contiguous() for tensor in dense]
        for place, tensor in enumerate(lying, DENSE + len(self.dense) - len(lying)):
            if tensor.dtype is not self.precision:
                raise _several({tensor.dtype, self.precision})
            row[place] = tensor.data_ptr()
        for place, there in enumerate(loose, -len(loose)):
            at = len(row) + 4 * place
            row[at] = 0 if there is None else there.data_ptr()
            if there is not None:
                row[at + 2], row[at + 3] = there.stride()
        row[CLAIMED], row[WORKERS], row[STEP] = 0, 0, step
        on_threads(self.function, self.address, self.threads)


def check_alike(tensors: Sequence[Tensor]) -> None:
    """Refuse tensors of several precisions or devices, and what does not lie where it says.

    Raises:
        TypeError: They are of several precisions.
        ValueError: One lies on another device than the first, is sparse, or was given back.

    """
    first, strided = tensors[0], torch.strided
    on_cpu, precision = first.is_cpu, first.dtype
    for one in tensors:
        if one.dtype is not precision:
            raise _several({each.dtype for each in tensors})
        # Nearly always; in one loop, for there are twenty in a step of training.
        if on_cpu and one.is_cpu and one.layout is strided and one.is_contiguous():
            at = one.storage_offset()
            needed = one.nbytes + at * one.itemsize if at else one.nbytes
            if one.untyped_storage().nbytes() >= needed:
                continue
        _check_place(one, first.device)


def check_together(tensors: Sequence[Tensor]) -> None:
    """Refuse tensors of several devices: with one on ``meta`` torch would compute nothing."""
    for one in tensors:
        _check_device(one, tensors[0].device)


def _check_device(tensor: Tensor, device: torch.device) -> None:
    if tensor.device != device:
        raise ValueError(f"weights, inputs and state must be on {device}, got {tensor.device}")


def _check_place(tensor: Tensor, device: torch.device) -> None:
    _check_device(tensor, device)
    if tensor.layout is not torch.strided:
        raise ValueError(f"weights, inputs and state must be dense, got {tensor.layout}")
    if not tensor.numel():
        return
    last = sum(map(_reach, tensor.shape, tensor.stride()), tensor.storage_offset())
    held = tensor.untyped_storage().nbytes()
    if held < (last + 1) * tensor.itemsize:
        raise ValueError(
            f"a tensor of shape {tuple(tensor.shape)} needs a storage of "
            f"{(last + 1) * tensor.itemsize} bytes, and it holds {held}: was it given back?"
        )


def _reach(size: int, stride: int) -> int:
    return (size - 1) * stride


def _several(precisions: set[torch.dtype]) -> TypeError:
    return TypeError(f"weights, inputs and state must be of one precision, got {precisions}")


def _scratch(room: int) -> Tensor:
    """So many bytes, from the beginning of a line of the processor's cache on."""
    return torch.empty(room, dtype=torch.uint8, device="cpu")  # not on the user's default device


def _shared(B: int) -> tuple[int, int]:
    """Threads for a batch, and sequences a block, so that all have about as much to do."""
    threads = min(torch.get_num_threads(), B)
    blocks = -(-B // (LONGEST_BLOCK * threads)) * threads
    return threads, -(-B // blocks)


@cache
def _bits(value: float) -> int:
    """A number's bits, as a whole number."""
    return int(np.float64(value).view(np.int64))


def on_threads(function: Any, address: int, threads: int) -> None:
    """Call a function of C with an address, on each of so many threads at once.

    OpenMP may grant fewer threads: what there is to do must not depend on their number.

    Args:
        function: Of ctypes, from an address to nothing.
        address: What it is called with.
        threads: At least 1.

    """
    openmp = _openmp()
    if threads == 1:
        function(address)
    elif openmp is not None:
        openmp.GOMP_parallel(function, ctypes.c_void_p(address), threads, 0)
    else:
        list(_pool(threads).map(function, [address] * threads))


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
