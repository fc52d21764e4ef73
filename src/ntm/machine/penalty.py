"""What training may hold against a machine beside its errors."""

from __future__ import annotations

from torch import Tensor

from ntm.checks import check_share
from ntm.machine.ntm import NTM


class SharpeningPenalty:
    """Keeps heads from sharpening in the first part of training: weight · mean(γ − 1).

    Sharpening (G14 eq. 9) takes back a shift that is made in part, so the loss does not tell a head
    that moves by 0.01 from one that moves by 0.4. Whether to move or to stay is then decided by
    margins that a rare vector crosses, and copies longer than those of training go wrong. Heads
    that cannot sharpen have to learn whole shifts, and keep them when they sharpen later.

    Args:
        weight: At least 0.
        until: Share of the training budget after which there is no penalty, in [0, 1].

    Raises:
        ValueError: An argument is out of range; the message begins with its name.

    """

    def __init__(self, weight: float, until: float) -> None:
        if weight < 0:
            raise ValueError(f"weight must be at least 0, got {weight}")
        check_share("until", until)
        self.weight = weight
        self.until = until

    def __call__(self, network: NTM, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (T, B, O) for inputs (T, B, I), and the penalty of every step and head."""
        logits, sharpening = network.with_sharpening(inputs)
        return logits, self.weight * (sharpening - 1)
