"""Refusing wrong arguments: every message begins with the argument's name."""

from __future__ import annotations

from collections.abc import Collection, Sequence


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


def check_inputs(
    shape: Sequence[int], input_size: int, batch_first: bool, dtype: object, own: object
) -> None:
    """Refuse inputs that are not sequences of the right width, in the network's own precision."""
    if len(shape) != 3 or shape[-1] != input_size or 0 in shape:
        order = "(B, T, I)" if batch_first else "(T, B, I)"
        raise ValueError(
            f"inputs must have shape {order} with I={input_size} and nothing empty, "
            f"got {tuple(shape)}"
        )
    if dtype != own:
        raise ValueError(
            f"inputs must be in {own}, as the network is, got {dtype}; inputs.to(…) or "
            "network.to(…) makes them alike"
        )


def no_tensor(inputs: object) -> TypeError:
    """What to say of inputs that are none."""
    name = type(inputs).__name__
    hint = ": pad it, and leave the padding out of the loss by a mask"
    return TypeError(f"inputs must be a tensor, got {name}{hint * (name == 'PackedSequence')}")


def check_share(name: str, value: float) -> None:
    """Refuse what is no share of a whole."""
    if not 0 <= value <= 1:
        raise ValueError(f"{name} must be a share, in [0, 1], got {value}")


def check_dropout(dropout: float) -> None:
    """Refuse a share that is none."""
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be in [0, 1), got {dropout}")
