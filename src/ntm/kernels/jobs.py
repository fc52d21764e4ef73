"""What compiled functions do with a job, a row of whole numbers (see `ntm.kernels.conventions`).

All who work on one claim blocks of sequences from it until none is left.
"""

from __future__ import annotations

import numpy as np
from numba import carray, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from ntm.kernels.conventions import BATCH_SIZE, BLOCK, CLAIMED, DENSE, DONE, LEAST


def compiled(function):
    """Callable from compiled functions alone."""
    return njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)(function)


@intrinsic
def _pointer(_, address, like):  # noqa: ARG001
    """A number's address as a pointer to numbers of the kind of ``like``."""

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

    return types.CPointer(like)(types.int64, like), generate


@intrinsic
def _raise(_, job, place, by):  # noqa: ARG001
    """Add to one number of a job that other threads add to as well; give what it was before."""

    def generate(context, builder, signature, arguments):
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        number = cgutils.gep(builder, data, arguments[1])
        return builder.atomic_rmw("add", number, arguments[2], "monotonic")

    return types.int64(job, types.int64, types.int64), generate


@compiled
def at(address):
    """The job at an address; it is longer than it says."""
    return carray(_pointer(address, np.int64(0)), (DENSE,))


@compiled
def claim(job):
    """First and last + 1 of the next sequences to work on; the first is B where none is left."""
    B = job[BATCH_SIZE]
    first = min(_raise(job, CLAIMED, job[BLOCK]), B)
    return first, min(first + job[BLOCK], B)


@compiled
def done(job, first, last):
    """Those sequences are."""
    _raise(job, DONE, last - first)


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
def dense(job, place, shape, like):
    """The dense tensor at a place, of numbers of the kind of ``like``."""
    return carray(_pointer(job[DENSE + place], like), shape)


@compiled
def piece(address, shape, like):
    """The dense tensor at an address, and the address behind it."""
    tensor = carray(_pointer(address, like), shape)
    return tensor, address + tensor.size * tensor.itemsize


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
    start = _pointer(job[place] + offset * target.itemsize, zero)
    if stride == 1:
        line = carray(start, (target.size,))
        for n in range(target.size):
            target[n] = line[n]
    else:
        anyhow = carray(start, (1,))
        for n in range(target.size):
            target[n] = anyhow[n * stride]
