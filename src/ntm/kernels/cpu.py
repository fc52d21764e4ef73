"""The machine's whole sequence, forward and backward, as compiled functions for the CPU.

Read it beside G14 section 3: `_address` and `_step` are the equations in order, `_address_back` and
`_step_back` their derivatives in reverse. Memory lies element by element, M × N, so that the inner
loops run over the N locations. One sequence is independent of the others; the products with the
controller's weights take a block of sequences at once, because the weights then come from the
nearest cache. Nothing is allocated: each thread works in scratch that the caller gives it. Names in
capitals are sizes of the legend in `ntm`, and K = R + W, L layers of the controller, P raw
emissions.

For the backward pass the forward one keeps what the controller came to, the raw emissions,
weightings and reads of every step, and the memory of every `STRIDE`-th step alone: the memories
between are written again, which costs less than reading them back would. What the heads are told is
decoded once for that and for what follows.

A loop either sums or stores, never both. One that does both is vectorised only where a check at run
time finds its arrays far enough apart in memory, and sums in another order where not: the same run
would then round differently from process to process.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import cfunc, njit, types
from numba.core.compiler import Compiler

from ntm.kernels import jobs
from ntm.kernels.conventions import (
    ACTIVATION,
    BLOCK,
    DENSE,
    KEPT,
    RELU,
    SIGMOID,
    STEP,
    STRIDE,
    TANH,
)
from ntm.kernels.numerics import exp, in_order, log, ordered, sigmoid, softplus, tanh

# Nothing that assumes finite numbers, and no reciprocals for quotients: whole vectors would be
# divided in another way than the rest, and sharpening enlarges what makes equal weights differ.
SAFE = {"contract", "nsz", "reassoc"}


def inlined(function: Any) -> Any:
    """Part of every compiled function that calls it.

    Not a function of its own: two callers would each bring a copy, optimised by its own
    surroundings, and the loader takes now this one and now that, with other roundings.
    """
    return njit(fastmath=SAFE, forceinline=True, **jobs.OPTIONS)(function)


class _Apart(Compiler):
    """Compiles a function whose arrays never overlap."""

    def define_pipelines(self):
        """Numba's own, told so."""
        self.state.flags.noalias = True
        return super().define_pipelines()


def apart(function: Any) -> Any:
    """`inlined`, of arrays that never overlap: no check at run time, however many there are."""
    options = {"fastmath": SAFE, "forceinline": True, **jobs.OPTIONS}
    return njit(pipeline_class=_Apart, **options)(function)


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


@apart
def _add_four(x0, x1, x2, x3, w0, w1, w2, w3, row):
    """Row += a combination of four rows of a weight."""
    for j in range(row.size):
        row[j] += x0 * w0[j] + x1 * w1[j] + x2 * w2[j] + x3 * w3[j]


@apart
def _add_four_twice(x0, x1, x2, x3, z0, z1, z2, z3, w0, w1, w2, w3, row, other):
    """The same for two rows, which reads the weight once."""
    for j in range(row.size):
        row[j] += x0 * w0[j] + x1 * w1[j] + x2 * w2[j] + x3 * w3[j]
        other[j] += z0 * w0[j] + z1 * w1[j] + z2 * w2[j] + z3 * w3[j]


@inlined
def _multiply(x, weight, y):
    """Y += x · weight for a block of rows; four rows of the weight at a time, two of the others."""
    rows, inner = x.shape
    outer = weight.shape[1]
    whole, pairs = inner - inner % 4, rows - rows % 2
    for k in range(0, whole, 4):
        w0, w1, w2, w3 = weight[k], weight[k + 1], weight[k + 2], weight[k + 3]
        for b in range(0, pairs, 2):
            _add_four_twice(
                x[b, k], x[b, k + 1], x[b, k + 2], x[b, k + 3],
                x[b + 1, k], x[b + 1, k + 1], x[b + 1, k + 2], x[b + 1, k + 3],
                w0, w1, w2, w3, y[b], y[b + 1],
            )  # fmt: skip
        for b in range(pairs, rows):
            _add_four(x[b, k], x[b, k + 1], x[b, k + 2], x[b, k + 3], w0, w1, w2, w3, y[b])
    for k in range(whole, inner):
        for b in range(rows):
            x0 = x[b, k]
            row, w0 = y[b], weight[k]
            for j in range(outer):
                row[j] += x0 * w0[j]


@inlined
def _multiply_rows(x, weight, y):
    """Y += x · weightᵀ for a block of rows: better where y is short."""
    zero = x.dtype.type(0)
    for j in range(weight.shape[0]):
        row = weight[j]
        for b in range(x.shape[0]):
            values, total = x[b], zero
            for k in range(row.size):
                total += row[k] * values[k]
            y[b, j] += total


@inlined
def _word(h, K, W, M, shifts, key_code, add_code):
    """Where in the raw emissions a word begins, and the code of its activation.

    Words are the keys of all heads, then the erase vectors, then the add vectors.
    """
    if h < K:
        return h * (M + shifts + 3), key_code
    return K * (M + shifts + 3) + (h - K) * M, SIGMOID if h < K + W else add_code


@inlined
def _decode(raw, K, W, M, shifts, key_code, add_code, heads):
    """Split raw emissions and bring each part into its range (`ntm.machine.heads.decode`)."""
    words, strength, gate, shift, gamma = heads
    one = raw.dtype.type(1)
    for h in range(K + 2 * W):
        at, code = _word(h, K, W, M, shifts, key_code, add_code)
        _activate(code, raw[at : at + M], words[h])
    for k in range(K):
        at = k * (M + shifts + 3) + M
        strength[k] = softplus(raw[at])
        gate[k] = sigmoid(raw[at + 1])
        gamma[k] = one + softplus(raw[at + 2 + shifts])
        logits = raw[at + 2 : at + 2 + shifts]
        largest = logits[0]
        for j in range(1, shifts):
            largest = logits[j] if logits[j] > largest else largest
        total = one - one
        for j in range(shifts):
            shift[k, j] = exp(logits[j] - largest)
        for j in range(shifts):
            total += shift[k, j]
        for j in range(shifts):
            shift[k, j] /= total


@inlined
def _decode_back(raw, K, W, M, shifts, key_code, add_code, heads, dheads, draw):
    """Derivatives of `_decode`; fills draw."""
    words, _, gate, shift, _ = heads
    dwords, dstrength, dgate, dshift, dgamma = dheads
    one = raw.dtype.type(1)
    for h in range(K + 2 * W):
        at, code = _word(h, K, W, M, shifts, key_code, add_code)
        _activate_back(code, words[h], dwords[h], draw[at : at + M])
    for k in range(K):
        at = k * (M + shifts + 3) + M
        draw[at] = dstrength[k] * sigmoid(raw[at])
        draw[at + 1] = dgate[k] * gate[k] * (one - gate[k])
        draw[at + 2 + shifts] = dgamma[k] * sigmoid(raw[at + 2 + shifts])
        inner = one - one
        for j in range(shifts):
            inner += dshift[k, j] * shift[k, j]
        for j in range(shifts):
            draw[at + 2 + j] = shift[k, j] * (dshift[k, j] - inner)


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
        s, turned = shift[j], ring[2 * S - j : 2 * S - j + N]
        for n in range(N):
            shifted[n] += s * turned[n]
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
        turned, dturned = ring[2 * S - j : 2 * S - j + N], dring[2 * S - j : 2 * S - j + N]
        for n in range(N):
            dturned[n] += s * dw[n]
        for n in range(N):
            total += dw[n] * turned[n]
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
def _write(memory, w, words, after):
    """G14 eq. 3 and 4: all heads erase, then all add."""
    W = w.shape[0]
    erase, add = words[-2 * W : -W], words[-W:]
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
def _write_back(memory, w, words, dafter, dmemory, dw, dwords, rest):
    """Derivatives of `_write`; fills dmemory and those of erase and add, adds to dw.

    The rest is scratch.
    """
    W = w.shape[0]
    erase, add, derase, dadd = words[-2 * W : -W], words[-W:], dwords[-2 * W : -W], dwords[-W:]
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
def _heads(at, several, K, W, M, shifts, like):
    """Room for what the heads are told, several times over, and the address behind it.

    All words, then all shifts, strengths, gates and sharpenings: as many numbers as there are raw
    emissions.
    """
    words, at = jobs.piece(at, (several, K + 2 * W, M), like)
    shift, at = jobs.piece(at, (several, K, shifts), like)
    scalars, at = jobs.piece(at, (3, several, K), like)
    return (words, scalars[0], scalars[1], shift, scalars[2]), at


@inlined
def _told(told, which):
    """What the heads are told one of several times."""
    words, strength, gate, shift, gamma = told
    return words[which], strength[which], gate[which], shift[which], gamma[which]


@pasted
def _step(raw, R, W, shifts, key_code, add_code, read_first, least, memory, previous,
          heads, lines, after, w, reads):  # fmt: skip
    """One step of one sequence; fills after, w and reads.

    Heads address memory as it was, or the read heads as it is once written.
    """
    K = R + W
    _decode(raw, K, W, memory.shape[0], shifts, key_code, add_code, heads)
    words, strength, gate, shift, gamma = heads
    squares, norms, unit, similarity, content, shifted, powers, ring = lines
    for written in range(1 if read_first else 2):
        first, last = _heads_at(written, read_first, R, K)
        seen = after if written else memory
        _norms(seen, least, squares, norms)
        for k in range(first, last):
            _address(seen, norms, least, previous[k], words[k], strength[k], gate[k], shift[k],
                     gamma[k], unit, similarity, content, ring, shifted, powers,
                     w[k])  # fmt: skip
        if first == 0:
            _read(seen, w[:R], reads)
        if not written:
            _write(memory, w[R:], words, after)


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
    words, strength, gate, shift, gamma = heads
    dwords, dstrength, dgate, dshift, dgamma = dheads
    _, _, unit, similarity, content, shifted, powers, ring = lines
    key_norm, peak, total = _address(
        memory, norms, least, previous[k], words[k], strength[k], gate[k], shift[k], gamma[k],
        unit, similarity, content, ring, shifted, powers, out,
    )  # fmt: skip
    by_strength, by_gate, by_gamma = _address_back(
        memory, norms, squares, least, previous[k], words[k], strength[k], gate[k], shift[k],
        gamma[k], unit, similarity, content, ring, shifted, powers, out, key_norm, peak, total,
        dw[k], dring, dmemory, dprevious[k], dwords[k], dshift[k],
    )  # fmt: skip
    dstrength[k], dgate[k], dgamma[k] = by_strength, by_gate, by_gamma


@pasted
def _step_back(raw, R, W, shifts, key_code, add_code, read_first, least, memory, after,
               previous, w, heads, dheads, lines, out, dring,
               dreads, dafter, dw, dmemory, dprevious, draw):  # fmt: skip
    """Derivatives of `_step`, by what the heads were told.

    Takes those of reads, after and w (and uses up the latter two); fills those of memory, previous
    and raw.
    """
    K = R + W
    squares, norms = lines[0], lines[1]
    for k in range(K):
        _zero(dprevious[k])
    for written in range(0 if read_first else 1, -1, -1):
        first, last = _heads_at(written, read_first, R, K)
        seen, dseen = (after, dafter) if written else (memory, dmemory)
        if not written:
            _write_back(memory, w[R:], heads[0], dafter, dmemory, dw[R:], dheads[0], out)
        if first == 0:
            _read_back(seen, w[:R], dreads, dseen, dw[:R])
        _norms(seen, least, squares, norms)
        for k in range(first, last):
            _head_back(seen, norms, squares, least, previous, k, heads, lines, out, dw, dring,
                       dseen, dprevious, dheads)  # fmt: skip
    _decode_back(raw, K, W, memory.shape[0], shifts, key_code, add_code, heads, dheads, draw)


@inlined
def _lines(at, M, N, shifts, like):
    """Scratch of one head: the key's direction, and one number a location; the address behind."""
    unit, at = jobs.piece(jobs.line(at), (M,), like)
    # The ring is the longest, of N + 2S; whole lines of the cache.
    lines, at = jobs.piece(jobs.line(at), (7, (N + shifts + 15) // 16 * 16), like)
    squares, norms, similarity, content = lines[0], lines[1], lines[2], lines[3]
    return (squares, norms, unit, similarity, content, lines[4], lines[5], lines[6]), at


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
def _stretch_again(first, last, t, R, W, shifts, key_code, add_code, raw, ws, memories,
                   told, stretch):  # fmt: skip
    """Write again what the steps of t's stretch wrote, from the memory kept before it.

    Fills what the heads were told in every step of every sequence, and the memory before and after.
    """
    start = t - t % STRIDE
    M = stretch.shape[2]
    for b in range(first, last):
        _copy_rows(memories[t // STRIDE, b], stretch[b - first, 0])
        for s in range(start, t + 1):
            heads = _told(told, (b - first) * STRIDE + s - start)
            _decode(raw[s, b], R + W, W, M, shifts, key_code, add_code, heads)
            _write(stretch[b - first, s - start], ws[s + 1, b, R:], heads[0],
                   stretch[b - first, s - start + 1])  # fmt: skip


@apart
def _transpose(source, target):
    """Target = the last columns of source, transposed; four rows at a time."""
    rows, columns = source.shape
    first, whole = columns - target.shape[0], rows - rows % 4
    for k in range(0, whole, 4):
        a, b, c, d = source[k], source[k + 1], source[k + 2], source[k + 3]
        for j in range(first, columns):
            line = target[j - first]
            line[k], line[k + 1], line[k + 2], line[k + 3] = a[j], b[j], c[j], d[j]
    for k in range(whole, rows):
        for j in range(first, columns):
            target[j - first, k] = source[k, j]


@pasted
def _load_memory(job, loose, b, memory, previous):
    """Copy one sequence's memory and weightings."""
    for m in range(memory.shape[0]):
        jobs.fetch_column(job, loose, b, m, memory[m])
    for k in range(previous.shape[0]):
        jobs.fetch(job, loose + 4, b, k, previous[k])


@pasted
def _load_heads(job, loose, b, R, reads, w, memory):
    """Copy one sequence's memory, weightings and reads, or derivatives of them."""
    _load_memory(job, loose, b, memory, w)
    M = memory.shape[0]
    for r in range(R):
        jobs.fetch(job, loose + 8, b, r, reads[r * M : (r + 1) * M])


@inlined
def _heads_at_start(job, place, K, R, like):
    """Memory (B, M, N), weightings and reads one after the other, and what comes behind them."""
    B, _, _, _, _, N, M = jobs.sizes(job)
    memory, at = jobs.piece(job[place], (B, M, N), like)
    w, at = jobs.piece(at, (B, K, N), like)
    reads, at = jobs.piece(at, (1, B, R * M), like)
    return memory, w, reads[0], at


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
def _heads_backward(t, first, last, layout, least, raw, memories, ws, job, loose, dreads,
                    dmemory, dw, draw, scratch):  # fmt: skip
    """Derivatives of `_heads_forward`; dmemory and dw become those before step t.

    Those of the reads come from outside (the loose tensor) and from the controller; the latter,
    dreads, become zero: the controller adds to them. Those of the emissions come from outside as
    well (the loose tensor behind).
    """
    told, dheads, lines, out, dring, dbefore, dprevious, stretch, dread, outside = scratch
    R, W, shifts, key_code, add_code, read_first = layout
    place = t % STRIDE
    if place == STRIDE - 1 or t == raw.shape[0] - 1:
        _stretch_again(first, last, t, R, W, shifts, key_code, add_code, raw, ws, memories,
                       told, stretch)  # fmt: skip
    for b in range(first, last):
        jobs.fetch(job, loose, t, b, dread)
        _add(dreads[b], dread)
        _zero(dreads[b])
        heads = _told(told, (b - first) * STRIDE + place)
        _step_back(raw[t, b], R, W, shifts, key_code, add_code, read_first, least,
                   stretch[b - first, place], stretch[b - first, place + 1], ws[t, b],
                   ws[t + 1, b], heads, dheads, lines, out, dring, dread, dmemory[b],
                   dw[b], dbefore, dprevious, draw[t, b])  # fmt: skip
        jobs.fetch(job, loose + 4, t, b, outside)
        _add(outside, draw[t, b])
        _copy_rows(dbefore, dmemory[b])
        _copy_rows(dprevious, dw[b])


@inlined
def _scratch_forward(at, R, W, M, N, shifts, like):
    """Scratch of `_heads_forward`; the address behind it."""
    told, at = _heads(at, 1, R + W, W, M, shifts, like)
    lines, at = _lines(at, M, N, shifts, like)
    spare, at = jobs.piece(jobs.line(at), (M, N), like)
    return (_told(told, 0), lines, spare), at


@inlined
def _scratch_back(at, R, W, M, N, shifts, rows, like):
    """Scratch of `_heads_backward`, for so many sequences at a time; the address behind it."""
    told, at = _heads(at, rows * STRIDE + 1, R + W, W, M, shifts, like)
    lines, at = _lines(at, M, N, shifts, like)
    out, at = jobs.piece(jobs.line(at), (N,), like)
    dring, at = jobs.piece(jobs.line(at), (N + shifts,), like)
    dbefore, at = jobs.piece(jobs.line(at), (M, N), like)
    dprevious, at = jobs.piece(jobs.line(at), (R + W, N), like)
    stretch, at = jobs.piece(jobs.line(at), (rows, STRIDE + 1, M, N), like)
    dread, at = jobs.piece(jobs.line(at), (R * M,), like)
    P = (R + W) * (M + shifts + 3) + 2 * W * M
    outside, at = jobs.piece(jobs.line(at), (P,), like)
    dheads = _told(told, rows * STRIDE)
    return (told, dheads, lines, out, dring, dbefore, dprevious, stretch, dread, outside), at


@inlined
def _kept_lstm(job, place, like):
    """What is kept of a run: see `lstm_forward`."""
    B, T, L, _, H, N, M = jobs.sizes(job)
    R, W, _, _, _, _ = jobs.layout(job)
    gates, at = jobs.piece(job[place], (L, T, B, 4 * H), like)
    hidden, at = jobs.piece(at, (L, T + 1, B, H), like)
    reads, at = jobs.piece(at, (1, T + 1, B, R * M), like)
    cells, at = jobs.piece(at, (L, T + 1, B, H), like)
    ws, at = jobs.piece(at, (T + 1, B, R + W, N), like)
    memories, at = jobs.piece(at, (job[KEPT], B, M, N), like)
    return gates, hidden, reads[0], cells, ws, memories


def lstm_forward(real):
    """Run a batch with an LSTM of L layers as controller.

    What is kept of T + 1 moments has the state before the first step in front.

    Dense:
        kept: One after the other, all filled:
            gates: Of the layers, (L, T, B, 4H).
            hidden: Of every layer, (L, T + 1, B, H).
            reads: (T + 1, B, R·M).
            cells: Likewise, as hidden.
            ws: Weightings, (T + 1, B, K, N).
            memories: Before every STRIDE-th step, (·, B, M, N), if any is to be kept.
        inputs: Their part of the first layer's gates with its bias, (T, B, 4H).
        by_seen, by_hidden, bias_hidden: Of the first layer, (4H, I + R·M), (4H, H) and (4H,).
        by_below, deeper, biases: Of the other layers, (L − 1, 4H, H) twice, and (L − 1, 4H).
        emit, bias: Of the emissions, (P, H) and (P,).
        outputs, seen, raw: Filled, what the last layer came to, what was read, and the emissions,
            (T, B, …).
        memory, w_end, reads_end, hidden_end, cell_end: Filled with the state after the last step,
            (B, M, N), (B, K, N), (B, R·M) and twice (L, B, H).

    Loose:
        Memory, weightings, reads, hidden and cell before the first step, as the caller has them.

    """

    def run(address):
        job, zero = jobs.at(address), real(0)
        B, T, L, I, H, N, M = jobs.sizes(job)
        layout = jobs.layout(job)
        R, W, shifts, _, _, _ = layout
        K, P = R + W, (R + W) * (M + shifts + 3) + 2 * W * M
        gates, hidden, reads, cells, ws, memories = _kept_lstm(job, DENSE, zero)
        inputs = jobs.tensor(job[DENSE + 1], (T, B, 4 * H), zero)
        by_seen = jobs.tensor(job[DENSE + 2], (4 * H, I + R * M), zero)
        by_hidden = jobs.tensor(job[DENSE + 3], (4 * H, H), zero)
        bias_hidden = jobs.tensor(job[DENSE + 4], (4 * H,), zero)
        by_below = jobs.tensor(job[DENSE + 5], (L - 1, 4 * H, H), zero)
        deeper = jobs.tensor(job[DENSE + 6], (L - 1, 4 * H, H), zero)
        biases = jobs.tensor(job[DENSE + 7], (L - 1, 4 * H), zero)
        emit = jobs.tensor(job[DENSE + 8], (P, H), zero)
        bias = jobs.tensor(job[DENSE + 9], (P,), zero)
        outputs = jobs.tensor(job[DENSE + 10], (T, B, H), zero)
        seen = jobs.tensor(job[DENSE + 11], (T, B, R * M), zero)
        raw = jobs.tensor(job[DENSE + 12], (T, B, P), zero)
        memory = jobs.tensor(job[DENSE + 13], (B, M, N), zero)
        w_end = jobs.tensor(job[DENSE + 14], (B, K, N), zero)
        reads_end = jobs.tensor(job[DENSE + 15], (B, R * M), zero)
        hidden_end = jobs.tensor(job[DENSE + 16], (L, B, H), zero)
        cell_end = jobs.tensor(job[DENSE + 17], (L, B, H), zero)
        loose = DENSE + 18
        least = jobs.least(job, gates)
        parts, at = _scratch_forward(jobs.scratch(job), R, W, M, N, shifts, gates)
        heads, lines, spare = parts
        # Weights as rows of what they are multiplied with: `_multiply` runs along them.
        from_hidden, at = jobs.piece(jobs.line(at), (L, H, 4 * H), gates)
        from_below, at = jobs.piece(jobs.line(at), (L - 1, H, 4 * H), gates)
        from_reads, at = jobs.piece(jobs.line(at), (R * M, 4 * H), gates)
        if jobs.asked(job, at):
            return
        _transpose(by_seen, from_reads)
        for layer in range(2 * L - 1):
            if layer < L:
                weight, target = by_hidden if layer == 0 else deeper[layer - 1], from_hidden[layer]
            else:
                weight, target = by_below[layer - L], from_below[layer - L]
            _transpose(weight, target)
        first, last = jobs.claim(job)
        while first < B:
            for b in range(first, last):
                _load_heads(job, loose, b, R, reads[0, b], ws[0, b], memory[b])
                for layer in range(L):
                    jobs.fetch(job, loose + 12, layer, b, hidden[layer, 0, b])
                    jobs.fetch(job, loose + 16, layer, b, cells[layer, 0, b])
            for t in range(T):
                for layer in range(L):
                    sums = gates[layer, t]
                    for b in range(first, last):
                        _copy(inputs[t, b] if layer == 0 else biases[layer - 1], sums[b])
                        if layer == 0:
                            _add(bias_hidden, sums[b])
                    below, weight = reads[t], from_reads
                    if layer > 0:
                        below, weight = hidden[layer - 1, t + 1], from_below[layer - 1]
                    _multiply(hidden[layer, t, first:last], from_hidden[layer], sums[first:last])
                    _multiply(below[first:last], weight, sums[first:last])
                    for b in range(first, last):
                        _cell(sums[b], cells[layer, t, b], cells[layer, t + 1, b],
                              hidden[layer, t + 1, b])  # fmt: skip
                for b in range(first, last):
                    _copy(bias, raw[t, b])
                _multiply_rows(hidden[L - 1, t + 1, first:last], emit, raw[t, first:last])
                _heads_forward(t, first, last, layout, least, raw, memories, ws, reads, memory,
                               heads, lines, spare)  # fmt: skip
                _copy_rows(hidden[L - 1, t + 1, first:last], outputs[t, first:last])
                _copy_rows(reads[t + 1, first:last], seen[t, first:last])
            for b in range(first, last):
                for layer in range(L):
                    _copy(hidden[layer, T, b], hidden_end[layer, b])
                    _copy(cells[layer, T, b], cell_end[layer, b])
                _copy_rows(ws[T, b], w_end[b])
                _copy(reads[T, b], reads_end[b])
            first, last = jobs.claim(job)

    return run


def lstm_backward(real):
    """Derivatives of `lstm_forward`.

    Dense:
        kept, raw: As it left them.
        by_seen, by_hidden, by_below, deeper, emit: As there.
        dgates, draw: Filled, (L, T, B, 4H) and (T, B, P).
        dstart: Filled with those of the state before the first step, one after the other: of
            memory (B, M, N), weightings (B, K, N), reads (B, R·M), hidden and cell (L, B, H).

    Loose:
        Of outputs, reads and emissions, (T, B, …); of memory, weightings, reads, hidden and cell
        after the last step.

    """

    def run(address):
        job, zero = jobs.at(address), real(0)
        B, T, L, I, H, N, M = jobs.sizes(job)
        layout = jobs.layout(job)
        R, W, shifts, _, _, _ = layout
        K, P = R + W, (R + W) * (M + shifts + 3) + 2 * W * M
        gates, _, _, cells, ws, memories = _kept_lstm(job, DENSE, zero)
        raw = jobs.tensor(job[DENSE + 1], (T, B, P), zero)
        by_seen = jobs.tensor(job[DENSE + 2], (4 * H, I + R * M), zero)
        by_hidden = jobs.tensor(job[DENSE + 3], (4 * H, H), zero)
        by_below = jobs.tensor(job[DENSE + 4], (L - 1, 4 * H, H), zero)
        deeper = jobs.tensor(job[DENSE + 5], (L - 1, 4 * H, H), zero)
        emit = jobs.tensor(job[DENSE + 6], (P, H), zero)
        dgates = jobs.tensor(job[DENSE + 7], (L, T, B, 4 * H), zero)
        draw = jobs.tensor(job[DENSE + 8], (T, B, P), zero)
        dmemory, dw, dreads, at = _heads_at_start(job, DENSE + 9, K, R, zero)
        dhidden, at = jobs.piece(at, (L, B, H), zero)
        dcell, at = jobs.piece(at, (L, B, H), zero)
        loose = DENSE + 10
        least = jobs.least(job, gates)
        scratch, at = _scratch_back(jobs.scratch(job), R, W, M, N, shifts, job[BLOCK], gates)
        line, at = jobs.piece(jobs.line(at), (H,), gates)
        from_reads, at = jobs.piece(jobs.line(at), (R * M, 4 * H), gates)
        if jobs.asked(job, at):
            return
        _transpose(by_seen, from_reads)
        first, last = jobs.claim(job)
        while first < B:
            for b in range(first, last):
                _load_heads(job, loose + 12, b, R, dreads[b], dw[b], dmemory[b])
                for layer in range(L):
                    jobs.fetch(job, loose + 24, layer, b, dhidden[layer, b])
                    jobs.fetch(job, loose + 28, layer, b, dcell[layer, b])
            for t in range(T - 1, -1, -1):
                _heads_backward(t, first, last, layout, least, raw, memories, ws, job, loose + 4,
                                dreads, dmemory, dw, draw, scratch)  # fmt: skip
                for b in range(first, last):
                    jobs.fetch(job, loose, t, b, line)
                    _add(line, dhidden[L - 1, b])
                _multiply(draw[t, first:last], emit, dhidden[L - 1, first:last])
                for layer in range(L - 1, -1, -1):
                    d = dhidden[layer]
                    for b in range(first, last):
                        _cell_back(gates[layer, t, b], cells[layer, t, b], cells[layer, t + 1, b],
                                   d[b], dcell[layer, b], dgates[layer, t, b])  # fmt: skip
                        _zero(d[b])
                    weight = deeper[layer - 1] if layer > 0 else by_hidden
                    for below in range(min(layer, 1) + 1):
                        if below:  # one call: each would bring a product to compile
                            d, weight = dhidden[layer - 1], by_below[layer - 1]
                        _multiply(dgates[layer, t, first:last], weight, d[first:last])
                _multiply_rows(dgates[0, t, first:last], from_reads, dreads[first:last])
            first, last = jobs.claim(job)

    return run


@inlined
def _kept_feedforward(job, place, like):
    """What is kept of a run: see `feedforward_forward`."""
    B, T, L, _, H, N, M = jobs.sizes(job)
    R, W, _, _, _, _ = jobs.layout(job)
    values, at = jobs.piece(job[place], (L, T, B, H), like)
    reads, at = jobs.piece(at, (1, T + 1, B, R * M), like)
    ws, at = jobs.piece(at, (T + 1, B, R + W, N), like)
    memories, at = jobs.piece(at, (job[KEPT], B, M, N), like)
    return values, reads[0], ws, memories


def feedforward_forward(real):
    """Run a batch with a feedforward network of L layers as controller.

    Dense, where not as in `lstm_forward`:
        kept: Gates, hidden and cells give way to values, of the layers, (L, T, B, H).
        inputs: Their part of what the first layer activates, with its bias, (T, B, H).
        by_seen: Of the first layer, (H, I + R·M).
        deeper, biases: Of the other layers, (L − 1, H, H) and (L − 1, H).

    Loose:
        Memory, weightings and reads before the first step.

    """

    def run(address):
        job, zero = jobs.at(address), real(0)
        B, T, L, I, H, N, M = jobs.sizes(job)
        layout = jobs.layout(job)
        code = job[ACTIVATION]
        R, W, shifts, _, _, _ = layout
        K, P = R + W, (R + W) * (M + shifts + 3) + 2 * W * M
        values, reads, ws, memories = _kept_feedforward(job, DENSE, zero)
        inputs = jobs.tensor(job[DENSE + 1], (T, B, H), zero)
        by_seen = jobs.tensor(job[DENSE + 2], (H, I + R * M), zero)
        deeper = jobs.tensor(job[DENSE + 3], (L - 1, H, H), zero)
        biases = jobs.tensor(job[DENSE + 4], (L - 1, H), zero)
        emit = jobs.tensor(job[DENSE + 5], (P, H), zero)
        bias = jobs.tensor(job[DENSE + 6], (P,), zero)
        outputs = jobs.tensor(job[DENSE + 7], (T, B, H), zero)
        seen = jobs.tensor(job[DENSE + 8], (T, B, R * M), zero)
        raw = jobs.tensor(job[DENSE + 9], (T, B, P), zero)
        memory = jobs.tensor(job[DENSE + 10], (B, M, N), zero)
        w_end = jobs.tensor(job[DENSE + 11], (B, K, N), zero)
        reads_end = jobs.tensor(job[DENSE + 12], (B, R * M), zero)
        loose = DENSE + 13
        least = jobs.least(job, values)
        parts, at = _scratch_forward(jobs.scratch(job), R, W, M, N, shifts, values)
        heads, lines, spare = parts
        from_reads, at = jobs.piece(jobs.line(at), (R * M, H), values)
        from_below, at = jobs.piece(jobs.line(at), (L - 1, H, H), values)
        if jobs.asked(job, at):
            return
        _transpose(by_seen, from_reads)
        for layer in range(1, L):
            _transpose(deeper[layer - 1], from_below[layer - 1])
        first, last = jobs.claim(job)
        while first < B:
            for b in range(first, last):
                _load_heads(job, loose, b, R, reads[0, b], ws[0, b], memory[b])
            for t in range(T):
                _copy_rows(inputs[t, first:last], values[0, t, first:last])
                _multiply(reads[t, first:last], from_reads, values[0, t, first:last])
                for b in range(first, last):
                    _activate(code, values[0, t, b], values[0, t, b])
                    _copy(bias, raw[t, b])
                for layer in range(1, L):
                    for b in range(first, last):
                        _copy(biases[layer - 1], values[layer, t, b])
                    _multiply(values[layer - 1, t, first:last], from_below[layer - 1],
                              values[layer, t, first:last])  # fmt: skip
                    for b in range(first, last):
                        _activate(code, values[layer, t, b], values[layer, t, b])
                _multiply_rows(values[L - 1, t, first:last], emit, raw[t, first:last])
                _heads_forward(t, first, last, layout, least, raw, memories, ws, reads, memory,
                               heads, lines, spare)  # fmt: skip
                _copy_rows(values[L - 1, t, first:last], outputs[t, first:last])
                _copy_rows(reads[t + 1, first:last], seen[t, first:last])
            for b in range(first, last):
                _copy_rows(ws[T, b], w_end[b])
                _copy(reads[T, b], reads_end[b])
            first, last = jobs.claim(job)

    return run


def feedforward_backward(real):
    """Derivatives of `feedforward_forward`.

    Dense, where not as in `lstm_backward`:
        by_seen, deeper, emit: As in `feedforward_forward`.
        dsums: Of what goes into the layers' activations; filled, (L, T, B, H).
        draw, dstart: Likewise, without hidden and cell.

    Loose:
        Of outputs, reads and emissions, (T, B, …); of memory, weightings and reads after the last
        step.

    """

    def run(address):
        job, zero = jobs.at(address), real(0)
        B, T, L, I, H, N, M = jobs.sizes(job)
        layout = jobs.layout(job)
        code = job[ACTIVATION]
        R, W, shifts, _, _, _ = layout
        K, P = R + W, (R + W) * (M + shifts + 3) + 2 * W * M
        values, _, ws, memories = _kept_feedforward(job, DENSE, zero)
        raw = jobs.tensor(job[DENSE + 1], (T, B, P), zero)
        by_seen = jobs.tensor(job[DENSE + 2], (H, I + R * M), zero)
        deeper = jobs.tensor(job[DENSE + 3], (L - 1, H, H), zero)
        emit = jobs.tensor(job[DENSE + 4], (P, H), zero)
        dsums = jobs.tensor(job[DENSE + 5], (L, T, B, H), zero)
        draw = jobs.tensor(job[DENSE + 6], (T, B, P), zero)
        dmemory, dw, dreads, _ = _heads_at_start(job, DENSE + 7, K, R, zero)
        loose = DENSE + 8
        least = jobs.least(job, values)
        scratch, at = _scratch_back(jobs.scratch(job), R, W, M, N, shifts, job[BLOCK], values)
        dvalue, at = jobs.piece(jobs.line(at), (job[BLOCK], H), values)
        from_reads, at = jobs.piece(jobs.line(at), (R * M, H), values)
        if jobs.asked(job, at):
            return
        _transpose(by_seen, from_reads)
        first, last = jobs.claim(job)
        while first < B:
            for b in range(first, last):
                _load_heads(job, loose + 12, b, R, dreads[b], dw[b], dmemory[b])
            for t in range(T - 1, -1, -1):
                _heads_backward(t, first, last, layout, least, raw, memories, ws, job, loose + 4,
                                dreads, dmemory, dw, draw, scratch)  # fmt: skip
                for b in range(first, last):
                    jobs.fetch(job, loose, t, b, dvalue[b - first])
                _multiply(draw[t, first:last], emit, dvalue)
                for layer in range(L - 1, -1, -1):
                    for b in range(first, last):
                        _activate_back(
                            code, values[layer, t, b], dvalue[b - first], dsums[layer, t, b]
                        )
                    if layer > 0:
                        for b in range(first, last):
                            _zero(dvalue[b - first])
                        _multiply(dsums[layer, t, first:last], deeper[layer - 1], dvalue)
                _multiply_rows(dsums[0, t, first:last], from_reads, dreads[first:last])
            first, last = jobs.claim(job)

    return run


def step_forward(real):
    """One step of the memory; any controller can drive it.

    Dense:
        raw: Emissions, (B, P).
        after, w, reads: Filled, (B, M, N), (B, K, N) and (B, R·M).

    Loose:
        Memory and weightings before.

    """

    def run(address):
        job, zero = jobs.at(address), real(0)
        B, _, _, _, _, N, M = jobs.sizes(job)
        R, W, shifts, key_code, add_code, read_first = jobs.layout(job)
        K, P = R + W, (R + W) * (M + shifts + 3) + 2 * W * M
        raw = jobs.tensor(job[DENSE], (B, P), zero)
        after = jobs.tensor(job[DENSE + 1], (B, M, N), zero)
        w = jobs.tensor(job[DENSE + 2], (B, K, N), zero)
        reads = jobs.tensor(job[DENSE + 3], (B, R * M), zero)
        loose = DENSE + 4
        least = jobs.least(job, raw)
        parts, at = _scratch_forward(jobs.scratch(job), R, W, M, N, shifts, raw)
        heads, lines, memory = parts
        previous, at = jobs.piece(jobs.line(at), (K, N), raw)
        if jobs.asked(job, at):
            return
        first, last = jobs.claim(job)
        while first < B:
            for b in range(first, last):
                _load_memory(job, loose, b, memory, previous)
                _step(raw[b], R, W, shifts, key_code, add_code, read_first, least, memory, previous,
                      heads, lines, after[b], w[b], reads[b])  # fmt: skip
            first, last = jobs.claim(job)

    return run


def step_backward(real):
    """Derivatives of `step_forward`.

    Dense:
        raw: As there.
        dmemory, dprevious, draw: Filled, (B, M, N), (B, K, N) and (B, P).

    Loose:
        Memory and weightings before and after; derivatives of those after, and of the reads.

    """

    def run(address):
        job, zero = jobs.at(address), real(0)
        B, _, _, _, _, N, M = jobs.sizes(job)
        R, W, shifts, key_code, add_code, read_first = jobs.layout(job)
        K, P = R + W, (R + W) * (M + shifts + 3) + 2 * W * M
        raw = jobs.tensor(job[DENSE], (B, P), zero)
        dmemory = jobs.tensor(job[DENSE + 1], (B, M, N), zero)
        dprevious = jobs.tensor(job[DENSE + 2], (B, K, N), zero)
        draw = jobs.tensor(job[DENSE + 3], (B, P), zero)
        loose = DENSE + 4
        least = jobs.least(job, raw)
        told, at = _heads(jobs.scratch(job), 2, K, W, M, shifts, raw)
        heads, dheads = _told(told, 0), _told(told, 1)
        lines, at = _lines(at, M, N, shifts, raw)
        out, at = jobs.piece(jobs.line(at), (N,), raw)
        dring, at = jobs.piece(jobs.line(at), (N + shifts,), raw)
        memories, at = jobs.piece(jobs.line(at), (3, M, N), raw)
        memory, after, dafter = memories[0], memories[1], memories[2]
        weightings, at = jobs.piece(jobs.line(at), (3, K, N), raw)
        previous, w, dw = weightings[0], weightings[1], weightings[2]
        dreads, at = jobs.piece(jobs.line(at), (R * M,), raw)
        if jobs.asked(job, at):
            return
        first, last = jobs.claim(job)
        while first < B:
            for b in range(first, last):
                _load_memory(job, loose, b, memory, previous)
                _load_memory(job, loose + 8, b, after, w)
                _load_heads(job, loose + 16, b, R, dreads, dw, dafter)
                _decode(raw[b], K, W, M, shifts, key_code, add_code, heads)
                _step_back(raw[b], R, W, shifts, key_code, add_code, read_first, least, memory,
                           after, previous, w, heads, dheads, lines, out, dring, dreads, dafter,
                           dw, dmemory[b], dprevious[b], draw[b])  # fmt: skip
            first, last = jobs.claim(job)

    return run


def heads_forward(real):
    """What the heads do in one of T steps, for a controller that runs elsewhere.

    Dense:
        raw, ws, memories: As filled and kept by `lstm_forward`. Weightings before the step are
            there; emissions, weightings after it and, at every STRIDE-th step, the memory are
            filled.
        emit, bias: Of the emissions, (P, H) and (P,).
        hidden: What the controller came to, (T, B, H).
        reads: As kept by `lstm_forward`; filled for the step.
        memory: Before the step, becomes that after it, (B, M, N).
        x: The next input, (B, I).
        seen: What the controller sees next; filled, (B, I + R·M).

    """

    def run(address):
        job, zero = jobs.at(address), real(0)
        B, T, _, I, H, N, M = jobs.sizes(job)
        layout = jobs.layout(job)
        R, W, shifts, _, _, _ = layout
        K, P = R + W, (R + W) * (M + shifts + 3) + 2 * W * M
        t = job[STEP]
        raw = jobs.tensor(job[DENSE], (T, B, P), zero)
        ws = jobs.tensor(job[DENSE + 1], (T + 1, B, K, N), zero)
        memories = jobs.tensor(job[DENSE + 2], (job[KEPT], B, M, N), zero)
        emit = jobs.tensor(job[DENSE + 3], (P, H), zero)
        bias = jobs.tensor(job[DENSE + 4], (P,), zero)
        hidden = jobs.tensor(job[DENSE + 5], (T, B, H), zero)
        reads = jobs.tensor(job[DENSE + 6], (T + 1, B, R * M), zero)
        memory = jobs.tensor(job[DENSE + 7], (B, M, N), zero)
        x = jobs.tensor(job[DENSE + 8], (B, I), zero)
        seen = jobs.tensor(job[DENSE + 9], (B, I + R * M), zero)
        least = jobs.least(job, raw)
        parts, at = _scratch_forward(jobs.scratch(job), R, W, M, N, shifts, raw)
        heads, lines, spare = parts
        if jobs.asked(job, at):
            return
        first, last = jobs.claim(job)
        while first < B:
            for b in range(first, last):
                _copy(bias, raw[t, b])
            _multiply_rows(hidden[t, first:last], emit, raw[t, first:last])
            _heads_forward(t, first, last, layout, least, raw, memories, ws, reads, memory, heads,
                           lines, spare)  # fmt: skip
            for b in range(first, last):
                _copy(x[b], seen[b])
                _copy(reads[t + 1, b], seen[b, I:])
            first, last = jobs.claim(job)

    return run


def heads_backward(real):
    """Derivatives of `heads_forward`; T is the number of steps that have derivatives.

    Dense:
        raw, ws, memories, emit: As it left them.
        stretch, told: The memories between two kept ones, (B, STRIDE + 1, M, N), and what the heads
            were told, B · STRIDE · P numbers as `_heads` lays them out; filled at the last step of
            a stretch for the others.
        dmemory, dw: Of memory and weightings after the step, become those before it.
        dreads: Scratch, (B, R·M).
        draw: Filled for the step, (T, B, P).
        doutput: Of the controller's output; filled, (B, H).

    Loose:
        Derivatives of all reads (T, B, R·M), of all emissions (T, B, P), of all outputs of the
        controller (T, B, H), and of the latter part of seen (1, B, R·M).

    """

    def run(address):
        job, zero = jobs.at(address), real(0)
        B, T, _, _, H, N, M = jobs.sizes(job)
        layout = jobs.layout(job)
        R, W, shifts, _, _, _ = layout
        K, P = R + W, (R + W) * (M + shifts + 3) + 2 * W * M
        t = job[STEP]
        raw = jobs.tensor(job[DENSE], (T, B, P), zero)
        ws = jobs.tensor(job[DENSE + 1], (T + 1, B, K, N), zero)
        memories = jobs.tensor(job[DENSE + 2], (job[KEPT], B, M, N), zero)
        emit = jobs.tensor(job[DENSE + 3], (P, H), zero)
        stretch = jobs.tensor(job[DENSE + 4], (B, STRIDE + 1, M, N), zero)
        told, _ = _heads(job[DENSE + 5], B * STRIDE, K, W, M, shifts, zero)
        dmemory = jobs.tensor(job[DENSE + 6], (B, M, N), zero)
        dw = jobs.tensor(job[DENSE + 7], (B, K, N), zero)
        dreads = jobs.tensor(job[DENSE + 8], (B, R * M), zero)
        draw = jobs.tensor(job[DENSE + 9], (T, B, P), zero)
        doutput = jobs.tensor(job[DENSE + 10], (B, H), zero)
        loose = DENSE + 11
        least = jobs.least(job, raw)
        scratch, at = _scratch_back(jobs.scratch(job), R, W, M, N, shifts, 0, raw)
        if jobs.asked(job, at):
            return
        _, dheads, lines, out, dring, dbefore, dprevious, _, dread, outside = scratch
        first, last = jobs.claim(job)
        while first < B:
            for b in range(first, last):
                jobs.fetch(job, loose + 12, 0, b, dreads[b])
                jobs.fetch(job, loose + 8, t, b, doutput[b])
            part = _told(told, slice(first * STRIDE, last * STRIDE))
            scratch = (part, dheads, lines, out, dring, dbefore, dprevious,
                       stretch[first:last], dread, outside)  # fmt: skip
            _heads_backward(t, first, last, layout, least, raw, memories, ws, job, loose, dreads,
                            dmemory, dw, draw, scratch)  # fmt: skip
            _multiply(draw[t, first:last], emit, doutput[first:last])
            first, last = jobs.claim(job)

    return run


FUNCTIONS = {
    "lstm": (lstm_forward, lstm_backward),
    "feedforward": (feedforward_forward, feedforward_backward),
    "any": (heads_forward, heads_backward),
    "step": (step_forward, step_backward),
}
"""For every kind of controller what runs it forward and backward, in a precision still open."""


def compiled(function: Any, keep: bool) -> Any:
    """A function of C that takes the address of a job, kept on disk if asked to.

    Args:
        function: One of `FUNCTIONS`, for a precision.
        keep: Where that is possible.

    """
    signature = types.void(types.intp)
    return cfunc(signature, cache=keep, fastmath=SAFE, error_model="numpy", _nrt=False)(function)
