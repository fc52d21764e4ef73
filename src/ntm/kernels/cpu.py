"""The machine's whole sequence, forward and backward, as compiled functions for the CPU.

Read it beside G14 section 3: `_address` and `_step` are the equations in order, `_address_back` and
`_step_back` their derivatives in reverse. Memory lies element by element, M × N, so that the inner
loops run over the N locations. One sequence is independent of the others; the products with the
controller's weights take a block of sequences at once, because the weights then come from the
nearest cache. Whole sequences allocate nothing per step. Names in capitals are sizes of the legend
in `ntm`, and K = R + W, L layers of the controller, P raw emissions.

For the backward pass the forward one keeps what the controller came to, the raw emissions,
weightings and reads of every step, and the memory of every `STRIDE`-th step alone: the memories
between are written again, which costs less than reading them back would.

A loop either sums or stores, never both. One that does both is vectorised only where a check at run
time finds its arrays far enough apart in memory, and sums in another order where not: the same run
would then round differently from process to process.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from ntm.kernels.compiling import cached
from ntm.kernels.conventions import RELU, SIGMOID, STRIDE, TANH
from ntm.kernels.numerics import exp, in_order, log, ordered, sigmoid, softplus, tanh

# Nothing that assumes finite numbers, and no reciprocals for quotients: whole vectors would be
# divided in another way than the rest, and sharpening enlarges what makes equal weights differ.
SAFE = {"contract", "nsz", "reassoc"}
KEEP = cached()
BLOCK = 4
"""Sequences that share a product with the controller's weights."""


def compiled(function: Any) -> Any:
    """Compiled without the interpreter's lock, kept on disk where that is possible."""
    return njit(fastmath=SAFE, nogil=True, error_model="numpy", cache=KEEP)(function)


def inlined(function: Any) -> Any:
    """Part of every compiled function that calls it.

    Not a function of its own: two callers would each bring a copy, optimised by its own
    surroundings, and the loader takes now this one and now that, with other roundings.
    """
    return njit(fastmath=SAFE, nogil=True, error_model="numpy", forceinline=True)(function)


def pasted(function: Any) -> Any:
    """Likewise, but before types are known: for what is long and has a caller or two."""
    return njit(inline="always")(function)


@inlined
def _copy(source, target):
    """Element by element: assigning arrays would compile Numba's shape messages along."""
    for j in range(source.size):
        target[j] = source[j]


@inlined
def _copy_rows(source, target):
    """The same for a matrix."""
    for m in range(source.shape[0]):
        _copy(source[m], target[m])


@inlined
def _add(source, target):
    """Target += source, element by element."""
    for j in range(source.size):
        target[j] += source[j]


@inlined
def _zero(x):
    """Fill with 0."""
    for j in range(x.size):
        x[j] = 0


@inlined
def _activate(code, x, y):
    """Y = activation(x)."""
    if code == TANH:
        for j in range(x.size):
            y[j] = tanh(x[j])
    elif code == SIGMOID:
        for j in range(x.size):
            y[j] = sigmoid(x[j])
    elif code == RELU:
        zero = x.dtype.type(0)
        for j in range(x.size):
            y[j] = zero if x[j] <= zero else x[j]
    else:
        for j in range(x.size):
            y[j] = x[j]


@inlined
def _activate_back(code, y, dy, dx):
    """Dx = dy · activation'(x), by the activation's value y."""
    one = y.dtype.type(1)
    if code == TANH:
        for j in range(y.size):
            dx[j] = dy[j] * (one - y[j] * y[j])
    elif code == SIGMOID:
        for j in range(y.size):
            dx[j] = dy[j] * y[j] * (one - y[j])
    elif code == RELU:
        zero = one - one
        for j in range(y.size):
            dx[j] = zero if y[j] <= zero else dy[j]
    else:
        for j in range(y.size):
            dx[j] = dy[j]


@inlined
def _multiply(x, weight, y):
    """Y += x · weight for a block of rows; eight rows of the weight at a time."""
    rows, inner = x.shape
    outer = weight.shape[1]
    whole = inner - inner % 8
    for k in range(0, whole, 8):
        w0, w1, w2, w3 = weight[k], weight[k + 1], weight[k + 2], weight[k + 3]
        w4, w5, w6, w7 = weight[k + 4], weight[k + 5], weight[k + 6], weight[k + 7]
        for b in range(rows):
            x0, x1, x2, x3 = x[b, k], x[b, k + 1], x[b, k + 2], x[b, k + 3]
            x4, x5, x6, x7 = x[b, k + 4], x[b, k + 5], x[b, k + 6], x[b, k + 7]
            row = y[b]
            for j in range(outer):
                row[j] += (
                    x0 * w0[j] + x1 * w1[j] + x2 * w2[j] + x3 * w3[j]
                    + x4 * w4[j] + x5 * w5[j] + x6 * w6[j] + x7 * w7[j]
                )  # fmt: skip
    for k in range(whole, inner):
        for b in range(rows):
            x0 = x[b, k]
            row, w0 = y[b], weight[k]
            for j in range(outer):
                row[j] += x0 * w0[j]


@inlined
def _decode(
    raw, K, W, M, shifts, key_code, add_code, key, strength, gate, shift, gamma, erase, add
):
    """Split raw emissions and bring each part into its range (`ntm.machine.heads.decode`)."""
    one = raw.dtype.type(1)
    at = 0
    for k in range(K):
        _activate(key_code, raw[at : at + M], key[k])
        strength[k] = softplus(raw[at + M])
        gate[k] = sigmoid(raw[at + M + 1])
        at += M + 2
        largest = raw[at]
        for j in range(1, shifts):
            largest = raw[at + j] if raw[at + j] > largest else largest
        total = one - one
        for j in range(shifts):
            shift[k, j] = exp(raw[at + j] - largest)
        for j in range(shifts):
            total += shift[k, j]
        for j in range(shifts):
            shift[k, j] /= total
        at += shifts
        gamma[k] = one + softplus(raw[at])
        at += 1
    for h in range(W):
        _activate(SIGMOID, raw[at : at + M], erase[h])
        at += M
    for h in range(W):
        _activate(add_code, raw[at : at + M], add[h])
        at += M


@inlined
def _decode_back(
    raw, K, W, M, shifts, key_code, add_code,
    key, gate, shift, erase, add,
    dkey, dstrength, dgate, dshift, dgamma, derase, dadd, draw,
):  # fmt: skip
    """Derivatives of `_decode`; fills draw."""
    one = raw.dtype.type(1)
    at = 0
    for k in range(K):
        _activate_back(key_code, key[k], dkey[k], draw[at : at + M])
        draw[at + M] = dstrength[k] * sigmoid(raw[at + M])
        draw[at + M + 1] = dgate[k] * gate[k] * (one - gate[k])
        at += M + 2
        inner = one - one
        for j in range(shifts):
            inner += dshift[k, j] * shift[k, j]
        for j in range(shifts):
            draw[at + j] = shift[k, j] * (dshift[k, j] - inner)
        at += shifts
        draw[at] = dgamma[k] * sigmoid(raw[at])
        at += 1
    for h in range(W):
        _activate_back(SIGMOID, erase[h], derase[h], draw[at : at + M])
        at += M
    for h in range(W):
        _activate_back(add_code, add[h], dadd[h], draw[at : at + M])
        at += M


@inlined
def _norms(memory, least, squares, norms):
    """Square and floored length of every location."""
    M, N = memory.shape
    for n in range(N):
        squares[n] = memory[0, n] * memory[0, n]
    for m in range(1, M):
        row = memory[m]
        for n in range(N):
            squares[n] += row[n] * row[n]
    for n in range(N):
        norms[n] = np.sqrt(least if squares[n] < least else squares[n])


@inlined
def _address(
    memory, norms, least, previous, key, strength, gate, shift, gamma,
    unit, similarity, content, ring, shifted, powers, w,
):  # fmt: skip
    """One head's weighting, G14 eq. 5 to 9; fills every array after gamma.

    Returns the key's floored length, the largest shifted weight, and the sum of the powers.
    """
    M, N = memory.shape
    shifts = shift.size
    S = (shifts - 1) // 2
    one = memory.dtype.type(1)
    zero = one - one
    # eq. 6: cosine of the angle between key and location
    square = zero
    for m in range(M):
        square += key[m] * key[m]
    key_norm = np.sqrt(least if square < least else square)
    # Kept, or LLVM would divide after the product: words of one element would not give ±1.
    for m in range(M):
        unit[m] = key[m] / key_norm
    for n in range(N):
        similarity[n] = zero
    for m in range(M):
        row, scale = memory[m], unit[m]
        for n in range(N):
            similarity[n] += scale * row[n]
    top = ordered(strength * similarity[0] / norms[0])
    for n in range(N):
        similarity[n] /= norms[n]
    for n in range(N):
        top = max(top, ordered(strength * similarity[n]))
    largest = in_order(top)
    # eq. 5: focus by content
    total = zero
    for n in range(N):
        content[n] = exp(strength * similarity[n] - largest)
    for n in range(N):
        total += content[n]
    # eq. 7: interpolation, onto a ring with S locations repeated at either end
    for n in range(N):
        content[n] /= total
        ring[S + n] = gate * content[n] + (one - gate) * previous[n]
    for j in range(S):
        ring[j] = ring[N + j]
        ring[S + N + j] = ring[S + j]
    # eq. 8: circular convolution
    for n in range(N):
        shifted[n] = shift[0] * ring[n + 2 * S]
    for j in range(1, shifts):
        s = shift[j]
        for n in range(N):
            shifted[n] += s * ring[n + 2 * S - j]
    # eq. 9: sharpening, of weights divided by the largest
    top = ordered(shifted[0])
    for n in range(N):
        top = max(top, ordered(shifted[n]))
    peak = in_order(top)
    tiny = memory.dtype.type(1.2e-38)
    for n in range(N):
        u = shifted[n] / peak
        power = exp(gamma * log(tiny if u < tiny else u)) if shifted[n] < peak else u
        powers[n] = zero if u < tiny else power
    total_power = zero
    for n in range(N):
        total_power += powers[n]
    for n in range(N):
        w[n] = powers[n] / total_power
    return key_norm, peak, total_power


@inlined
def _address_back(
    memory, norms, squares, least, previous, key, strength, gate, shift, gamma,
    unit, similarity, content, ring, shifted, powers, w,
    key_norm, peak, total_power,
    dw, dring, dmemory, dprevious, dkey, dshift,
):  # fmt: skip
    """Derivatives of `_address`, eq. 9 to 5; adds to dmemory and dprevious, fills the rest.

    Returns the derivatives of strength, gate and gamma.
    """
    M, N = memory.shape
    shifts = shift.size
    S = (shifts - 1) // 2
    one = memory.dtype.type(1)
    zero = one - one
    tiny = memory.dtype.type(1.2e-38)
    # eq. 9, with dw turned into the derivative of shifted; the peak cancels out of w
    inner = zero
    for n in range(N):
        inner += dw[n] * w[n]
    dgamma = zero
    for n in range(N):
        u = shifted[n] / peak
        dgamma += (dw[n] - inner) / total_power * powers[n] * log(tiny if u < tiny else u)
    for n in range(N):
        u = shifted[n] / peak
        dpower = (dw[n] - inner) / total_power
        held = tiny if u < tiny else u
        slope = (one if gamma == one else zero) if u < tiny else gamma * powers[n] / held
        dw[n] = dpower * slope / peak
    # eq. 8
    for n in range(N + 2 * S):
        dring[n] = zero
    for j in range(shifts):
        s, total = shift[j], zero
        for n in range(N):
            dring[n + 2 * S - j] += s * dw[n]
        for n in range(N):
            total += dw[n] * ring[n + 2 * S - j]
        dshift[j] = total
    for j in range(S):
        dring[N + j] += dring[j]
        dring[S + j] += dring[S + N + j]
    # eq. 7, with dw turned into the derivative of content
    dgate = zero
    inner = zero
    for n in range(N):
        dgate += dring[S + n] * (content[n] - previous[n])
    for n in range(N):
        d = dring[S + n]
        dprevious[n] += (one - gate) * d
        dw[n] = gate * d
    # eq. 5, with dw turned into the derivative of similarity
    for n in range(N):
        inner += dw[n] * content[n]
    dstrength = zero
    for n in range(N):
        dstrength += content[n] * (dw[n] - inner) * similarity[n]
    for n in range(N):
        dw[n] = strength * content[n] * (dw[n] - inner)
    # eq. 6, with dw turned into the derivative of the product of the key's direction and location
    for n in range(N):
        # by the location's length, as a factor on its elements
        ring[n] = zero if squares[n] < least else -dw[n] * similarity[n] / (norms[n] * norms[n])
        dw[n] /= norms[n]
    square, along = zero, zero
    for m in range(M):
        row, drow, k, total = memory[m], dmemory[m], unit[m], zero
        for n in range(N):
            total += dw[n] * row[n]
        for n in range(N):
            drow[n] += k * dw[n] + ring[n] * row[n]
        dkey[m] = total
    for m in range(M):
        square += key[m] * key[m]
        along += dkey[m] * unit[m]
    along = zero if square < least else along
    for m in range(M):
        dkey[m] = (dkey[m] - along * unit[m]) / key_norm
    return dstrength, dgate, dgamma


@inlined
def _write(memory, w, erase, add, after):
    """G14 eq. 3 and 4: all heads erase, then all add."""
    W = w.shape[0]
    M, N = memory.shape
    one = memory.dtype.type(1)
    for m in range(M):
        row, out = memory[m], after[m]
        wh, e, a = w[0], erase[0, m], add[0, m]
        if W == 1:
            for n in range(N):
                out[n] = row[n] * (one - wh[n] * e) + wh[n] * a
        else:
            for n in range(N):
                out[n] = row[n] * (one - wh[n] * e)
            for h in range(1, W):
                wh, e = w[h], erase[h, m]
                for n in range(N):
                    out[n] *= one - wh[n] * e
            for h in range(W):
                wh, a = w[h], add[h, m]
                for n in range(N):
                    out[n] += wh[n] * a


@inlined
def _write_back(memory, w, erase, add, dafter, dmemory, dw, derase, dadd, rest):
    """Derivatives of `_write`; fills dmemory, derase and dadd, adds to dw; rest: scratch."""
    W = w.shape[0]
    M, N = memory.shape
    one = memory.dtype.type(1)
    zero = one - one
    for m in range(M):
        row, d, out = memory[m], dafter[m], dmemory[m]
        if W == 1:
            wh, dwh, e, a = w[0], dw[0], erase[0, m], add[0, m]
            by_erase, by_add = zero, zero
            for n in range(N):
                by_add += d[n] * wh[n]
                by_erase -= d[n] * row[n] * wh[n]
            for n in range(N):
                dwh[n] += d[n] * (a - row[n] * e)
            for n in range(N):
                out[n] = d[n] * (one - wh[n] * e)
            derase[0, m], dadd[0, m] = by_erase, by_add
            continue
        for h in range(W):
            wh, dwh = w[h], dw[h]
            by_erase, by_add = zero, zero
            for n in range(N):
                by_add += d[n] * wh[n]
            for n in range(N):
                rest[n] = d[n] * row[n]
            for g in range(W):
                if g != h:
                    for n in range(N):
                        rest[n] *= one - w[g, n] * erase[g, m]
            for n in range(N):
                by_erase -= rest[n] * wh[n]
            for n in range(N):
                dwh[n] += d[n] * add[h, m] - rest[n] * erase[h, m]
            derase[h, m], dadd[h, m] = by_erase, by_add
        _copy(d, out)
        for g in range(W):
            for n in range(N):
                out[n] *= one - w[g, n] * erase[g, m]


@inlined
def _read(memory, w, reads):
    """G14 eq. 2, for R heads; reads is (R · M,)."""
    R = w.shape[0]
    M, N = memory.shape
    zero = memory.dtype.type(0)
    for k in range(R):
        for m in range(M):
            row, total = memory[m], zero
            for n in range(N):
                total += w[k, n] * row[n]
            reads[k * M + m] = total


@inlined
def _read_back(memory, w, dreads, dmemory, dw):
    """Derivatives of `_read`; adds to both."""
    R = w.shape[0]
    M, N = memory.shape
    for k in range(R):
        for m in range(M):
            row, drow, d = memory[m], dmemory[m], dreads[k * M + m]
            for n in range(N):
                dw[k, n] += d * row[n]
                drow[n] += d * w[k, n]


@inlined
def _heads(K, W, M, shifts, like):
    """Scratch for what the heads of one sequence are told."""
    return (
        np.empty((K, M), like.dtype),
        np.empty(K, like.dtype),
        np.empty(K, like.dtype),
        np.empty((K, shifts), like.dtype),
        np.empty(K, like.dtype),
        np.empty((W, M), like.dtype),
        np.empty((W, M), like.dtype),
    )


@pasted
def _step(raw, R, W, shifts, key_code, add_code, read_first, least, memory, previous,
          heads, lines, after, w, reads):  # fmt: skip
    """One step of one sequence; fills after, w and reads.

    Heads address memory as it was, or the read heads as it is once written.
    """
    M = memory.shape[0]
    K = R + W
    key, strength, gate, shift, gamma, erase, add = heads
    _decode(raw, K, W, M, shifts, key_code, add_code,
            key, strength, gate, shift, gamma, erase, add)  # fmt: skip
    squares, norms, unit, similarity, content, shifted, powers, ring = lines
    for written in range(1 if read_first else 2):
        first, last = _heads_at(written, read_first, R, K)
        seen = after if written else memory
        _norms(seen, least, squares, norms)
        for k in range(first, last):
            _address(seen, norms, least, previous[k], key[k], strength[k], gate[k], shift[k],
                     gamma[k], unit, similarity, content, ring, shifted, powers,
                     w[k])  # fmt: skip
        if first == 0:
            _read(seen, w[:R], reads)
        if not written:
            _write(memory, w[R:], erase, add, after)


@inlined
def _heads_at(written, read_first, R, K):
    """First and last + 1 of the heads that address memory before or after it is written."""
    if read_first:
        return 0, K
    return (0, R) if written else (R, K)


@pasted
def _head_back(memory, norms, squares, least, previous, k, heads, lines, out, dw, dring,
               dmemory, dprevious, dheads):  # fmt: skip
    """Address again, then backward through it."""
    key, strength, gate, shift, gamma, _, _ = heads
    dkey, dstrength, dgate, dshift, dgamma, _, _ = dheads
    _, _, unit, similarity, content, shifted, powers, ring = lines
    key_norm, peak, total = _address(
        memory, norms, least, previous[k], key[k], strength[k], gate[k], shift[k], gamma[k],
        unit, similarity, content, ring, shifted, powers, out,
    )  # fmt: skip
    by_strength, by_gate, by_gamma = _address_back(
        memory, norms, squares, least, previous[k], key[k], strength[k], gate[k], shift[k],
        gamma[k], unit, similarity, content, ring, shifted, powers, out, key_norm, peak, total,
        dw[k], dring, dmemory, dprevious[k], dkey[k], dshift[k],
    )  # fmt: skip
    dstrength[k], dgate[k], dgamma[k] = by_strength, by_gate, by_gamma


@pasted
def _step_back(raw, R, W, shifts, key_code, add_code, read_first, least, memory, after,
               previous, w, heads, dheads, lines, out, dring,
               dreads, dafter, dw, dmemory, dprevious, draw):  # fmt: skip
    """Derivatives of `_step`.

    Takes those of reads, after and w (and uses up the latter two); fills those of memory, previous
    and raw.
    """
    M = memory.shape[0]
    K = R + W
    key, strength, gate, shift, gamma, erase, add = heads
    dkey, dstrength, dgate, dshift, dgamma, derase, dadd = dheads
    _decode(raw, K, W, M, shifts, key_code, add_code,
            key, strength, gate, shift, gamma, erase, add)  # fmt: skip
    squares, norms = lines[0], lines[1]
    for k in range(K):
        _zero(dprevious[k])
    for written in range(0 if read_first else 1, -1, -1):
        first, last = _heads_at(written, read_first, R, K)
        seen, dseen = (after, dafter) if written else (memory, dmemory)
        if not written:
            _write_back(memory, w[R:], erase, add, dafter, dmemory, dw[R:], derase, dadd, out)
        if first == 0:
            _read_back(seen, w[:R], dreads, dseen, dw[:R])
        _norms(seen, least, squares, norms)
        for k in range(first, last):
            _head_back(seen, norms, squares, least, previous, k, heads, lines, out, dw, dring,
                       dseen, dprevious, dheads)  # fmt: skip
    _decode_back(raw, K, W, M, shifts, key_code, add_code, key, gate, shift, erase, add,
                 dkey, dstrength, dgate, dshift, dgamma, derase, dadd, draw)  # fmt: skip


@inlined
def _lines(M, N, shifts, like):
    """Scratch of one head: the key's direction, and one number a location."""
    return (
        np.empty(N, like.dtype),
        np.empty(N, like.dtype),
        np.empty(M, like.dtype),
        np.empty(N, like.dtype),
        np.empty(N, like.dtype),
        np.empty(N, like.dtype),
        np.empty(N, like.dtype),
        np.empty(N + shifts, like.dtype),
    )


@inlined
def _cell(gates, previous, cell, hidden):
    """torch.nn.LSTM's cell; the gates i, f, g, o become their values."""
    H = hidden.size
    for j in range(H):
        gates[j] = sigmoid(gates[j])
        gates[H + j] = sigmoid(gates[H + j])
        gates[2 * H + j] = tanh(gates[2 * H + j])
        gates[3 * H + j] = sigmoid(gates[3 * H + j])
        cell[j] = gates[H + j] * previous[j] + gates[j] * gates[2 * H + j]
        hidden[j] = gates[3 * H + j] * tanh(cell[j])


@inlined
def _cell_back(gates, previous, cell, dhidden, dcell, dgates):
    """Derivatives of `_cell`; dcell becomes that of the previous cell."""
    H = dhidden.size
    one = gates.dtype.type(1)
    for j in range(H):
        i, f, g, o = gates[j], gates[H + j], gates[2 * H + j], gates[3 * H + j]
        c = tanh(cell[j])
        d = dcell[j] + dhidden[j] * o * (one - c * c)
        dgates[j] = d * g * i * (one - i)
        dgates[H + j] = d * previous[j] * f * (one - f)
        dgates[2 * H + j] = d * i * (one - g * g)
        dgates[3 * H + j] = dhidden[j] * c * o * (one - o)
        dcell[j] = d * f


@pasted
def _memories_again(first, last, t, R, W, shifts, key_code, add_code, raw, ws, memories,
                    heads, stretch):  # fmt: skip
    """Write again what the steps of t's stretch wrote, from the memory kept before it."""
    key, strength, gate, shift, gamma, erase, add = heads
    start = t - t % STRIDE
    M = stretch.shape[2]
    for b in range(first, last):
        _copy_rows(memories[t // STRIDE, b], stretch[b - first, 0])
        for s in range(start, t + 1):
            _decode(raw[s, b], R + W, W, M, shifts, key_code, add_code,
                    key, strength, gate, shift, gamma, erase, add)  # fmt: skip
            _write(stretch[b - first, s - start], ws[s + 1, b, R:], erase, add,
                   stretch[b - first, s - start + 1])  # fmt: skip


@pasted
def _heads_forward(t, first, last, layout, least, raw, memories, ws, reads, memory,
                   heads, lines, spare):  # fmt: skip
    """What the heads of some sequences do in step t; keeps every STRIDE-th memory, if any."""
    R, W, shifts, key_code, add_code, read_first = layout
    for b in range(first, last):
        if t % STRIDE == 0 and memories.shape[0] > 0:
            _copy_rows(memory[b], memories[t // STRIDE, b])
        _step(raw[t, b], R, W, shifts, key_code, add_code, read_first, least, memory[b],
              ws[t, b], heads, lines, spare, ws[t + 1, b], reads[t + 1, b])  # fmt: skip
        _copy_rows(spare, memory[b])


@pasted
def _heads_backward(t, first, last, layout, least, raw, memories, ws, dreads, dreads_last,
                    dmemory, dw, draw, scratch):  # fmt: skip
    """Derivatives of `_heads_forward`; dmemory and dw become those before step t.

    dreads_last is added to dreads and becomes zero: the controller adds to it.
    """
    heads, dheads, lines, out, dring, dbefore, dprevious, stretch = scratch
    R, W, shifts, key_code, add_code, read_first = layout
    place = t % STRIDE
    if place == STRIDE - 1 or t == raw.shape[0] - 1:
        _memories_again(first, last, t, R, W, shifts, key_code, add_code, raw, ws, memories,
                        heads, stretch)  # fmt: skip
    for b in range(first, last):
        _add(dreads_last[b], dreads[t, b])
        _zero(dreads_last[b])
        _step_back(raw[t, b], R, W, shifts, key_code, add_code, read_first, least,
                   stretch[b - first, place], stretch[b - first, place + 1], ws[t, b],
                   ws[t + 1, b], heads, dheads, lines, out, dring, dreads[t, b], dmemory[b],
                   dw[b], dbefore, dprevious, draw[t, b])  # fmt: skip
        _copy_rows(dbefore, dmemory[b])
        _copy_rows(dprevious, dw[b])


@inlined
def _scratch_back(R, W, M, N, shifts, rows, like):
    """Scratch of `_heads_backward`, for so many sequences at a time."""
    return (
        _heads(R + W, W, M, shifts, like),
        _heads(R + W, W, M, shifts, like),
        _lines(M, N, shifts, like),
        np.empty(N, like.dtype),
        np.empty(N + shifts, like.dtype),
        np.empty((M, N), like.dtype),
        np.empty((R + W, N), like.dtype),
        np.empty((rows, STRIDE + 1, M, N), like.dtype),
    )


@compiled
def lstm_forward(begin, end, layout, least, gates, by_hidden, by_reads, by_below, biases, emit,
                 bias, hidden, cells, raw, memories, ws, reads, memory):  # fmt: skip
    """Run sequences begin … end of a batch with an LSTM of L layers as controller.

    What is kept of T + 1 moments comes with the state before the first step in the first.

    Arguments:
        layout: R, W, shifts, key and add activation, read_first.
        gates: Of the layers, (L, T, B, 4H). Those of the first come as the input's part and its
            bias; all become the gates' values.
        by_hidden: Each layer's weight on its own output before, (L, H, 4H).
        by_reads: The first layer's weight on the reads, (R·M, 4H).
        by_below, biases: Of the other layers, (L − 1, H, 4H) and (L − 1, 4H).
        emit, bias: Of the emissions, (H, P) and (P,).
        hidden, cells: Filled for every layer and step, (L, T + 1, B, H).
        raw: Filled for every step, (T, B, P).
        memories: Filled with the memory before every STRIDE-th step.
        ws, reads: Filled for every step, (T + 1, B, …).
        memory: That before the first step, becomes that after the last, (B, M, N).

    """
    L, T = gates.shape[0], gates.shape[1]
    R, W, shifts, _, _, _ = layout
    M, N = memory.shape[1], memory.shape[2]
    heads = _heads(R + W, W, M, shifts, gates)
    lines = _lines(M, N, shifts, gates)
    spare = np.empty((M, N), gates.dtype)
    for first in range(begin, end, BLOCK):
        last = min(first + BLOCK, end)
        for t in range(T):
            for layer in range(L):
                sums = gates[layer, t]
                if layer > 0:
                    for b in range(first, last):
                        _copy(biases[layer - 1], sums[b])
                _multiply(hidden[layer, t, first:last], by_hidden[layer], sums[first:last])
                if layer == 0:
                    _multiply(reads[t, first:last], by_reads, sums[first:last])
                else:
                    _multiply(hidden[layer - 1, t + 1, first:last], by_below[layer - 1],
                              sums[first:last])  # fmt: skip
                for b in range(first, last):
                    _cell(sums[b], cells[layer, t, b], cells[layer, t + 1, b],
                          hidden[layer, t + 1, b])  # fmt: skip
            for b in range(first, last):
                _copy(bias, raw[t, b])
            _multiply(hidden[L - 1, t + 1, first:last], emit, raw[t, first:last])
            _heads_forward(t, first, last, layout, least, raw, memories, ws, reads, memory,
                           heads, lines, spare)  # fmt: skip


@compiled
def lstm_backward(begin, end, layout, least, gates, from_gates, from_reads, from_below, from_raw,
                  cells, raw, memories, ws, dhidden, dreads, dmemory, dw, dreads_last,
                  dhidden_last, dcell, dgates, draw):  # fmt: skip
    """Derivatives of `lstm_forward` for sequences begin … end.

    Arguments:
        from_gates, from_reads: Weights, (L, 4H, H) and (4H, R·M).
        from_below, from_raw: Weights, (L − 1, 4H, H) and (P, H).
        dhidden, dreads: Of the outputs, (T, B, H) and (T, B, R·M); the latter are used up.
        dmemory, dw, dreads_last, dhidden_last, dcell: Of the state after the last step; become
            those of the state before the first.
        dgates, draw: Filled, (L, T, B, 4H) and (T, B, P).

    """
    L, T = gates.shape[0], gates.shape[1]
    R, W, shifts, _, _, _ = layout
    M, N = dmemory.shape[1], dmemory.shape[2]
    scratch = _scratch_back(R, W, M, N, shifts, min(BLOCK, end - begin), gates)
    for first in range(begin, end, BLOCK):
        last = min(first + BLOCK, end)
        for t in range(T - 1, -1, -1):
            _heads_backward(t, first, last, layout, least, raw, memories, ws, dreads,
                            dreads_last, dmemory, dw, draw, scratch)  # fmt: skip
            for b in range(first, last):
                _add(dhidden[t, b], dhidden_last[L - 1, b])
            _multiply(draw[t, first:last], from_raw, dhidden_last[L - 1, first:last])
            for layer in range(L - 1, -1, -1):
                d = dhidden_last[layer]
                for b in range(first, last):
                    _cell_back(gates[layer, t, b], cells[layer, t, b], cells[layer, t + 1, b],
                               d[b], dcell[layer, b], dgates[layer, t, b])  # fmt: skip
                    _zero(d[b])
                _multiply(dgates[layer, t, first:last], from_gates[layer], d[first:last])
                if layer > 0:
                    _multiply(dgates[layer, t, first:last], from_below[layer - 1],
                              dhidden_last[layer - 1, first:last])  # fmt: skip
            _multiply(dgates[0, t, first:last], from_reads, dreads_last[first:last])


@compiled
def feedforward_forward(begin, end, layout, least, code, values, by_reads, deeper, biases, emit,
                        bias, raw, memories, ws, reads, memory):  # fmt: skip
    """Run sequences begin … end of a batch with a feedforward network of L layers as controller.

    Arguments as in `lstm_forward`, and:
        code: The layers' activation.
        values: Of the layers, (L, T, B, H). The first comes with the input's part of its sum and
            its bias; all are filled.
        by_reads: The first layer's weight on the reads, (R·M, H).
        deeper, biases: Of the other layers, (L − 1, H, H) and (L − 1, H).

    """
    L, T = values.shape[0], values.shape[1]
    R, W, shifts, _, _, _ = layout
    M, N = memory.shape[1], memory.shape[2]
    heads = _heads(R + W, W, M, shifts, values)
    lines = _lines(M, N, shifts, values)
    spare = np.empty((M, N), values.dtype)
    for first in range(begin, end, BLOCK):
        last = min(first + BLOCK, end)
        for t in range(T):
            _multiply(reads[t, first:last], by_reads, values[0, t, first:last])
            for b in range(first, last):
                _activate(code, values[0, t, b], values[0, t, b])
                _copy(bias, raw[t, b])
            for layer in range(1, L):
                for b in range(first, last):
                    _copy(biases[layer - 1], values[layer, t, b])
                _multiply(values[layer - 1, t, first:last], deeper[layer - 1],
                          values[layer, t, first:last])  # fmt: skip
                for b in range(first, last):
                    _activate(code, values[layer, t, b], values[layer, t, b])
            _multiply(values[L - 1, t, first:last], emit, raw[t, first:last])
            _heads_forward(t, first, last, layout, least, raw, memories, ws, reads, memory,
                           heads, lines, spare)  # fmt: skip


@compiled
def feedforward_backward(begin, end, layout, least, code, values, from_first, from_deeper, from_raw,
                         raw, memories, ws, dhidden, dreads, dmemory, dw, dreads_last,
                         dsums, draw):  # fmt: skip
    """Derivatives of `feedforward_forward` for sequences begin … end.

    Arguments as in `lstm_backward`, and:
        from_first, from_deeper: Weights, (H, R·M) and (L − 1, H, H).
        dhidden: Used up, too.
        dsums: Of what goes into the layers' activations; filled, (L, T, B, H).

    """
    L, T = values.shape[0], values.shape[1]
    R, W, shifts, _, _, _ = layout
    M, N = dmemory.shape[1], dmemory.shape[2]
    scratch = _scratch_back(R, W, M, N, shifts, min(BLOCK, end - begin), values)
    for first in range(begin, end, BLOCK):
        last = min(first + BLOCK, end)
        for t in range(T - 1, -1, -1):
            _heads_backward(t, first, last, layout, least, raw, memories, ws, dreads,
                            dreads_last, dmemory, dw, draw, scratch)  # fmt: skip
            dvalue = dhidden[t, first:last]
            _multiply(draw[t, first:last], from_raw, dvalue)
            for layer in range(L - 1, -1, -1):
                for b in range(first, last):
                    _activate_back(code, values[layer, t, b], dvalue[b - first], dsums[layer, t, b])
                if layer > 0:
                    for b in range(first, last):
                        _zero(dvalue[b - first])
                    _multiply(dsums[layer, t, first:last], from_deeper[layer - 1], dvalue)
            _multiply(dsums[0, t, first:last], from_first, dreads_last[first:last])


@compiled
def step_forward(begin, end, layout, least, raw, memory, previous, after, w, reads):
    """One step of the memory for sequences begin … end; any controller can drive it.

    Arguments:
        raw: Emissions, (B, P).
        memory, previous: Memory and weightings before, (B, M, N) and (B, K, N).
        after, w, reads: Filled, (B, M, N), (B, K, N) and (B, R, M).

    """
    R, W, shifts, key_code, add_code, read_first = layout
    heads = _heads(R + W, W, memory.shape[1], shifts, raw)
    lines = _lines(memory.shape[1], memory.shape[2], shifts, raw)
    for b in range(begin, end):
        _step(raw[b], R, W, shifts, key_code, add_code, read_first, least, memory[b],
              previous[b], heads, lines, after[b], w[b], reads[b].ravel())  # fmt: skip


@compiled
def step_backward(begin, end, layout, least, raw, memory, previous, after, w,
                  dafter, dw, dreads, dmemory, dprevious, draw):  # fmt: skip
    """Derivatives of `step_forward`; uses up dafter and dw, fills dmemory, dprevious and draw."""
    R, W, shifts, key_code, add_code, read_first = layout
    M, N = memory.shape[1], memory.shape[2]
    heads = _heads(R + W, W, M, shifts, raw)
    dheads = _heads(R + W, W, M, shifts, raw)
    lines = _lines(M, N, shifts, raw)
    out = np.empty(N, raw.dtype)
    dring = np.empty(N + shifts, raw.dtype)
    for b in range(begin, end):
        _step_back(raw[b], R, W, shifts, key_code, add_code, read_first, least, memory[b],
                   after[b], previous[b], w[b], heads, dheads, lines, out, dring,
                   dreads[b].ravel(), dafter[b], dw[b], dmemory[b], dprevious[b],
                   draw[b])  # fmt: skip


def compile_for(controller: str, dtype: np.dtype) -> None:
    """Compile what serves a controller, by running it on one step of the smallest machine.

    Args:
        controller: ``lstm``, ``feedforward``, or ``any``: one step of the memory alone.
        dtype: float32 or float64.

    """

    def zeros(*shape: int) -> np.ndarray:
        return np.zeros(shape, dtype)

    P = 4 + 2 + 3 * 2
    common = 0, 1, (1, 1, 1, 0, 0, 1), dtype.type(1e-4)
    memory, w, reads = zeros(1, 1, 1), zeros(1, 2, 1) + 1, zeros(1, 1)
    raw, memories, ws, seen = zeros(1, 1, P), zeros(1, 1, 1, 1), zeros(2, 1, 2, 1), zeros(2, 1, 1)
    ws[0] = w
    after = memory.copy()
    if controller == "lstm":
        gates, hidden, cells = zeros(1, 1, 1, 4), zeros(1, 2, 1, 1), zeros(1, 2, 1, 1)
        lstm_forward(
            *common, gates, zeros(1, 1, 4), zeros(1, 4), zeros(0, 1, 4), zeros(0, 4), zeros(1, P),
            zeros(P), hidden, cells, raw, memories, ws, seen, after,
        )  # fmt: skip
        lstm_backward(
            *common, gates, zeros(1, 4, 1), zeros(4, 1), zeros(0, 4, 1), zeros(P, 1), cells, raw,
            memories, ws, zeros(1, 1, 1), zeros(1, 1, 1), memory.copy(), w.copy(), reads.copy(),
            zeros(1, 1, 1), zeros(1, 1, 1), gates.copy(), raw.copy(),
        )  # fmt: skip
    elif controller == "feedforward":
        values, deeper = zeros(1, 1, 1, 1), zeros(0, 1, 1)
        feedforward_forward(
            *common, 0, values, zeros(1, 1), deeper, zeros(0, 1), zeros(1, P), zeros(P), raw,
            memories, ws, seen, after,
        )  # fmt: skip
        feedforward_backward(
            *common, 0, values, zeros(1, 1), deeper, zeros(P, 1), raw, memories, ws,
            zeros(1, 1, 1), zeros(1, 1, 1), memory.copy(), w.copy(), reads.copy(), values.copy(),
            raw.copy(),
        )  # fmt: skip
    else:
        step_forward(*common, raw[0], memory, w, after, w.copy(), zeros(1, 1, 1))
        step_backward(
            *common, raw[0], memory, w, after, w.copy(), memory.copy(), w.copy(), zeros(1, 1, 1),
            memory.copy(), w.copy(), zeros(1, P),
        )  # fmt: skip
