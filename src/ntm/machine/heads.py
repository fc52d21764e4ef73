"""What the heads are told: the controller's output, split and brought into range (G14 3)."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

ACTIVATIONS = {
    "identity": lambda values: values,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "relu": torch.relu,
}
"""Element-wise maps that keys and add vectors may pass through."""


class HeadLayout(NamedTuple):
    """How many heads there are, what they emit, and in which order they work.

    The emissions of one step stand in one vector: for each head, read heads first, the
    ``k (M), β (1), g (1), s (2S+1), γ (1)`` of its addressing; then e (M) of each write head;
    then a (M) of each write head.
    """

    word_size: int
    num_read_heads: int
    num_write_heads: int
    shift_range: int
    key_activation: str
    add_activation: str
    read_first: bool

    @property
    def num_heads(self) -> int:
        """R + W."""
        return self.num_read_heads + self.num_write_heads

    @property
    def address_sizes(self) -> list[int]:
        """Sizes of k, β, g, s, γ."""
        return [self.word_size, 1, 1, 2 * self.shift_range + 1, 1]

    @property
    def size(self) -> int:
        """Length of the vector that holds all emissions of one step."""
        return self.num_heads * sum(self.address_sizes) + 2 * self.num_write_heads * self.word_size

    @property
    def sharpening_places(self) -> list[int]:
        """Where γ of each head stands in that vector."""
        each = sum(self.address_sizes)
        return [each * (head + 1) - 1 for head in range(self.num_heads)]

    @property
    def write_places(self) -> slice:
        """Where e of all write heads stands in it, and then a of all."""
        return slice(self.num_heads * sum(self.address_sizes), None)


class Emissions(NamedTuple):
    """What all heads emit in one step. Read heads come first along the axis of R+W."""

    key: Tensor
    """k, (B, R+W, M)."""
    strength: Tensor
    """β, (B, R+W, 1), at least 0."""
    gate: Tensor
    """g, (B, R+W, 1), in (0, 1)."""
    shift: Tensor
    """s, (B, R+W, 2S+1), a distribution over −S … S."""
    sharpening: Tensor
    """γ, (B, R+W, 1), at least 1."""
    erase: Tensor
    """e, (B, W, M), in (0, 1)."""
    add: Tensor
    """a, (B, W, M)."""


def decode(raw: Tensor, layout: HeadLayout) -> Emissions:
    """Split one step's raw emissions and bring each into its range.

    Args:
        raw: (B, layout.size), unbounded.
        layout: Order and sizes of the parts.

    """
    M, W = layout.word_size, layout.num_write_heads
    address, erase, add = raw.split(
        [layout.num_heads * sum(layout.address_sizes), W * M, W * M], dim=-1
    )
    address = address.unflatten(-1, (layout.num_heads, sum(layout.address_sizes)))
    key, strength, gate, shift, sharpening = address.split(layout.address_sizes, dim=-1)
    return Emissions(
        key=ACTIVATIONS[layout.key_activation](key),
        strength=F.softplus(strength),
        gate=torch.sigmoid(gate),
        shift=torch.softmax(shift, dim=-1),
        sharpening=1 + F.softplus(sharpening),
        erase=torch.sigmoid(erase.unflatten(-1, (W, M))),
        add=ACTIVATIONS[layout.add_activation](add.unflatten(-1, (W, M))),
    )
