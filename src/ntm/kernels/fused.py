"""The compiled machine as torch operators, with its own derivatives.

Nothing of `ntm.machine` is known here: plain tensors come in and go out. The products that do not
depend on the step before (the input's part of the gates, and the gradients of all weights) are
single large ones, outside the compiled functions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from itertools import pairwise
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ntm.kernels.compiling import kernels
from ntm.kernels.conventions import ACTIVATIONS, STRIDE


def _operator(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function of tensors as the operator ``ntm::name`` for the CPU.

    What `torch.library.custom_op` does, less its checks at every call, which took as long as the
    machine itself on short sequences.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        schema = torch.library.infer_schema(function, mutates_args=())
        torch.library.define(f"ntm::{name}", schema, tags=torch.Tag.pt2_compliant_tag)
        torch.library.impl(f"ntm::{name}", "cpu", function)
        return function

    return register


def lstm_loop(
    inputs: Tensor,
    weights: Sequence[Tensor],
    emit: tuple[Tensor, Tensor],
    state: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
    layout: tuple[int, int, int, str, str, bool],
    norm_floor: float,
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]:
    """Run the machine with a one-layer LSTM as its controller.

    Args:
        inputs: (T, B, I).
        weights: Of ``torch.nn.LSTMCell``: input (4H, I + R·M), hidden (4H, H), two biases (4H,).
        emit: Weight (P, H) and bias (P,) of the emissions.
        state: memory (B, N, M), weightings (B, K, N), reads (B, R, M), hidden and cell (B, H).
        layout: R, W, S, names of the key's and the add vector's activation, read_first.
        norm_floor: Least length of a vector in cosine similarity.

    Returns:
        Hidden outputs (T, B, H), reads (T, B, R·M), and the state after the last step.

    """
    memory, weightings, reads, hidden, cell = state
    size = inputs.shape[-1]
    by_input, by_reads = weights[0][:, :size], weights[0][:, size:]
    gates = torch.nn.functional.linear(inputs, by_input, weights[2] + weights[3])
    outputs = torch.ops.ntm.lstm_loop(
        gates,
        weights[1],
        by_reads,
        *emit,
        hidden,
        cell,
        memory.transpose(1, 2),
        weightings,
        reads.flatten(1),
        _codes(*layout),
        norm_floor,
        torch.is_grad_enabled(),
    )
    hidden, read, memory, weightings, cell = outputs[:5]
    after = memory.transpose(1, 2), weightings, read[-1].unflatten(-1, reads.shape[1:])
    return hidden, read, (*after, hidden[-1], cell)


@_operator("lstm_loop")
def _lstm_loop(
    gates: Tensor,
    by_hidden: Tensor,
    by_reads: Tensor,
    emit: Tensor,
    bias: Tensor,
    hidden0: Tensor,
    cell0: Tensor,
    memory0: Tensor,
    w0: Tensor,
    reads0: Tensor,
    layout: list[int],
    norm_floor: float,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    cpu = _kernels(gates)
    T, B, _ = gates.shape
    gates = gates.clone(memory_format=torch.contiguous_format)
    M, N = memory0.shape[1:]
    hidden = gates.new_empty(T, B, hidden0.shape[1])
    cells = torch.empty_like(hidden)
    raw = gates.new_empty(T, B, bias.shape[0])
    memories = gates.new_empty(_kept(T, keep), B, M, N)
    ws = gates.new_empty(T, *w0.shape)
    reads = gates.new_empty(T, *reads0.shape)
    memory = gates.new_empty(B, M, N)
    _in_blocks(
        cpu.lstm_forward,
        B,
        tuple(layout),
        gates.numpy().dtype.type(norm_floor**2),
        *_arrays(gates, by_hidden.t(), by_reads.t(), emit.t(), bias),
        *_arrays(hidden0, cell0, memory0, w0, reads0),
        *_arrays(hidden, cells, raw, memories, ws, reads, memory),
    )
    return hidden, reads, memory, ws[-1].clone(), cells[-1].clone(), gates, cells, raw, memories, ws


@torch.library.register_fake("ntm::lstm_loop")
def _(  # type: ignore[no-untyped-def]
    gates, by_hidden, by_reads, emit, bias, hidden0, cell0, memory0, w0, reads0, layout, floor, keep
):
    T, B, _ = gates.shape
    hidden = gates.new_empty(T, B, hidden0.shape[1])
    return (
        hidden,
        gates.new_empty(T, *reads0.shape),
        gates.new_empty(memory0.shape),
        gates.new_empty(w0.shape),
        gates.new_empty(cell0.shape),
        gates.new_empty(gates.shape),
        torch.empty_like(hidden),
        gates.new_empty(T, B, bias.shape[0]),
        gates.new_empty(_kept(T, keep), *memory0.shape),
        gates.new_empty(T, *w0.shape),
    )


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, by_hidden, by_reads, emit, _, hidden0, cell0, _, w0, reads0, ctx.layout, ctx.floor, _ = (
        inputs
    )
    hidden, reads, _, _, _, *kept = output
    ctx.mark_non_differentiable(*kept)
    ctx.save_for_backward(
        by_hidden, by_reads, emit, hidden0, cell0, w0, reads0, hidden, reads, *kept
    )


def _lstm_backward(ctx: Any, *derivatives: Tensor) -> tuple[Any, ...]:
    by_hidden, by_reads, emit, hidden0, cell0, w0, reads0, hidden, reads, *kept = ctx.saved_tensors
    dgates, draw, dhidden0, dcell0, dmemory0, dw0, dreads0 = torch.ops.ntm.lstm_loop_backward(
        *derivatives[:5], by_hidden, by_reads, emit, cell0, w0, *kept, ctx.layout, ctx.floor
    )
    by_gate = dgates.flatten(0, 1).t()
    before = torch.cat([hidden0.unsqueeze(0), hidden[:-1]]).flatten(0, 1)
    seen = torch.cat([reads0.unsqueeze(0), reads[:-1]]).flatten(0, 1)
    flat = draw.flatten(0, 1)
    return (
        dgates,
        by_gate @ before,
        by_gate @ seen,
        flat.t() @ hidden.flatten(0, 1),
        flat.sum(0),
        dhidden0,
        dcell0,
        dmemory0,
        dw0,
        dreads0,
        None,
        None,
        None,
    )


@_operator("lstm_loop_backward")
def _lstm_loop_backward(
    dhidden: Tensor,
    dreads: Tensor,
    dmemory: Tensor,
    dw: Tensor,
    dcell: Tensor,
    by_hidden: Tensor,
    by_reads: Tensor,
    emit: Tensor,
    cell0: Tensor,
    w0: Tensor,
    gates: Tensor,
    cells: Tensor,
    raw: Tensor,
    memories: Tensor,
    ws: Tensor,
    layout: list[int],
    norm_floor: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    cpu = _kernels(gates)
    B = gates.shape[1]
    used = [
        part.clone(memory_format=torch.contiguous_format)
        for part in (dhidden, dreads, dmemory, dw, dcell)
    ]
    dhidden, dreads, dmemory, dw, dcell = used
    dreads0, dhidden0 = torch.zeros_like(dreads[0]), torch.zeros_like(cell0)
    dgates, draw = torch.empty_like(gates), torch.empty_like(raw)
    _in_blocks(
        cpu.lstm_backward,
        B,
        tuple(layout),
        gates.numpy().dtype.type(norm_floor**2),
        *_arrays(gates, by_hidden, by_reads, emit, cell0, w0, cells, raw, memories, ws),
        *_arrays(dhidden, dreads, dmemory, dw, dreads0, dhidden0, dcell, dgates, draw),
    )
    return dgates, draw, dhidden0, dcell, dmemory, dw, dreads0


@torch.library.register_fake("ntm::lstm_loop_backward")
def _(  # type: ignore[no-untyped-def]
    dhidden, dreads, dmemory, dw, dcell, by_hidden, by_reads, emit, cell0, w0,
    gates, cells, raw, memories, ws, layout, floor,
):  # fmt: skip
    shapes = (gates, raw, cell0, dcell, dmemory, dw)
    return (*(gates.new_empty(like.shape) for like in shapes), gates.new_empty(dreads.shape[1:]))


torch.library.register_autograd("ntm::lstm_loop", _lstm_backward, setup_context=_save)


def _codes(
    R: int, W: int, S: int, key_activation: str, add_activation: str, read_first: bool
) -> list[int]:
    codes = [ACTIVATIONS[key_activation], ACTIVATIONS[add_activation]]
    return [R, W, 2 * S + 1, *codes, int(read_first)]


def _kernels(like: Tensor) -> ModuleType:
    return kernels(str(like.dtype).removeprefix("torch."))


def _kept(steps: int, keep: bool) -> int:
    """How many memories the forward pass keeps for the backward pass."""
    return -(-steps // STRIDE) if keep else 0


def _arrays(*tensors: Tensor) -> list[Any]:
    return [tensor.detach().contiguous().numpy() for tensor in tensors]


def _in_blocks(function: Callable[..., None], batch_size: int, *arguments: Any) -> None:
    """Share the sequences of a batch among as many threads as torch has."""
    threads = min(torch.get_num_threads(), batch_size)
    if threads == 1:
        function(0, batch_size, *arguments)
        return
    bounds = [batch_size * part // threads for part in range(threads + 1)]
    parts = list(pairwise(bounds))
    waiting = [_pool(threads).submit(function, *part, *arguments) for part in parts[1:]]
    function(*parts[0], *arguments)
    for part in waiting:
        part.result()


@cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads - 1, thread_name_prefix="ntm")
