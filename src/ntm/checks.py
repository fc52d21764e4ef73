"""Refusing wrong arguments: every message begins with the argument's name."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence


def check_at_least(name: str, value: int, least: int) -> None:
    """Refuse a number below its bound."""
    if value < least:
        raise ValueError(f"{name} must be at least {least}, got {value}")


def check_range(name: str, low: int, high: int, least: int) -> None:
    """Refuse ends of the range of a number of a task, ``min_<name>`` and ``max_<name>``."""
    check_at_least(f"min_{name}", low, least)
    if high < low:
        raise ValueError(f"max_{name} must be at least min_{name} = {low}, got {high}")


def check_choice(name: str, value: object, known: Collection[str]) -> None:
    """Refuse an unknown name and list the known ones."""
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}, got {value!r}")


def check_inputs(inputs: Any, weight: Tensor, input_size: int, batch_first: bool) -> None:
    """Refuse inputs that are not sequences of the right width, in the precision of a weight."""
    if not isinstance(inputs, Tensor):
        hint = ": pad it, and leave the padding out of the loss by a mask"
        packed = isinstance(inputs, PackedSequence)
        raise TypeError(
            f"inputs must be a tensor, got {type(inputs).__name__}{hint if packed else ''}"
        )
    shape = inputs.shape
    if len(shape) != 3 or shape[-1] != input_size or 0 in shape:
        order = "(B, T, I)" if batch_first else "(T, B, I)"
        raise ValueError(
            f"inputs must have shape {order} with I={input_size} and nothing empty, "
            f"got {tuple(shape)}"
        )
    if inputs.dtype != weight.dtype and not torch.is_autocast_enabled(inputs.device.type):
        raise ValueError(
            f"inputs must be in {weight.dtype}, as the network is, got {inputs.dtype}; "
            "inputs.to(…) or network.to(…) makes them alike"
        )


def check_share(name: str, value: float) -> None:
    """Refuse what is no share of a whole."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be a share, in [0, 1], got {value}")


def check_dropout(dropout: float) -> None:
    """Refuse a share that is none."""
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be in [0, 1), got {dropout}")
