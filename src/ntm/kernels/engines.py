"""The fused engines, one for each kind of device: what each can take, and why not the rest."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import NamedTuple

import torch

from ntm.kernels.cuda import bounds


class Fused(NamedTuple):
    """A fused engine."""

    needs: str | None
    """A module that has to be installed; None where requirements.txt has all."""
    precisions: tuple[torch.dtype, ...]
    too_much: Callable[..., str | None] | None
    """What layers, H, N, M, R, W and 2S + 1 are too much for, None if they are not; None where any
    machine runs, if need be step by step, the heads' part alone."""
    has_run: bool
    """On such a device, with the results of the plain loop (scripts/check_device.py); what has not
    is taken by name alone."""


FUSED = {
    "cpu": Fused(None, (torch.float32, torch.float64), None, has_run=True),
    "cuda": Fused("triton", (torch.float32,), bounds.hindrance, has_run=False),
}
"""By torch's name of the kind of device."""
INSTALLED = {name: find_spec(name) is not None for name in ("triton",)}


def not_there(device: str, dtype: torch.dtype) -> str | None:
    """Why no fused engine runs on a kind of device in a precision; None if one does."""
    if device not in FUSED:
        return f"fused is for {' and '.join(FUSED)}, got {device}"
    needs, precisions, *_ = FUSED[device]
    if needs is not None and not INSTALLED[needs]:
        return f"fused needs {needs} on {device}, and it is not installed"
    if dtype not in precisions or torch.is_autocast_enabled(device):
        names = " and ".join(str(each).removeprefix("torch.") for each in precisions)
        return f"fused is for {names} on {device}, got another precision"
    return None
