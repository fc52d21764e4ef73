"""Reading, writing, and what memory holds before the first step (G14 sections 3.1 and 3.2)."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor, nn


def read(memory: Tensor, weighting: Tensor) -> Tensor:
    """What a head sees: ``r = Σ_i w(i) M(i)`` (G14 eq. 2).

    Args:
        memory: (B, N, M).
        weighting: (B, R, N).

    Returns:
        r, (B, R, M).

    """
    return weighting @ memory


def write(memory: Tensor, weighting: Tensor, erase: Tensor, add: Tensor) -> Tensor:
    """Erase, then add: ``M(i) ← M(i) Π_h [1 − w_h(i) e_h] + Σ_h w_h(i) a_h`` (G14 eq. 3 and 4).

    All heads erase before any adds; within each, their order makes no difference.

    Args:
        memory: (B, N, M).
        weighting: (B, W, N).
        erase: e, (B, W, M), in (0, 1).
        add: a, (B, W, M).

    Returns:
        The new memory, (B, N, M).

    """
    for head in range(weighting.shape[1]):
        erased = weighting[:, head, :, None] * erase[:, head, None, :]
        memory = torch.addcmul(memory, memory, erased, value=-1)
    return torch.baddbmm(memory, weighting.transpose(1, 2), add)


# A scheme is called with N and with a tensor of the precision and on the device that are wanted.


class ConstantMemory(nn.Module):
    """Every element starts at 1e-6. Grows and shrinks freely."""

    def __init__(self, memory_size: int, word_size: int) -> None:
        super().__init__()
        self.word_size = word_size

    def forward(self, memory_size: int, like: Tensor) -> Tensor:
        """The initial memory, (N, M)."""
        return like.new_full((memory_size, self.word_size), 1e-6)


class RandomMemory(nn.Module):
    """Elements uniform in ±1/√M, drawn once per network and never trained.

    Only the seed of the draw is kept. Row i is the same at every memory size, so memory can grow.
    """

    def __init__(self, memory_size: int, word_size: int) -> None:
        super().__init__()
        self.word_size = word_size
        self.seed: Tensor
        self.register_buffer("seed", torch.randint(2**62, ()))
        self._drawn: tuple[int, np.ndarray] | None = None

    def forward(self, memory_size: int, like: Tensor) -> Tensor:
        """The initial memory, (N, M)."""
        seed = int(self.seed)
        if self._drawn is None or self._drawn[0] != seed or len(self._drawn[1]) != memory_size:
            draws = np.random.Generator(np.random.Philox(seed)).random(
                (memory_size, self.word_size)
            )
            self._drawn = seed, (2 * draws - 1) / math.sqrt(self.word_size)
        # A copy: a tensor kept from inference mode would be of no use in training.
        return like.new_tensor(self._drawn[1])


class LearnedMemory(nn.Module):
    """Every element is a parameter, first uniform in ±1/√M. Cannot change its size."""

    def __init__(self, memory_size: int, word_size: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(word_size)
        self.value = nn.Parameter(torch.empty(memory_size, word_size).uniform_(-bound, bound))

    def forward(self, memory_size: int, like: Tensor) -> Tensor:
        """The initial memory, (N, M)."""
        return self.value.to(like)


class FirstLocation(nn.Module):
    """Every head starts on location 0, wholly."""

    def __init__(self, num_heads: int, memory_size: int) -> None:
        super().__init__()
        self.num_heads = num_heads

    def forward(self, memory_size: int, like: Tensor) -> Tensor:
        """The initial weightings, (R+W, N)."""
        weighting = like.new_zeros(self.num_heads, memory_size)
        weighting.select(1, 0).fill_(1)
        return weighting


class Uniform(nn.Module):
    """Every head starts spread evenly over all locations."""

    def __init__(self, num_heads: int, memory_size: int) -> None:
        super().__init__()
        self.num_heads = num_heads

    def forward(self, memory_size: int, like: Tensor) -> Tensor:
        """The initial weightings, (R+W, N)."""
        return like.new_full((self.num_heads, memory_size), 1 / memory_size)


class LearnedWeighting(nn.Module):
    """A softmax over one trained number per head and location. Cannot change its size.

    It starts with most of its weight on location 0, because from an even start over a memory of
    equal rows every location has the same gradient, for ever.
    """

    def __init__(self, num_heads: int, memory_size: int) -> None:
        super().__init__()
        value = torch.zeros(num_heads, memory_size)
        value[:, 0] = math.log(max(memory_size - 1, 1)) + 2
        self.value = nn.Parameter(value)

    def forward(self, memory_size: int, like: Tensor) -> Tensor:
        """The initial weightings, (R+W, N)."""
        return torch.softmax(self.value, dim=-1).to(like)


INITIAL_MEMORIES = {"constant": ConstantMemory, "random": RandomMemory, "learned": LearnedMemory}
INITIAL_WEIGHTINGS = {
    "first_location": FirstLocation,
    "uniform": Uniform,
    "learned": LearnedWeighting,
}
