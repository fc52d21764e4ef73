"""Launching the loops on a GPU: the jobs of `ntm.kernels.cpu`, their tensors in the same order.

Tensors may lie on the CPU where Triton interprets its kernels (TRITON_INTERPRET=1).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ntm.kernels.conventions import STRIDE, kept_shapes
from ntm.kernels.cuda import bounds, loops

Parts = Sequence[Any]


def run(
    controller: str,
    direction: str,
    sizes: Sequence[int],
    layout: Sequence[int],
    norm_floor: float,
    dense: Sequence[Tensor | None],
    loose: Sequence[Tensor | None],
    activation: int = 0,
    kept: int = 0,
) -> None:
    """Do what a compiled function of the CPU does.

    Args:
        controller: ``lstm`` or ``feedforward``.
        direction: ``forward`` or ``backward``.
        sizes: As for `ntm.kernels.calling.Job`, and so are the others.
        layout: See there.
        norm_floor: See there.
        dense: In the order of `ntm.kernels.cpu.lstm_forward` and the like.
        loose: Likewise.
        activation: Code of that of a feedforward controller.
        kept: Memories that the forward pass keeps.

    Raises:
        TypeError: They are not of float32.
        ValueError: The machine is too large.

    """
    first = next(tensor for tensor in dense if tensor is not None)
    precision = first.dtype
    if precision is not torch.float32:
        raise TypeError(f"on a GPU the fused engine is for float32, got {precision}")
    _, _, L, I, H, N, M = sizes
    R, W, shifts, key, add, read_first = layout
    shape = H, N, M, R, W, shifts
    why = bounds.hindrance(L, *shape)
    if why is not None:
        raise ValueError(f"on a GPU the fused engine {why}")
    B = sizes[0]
    constants = {
        "LSTM": controller == "lstm", "ACTIVATION": activation, "EVERY": STRIDE,
        "LEAST": norm_floor**2, "I": I, "H": H, "N": N, "M": M, "R": R, "W": W,
        "SHIFTS": shifts, "KEY": key, "ADD": add, "READ_FIRST": bool(read_first),
        **bounds.padded(*shape), "BLOCK": bounds.block(B, *shape), "num_warps": bounds.WARPS,
    }  # fmt: skip
    tensors: list[Any] = [None if tensor is None else tensor.contiguous() for tensor in dense]
    shapes = kept_shapes(controller, sizes, layout, kept)
    with torch.cuda.device_of(first):
        launch = _forward if direction == "forward" else _backward
        launch(_parts(tensors[0], shapes), tensors[1:], loose, sizes, constants)


def _forward(
    kept: Parts, dense: Parts, loose: Parts, sizes: Sequence[int], constants: dict[str, Any]
) -> None:
    B, T, *_ = sizes
    by_hidden = bias_hidden = gates = cells = None
    moments: Parts
    if constants["LSTM"]:
        inputs, by_seen, by_hidden, bias_hidden, _, _, _, emit, bias, *made = dense
        gates, hidden, reads, cells, ws, memories = kept
        of_outputs = hidden[0, 1:]
        moments = ws, reads, hidden[0], cells[0]
    else:
        inputs, by_seen, _, _, emit, bias, *made = dense
        hidden, reads, ws, memories = kept
        of_outputs = hidden[0]
        moments = ws, reads
    outputs, seen, raw, end, *ends = made
    memory, *start = loose
    for moment, part in zip(moments, start, strict=True):
        moment[0].copy_(part.reshape(moment[0].shape))
    loops.forward[_grid(B, constants)](
        inputs, by_seen, by_hidden, bias_hidden, emit, bias,
        memory.transpose(1, 2).contiguous(), gates, hidden, cells, reads, ws, memories, raw, end,
        T, B, KEEP=len(memories) > 0, **constants,
    )  # fmt: skip
    outputs.copy_(of_outputs)
    seen.copy_(reads[1:])
    for moment, part in zip(moments, ends, strict=True):
        part.copy_(moment[-1].view(part.shape))


def _backward(
    kept: Parts, dense: Parts, loose: Parts, sizes: Sequence[int], constants: dict[str, Any]
) -> None:
    B, T, L, _, H, N, M = sizes
    by_hidden = gates = cells = dhidden = dcell = None
    R, K = constants["R"], constants["R"] + constants["W"]
    shapes = [(B, M, N), (B, K, N), (B, R, M)]
    if constants["LSTM"]:
        raw, by_seen, by_hidden, _, _, emit, dsums, draw, dstart = dense
        gates, hidden, _, cells, ws, memories = kept
        dmemory, dws, dreads, dhidden, dcell = dparts = _parts(dstart, [*shapes, *[(L, B, H)] * 2])
    else:
        raw, by_seen, _, emit, dsums, draw, dstart = dense
        hidden, _, ws, memories = kept
        dmemory, dws, dreads = dparts = _parts(dstart, shapes)
    of_steps, (of_memory, *of_ends) = loose[:3], loose[3:]
    of_memory = None if of_memory is None else of_memory.transpose(1, 2)
    for part, given in zip(dparts, (of_memory, *of_ends), strict=True):
        part.zero_() if given is None else part.copy_(given.reshape(part.shape))
    widths = H, R * M, raw.shape[-1]
    doutputs, dseen, dgiven = (
        raw.new_zeros(T, B, width) if given is None else given.contiguous()
        for given, width in zip(of_steps, widths, strict=True)
    )
    loops.backward[_grid(B, constants)](
        by_seen, by_hidden, emit, gates, hidden, cells, ws, memories, raw,
        doutputs, dseen, dgiven, dsums, draw, dmemory, dws, dreads, dhidden, dcell, T, B,
        **constants,
    )  # fmt: skip


def _parts(whole: Tensor, shapes: Iterable[tuple[int, ...]]) -> list[Tensor]:
    """Tensors that stand one after the other in one."""
    shapes = list(shapes)
    parts = whole.split(list(map(math.prod, shapes)))
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]


def _grid(B: int, constants: dict[str, Any]) -> tuple[int]:
    return (-(-B // constants["BLOCK"]),)
