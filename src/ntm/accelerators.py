"""Where a network is fastest, of the accelerators that a machine has."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping

import torch
from torch import nn

AUTO = "auto"
AVAILABLE: Mapping[str, Callable[[], bool]] = {
    "cuda": torch.cuda.is_available,
    "xpu": lambda: hasattr(torch, "xpu") and torch.xpu.is_available(),
    "mps": torch.backends.mps.is_available,
    "cpu": lambda: True,
}
"""Accelerators by Lightning's names; the first that has a fast engine is the fastest."""


def choose(network: nn.Module, asked: str, dtype: torch.dtype, key: str) -> tuple[str, str | None]:
    """The accelerator for a network.

    Args:
        network: Has a method ``is_fast_on(device, dtype)``, where it knows: whether it has more
            there than a call of the device for each of its many small operations.
        asked: What is not ``auto`` is taken as it is.
        dtype: Of the weights.
        key: By which another accelerator is asked for.

    Returns:
        The accelerator, and what there is to say of it: nothing where there was no choice.

    """
    there = [name for name, is_there in AVAILABLE.items() if is_there()]
    is_fast = getattr(network, "is_fast_on", None)
    if asked != AUTO or there == ["cpu"] or is_fast is None:
        return asked, None
    first = next((name for name in there if is_fast(name, dtype)), None)
    if first is None:
        return asked, None
    faster = there[: there.index(first)]
    if not faster:
        return first, f"{key} auto: {first}, the fastest for this network; {key}=cpu goes without"
    return first, (
        f"{key} auto: {first}, for this network has a fast engine there and none on {faster[0]}; "
        f"{key}={faster[0]} takes it all the same"
    )


def gpus() -> list[str]:
    """The GPUs that this process may use, as ``CUDA_VISIBLE_DEVICES`` names them."""
    if not AVAILABLE["cuda"]():
        return []
    given = os.environ.get("CUDA_VISIBLE_DEVICES", "").replace(" ", "")
    return given.split(",") if given else list(map(str, range(torch.cuda.device_count())))
