"""What compiled functions do with a job, a row of whole numbers (see `ntm.kernels.conventions`).

All who work on one claim blocks of sequences from it until none is left; each has scratch of its
own.
"""

from __future__ import annotations

import numpy as np
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

from ntm.kernels.conventions import (
    BATCH_SIZE,
    BLOCK,
    CLAIMED,
    DENSE,
    LEAST,
    ROOM,
    SCRATCH,
    WORKERS,
)

LINE = 64
"""Bytes of a line of the processor's cache."""


# Without Numba's own memory: it would count, at every use of a row, who else holds the array.
OPTIONS = {
    "error_model": "numpy",
    "_nrt": False,
    "no_cpython_wrapper": True,
    "no_cfunc_wrapper": True,
}


def compiled(function):
    """Callable from compiled functions alone."""
    return njit(**OPTIONS)(function)


def _dense(context, builder, kind, address, lengths):
    """A dense array of a kind, of these lengths, at an address; and the address behind it."""
    array = context.make_array(kind)(context, builder)
    size = context.get_constant(types.intp, context.get_abi_sizeof(array.data.type.pointee))
    strides = [size]
    for length in lengths[::-1]:
        strides.insert(0, builder.mul(strides[0], length))
    whole, *strides = strides
    data = builder.inttoptr(address, array.data.type)
    populate_array(array, data, lengths, strides, size, meminfo=None)
    return array._getvalue(), builder.add(address, whole)


def _kind(shape, like):
    return types.Array(getattr(like, "dtype", like), len(shape), "C")


@intrinsic
def at(_, address):
    """The job at an address; it is longer than it says."""

    def generate(context, builder, signature, arguments):
        lengths = [context.get_constant(types.intp, DENSE)]
        return _dense(context, builder, signature.return_type, arguments[0], lengths)[0]

    return types.Array(types.int64, 1, "C")(address), generate


@intrinsic
def tensor(_, address, shape, like):
    """The dense tensor at an address, of numbers of the kind of ``like``."""

    def generate(context, builder, signature, arguments):
        lengths = cgutils.unpack_tuple(builder, arguments[1])
        return _dense(context, builder, signature.return_type, arguments[0], lengths)[0]

    return _kind(shape, like)(address, shape, like), generate


@intrinsic
def piece(_, address, shape, like):
    """The same, and the address behind it."""
    kind = _kind(shape, like)

    def generate(context, builder, signature, arguments):
        lengths = cgutils.unpack_tuple(builder, arguments[1])
        parts = _dense(context, builder, kind, arguments[0], lengths)
        return context.make_tuple(builder, signature.return_type, parts)

    return types.Tuple((kind, types.int64))(address, shape, like), generate


@intrinsic
def _raise(_, job, place, by):  # noqa: ARG001
    """Add to one number of a job that other threads add to as well; give what it was before."""

    def generate(context, builder, signature, arguments):
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        number = cgutils.gep(builder, data, arguments[1])
        return builder.atomic_rmw("add", number, arguments[2], "monotonic")

    return types.int64(job, types.int64, types.int64), generate


@compiled
def claim(job):
    """First and last + 1 of the next sequences to work on; the first is B where none is left."""
    B = job[BATCH_SIZE]
    first = min(_raise(job, CLAIMED, job[BLOCK]), B)
    return first, min(first + job[BLOCK], B)


@compiled
def scratch(job):
    """Address of what this thread may work with."""
    return job[SCRATCH] + _raise(job, WORKERS, 1) * job[ROOM]


@compiled
def asked(job, end):
    """Note in the job that a thread works with so much, if only that was asked; whether it was."""
    if job[SCRATCH] != 0:
        return False
    job[ROOM] = line(end)
    return True


@compiled
def sizes(job):
    """B, T, L, I, H, N, M."""
    at = job[BATCH_SIZE:]
    return at[0], at[1], at[2], at[3], at[4], at[5], at[6]


@compiled
def layout(job):
    """R, W, 2S + 1, codes of the key's and the add vector's activation, read_first."""
    at = job[BATCH_SIZE + 7 :]
    return at[0], at[1], at[2], at[3], at[4], at[5]


@compiled
def least(job, like):
    """The least square of a length."""
    return like.dtype.type(np.int64(job[LEAST]).view(np.float64))


@compiled
def line(address):
    """Where the next line of the processor's cache begins."""
    return (address + LINE - 1) // LINE * LINE


@compiled
def fetch(job, place, i, j, target):
    """Copy [i, j, :] of the loose tensor at a place."""
    _fetch(job, place, i * job[place + 1] + j * job[place + 2], job[place + 3], target)


@compiled
def fetch_column(job, place, i, k, target):
    """Copy [i, :, k] of the loose tensor at a place."""
    _fetch(job, place, i * job[place + 1] + k * job[place + 3], job[place + 2], target)


@compiled
def _fetch(job, place, offset, stride, target):
    zero = target.dtype.type(0)
    if job[place] == 0:
        for n in range(target.size):
            target[n] = zero
        return
    start = job[place] + offset * target.itemsize
    if stride == 1:
        line = tensor(start, (target.size,), zero)
        for n in range(target.size):
            target[n] = line[n]
    else:
        anyhow = tensor(start, (1,), zero)
        for n in range(target.size):
            target[n] = anyhow[n * stride]
