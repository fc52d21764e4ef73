"""What Graves used to train, and how learning rates fall."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from ntm.checks import check_choice


class GravesRMSprop(torch.optim.Optimizer):
    """The RMSProp of Graves 2013 (arXiv 1308.0850, eq. 38 to 41), used by G14.

    For a gradient g of each parameter: ``n ← αn + (1−α)g²``, ``m ← αm + (1−α)g``,
    ``Δ ← μΔ − lr·g / √(n − m² + ε)``, and the parameter moves by Δ. The gradient is divided by a
    running standard deviation, not by a root mean square as in ``torch.optim.RMSprop``.

    Args:
        params: What to train.
        lr: Learning rate, at least 0 (G14: 1e-4 and 3e-5).
        alpha: α, in [0, 1).
        momentum: μ, in [0, 1).
        eps: ε, above 0; inside the root.

    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-4,
        alpha: float = 0.95,
        momentum: float = 0.9,
        eps: float = 1e-4,
    ) -> None:
        if lr < 0:
            raise ValueError(f"lr must be at least 0, got {lr}")
        for name, value in (("alpha", alpha), ("momentum", momentum)):
            if not 0 <= value < 1:
                raise ValueError(f"{name} must be in [0, 1), got {value}")
        if eps <= 0:
            raise ValueError(f"eps must be above 0, got {eps}")
        super().__init__(params, {"lr": lr, "alpha": alpha, "momentum": momentum, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Move every parameter once."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            alpha = group["alpha"]
            for parameter in group["params"]:
                gradient = parameter.grad
                if gradient is None:
                    continue
                state = self.state[parameter]
                if not state:
                    for name in ("square_average", "average", "move"):
                        state[name] = torch.zeros_like(parameter)
                square, mean, move = state["square_average"], state["average"], state["move"]
                square.mul_(alpha).addcmul_(gradient, gradient, value=1 - alpha)
                mean.mul_(alpha).add_(gradient, alpha=1 - alpha)
                # A steady gradient has no variance; rounding would make it negative.
                variance = (square - mean.square()).clamp_(min=0)
                deviation = variance.add_(group["eps"]).sqrt_()
                move.mul_(group["momentum"]).addcdiv_(gradient, deviation, value=-group["lr"])
                parameter.add_(move)
        return loss


DECAYS: dict[str, Callable[[float], float]] = {
    "none": lambda _: 1.0,
    "linear": lambda progress: 1 - progress,
    "cosine": lambda progress: (1 + math.cos(math.pi * progress)) / 2,
}
"""Factor on the learning rate, by the share of the budget that is spent, in [0, 1]."""


def check_schedule(
    decay: str,
    clip_value: float | None,
    clip_norm: float | None,
    clip_factor: float | None,
) -> None:
    """Refuse what no training can go by.

    Raises:
        ValueError: An argument is out of range; the message begins with its name.

    """
    check_choice("decay", decay, DECAYS)
    clips = {"clip_value": clip_value, "clip_norm": clip_norm, "clip_factor": clip_factor}
    for name, value in clips.items():
        if value is not None and value <= 0:
            raise ValueError(f"{name} must be above 0, or null for no clipping, got {value}")
