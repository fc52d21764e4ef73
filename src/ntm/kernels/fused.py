"""The compiled machine as torch operators, with its own derivatives.

Nothing of `ntm.machine` is known here: plain tensors come in and go out. The products that do not
depend on the step before (the input's part of the controller, and the gradients of all weights) are
single large ones, outside the compiled functions.

Three operators, each with its backward: ``lstm_loop`` and ``feedforward_loop`` run whole sequences,
``memory_step`` one step of the memory, for any other controller.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from ntm.kernels.compiling import kernels
from ntm.kernels.conventions import ACTIVATIONS, STRIDE
from ntm.kernels.threads import in_parts

Layout = tuple[int, int, int, str, str, bool]
"""R, W, S, names of the key's and the add vector's activation, read_first."""


def lstm_loop(
    inputs: Tensor,
    weights: Sequence[tuple[Tensor, Tensor, Tensor, Tensor]],
    emit: tuple[Tensor, Tensor],
    state: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
    layout: Layout,
    norm_floor: float,
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]:
    """Run the machine with an LSTM as its controller.

    Args:
        inputs: (T, B, I).
        weights: Of each layer, as in ``torch.nn.LSTMCell``: on what comes from below, (4H, I + R·M)
            in the first and (4H, H) in the others, on its own output before (4H, H), and two
            biases (4H,).
        emit: Weight (P, H) and bias (P,) of the emissions.
        state: memory (B, N, M), weightings (B, K, N), reads (B, R, M), hidden and cell (L, B, H).
        layout: See `Layout`.
        norm_floor: Least length of a vector in cosine similarity.

    Returns:
        Outputs of the last layer (T, B, H), reads (T, B, R·M), and the state after the last step.

    """
    memory, weightings, reads, hidden, cell = state
    first, *deeper = weights
    outputs = _call(
        "lstm_loop",
        inputs,
        *first,
        *_stacked(deeper, first[1]),
        *emit,
        hidden,
        cell,
        memory.transpose(1, 2),
        weightings,
        reads.flatten(1),
        _codes(layout),
        norm_floor,
        torch.is_grad_enabled(),
    )
    output, read, hidden, cell, memory, weightings = outputs[:6]
    after = memory.transpose(1, 2), weightings, read[-1].unflatten(-1, reads.shape[1:])
    return output, read, (*after, hidden, cell)


def _stacked(
    layers: Sequence[tuple[Tensor, Tensor, Tensor, Tensor]], like: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Weights of the layers above the first, and the sums of their biases."""
    if not layers:
        none = like.new_empty(0, *like.shape)
        return none, none, none[..., 0]
    by_below, by_hidden, bias_below, bias_hidden = map(torch.stack, zip(*layers, strict=True))
    return by_below, by_hidden, bias_below + bias_hidden


def feedforward_loop(
    inputs: Tensor,
    weights: Sequence[tuple[Tensor, Tensor]],
    activation: str,
    emit: tuple[Tensor, Tensor],
    state: tuple[Tensor, Tensor, Tensor],
    layout: Layout,
    norm_floor: float,
) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Run the machine with a feedforward network as its controller.

    Args:
        inputs: (T, B, I).
        weights: Weight and bias of each layer: (H, I + R·M) and (H,), then (H, H) and (H,).
        activation: Of every layer: a name in `ACTIVATIONS`.
        emit: Weight (P, H) and bias (P,) of the emissions.
        state: memory (B, N, M), weightings (B, K, N), reads (B, R, M).
        layout: See `Layout`.
        norm_floor: Least length of a vector in cosine similarity.

    Returns:
        Outputs of the last layer (T, B, H), reads (T, B, R·M), and the state after the last step.

    """
    memory, weightings, reads = state
    size = inputs.shape[-1]
    (weight, bias), *deeper = weights
    H = weight.shape[0]
    outputs = _call(
        "feedforward_loop",
        F.linear(inputs, weight[:, :size], bias),
        weight[:, size:],
        torch.stack([w for w, _ in deeper]) if deeper else weight.new_empty(0, H, H),
        torch.stack([b for _, b in deeper]) if deeper else weight.new_empty(0, H),
        ACTIVATIONS[activation],
        *emit,
        memory.transpose(1, 2),
        weightings,
        reads.flatten(1),
        _codes(layout),
        norm_floor,
        torch.is_grad_enabled(),
    )
    hidden, read, memory, weightings = outputs[:4]
    after = memory.transpose(1, 2), weightings, read[-1].unflatten(-1, reads.shape[1:])
    return hidden, read, after


def memory_step(
    raw: Tensor, memory: Tensor, weightings: Tensor, layout: Layout, norm_floor: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Decode, address, read and write once.

    Args:
        raw: Emissions, (B, P).
        memory: (B, N, M).
        weightings: (B, K, N).
        layout: See `Layout`.
        norm_floor: Least length of a vector in cosine similarity.

    Returns:
        The new memory, weightings, and reads (B, R, M).

    """
    return _call("memory_step", raw, memory, weightings, _codes(layout), norm_floor)


PRECISIONS = {torch.float32: "float32", torch.float64: "float64"}
LIBRARY = torch.library.Library("ntm", "DEF")
STRAIGHT: dict[str, Callable[..., Any]] = {}
"""The functions behind the operators, with their derivatives."""
PLAIN = {Tensor, torch.nn.Parameter}


def _call(name: str, *arguments: Any) -> Any:
    """Call the operator ``ntm::name``; straight, where that makes no difference.

    The dispatcher's way from Python to Python takes as long as the memory takes for a step.
    """
    if _watched() or not _plain(arguments):
        return getattr(torch.ops.ntm, name).default(*arguments)
    return STRAIGHT[name](*arguments)


def _watched() -> bool:
    """Whether a compiler, a mode or a transform of torch is to see which operators are called."""
    return (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack() > 0
        or torch._C._get_tracing_state() is not None
        or torch._C._functorch.peek_interpreter_stack() is not None
    )


def _plain(arguments: Sequence[Any]) -> bool:
    """Whether the tensors are numbers in the CPU's memory and nothing else."""
    return all(type(a) in PLAIN and a.is_cpu for a in arguments if isinstance(a, Tensor))


def _operator(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function of tensors as the operator ``ntm::name`` for the CPU.

    What `torch.library.custom_op` does, less its checks at every call: on short sequences they take
    as long as the machine.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        schema = torch.library.infer_schema(function, mutates_args=())
        LIBRARY.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
        LIBRARY.impl(name, function, "CPU")
        STRAIGHT[name] = function
        return function

    return register


def _differentiate(
    name: str, outputs: int, save: Callable[[Any, Any, Any], None], backward: Callable[..., Any]
) -> None:
    """Give an operator its derivatives; as `torch.library.register_autograd`, with less around.

    The derivatives have none themselves: differentiating twice is an error.

    Args:
        name: Of the operator.
        outputs: As many of them, the first, are differentiable, and all that is asked for; the
            others are kept for the backward pass, which gets no derivatives of them: zeros in
            their place would cost memory and time.
        save: As ``setup_context`` of `torch.autograd.Function`.
        backward: Of the context and the derivatives of the differentiable outputs.

    """
    function, operator = STRAIGHT[name], getattr(torch.ops.ntm, name).default

    def below_autograd(straight: bool, *arguments: Any) -> Any:
        if straight:
            return function(*arguments)
        with torch._C._AutoDispatchBelowAutograd():
            return operator(*arguments)

    class Differentiable(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *arguments: Any) -> Any:
            *inputs, straight = arguments
            made = below_autograd(straight, *inputs)
            ctx.set_materialize_grads(False)
            ctx.zero = made[0].new_zeros(())
            ctx.shapes = [output.shape for output in made[:outputs]]
            save(ctx, tuple(inputs), made)
            if straight:
                return made[:outputs]
            ctx.mark_non_differentiable(*made[outputs:])
            return made

        @staticmethod
        @once_differentiable
        def backward(ctx: Any, *derivatives: Any) -> Any:
            whole = (
                ctx.zero.expand(shape) if d is None else d
                for d, shape in zip(derivatives, ctx.shapes, strict=False)
            )
            return *backward(ctx, *whole), None

    def differentiable(straight: bool, *arguments: Any) -> Any:
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*arguments):
            return Differentiable.apply(*arguments, straight)
        return below_autograd(straight, *arguments)

    STRAIGHT[name] = partial(differentiable, True)
    LIBRARY.impl(name, partial(differentiable, False), "Autograd")


@_operator("lstm_loop")
def _lstm_loop(
    inputs: Tensor,
    by_seen: Tensor,
    by_hidden: Tensor,
    bias_seen: Tensor,
    bias_hidden: Tensor,
    by_below: Tensor,
    deeper: Tensor,
    biases: Tensor,
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
) -> tuple[
    Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor,
    Tensor,
]:  # fmt: skip
    T, B, size = inputs.shape
    L, _, H = hidden0.shape
    gates = inputs.new_empty(L, T, B, 4 * H)
    gates[0] = F.linear(inputs, by_seen[:, :size], bias_seen + bias_hidden)
    hidden, cells = (gates.new_empty(L, T + 1, B, H) for _ in range(2))
    hidden[:, 0], cells[:, 0] = hidden0, cell0
    raw, memories, ws, reads, memory = _room(bias, memory0, w0, reads0, T, keep)
    in_parts(
        _kernels("lstm", gates).lstm_forward,
        B,
        *_setting(tuple(layout), norm_floor, gates.dtype),
        *_arrays(gates, _joined(by_hidden, deeper).transpose(1, 2), by_seen[:, size:].t()),
        *_arrays(by_below.transpose(1, 2), biases, emit.t(), bias),
        *_arrays(hidden, cells, raw, memories, ws, reads, memory),
    )
    ends = hidden[:, -1].clone(), cells[:, -1].clone(), memory, ws[-1].clone()
    kept = hidden, gates, cells, raw, memories, ws, reads
    return hidden[-1, 1:].clone(), reads[1:].clone(), *ends, *kept


@torch.library.register_fake("ntm::lstm_loop")
def _(  # type: ignore[no-untyped-def]
    inputs, by_seen, by_hidden, bias_seen, bias_hidden, by_below, deeper, biases, emit, bias,
    hidden0, cell0, memory0, w0, reads0, layout, floor, keep,
):  # fmt: skip
    T, B, _ = inputs.shape
    L, _, H = hidden0.shape
    hidden = inputs.new_empty(L, T + 1, B, H)
    raw, memories, ws, reads, memory = _room(bias, memory0, w0, reads0, T, keep)
    made = (hidden[-1, 1:], reads[1:], hidden[:, 0], hidden[:, 0], memory, ws[0])
    kept = (hidden, inputs.new_empty(L, T, B, 4 * H), hidden, raw, memories, ws, reads)
    return tuple(part.new_empty(part.shape) for part in (*made, *kept))


def _save_lstm(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    seen, by_seen, by_hidden, _, _, by_below, deeper, _, emit, *_, layout, floor, _ = inputs
    ctx.layout, ctx.floor = layout, floor
    ctx.save_for_backward(seen, by_seen, by_hidden, by_below, deeper, emit, *output[6:])


def _lstm_backward(ctx: Any, *derivatives: Tensor) -> tuple[Any, ...]:
    inputs, by_seen, by_hidden, by_below, deeper, emit, hidden, *kept = ctx.saved_tensors
    size, reads = inputs.shape[2], kept[-1]
    dgates, draw, *dstart = _call(
        "lstm_loop_backward", *derivatives, _joined(by_hidden, deeper), by_seen[:, size:],
        by_below, emit, *kept[:-1], ctx.layout, ctx.floor,
    )  # fmt: skip
    flat, before = dgates.flatten(1, 2), hidden[:, :-1]
    dbias = flat[0].sum(0)
    above: tuple[Tensor | None, ...] = (None, None, None)
    if len(deeper):
        back, below = flat[1:].transpose(1, 2), hidden[:-1, 1:].flatten(1, 2)
        above = back @ below, back @ before[1:].flatten(1, 2), flat[1:].sum(1)
    return (
        dgates[0] @ by_seen[:, :size] if ctx.needs_input_grad[0] else None,
        flat[0].t() @ torch.cat([inputs, reads[:-1]], 2).flatten(0, 1),
        flat[0].t() @ before[0].flatten(0, 1),
        dbias,
        dbias,
        *above,
        *_emit_gradients(draw, hidden[-1, 1:]),
        *dstart,
        None,
        None,
        None,
    )


@_operator("lstm_loop_backward")
def _lstm_loop_backward(
    dhidden: Tensor,
    dreads: Tensor,
    dlast: Tensor,
    dcell: Tensor,
    dmemory: Tensor,
    dw: Tensor,
    by_hidden: Tensor,
    by_reads: Tensor,
    by_below: Tensor,
    emit: Tensor,
    gates: Tensor,
    cells: Tensor,
    raw: Tensor,
    memories: Tensor,
    ws: Tensor,
    layout: list[int],
    norm_floor: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    dreads, dlast, dcell, dmemory, dw = map(_own, (dreads, dlast, dcell, dmemory, dw))
    dreads0 = torch.zeros_like(dreads[0])
    dgates, draw = torch.empty_like(gates), torch.empty_like(raw)
    in_parts(
        _kernels("lstm", gates).lstm_backward,
        gates.shape[2],
        *_setting(tuple(layout), norm_floor, gates.dtype),
        *_arrays(gates, by_hidden, by_reads, by_below, emit, cells, raw, memories, ws),
        *_arrays(dhidden, dreads, dmemory, dw, dreads0, dlast, dcell, dgates, draw),
    )
    return dgates, draw, dlast, dcell, dmemory, dw, dreads0


@torch.library.register_fake("ntm::lstm_loop_backward")
def _(  # type: ignore[no-untyped-def]
    dhidden, dreads, dlast, dcell, dmemory, dw, by_hidden, by_reads, by_below, emit, gates, cells,
    raw, memories, ws, layout, floor,
):  # fmt: skip
    shapes = (gates, raw, dlast, dcell, dmemory, dw)
    return (*(gates.new_empty(like.shape) for like in shapes), gates.new_empty(dreads.shape[1:]))


_differentiate("lstm_loop", 6, _save_lstm, _lstm_backward)


@_operator("feedforward_loop")
def _feedforward_loop(
    sums: Tensor,
    by_reads: Tensor,
    deeper: Tensor,
    biases: Tensor,
    code: int,
    emit: Tensor,
    bias: Tensor,
    memory0: Tensor,
    w0: Tensor,
    reads0: Tensor,
    layout: list[int],
    norm_floor: float,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    T, B, H = sums.shape
    values = sums.new_empty(1 + deeper.shape[0], T, B, H)
    values[0] = sums
    raw, memories, ws, reads, memory = _room(bias, memory0, w0, reads0, T, keep)
    in_parts(
        _kernels("feedforward", sums).feedforward_forward,
        B,
        *_setting(tuple(layout), norm_floor, sums.dtype),
        code,
        *_arrays(values, by_reads.t(), deeper.transpose(1, 2), biases, emit.t(), bias),
        *_arrays(raw, memories, ws, reads, memory),
    )
    made = values[-1].clone(), reads[1:].clone(), memory, ws[-1].clone()
    return *made, values, raw, memories, ws, reads


@torch.library.register_fake("ntm::feedforward_loop")
def _(  # type: ignore[no-untyped-def]
    sums, by_reads, deeper, biases, code, emit, bias, memory0, w0, reads0, layout, floor, keep
):
    raw, memories, ws, reads, memory = _room(bias, memory0, w0, reads0, len(sums), keep)
    values = sums.new_empty(1 + deeper.shape[0], *sums.shape)
    made = (sums, reads[1:], memory, ws[0], values, raw, memories, ws, reads)
    return tuple(part.new_empty(part.shape) for part in made)


def _save_feedforward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, by_reads, deeper, _, ctx.code, emit, *_, ctx.layout, ctx.floor, _ = inputs
    ctx.save_for_backward(by_reads, deeper, emit, *output[4:])


def _feedforward_backward(ctx: Any, *derivatives: Tensor) -> tuple[Any, ...]:
    by_reads, deeper, emit, values, *kept, reads = ctx.saved_tensors
    dsums, draw, *dstart = _call(
        "feedforward_loop_backward", *derivatives, by_reads, deeper, emit, values, *kept,
        ctx.code, ctx.layout, ctx.floor,
    )  # fmt: skip
    flat, below = dsums.flatten(1, 2), values.flatten(1, 2)
    return (
        dsums[0],
        flat[0].t() @ reads[:-1].flatten(0, 1),
        flat[1:].transpose(1, 2) @ below[:-1],
        flat[1:].sum(1),
        None,
        *_emit_gradients(draw, values[-1]),
        *dstart,
        None,
        None,
        None,
    )


@_operator("feedforward_loop_backward")
def _feedforward_loop_backward(
    dhidden: Tensor,
    dreads: Tensor,
    dmemory: Tensor,
    dw: Tensor,
    by_reads: Tensor,
    deeper: Tensor,
    emit: Tensor,
    values: Tensor,
    raw: Tensor,
    memories: Tensor,
    ws: Tensor,
    code: int,
    layout: list[int],
    norm_floor: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    dhidden, dreads, dmemory, dw = map(_own, (dhidden, dreads, dmemory, dw))
    dreads0 = torch.zeros_like(dreads[0])
    dsums, draw = torch.empty_like(values), torch.empty_like(raw)
    in_parts(
        _kernels("feedforward", values).feedforward_backward,
        values.shape[2],
        *_setting(tuple(layout), norm_floor, values.dtype),
        code,
        *_arrays(values, by_reads, deeper, emit, raw, memories, ws),
        *_arrays(dhidden, dreads, dmemory, dw, dreads0, dsums, draw),
    )
    return dsums, draw, dmemory, dw, dreads0


@torch.library.register_fake("ntm::feedforward_loop_backward")
def _(  # type: ignore[no-untyped-def]
    dhidden, dreads, dmemory, dw, by_reads, deeper, emit,
    values, raw, memories, ws, code, layout, floor,
):  # fmt: skip
    shapes = (values, raw, dmemory, dw)
    return (*(values.new_empty(like.shape) for like in shapes), values.new_empty(dreads.shape[1:]))


_differentiate("feedforward_loop", 4, _save_feedforward, _feedforward_backward)


@_operator("memory_step")
def _memory_step(
    raw: Tensor, memory: Tensor, previous: Tensor, layout: list[int], norm_floor: float
) -> tuple[Tensor, Tensor, Tensor]:
    after, w, reads = _after_step(raw, memory, previous, layout)
    in_parts(
        _kernels("any", raw).step_forward,
        raw.shape[0],
        *_setting(tuple(layout), norm_floor, raw.dtype),
        *_arrays(raw, memory.transpose(1, 2), previous, after.transpose(1, 2), w, reads),
    )
    return after, w, reads


@torch.library.register_fake("ntm::memory_step")
def _(raw, memory, previous, layout, norm_floor):  # type: ignore[no-untyped-def]
    return _after_step(raw, memory, previous, layout)


def _after_step(
    raw: Tensor, memory: Tensor, previous: Tensor, layout: list[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Room for what a step makes; the memory lies element by element, though of shape (B, N, M)."""
    B, N, M = memory.shape
    after = raw.new_empty(B, M, N).transpose(1, 2)
    return after, raw.new_empty(previous.shape), raw.new_empty(B, layout[0], M)


def _save_step(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    raw, memory, previous, ctx.layout, ctx.floor = inputs
    ctx.save_for_backward(raw, memory, previous, *output[:2])


def _step_backward(ctx: Any, *derivatives: Tensor) -> tuple[Any, ...]:
    saved = ctx.saved_tensors
    return *_call("memory_step_backward", *derivatives, *saved, ctx.layout, ctx.floor), None, None


@_operator("memory_step_backward")
def _memory_step_backward(
    dafter: Tensor,
    dw: Tensor,
    dreads: Tensor,
    raw: Tensor,
    memory: Tensor,
    previous: Tensor,
    after: Tensor,
    w: Tensor,
    layout: list[int],
    norm_floor: float,
) -> tuple[Tensor, Tensor, Tensor]:
    draw, dmemory, dprevious = _before_step(raw, memory, previous)
    in_parts(
        _kernels("any", raw).step_backward,
        raw.shape[0],
        *_setting(tuple(layout), norm_floor, raw.dtype),
        *_arrays(raw, memory.transpose(1, 2), previous, after.transpose(1, 2), w),
        *_arrays(_own(dafter.transpose(1, 2)), _own(dw), dreads),
        *_arrays(dmemory.transpose(1, 2), dprevious, draw),
    )
    return draw, dmemory, dprevious


@torch.library.register_fake("ntm::memory_step_backward")
def _(  # type: ignore[no-untyped-def]
    dafter, dw, dreads, raw, memory, previous, after, w, layout, norm_floor
):
    return _before_step(raw, memory, previous)


def _before_step(raw: Tensor, memory: Tensor, previous: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Room for the derivatives of what went into a step."""
    B, N, M = memory.shape
    dmemory = raw.new_empty(B, M, N).transpose(1, 2)
    return raw.new_empty(raw.shape), dmemory, raw.new_empty(previous.shape)


_differentiate("memory_step", 3, _save_step, _step_backward)


def _own(tensor: Tensor) -> Tensor:
    """A contiguous copy that may be written to."""
    return tensor.clone(memory_format=torch.contiguous_format)


def _room(
    bias: Tensor, memory0: Tensor, w0: Tensor, reads0: Tensor, T: int, keep: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Room for emissions, kept memories, weightings and reads of T steps, and a memory to change.

    Weightings and reads have those before the first step in front.
    """
    kept = -(-T // STRIDE) if keep else 0
    ws, reads = w0.new_empty(T + 1, *w0.shape), reads0.new_empty(T + 1, *reads0.shape)
    ws[0], reads[0] = w0, reads0
    raw = bias.new_empty(T, w0.shape[0], bias.shape[0])
    return raw, memory0.new_empty(kept, *memory0.shape), ws, reads, _own(memory0)


def _joined(first: Tensor, deeper: Tensor) -> Tensor:
    """One layer's weight and those of the layers above it."""
    return torch.cat([first.unsqueeze(0), deeper]) if len(deeper) else first.unsqueeze(0)


def _emit_gradients(draw: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Of the weight and the bias that make emissions of the controller's output."""
    flat = draw.flatten(0, 1)
    return flat.t() @ hidden.flatten(0, 1), flat.sum(0)


def _codes(layout: Layout) -> list[int]:
    R, W, S, key_activation, add_activation, read_first = layout
    codes = [ACTIVATIONS[key_activation], ACTIVATIONS[add_activation]]
    return [R, W, 2 * S + 1, *codes, int(read_first)]


@cache
def _setting(
    layout: tuple[int, ...], norm_floor: float, dtype: torch.dtype
) -> tuple[tuple[int, ...], Any]:
    """What every compiled function is told: the layout, and the least square of a length."""
    return layout, getattr(np, PRECISIONS[dtype])(norm_floor**2)


def _kernels(controller: str, like: Tensor) -> ModuleType:
    return kernels(controller, PRECISIONS[like.dtype])


def _arrays(*tensors: Tensor) -> list[Any]:
    return [tensor.detach().contiguous().numpy() for tensor in tensors]
