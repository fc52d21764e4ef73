"""What the heads do in one step, and its derivatives, for a block of sequences on a GPU.

The equations of G14 section 3 in the order of `ntm.machine.addressing`; derivatives in reverse.
Axes are (sequences, heads, locations), (sequences, heads, elements) and, for memory, (sequences,
elements, locations); each is as long as the next power of two, and what is beyond its size holds 0.

A thread never reads what another has stored: values go from lane to lane in sums alone. So a
rotation is a sum over a mask, and one row of a tile is a sum over all.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ntm.kernels.conventions import RELU, SIGMOID, TANH

IS_TANH, IS_SIGMOID, IS_RELU = tl.constexpr(TANH), tl.constexpr(SIGMOID), tl.constexpr(RELU)
TINY = tl.constexpr(1.2e-38)  # about the least normal number
T0, T1, T2 = (tl.constexpr(x) for x in (-5.70498872745e-3, 2.06390887954e-2, -5.37397155531e-2))
T3, T4, NEAR = (tl.constexpr(x) for x in (1.33314422036e-1, -3.33332819422e-1, 0.625))


@triton.jit
def tanh(x):
    """Hyperbolic tangent, near 0 by the polynomial of `ntm.kernels.numerics`."""
    square = x * x
    near = (((T0 * square + T1) * square + T2) * square + T3) * square + T4
    far = 1 - 2 / (tl.exp(2 * x) + 1)
    return tl.where(tl.abs(x) < NEAR, near * square * x + x, far)


@triton.jit
def softplus(x):
    """log(1 + e^x)."""
    return tl.where(x < 0, 0.0, x) + tl.log(1 + tl.exp(-tl.abs(x)))


@triton.jit
def activate(x, CODE: tl.constexpr):
    """Activation(x)."""
    if CODE == IS_TANH:
        x = tanh(x)
    elif CODE == IS_SIGMOID:
        x = tl.sigmoid(x)
    elif CODE == IS_RELU:
        x = tl.where(x <= 0, 0.0, x)
    return x


@triton.jit
def activate_back(y, dy, CODE: tl.constexpr):
    """dy · activation'(x), by the activation's value y."""
    if CODE == IS_TANH:
        dy = dy * (1 - y * y)
    elif CODE == IS_SIGMOID:
        dy = dy * y * (1 - y)
    elif CODE == IS_RELU:
        dy = tl.where(y <= 0, 0.0, dy)
    return dy


@triton.jit
def pick(x, at: tl.constexpr):
    """x[:, :, at]."""
    column = tl.arange(0, x.shape[2])[None, None, :]
    return tl.sum(tl.where(column == at, x, 0.0), axis=2)


@triton.jit
def head(x, at: tl.constexpr):
    """x[:, at]."""
    row = tl.arange(0, x.shape[1])[None, :, None]
    return tl.sum(tl.where(row == at, x, 0.0), axis=1)


@triton.jit
def turn(x, by: tl.constexpr, N: tl.constexpr):
    """x(i − by) on a ring of N locations."""
    if by != 0:
        i = tl.arange(0, x.shape[2])
        source = (i + (N - by)) % N
        chosen = (i[:, None] == source[None, :]) & (i < N)[None, :]
        x = tl.sum(tl.where(chosen[None, None], x[:, :, :, None], 0.0), axis=2)
    return x


@triton.jit
def settings_of(raw, SHIFTS: tl.constexpr):
    """β, g, γ (B, heads) and s (B, heads, ·) of the emissions behind a key: β, g, s, γ."""
    column = tl.arange(0, raw.shape[2])[None, None, :]
    inside = (column >= 2) & (column < 2 + SHIFTS)
    logits = tl.where(inside, raw, float("-inf"))
    powers = tl.where(inside, tl.exp(logits - tl.max(logits, axis=2)[:, :, None]), 0.0)
    shift = powers / tl.sum(powers, axis=2)[:, :, None]
    sharpening = 1 + softplus(pick(raw, 2 + SHIFTS))
    return softplus(pick(raw, 0)), tl.sigmoid(pick(raw, 1)), sharpening, shift


@triton.jit
def norms_of(memory, LEAST: tl.constexpr):
    """Square and floored length of every location, (B, locations)."""
    squares = tl.sum(memory * memory, axis=1)
    return squares, tl.sqrt_rn(tl.where(squares < LEAST, LEAST, squares))


@triton.jit
def focus(memory, norms, previous, key, strength, gate, N: tl.constexpr, LEAST: tl.constexpr):
    """Key's direction and floored length, similarity, w_c and w_g (G14 eq. 6, 5 and 7)."""
    squares = tl.sum(key * key, axis=2)
    key_norm = tl.sqrt_rn(tl.where(squares < LEAST, LEAST, squares))
    unit = key / key_norm[:, :, None]
    along = tl.sum(unit[:, :, :, None] * memory[:, None, :, :], axis=2)
    similarity = along / norms[:, None, :]
    there = (tl.arange(0, memory.shape[2]) < N)[None, None, :]
    scaled = tl.where(there, strength[:, :, None] * similarity, float("-inf"))
    powers = tl.where(there, tl.exp(scaled - tl.max(scaled, axis=2)[:, :, None]), 0.0)
    content = powers / tl.sum(powers, axis=2)[:, :, None]
    gate = gate[:, :, None]
    return unit, key_norm, similarity, content, gate * content + (1 - gate) * previous


@triton.jit
def shifted_of(weighting, shift, N: tl.constexpr, SHIFTS: tl.constexpr):
    """w̃, circular convolution (G14 eq. 8)."""
    shifted = tl.zeros_like(weighting)
    for j in tl.static_range(SHIFTS):
        turned = turn(weighting, j - (SHIFTS - 1) // 2, N)
        shifted += pick(shift, 2 + j)[:, :, None] * turned
    return shifted


@triton.jit
def sharpen(shifted, sharpening, N: tl.constexpr):
    """Largest of w̃, w̃ over it, the powers, their sum, and w (G14 eq. 9)."""
    there = (tl.arange(0, shifted.shape[2]) < N)[None, None, :]
    peak = tl.max(tl.where(there, shifted, float("-inf")), axis=2)[:, :, None]
    u = shifted / peak
    power = tl.exp(sharpening[:, :, None] * tl.log(tl.where(u < TINY, TINY, u)))
    power = tl.where(shifted < peak, power, u)
    powers = tl.where(there, tl.where(u < TINY, 0.0, power), 0.0)
    total = tl.sum(powers, axis=2)[:, :, None]
    return peak, u, powers, total, tl.where(there, powers / total, 0.0)


@triton.jit
def address(memory, previous, key, raw, N: tl.constexpr, SHIFTS: tl.constexpr, LEAST: tl.constexpr):
    """Weightings of some heads, (B, heads, locations), G14 eq. 5 to 9.

    Key (B, heads, elements); raw has what is emitted behind it, see `settings_of`.
    """
    strength, gate, sharpening, shift = settings_of(raw, SHIFTS)
    _, norms = norms_of(memory, LEAST)
    _, _, _, _, weighting = focus(memory, norms, previous, key, strength, gate, N, LEAST)
    _, _, _, _, w = sharpen(shifted_of(weighting, shift, N, SHIFTS), sharpening, N)
    return w


@triton.jit
def address_back(
    memory, previous, key, raw, dw, N: tl.constexpr, SHIFTS: tl.constexpr, LEAST: tl.constexpr
):
    """Derivatives of `address`: of memory, previous, key and raw."""
    strength, gate, sharpening, shift = settings_of(raw, SHIFTS)
    squares, norms = norms_of(memory, LEAST)
    unit, key_norm, similarity, content, weighting = focus(
        memory, norms, previous, key, strength, gate, N, LEAST
    )
    shifted = shifted_of(weighting, shift, N, SHIFTS)
    peak, u, powers, total, w = sharpen(shifted, sharpening, N)
    column = tl.arange(0, raw.shape[2])[None, None, :]
    there = (tl.arange(0, w.shape[2]) < N)[None, None, :]
    # eq. 9; the peak cancels out of w
    dpower = tl.where(there, (dw - tl.sum(dw * w, axis=2)[:, :, None]) / total, 0.0)
    held = tl.where(u < TINY, TINY, u)
    dsharpening = tl.sum(dpower * powers * tl.log(held), axis=2)
    gamma = sharpening[:, :, None]
    slope = tl.where(u < TINY, tl.where(gamma == 1, 1.0, 0.0), gamma * powers / held)
    dshifted = dpower * slope / peak
    # eq. 8
    dweighting = tl.zeros_like(dw)
    dshift = tl.zeros_like(raw)
    for j in tl.static_range(SHIFTS):
        by_shift = tl.sum(dshifted * turn(weighting, j - (SHIFTS - 1) // 2, N), axis=2)
        dshift = tl.where(column == 2 + j, by_shift[:, :, None], dshift)
        turned_back = turn(dshifted, (SHIFTS - 1) // 2 - j, N)
        dweighting += pick(shift, 2 + j)[:, :, None] * turned_back
    # eq. 7
    dgate = tl.sum(dweighting * (content - previous), axis=2)
    dprevious = (1 - gate)[:, :, None] * dweighting
    dcontent = gate[:, :, None] * dweighting
    # eq. 5
    dscaled = content * (dcontent - tl.sum(dcontent * content, axis=2)[:, :, None])
    dstrength = tl.sum(tl.where(there, dscaled * similarity, 0.0), axis=2)
    dsimilarity = strength[:, :, None] * dscaled
    # eq. 6: by the location's length, as a factor on its elements; and by the product
    short = (squares < LEAST)[:, None, :]
    norms = norms[:, None, :]
    factor = tl.where(short, 0.0, -dsimilarity * similarity / (norms * norms))
    dalong = dsimilarity / norms
    dmemory = tl.sum(unit[:, :, :, None] * dalong[:, :, None, :], axis=1)
    dmemory += tl.sum(factor, axis=1)[:, None, :] * memory
    dunit = tl.sum(dalong[:, :, None, :] * memory[:, None, :, :], axis=3)
    key_square = tl.sum(key * key, axis=2)
    radial = tl.where(key_square < LEAST, 0.0, tl.sum(dunit * unit, axis=2))
    dkey = (dunit - radial[:, :, None] * unit) / key_norm[:, :, None]
    # what the settings were made of
    draw = shift * (dshift - tl.sum(dshift * shift, axis=2)[:, :, None])
    draw = tl.where(column == 0, dstrength[:, :, None] * tl.sigmoid(raw), draw)
    draw = tl.where(column == 1, (dgate * gate * (1 - gate))[:, :, None], draw)
    draw = tl.where(column == 2 + SHIFTS, dsharpening[:, :, None] * tl.sigmoid(raw), draw)
    return dmemory, dprevious, dkey, draw


@triton.jit
def write(memory, w, erase, add, W: tl.constexpr):
    """G14 eq. 3 and 4: all heads erase, then all add."""
    for h in tl.static_range(W):
        memory *= 1 - head(erase, h)[:, :, None] * head(w, h)[:, None, :]
    for h in tl.static_range(W):
        memory += head(add, h)[:, :, None] * head(w, h)[:, None, :]
    return memory


@triton.jit
def write_back(memory, w, erase, add, dafter, W: tl.constexpr):
    """Derivatives of `write`: of memory, w, erase and add."""
    row = tl.arange(0, w.shape[1])[None, :, None]
    dmemory = dafter
    dw, derase, dadd = tl.zeros_like(w), tl.zeros_like(erase), tl.zeros_like(add)
    for h in tl.static_range(W):
        w_h, erase_h = head(w, h)[:, None, :], head(erase, h)[:, :, None]
        rest = -dafter * memory  # by what this head erased: what is left of it by the others
        for other in tl.static_range(W):
            if other != h:
                rest *= 1 - head(erase, other)[:, :, None] * head(w, other)[:, None, :]
        by_w = tl.sum(dafter * head(add, h)[:, :, None] + rest * erase_h, axis=1)
        dw = tl.where(row == h, by_w[:, None, :], dw)
        derase = tl.where(row == h, tl.sum(rest * w_h, axis=2)[:, None, :], derase)
        dadd = tl.where(row == h, tl.sum(dafter * w_h, axis=2)[:, None, :], dadd)
        dmemory *= 1 - erase_h * w_h
    return dmemory, dw, derase, dadd


@triton.jit
def read(memory, w):
    """r, (B, heads, elements), G14 eq. 2."""
    return tl.sum(w[:, :, None, :] * memory[:, None, :, :], axis=3)


@triton.jit
def read_back(memory, w, dreads):
    """Derivatives of `read`: of memory and w."""
    dmemory = tl.sum(dreads[:, :, :, None] * w[:, :, None, :], axis=1)
    return dmemory, tl.sum(dreads[:, :, :, None] * memory[:, None, :, :], axis=2)
