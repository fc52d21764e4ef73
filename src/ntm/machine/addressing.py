"""Where a head looks: the four stages of addressing, in the paper's order (G14 section 3.3).

Every function takes and returns tensors and keeps nothing. Symbols as in the legend of `ntm`.
``K`` stands for the number of heads that are addressed together.
"""

from __future__ import annotations

import torch
from torch import Tensor

NORM_FLOOR = 1e-2
"""Vectors shorter than this count as this long: their similarity fades to 0, never 0/0.

Words of memory that were written have a length near 1, so only the untouched ones are affected.
Without a floor the gradient of similarity grows with the inverse of their length, and training
suffers sudden relapses.
"""


def cosine_similarity(key: Tensor, memory: Tensor) -> Tensor:
    """Cosine of the angle between each key and each location (G14 eq. 6).

    Exact for keys and locations longer than `NORM_FLOOR`; a zero key or a zero location has
    similarity 0 and a finite gradient.

    Args:
        key: (B, K, M).
        memory: (B, N, M).

    Returns:
        (B, K, N), in [-1, 1].

    """
    key_norm = key.square().sum(-1, keepdim=True).clamp_min(NORM_FLOOR**2).sqrt()
    memory_norm = memory.square().sum(-1).clamp_min(NORM_FLOOR**2).sqrt().unsqueeze(1)
    return (key / key_norm) @ memory.transpose(1, 2) / memory_norm


def content_weighting(similarity: Tensor, strength: Tensor) -> Tensor:
    """Focus by content: ``w_c = softmax(β · similarity)`` (G14 eq. 5).

    Args:
        similarity: (B, K, N).
        strength: β, (B, K, 1), at least 0.

    Returns:
        w_c, (B, K, N), a distribution over locations.

    """
    return torch.softmax(strength * similarity, dim=-1)


def interpolate(content: Tensor, previous: Tensor, gate: Tensor) -> Tensor:
    """Choose between content and the last weighting: ``w_g = g w_c + (1 − g) w_{t−1}`` (G14 eq. 7).

    Args:
        content: w_c, (B, K, N).
        previous: w_{t−1}, (B, K, N).
        gate: g, (B, K, 1), in (0, 1).

    Returns:
        w_g, (B, K, N).

    """
    return gate * content + (1 - gate) * previous


def shift(weighting: Tensor, shift_weighting: Tensor) -> Tensor:
    """Rotate by circular convolution: ``w̃(i) = Σ_j w_g(i − j) s(j)`` (G14 eq. 8).

    Args:
        weighting: w_g, (B, K, N).
        shift_weighting: s, (B, K, 2S+1), a distribution over the shifts −S … S, in that order.

    Returns:
        w̃, (B, K, N).

    """
    reach = (shift_weighting.shape[-1] - 1) // 2
    if reach == 0:
        return weighting * shift_weighting
    ring = torch.cat([weighting[..., -reach:], weighting, weighting[..., :reach]], dim=-1)
    # Window i holds w_g(i − S) … w_g(i + S); shift +S reads the first of them, so s is reversed.
    windows = ring.unfold(-1, 2 * reach + 1, 1)
    return (windows @ shift_weighting.flip(-1).unsqueeze(-1)).squeeze(-1)


def sharpen(weighting: Tensor, sharpening: Tensor) -> Tensor:
    """Undo the blur of the shift: ``w = w̃^γ / Σ w̃^γ`` (G14 eq. 9).

    Scaling w̃ leaves w as it is, so w̃ is divided by its largest entry first: the sum is then at
    least 1, however flat the weighting and however large γ.

    Args:
        weighting: w̃, (B, K, N), at least 0, one entry of each row above 0.
        sharpening: γ, (B, K, 1), at least 1.

    Returns:
        w, (B, K, N), a distribution over locations.

    """
    largest = weighting.detach().amax(dim=-1, keepdim=True)
    powers = (weighting / largest).pow(sharpening)
    return powers / powers.sum(dim=-1, keepdim=True)


def address(
    memory: Tensor,
    previous: Tensor,
    key: Tensor,
    strength: Tensor,
    gate: Tensor,
    shift_weighting: Tensor,
    sharpening: Tensor,
) -> Tensor:
    """The whole addressing mechanism (G14 figure 2): content, interpolation, shift, sharpening.

    Args:
        memory: (B, N, M).
        previous: w_{t−1}, (B, K, N).
        key: k, (B, K, M).
        strength: β, (B, K, 1), at least 0.
        gate: g, (B, K, 1), in (0, 1).
        shift_weighting: s, (B, K, 2S+1).
        sharpening: γ, (B, K, 1), at least 1.

    Returns:
        w_t, (B, K, N), a distribution over locations.

    """
    content = content_weighting(cosine_similarity(key, memory), strength)
    return sharpen(shift(interpolate(content, previous, gate), shift_weighting), sharpening)
