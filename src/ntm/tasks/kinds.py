"""Kinds of sequence: what the bit vectors of a task can look like, beside those of the paper."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np

DRAWN = "drawn"
"""As the paper has it: every bit by a fair coin."""
MIXED = "mixed"
"""As training draws: `mix` of the sequences have a density of their own; no kind to evaluate."""

Shape = tuple[int, int, int]
"""Vectors of a sequence, sequences, bits of a vector."""
Rng = np.random.Generator


def _drawn(rng: Rng, shape: Shape) -> np.ndarray:
    return rng.integers(0, 2, shape)


def _zeros(_: Rng, shape: Shape) -> np.ndarray:
    return np.zeros(shape, np.int64)


def _ones(_: Rng, shape: Shape) -> np.ndarray:
    return np.ones(shape, np.int64)


def _same(rng: Rng, shape: Shape) -> np.ndarray:
    return np.broadcast_to(_drawn(rng, (1, *shape[1:])), shape)


def _one_hot(rng: Rng, shape: Shape) -> np.ndarray:
    return np.eye(shape[2], dtype=np.int64)[rng.integers(0, shape[2], shape[:2])]


def _sparse(rng: Rng, shape: Shape) -> np.ndarray:
    return (rng.random(shape) < 0.1).astype(np.int64)


def _dense(rng: Rng, shape: Shape) -> np.ndarray:
    return (rng.random(shape) < 0.9).astype(np.int64)


def _alternating(rng: Rng, shape: Shape) -> np.ndarray:
    odd = np.arange(shape[0])[:, None, None] % 2
    return _same(rng, shape) ^ odd


def _silent_pair(rng: Rng, shape: Shape) -> np.ndarray:
    vectors = _drawn(rng, shape)
    first = rng.integers(0, max(1, shape[0] - 1), shape[1])
    at = np.arange(shape[0])[:, None] - first
    vectors[(at == 0) | (at == 1)] = 0
    return vectors


KINDS: Mapping[str, Callable[[Rng, Shape], np.ndarray]] = {
    DRAWN: _drawn,
    "zeros": _zeros,
    "ones": _ones,
    "same": _same,
    "one_hot": _one_hot,
    "sparse": _sparse,
    "dense": _dense,
    "alternating": _alternating,
    "silent_pair": _silent_pair,
}
"""All zeros; all ones; one random vector repeated; one bit in each vector; every bit set with
probability 0.1, or 0.9; a random vector and its complement in turn; two zero vectors in a row
somewhere among random ones."""


def draw_vectors(rng: Rng, kind: str, shape: Shape, mix: float) -> np.ndarray:
    """Vectors of a kind, 0 or 1.

    Args:
        rng: Where chance comes from.
        kind: One of `KINDS`; any other, a task's own, begins with vectors as drawn.
        shape: Vectors of a sequence, sequences, bits of a vector.
        mix: For ``mixed``: the share of sequences whose bits are set with a probability that is
            drawn for the sequence, uniform in [0, 1]; in the others it is a half.

    """
    if kind == MIXED:
        own, density = rng.random((2, shape[1], 1))
        return (rng.random(shape) < np.where(own < mix, density, 0.5)).astype(np.int64)
    return KINDS.get(kind, _drawn)(rng, shape)
