"""What training may hold against a machine beside its errors."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from ntm.checks import check_share
from ntm.machine.heads import ACTIVATIONS
from ntm.machine.ntm import NTM


class EffortPenalty:
    """A price on sharpening and on writing in the first part of training.

    Sharpening (G14 eq. 9) takes back a shift that is made in part, so the loss does not tell a head
    that moves by 0.01 from one that moves by 0.4. Whether to move or to stay is then decided by
    margins that a rare vector crosses, and copies longer than those of training go wrong. Heads
    that cannot sharpen have to learn whole shifts, and keep them when they sharpen later. A γ of
    1.02 hides nothing of this, and takes back the thousandth that a shift leaks with every step;
    a price on that as well would drive γ to where it has no gradient to come back by.

    Writing (G14 eq. 3 and 4) where nothing is to be kept costs no bit at the lengths of training:
    a write head spread over all locations while the machine answers wears each a little with every
    step. A hundred steps later what it held is gone.

    Args:
        sharpening: Times the mean over steps and heads of what γ − 1 is above ``free``; at least 0.
        writing: Times the mean of e + a² over steps, write heads and elements; at least 0.
        until: Share of the training budget after which there is no penalty, in [0, 1].
        free: γ − 1 up to which sharpening has no price, at least 0.

    Raises:
        ValueError: An argument is out of range; the message begins with its name.

    """

    def __init__(self, sharpening: float, writing: float, until: float, free: float = 0.0) -> None:
        for name, value in (("sharpening", sharpening), ("writing", writing), ("free", free)):
            if value < 0:
                raise ValueError(f"{name} must be at least 0, got {value}")
        check_share("until", until)
        self.sharpening = sharpening
        self.writing = writing
        self.until = until
        self.free = free

    def __call__(self, network: NTM, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (T, B, O) for inputs (T, B, I), and the penalty of every step, (T, B)."""
        logits, raw = network.with_emissions(inputs)
        layout = network.layout
        sharpened = F.softplus(raw[..., layout.sharpening_places])
        sharpened = (sharpened - self.free).relu().mean(-1)
        erase, add = raw[..., layout.write_places].chunk(2, dim=-1)
        add = ACTIVATIONS[layout.add_activation](add)
        written = (erase.sigmoid() + add.square()).mean(-1)
        return logits, self.sharpening * sharpened + self.writing * written
