"""The machine's whole sequence on a GPU, forward and backward, one launch each way.

A program runs a block of BLOCK sequences from the first step to the last. Memory, weightings,
reads, hidden and cell never leave its registers on the way; the weights come from the cache that
all programs share. What is kept of a run is laid out as `ntm.kernels.cpu.lstm_forward` and
`feedforward_forward` have it, and so are the derivatives: all products that give the weights
theirs stay outside, in `ntm.kernels.fused`. Nothing is added to in global memory, and every sum has
a fixed order: the same run gives the same bits.

Names in capitals are sizes of the legend in `ntm`; those that end in X are the next power of two.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ntm.kernels.cuda import heads

DOT = tl.constexpr(16)  # the least length of every side of `tl.dot`


@triton.jit
def places(FIRST: tl.constexpr, APART: tl.constexpr, COUNT: tl.constexpr, WIDTH: tl.constexpr,
           COUNTX: tl.constexpr, WIDTHX: tl.constexpr):  # fmt: skip
    """Where COUNT runs of WIDTH numbers are, APART from one another; and which there are."""
    i = tl.arange(0, COUNTX * WIDTHX)
    run, column = i // WIDTHX, i % WIDTHX
    return FIRST + run * APART + column, (run < COUNT) & (column < WIDTH)


@triton.jit
def fetch(pointer, rows, WIDTH: tl.constexpr, there, at, inside):
    """Rows of a matrix of WIDTH columns, (B, columns), only those that are there."""
    mask = there[:, None] & inside[None, :]
    return tl.load(pointer + rows[:, None] * WIDTH + at[None, :], mask=mask, other=0.0)


@triton.jit
def put(pointer, rows, WIDTH: tl.constexpr, there, at, inside, values):
    """The way back."""
    mask = there[:, None] & inside[None, :]
    tl.store(pointer + rows[:, None] * WIDTH + at[None, :], values, mask=mask)


@triton.jit
def product(x, weight, WIDTH: tl.constexpr, rows, has_row, columns, has_column):
    """x · weightᵀ, (B, rows), for x of (B, columns)."""
    at = rows[:, None] * WIDTH + columns[None, :]
    w = tl.load(weight + at, mask=has_row[:, None] & has_column[None, :], other=0.0)
    if (x.shape[0] >= DOT) & (w.shape[0] >= DOT) & (w.shape[1] >= DOT):
        y = tl.dot(x, tl.trans(w), input_precision="ieee")
    else:
        y = tl.sum(x[:, None, :] * w[None, :, :], axis=2)
    return y


@triton.jit
def product_back(x, weight, WIDTH: tl.constexpr, rows, has_row, columns, has_column):
    """x · weight, (B, columns), for x of (B, rows)."""
    at = rows[:, None] * WIDTH + columns[None, :]
    w = tl.load(weight + at, mask=has_row[:, None] & has_column[None, :], other=0.0)
    if (x.shape[0] >= DOT) & (w.shape[0] >= DOT) & (w.shape[1] >= DOT):
        y = tl.dot(x, w, input_precision="ieee")
    else:
        y = tl.sum(x[:, :, None] * w[None, :, :], axis=1)
    return y


@triton.jit
def summed(inputs, reads, by_seen, row, there, FIRST: tl.constexpr, WIDTH: tl.constexpr,
           H: tl.constexpr, I: tl.constexpr, M: tl.constexpr, R: tl.constexpr, HX: tl.constexpr,
           MX: tl.constexpr, RX: tl.constexpr):  # fmt: skip
    """What input and reads come to for H units from FIRST of WIDTH on, (B, units)."""
    units = tl.arange(0, HX)
    columns, inside = places(I, M, R, M, RX, MX)
    flat = tl.reshape(reads, (reads.shape[0], RX * MX))
    by_reads = product(flat, by_seen, I + R * M, FIRST + units, units < H, columns, inside)
    return fetch(inputs, row, WIDTH, there, FIRST + units, units < H) + by_reads


@triton.jit
def emitted(hidden, emit, bias, raw, row, there, FIRST: tl.constexpr, APART: tl.constexpr,
            COUNT: tl.constexpr, LENGTH: tl.constexpr, COUNTX: tl.constexpr, LENGTHX: tl.constexpr,
            H: tl.constexpr, P: tl.constexpr):  # fmt: skip
    """Some of the emissions, (B, COUNTX, LENGTHX), noted in raw; see `places`."""
    units = tl.arange(0, hidden.shape[1])
    at, inside = places(FIRST, APART, COUNT, LENGTH, COUNTX, LENGTHX)
    values = product(hidden, emit, H, at, inside, units, units < H)
    values += tl.load(bias + at, mask=inside, other=0.0)[None, :]
    put(raw, row, P, there, at, inside, values)
    return tl.reshape(values, (hidden.shape[0], COUNTX, LENGTHX))


@triton.jit
def noted(raw, row, there, FIRST: tl.constexpr, APART: tl.constexpr, COUNT: tl.constexpr,
          LENGTH: tl.constexpr, COUNTX: tl.constexpr, LENGTHX: tl.constexpr,
          P: tl.constexpr):  # fmt: skip
    """The same, as `emitted` has noted them."""
    at, inside = places(FIRST, APART, COUNT, LENGTH, COUNTX, LENGTHX)
    values = fetch(raw, row, P, there, at, inside)
    return tl.reshape(values, (row.shape[0], COUNTX, LENGTHX))


@triton.jit
def emitted_back(dvalues, dhidden, dgiven, emit, draw, row, there, FIRST: tl.constexpr,
                 APART: tl.constexpr, COUNT: tl.constexpr, LENGTH: tl.constexpr, H: tl.constexpr,
                 P: tl.constexpr):  # fmt: skip
    """Note derivatives of some emissions, those from outside (dgiven) with them; dhidden grows."""
    units = tl.arange(0, dhidden.shape[1])
    COUNTX: tl.constexpr = dvalues.shape[1]
    LENGTHX: tl.constexpr = dvalues.shape[2]
    at, inside = places(FIRST, APART, COUNT, LENGTH, COUNTX, LENGTHX)
    flat = tl.reshape(dvalues, (row.shape[0], COUNTX * LENGTHX))
    flat += fetch(dgiven, row, P, there, at, inside)
    put(draw, row, P, there, at, inside, flat)
    return dhidden + product_back(flat, emit, H, at, inside, units, units < H)


@triton.jit
def words(values, CODE: tl.constexpr, COUNT: tl.constexpr, M: tl.constexpr):
    """Activations of emitted words, 0 where there are none."""
    run = tl.arange(0, values.shape[1])[None, :, None] < COUNT
    element = tl.arange(0, values.shape[2])[None, None, :] < M
    return tl.where(run & element, heads.activate(values, CODE), 0.0)


@triton.jit
def fetch_rows(pointer, sequence, there, FIRST: tl.constexpr, COUNT: tl.constexpr,
               OF: tl.constexpr, LENGTH: tl.constexpr, COUNTX: tl.constexpr,
               LENGTHX: tl.constexpr):  # fmt: skip
    """COUNT rows from FIRST on of the matrices (OF, LENGTH) of some sequences."""
    r, c = tl.arange(0, COUNTX)[None, :, None], tl.arange(0, LENGTHX)[None, None, :]
    at = (sequence[:, None, None] * OF + FIRST + r) * LENGTH + c
    mask = there[:, None, None] & (r < COUNT) & (c < LENGTH)
    return tl.load(pointer + at, mask=mask, other=0.0)


@triton.jit
def put_rows(pointer, sequence, there, FIRST: tl.constexpr, COUNT: tl.constexpr,
             OF: tl.constexpr, LENGTH: tl.constexpr, values):  # fmt: skip
    """The way back."""
    r = tl.arange(0, values.shape[1])[None, :, None]
    c = tl.arange(0, values.shape[2])[None, None, :]
    at = (sequence[:, None, None] * OF + FIRST + r) * LENGTH + c
    mask = there[:, None, None] & (r < COUNT) & (c < LENGTH)
    tl.store(pointer + at, values, mask=mask)


OF_EVERY_LENGTH = {
    "do_not_specialize": ("T", "B"),
    "do_not_specialize_on_alignment": (
        "gates", "hidden", "cells", "reads", "ws", "memories",
        "dmemory", "dws", "dreads", "dhidden", "dcell",
    ),
}  # fmt: skip
"""Compiled once whatever T and B are, which decide where the parts of a tensor begin."""


@triton.jit(**OF_EVERY_LENGTH)
def forward(
    inputs, by_seen, by_hidden, bias_hidden, emit, bias, start,
    gates, hidden, cells, reads, ws, memories, raw, end, T, B,
    LSTM: tl.constexpr, ACTIVATION: tl.constexpr, KEEP: tl.constexpr, EVERY: tl.constexpr,
    LEAST: tl.constexpr, I: tl.constexpr, H: tl.constexpr, N: tl.constexpr, M: tl.constexpr,
    R: tl.constexpr, W: tl.constexpr, SHIFTS: tl.constexpr, KEY: tl.constexpr, ADD: tl.constexpr,
    READ_FIRST: tl.constexpr, HX: tl.constexpr, NX: tl.constexpr, MX: tl.constexpr,
    RX: tl.constexpr, WX: tl.constexpr, SX: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Run a batch.

    What is kept of T + 1 moments (hidden and cells of an LSTM, reads, ws) holds the state before
    the first step when it begins; start is the memory then (B, M, N), end that after the last step.
    A feedforward controller has no by_hidden, bias_hidden, gates and cells, and its values (T, B,
    H) are hidden.
    """
    K: tl.constexpr = R + W
    EACH: tl.constexpr = M + SHIFTS + 3
    P: tl.constexpr = K * EACH + 2 * W * M
    SET: tl.constexpr = SHIFTS + 3
    sequence = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    there = sequence < B
    units = tl.arange(0, HX)
    of_reads, has_read = places(0, M, R, M, RX, MX)
    memory = fetch_rows(start, sequence, there, 0, M, M, N, MX, NX)
    w_read = fetch_rows(ws, sequence, there, 0, R, K, N, RX, NX)
    w_write = fetch_rows(ws, sequence, there, R, W, K, N, WX, NX)
    seen = fetch(reads, sequence, R * M, there, of_reads, has_read)
    seen = tl.reshape(seen, (BLOCK, RX, MX))
    h = tl.zeros((BLOCK, HX), tl.float32)
    c = h
    if LSTM:
        h = fetch(hidden, sequence, H, there, units, units < H)
        c = fetch(cells, sequence, H, there, units, units < H)
    for t in range(T):
        row = t * B + sequence
        after = row + B
        if LSTM:
            i = _gate(inputs, seen, h, by_seen, by_hidden, bias_hidden, gates, row, there,
                      0, heads.IS_SIGMOID, H, I, M, R, HX, MX, RX)  # fmt: skip
            f = _gate(inputs, seen, h, by_seen, by_hidden, bias_hidden, gates, row, there,
                      1, heads.IS_SIGMOID, H, I, M, R, HX, MX, RX)  # fmt: skip
            g = _gate(inputs, seen, h, by_seen, by_hidden, bias_hidden, gates, row, there,
                      2, heads.IS_TANH, H, I, M, R, HX, MX, RX)  # fmt: skip
            o = _gate(inputs, seen, h, by_seen, by_hidden, bias_hidden, gates, row, there,
                      3, heads.IS_SIGMOID, H, I, M, R, HX, MX, RX)  # fmt: skip
            c = f * c + i * g
            h = o * heads.tanh(c)
            put(cells, after, H, there, units, units < H, c)
            put(hidden, after, H, there, units, units < H, h)
        else:
            h = summed(inputs, seen, by_seen, row, there, 0, H, H, I, M, R, HX, MX, RX)
            h = tl.where((units < H)[None, :], heads.activate(h, ACTIVATION), 0.0)
            put(hidden, row, H, there, units, units < H, h)
        if KEEP:  # noqa: SIM102
            if t % EVERY == 0:  # not compiled where nothing is kept
                put_rows(memories, t // EVERY * B + sequence, there, 0, M, M, N, memory)
        key_read = emitted(h, emit, bias, raw, row, there, 0, EACH, R, M, RX, MX, H, P)
        set_read = emitted(h, emit, bias, raw, row, there, M, EACH, R, SET, RX, SX, H, P)
        key_write = emitted(h, emit, bias, raw, row, there, R * EACH, EACH, W, M, WX, MX, H, P)
        set_write = emitted(h, emit, bias, raw, row, there, R * EACH + M, EACH, W, SET, WX, SX,
                            H, P)  # fmt: skip
        erase = emitted(h, emit, bias, raw, row, there, K * EACH, M, W, M, WX, MX, H, P)
        add = emitted(h, emit, bias, raw, row, there, K * EACH + W * M, M, W, M, WX, MX, H, P)
        key_read, key_write = words(key_read, KEY, R, M), words(key_write, KEY, W, M)
        erase, add = words(erase, heads.IS_SIGMOID, W, M), words(add, ADD, W, M)
        if READ_FIRST:
            w_read = heads.address(memory, w_read, key_read, set_read, N, SHIFTS, LEAST)
            seen = heads.read(memory, w_read)
        w_write = heads.address(memory, w_write, key_write, set_write, N, SHIFTS, LEAST)
        memory = heads.write(memory, w_write, erase, add, W)
        if not READ_FIRST:
            w_read = heads.address(memory, w_read, key_read, set_read, N, SHIFTS, LEAST)
            seen = heads.read(memory, w_read)
        flat = tl.reshape(seen, (BLOCK, RX * MX))
        put(reads, after, R * M, there, of_reads, has_read, flat)
        put_rows(ws, after, there, 0, R, K, N, w_read)
        put_rows(ws, after, there, R, W, K, N, w_write)
    put_rows(end, sequence, there, 0, M, M, N, memory)


@triton.jit
def _gate(inputs, reads, hidden, by_seen, by_hidden, bias_hidden, gates, row, there,
          WHICH: tl.constexpr, CODE: tl.constexpr, H: tl.constexpr, I: tl.constexpr,
          M: tl.constexpr, R: tl.constexpr, HX: tl.constexpr, MX: tl.constexpr,
          RX: tl.constexpr):  # fmt: skip
    """One of an LSTM's gates i, f, g, o, (B, HX), noted in gates."""
    FIRST: tl.constexpr = WHICH * H
    units = tl.arange(0, HX)
    inside = units < H
    total = summed(inputs, reads, by_seen, row, there, FIRST, 4 * H, H, I, M, R, HX, MX, RX)
    total += tl.load(bias_hidden + FIRST + units, mask=inside, other=0.0)[None, :]
    total += product(hidden, by_hidden, H, FIRST + units, inside, units, inside)
    value = heads.activate(total, CODE)
    put(gates, row, 4 * H, there, FIRST + units, inside, value)
    return tl.where(inside[None, :], value, 0.0)


@triton.jit(**OF_EVERY_LENGTH)
def backward(
    by_seen, by_hidden, emit, gates, hidden, cells, ws, memories, raw,
    doutputs, dseen, dgiven, dgates, draw, dmemory, dws, dreads, dhidden, dcell, T, B,
    LSTM: tl.constexpr, ACTIVATION: tl.constexpr, EVERY: tl.constexpr,
    LEAST: tl.constexpr, I: tl.constexpr, H: tl.constexpr, N: tl.constexpr, M: tl.constexpr,
    R: tl.constexpr, W: tl.constexpr, SHIFTS: tl.constexpr, KEY: tl.constexpr, ADD: tl.constexpr,
    READ_FIRST: tl.constexpr, HX: tl.constexpr, NX: tl.constexpr, MX: tl.constexpr,
    RX: tl.constexpr, WX: tl.constexpr, SX: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Derivatives of `forward`.

    dmemory (B, M, N), dws (B, K, N), dreads (B, R·M), dhidden and dcell (B, H) hold those of the
    state after the last step when it begins, of the state before the first one when it ends. Of the
    controller's sums it fills dgates (T, B, 4H or H), of the emissions draw.
    """
    K: tl.constexpr = R + W
    EACH: tl.constexpr = M + SHIFTS + 3
    P: tl.constexpr = K * EACH + 2 * W * M
    SET: tl.constexpr = SHIFTS + 3
    SEEN: tl.constexpr = I + R * M
    sequence = (tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)).to(tl.int64)
    there = sequence < B
    units = tl.arange(0, HX)
    inside = units < H
    of_reads, has_read = places(0, M, R, M, RX, MX)
    dm = fetch_rows(dmemory, sequence, there, 0, M, M, N, MX, NX)
    dw_read = fetch_rows(dws, sequence, there, 0, R, K, N, RX, NX)
    dw_write = fetch_rows(dws, sequence, there, R, W, K, N, WX, NX)
    dr = fetch(dreads, sequence, R * M, there, of_reads, has_read)
    dh = tl.zeros((BLOCK, HX), tl.float32)
    dc = dh
    if LSTM:
        dh = fetch(dhidden, sequence, H, there, units, inside)
        dc = fetch(dcell, sequence, H, there, units, inside)
    for back in range(T):
        t = T - 1 - back
        row = t * B + sequence
        after = row + B
        first = t - t % EVERY
        memory = fetch_rows(memories, first // EVERY * B + sequence, there, 0, M, M, N, MX, NX)
        for again in range(first, t):
            past = again * B + sequence
            erase = noted(raw, past, there, K * EACH, M, W, M, WX, MX, P)
            add = noted(raw, past, there, K * EACH + W * M, M, W, M, WX, MX, P)
            erase, add = words(erase, heads.IS_SIGMOID, W, M), words(add, ADD, W, M)
            w = fetch_rows(ws, past + B, there, R, W, K, N, WX, NX)
            memory = heads.write(memory, w, erase, add, W)
        key_read = noted(raw, row, there, 0, EACH, R, M, RX, MX, P)
        set_read = noted(raw, row, there, M, EACH, R, SET, RX, SX, P)
        key_write = noted(raw, row, there, R * EACH, EACH, W, M, WX, MX, P)
        set_write = noted(raw, row, there, R * EACH + M, EACH, W, SET, WX, SX, P)
        erase = noted(raw, row, there, K * EACH, M, W, M, WX, MX, P)
        add = noted(raw, row, there, K * EACH + W * M, M, W, M, WX, MX, P)
        key_read, key_write = words(key_read, KEY, R, M), words(key_write, KEY, W, M)
        erase, add = words(erase, heads.IS_SIGMOID, W, M), words(add, ADD, W, M)
        before_read = fetch_rows(ws, row, there, 0, R, K, N, RX, NX)
        before_write = fetch_rows(ws, row, there, R, W, K, N, WX, NX)
        w_read = fetch_rows(ws, after, there, 0, R, K, N, RX, NX)
        w_write = fetch_rows(ws, after, there, R, W, K, N, WX, NX)
        dr += fetch(dseen, row, R * M, there, of_reads, has_read)
        dr_tile = tl.reshape(dr, (BLOCK, RX, MX))
        if not READ_FIRST:
            written = heads.write(memory, w_write, erase, add, W)
            by_read, by_w = heads.read_back(written, w_read, dr_tile)
            by_address, dw_read, dkey_read, dset_read = heads.address_back(
                written, before_read, key_read, set_read, dw_read + by_w, N, SHIFTS, LEAST
            )
            dm += by_read + by_address
        dm, by_w, derase, dadd = heads.write_back(memory, w_write, erase, add, dm, W)
        dw_write += by_w
        if READ_FIRST:
            by_read, by_w = heads.read_back(memory, w_read, dr_tile)
            by_address, dw_read, dkey_read, dset_read = heads.address_back(
                memory, before_read, key_read, set_read, dw_read + by_w, N, SHIFTS, LEAST
            )
            dm += by_read + by_address
        by_address, dw_write, dkey_write, dset_write = heads.address_back(
            memory, before_write, key_write, set_write, dw_write, N, SHIFTS, LEAST
        )
        dm += by_address
        dh += fetch(doutputs, row, H, there, units, inside)
        dkey_read = heads.activate_back(key_read, dkey_read, KEY)
        dkey_write = heads.activate_back(key_write, dkey_write, KEY)
        derase = heads.activate_back(erase, derase, heads.IS_SIGMOID)
        dadd = heads.activate_back(add, dadd, ADD)
        dh = emitted_back(dkey_read, dh, dgiven, emit, draw, row, there, 0, EACH, R, M, H, P)
        dh = emitted_back(dset_read, dh, dgiven, emit, draw, row, there, M, EACH, R, SET, H, P)
        dh = emitted_back(dkey_write, dh, dgiven, emit, draw, row, there, R * EACH, EACH, W, M,
                          H, P)  # fmt: skip
        dh = emitted_back(dset_write, dh, dgiven, emit, draw, row, there, R * EACH + M, EACH, W,
                          SET, H, P)  # fmt: skip
        dh = emitted_back(derase, dh, dgiven, emit, draw, row, there, K * EACH, M, W, M, H, P)
        dh = emitted_back(dadd, dh, dgiven, emit, draw, row, there, K * EACH + W * M, M, W, M,
                          H, P)  # fmt: skip
        if LSTM:
            i = fetch(gates, row, 4 * H, there, units, inside)
            f = fetch(gates, row, 4 * H, there, H + units, inside)
            g = fetch(gates, row, 4 * H, there, 2 * H + units, inside)
            o = fetch(gates, row, 4 * H, there, 3 * H + units, inside)
            value = heads.tanh(fetch(cells, after, H, there, units, inside))
            dc += dh * o * (1 - value * value)
            do = dh * value * o * (1 - o)
            df = dc * fetch(cells, row, H, there, units, inside) * f * (1 - f)
            dh, dr = tl.zeros_like(dh), tl.zeros_like(dr)
            dh, dr = _gate_back(dc * g * i * (1 - i), dh, dr, by_seen, by_hidden, dgates, row,
                                there, 0, H, I, M, R, MX, RX)  # fmt: skip
            dh, dr = _gate_back(df, dh, dr, by_seen, by_hidden, dgates, row, there, 1, H, I, M, R,
                                MX, RX)  # fmt: skip
            dh, dr = _gate_back(dc * i * (1 - g * g), dh, dr, by_seen, by_hidden, dgates, row,
                                there, 2, H, I, M, R, MX, RX)  # fmt: skip
            dh, dr = _gate_back(do, dh, dr, by_seen, by_hidden, dgates, row, there, 3, H, I, M, R,
                                MX, RX)  # fmt: skip
            dc *= f
        else:
            value = fetch(hidden, row, H, there, units, inside)
            dsum = heads.activate_back(value, dh, ACTIVATION)
            put(dgates, row, H, there, units, inside, dsum)
            columns, _ = places(I, M, R, M, RX, MX)
            dr = product_back(dsum, by_seen, SEEN, units, inside, columns, has_read)
            dh = tl.zeros_like(dh)
    put_rows(dmemory, sequence, there, 0, M, M, N, dm)
    put_rows(dws, sequence, there, 0, R, K, N, dw_read)
    put_rows(dws, sequence, there, R, W, K, N, dw_write)
    put(dreads, sequence, R * M, there, of_reads, has_read, dr)
    if LSTM:
        put(dhidden, sequence, H, there, units, inside, dh)
        put(dcell, sequence, H, there, units, inside, dc)


@triton.jit
def _gate_back(dsum, dhidden, dreads, by_seen, by_hidden, dgates, row, there, WHICH: tl.constexpr,
               H: tl.constexpr, I: tl.constexpr, M: tl.constexpr, R: tl.constexpr,
               MX: tl.constexpr, RX: tl.constexpr):  # fmt: skip
    """Note the derivative of a gate's sum; those of the hidden before and of the reads grow."""
    FIRST: tl.constexpr = WHICH * H
    units = tl.arange(0, dsum.shape[1])
    inside = units < H
    columns, has_read = places(I, M, R, M, RX, MX)
    put(dgates, row, 4 * H, there, FIRST + units, inside, dsum)
    dhidden += product_back(dsum, by_hidden, H, FIRST + units, inside, units, inside)
    dreads += product_back(dsum, by_seen, I + R * M, FIRST + units, inside, columns, has_read)
    return dhidden, dreads
