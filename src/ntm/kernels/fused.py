"""The compiled machine as torch operators, with its own derivatives.

Nothing of `ntm.machine` is known here: plain tensors come in and go out. The products that do not
depend on the step before (the input's part of the controller, and the gradients of all weights) are
single large ones, outside the compiled functions.

Three operators, each with its backward: ``lstm_loop`` and ``feedforward_loop`` run whole sequences,
``memory_step`` one step of the memory, for any other controller.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ntm.kernels.calling import Job, check_alike, check_together
from ntm.kernels.compiling import Kernels, kernels
from ntm.kernels.conventions import ACTIVATIONS, STRIDE, kept_shapes
from ntm.kernels.watching import watched

Layout = tuple[int, int, int, str, str, bool]
"""R, W, S, names of the key's and the add vector's activation, read_first."""


def lstm_loop(
    inputs: Tensor,
    weights: Sequence[tuple[Tensor, Tensor, Tensor, Tensor]],
    emit: tuple[Tensor, Tensor],
    state: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
    layout: Layout,
    norm_floor: float,
) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]:
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
        Outputs of the last layer (T, B, H), reads (T, B, R·M), emissions (T, B, P), and the state
        after the last step.

    """
    first, *deeper = weights
    output, read, raw, *after = _call(
        "lstm_loop",
        inputs,
        *first,
        *_stacked(deeper),
        *emit,
        *state,
        _codes(layout),
        norm_floor,
        torch.is_grad_enabled(),
    )[:8]
    return output, read, raw, tuple(after)


def _stacked(
    layers: Sequence[tuple[Tensor, Tensor, Tensor, Tensor]],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Weights of the layers above the first, and the sums of their biases."""
    if not layers:
        return None, None, None
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
) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor, Tensor]]:
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
        Outputs of the last layer (T, B, H), reads (T, B, R·M), emissions (T, B, P), and the state
        after the last step.

    """
    (weight, bias), *deeper = weights
    output, read, raw, *after = _call(
        "feedforward_loop",
        F.linear(inputs, weight[:, : inputs.shape[-1]], bias),
        weight,
        torch.stack([w for w, _ in deeper]) if deeper else None,
        torch.stack([b for _, b in deeper]) if deeper else None,
        ACTIVATIONS[activation],
        *emit,
        *state,
        _codes(layout),
        norm_floor,
        torch.is_grad_enabled(),
    )[:6]
    return output, read, raw, tuple(after)


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


class Tape:
    """The heads' part of a sequence whose controller is a module of its own.

    `step` is called with the controller's output, time step after time step. The steps share what
    is kept for the backward pass, which runs through them from the last to the first, so that torch
    sees of each step only what the controller needs; what was read, emitted and came out of the
    controller leaves with the last step, and the emissions' weights get their gradient at the end,
    as one product.

    From step to step goes a number without meaning, for torch to know their order. The first step
    takes emit, memory and weightings instead: the tape does not hold on to what passes, which knows
    the tape.

    Args:
        inputs: (T, B, I), T at least 1.
        emit: Weight (P, H) and bias (P,) of the emissions.
        memory: (B, N, M).
        weightings: (B, K, N).
        layout: See `Layout`.
        norm_floor: Least length of a vector in cosine similarity.

    """

    def __init__(
        self,
        inputs: Tensor,
        emit: tuple[Tensor, Tensor],
        memory: Tensor,
        weightings: Tensor,
        layout: Layout,
        norm_floor: float,
    ) -> None:
        weight, bias = emit
        check_alike((inputs, weight, bias, memory, weightings))
        T, B, I = inputs.shape
        N, M = memory.shape[1:]
        P, H = weight.shape
        self.weight = weight
        self.layout, self.norm_floor = _codes(layout), norm_floor
        self.sizes = B, T, 0, I, H, N, M
        self.width = layout[0] * M
        with torch.no_grad():
            self.hidden = weight.new_empty(T, B, H)
            self.raw = weight.new_empty(T, B, P)
            self.ws = weight.new_empty(T + 1, *weightings.shape)
            self.ws[0] = weightings
            self.memories = weight.new_empty(_kept_memories(T, True), B, M, N)
            self.reads = weight.new_empty(T + 1, B, self.width)
            self.memory = memory.transpose(1, 2).clone(memory_format=torch.contiguous_format)
            dense = (self.raw, self.ws, self.memories, weight, bias, self.hidden, self.reads,
                     self.memory, None, None)  # fmt: skip
            self.forward = self._job(_kernels("any", weight).forward, T, dense, ())

    def _job(
        self,
        function: Any,
        T: int,
        dense: Sequence[Tensor | None],
        loose: Sequence[Tensor | None],
    ) -> Job:
        sizes = self.sizes[0], T, *self.sizes[2:]
        kept = len(self.memories)
        return Job(function, sizes, self.layout, self.norm_floor, dense, loose, kept=kept)

    def step(
        self, t: int, x: Tensor, output: Tensor, passing: Sequence[Tensor]
    ) -> tuple[Tensor, Sequence[Tensor]]:
        """Do step t.

        Args:
            t: 0, 1, … T − 1, one after the other.
            x: The input after it, (B, I); after the last step, anything of this shape.
            output: The controller's, (B, H).
            passing: emit, memory and weightings before the first step, else what the step before
                gave.

        Returns:
            What the controller sees next, (B, I + R·M), and what passes to the next step: after the
            last, outputs (T, B, H), reads (T, B, R·M), emissions (T, B, P), memory (B, M, N) and
            weightings.

        """
        seen, *passing = _TapeStep.apply(self, t, x, output, *passing)
        return seen, passing

    def fill(self, t: int, x: Tensor, output: Tensor) -> Tensor:
        """Keep what belongs to step t; what the controller sees next."""
        B, I = x.shape
        seen = self.raw.new_empty(B, I + self.width)
        if output.shape != self.hidden.shape[1:] or output.dtype is not self.hidden.dtype:
            expected = f"{tuple(self.hidden.shape[1:])} in {self.hidden.dtype}"
            got = f"{tuple(output.shape)} in {output.dtype}"
            raise RuntimeError(f"controller's output must be (B, H) = {expected}, got {got}")
        self.hidden[t] = output
        self.forward.run(t, (x, seen))
        return seen

    def finish(self) -> tuple[Tensor, ...]:
        """Outputs, reads, emissions, memory and weightings after the last step."""
        of_all_steps = self.hidden, self.reads[1:], self.raw
        memory = self.memory
        del self.reads, self.memory, self.forward  # the backward pass needs the rest
        return *(part.clone() for part in of_all_steps), memory, self.ws[-1].clone()

    def begin_back(
        self,
        weight: Tensor,
        t: int,
        doutputs: Tensor | None = None,
        dreads: Tensor | None = None,
        dgiven: Tensor | None = None,
        dmemory: Tensor | None = None,
        dw: Tensor | None = None,
    ) -> None:
        """Begin a backward pass after step t, with derivatives of what the last step gave."""
        derivatives = doutputs, dreads, dgiven, dmemory, dw
        check_alike([weight, *(one for one in derivatives if one is not None)])
        B, _, _, _, _, N, M = self.sizes
        self.back_from = t
        dense = torch.contiguous_format
        dmemory = self.raw.new_zeros(1).expand(B, M, N) if dmemory is None else dmemory
        dw = self.raw.new_zeros(1).expand_as(self.ws[0]) if dw is None else dw
        self.dmemory, self.dw = (part.clone(memory_format=dense) for part in (dmemory, dw))
        self.stretch = self.raw.new_empty(B, STRIDE + 1, M, N)
        self.told = self.raw.new_empty(B * STRIDE * self.raw.shape[2])
        self.draw = self.raw.new_empty(self.raw.shape)
        self.nothing = self.raw.new_zeros(1)
        tensors = (self.raw, self.ws, self.memories, weight, self.stretch, self.told,
                   self.dmemory, self.dw, self.raw.new_empty(B, self.width), self.draw,
                   None)  # fmt: skip
        backward = _kernels("any", self.raw).backward
        self.backward = self._job(backward, t + 1, tensors, (dreads, dgiven, doutputs, None))

    def back(self, t: int, dseen: Tensor | None) -> Tensor:
        """Derivatives of the controller's output in step t, (B, H)."""
        B, _, _, I, H, _, _ = self.sizes
        doutput = self.raw.new_empty(B, H)
        self.backward.run(t, (doutput,), (None if dseen is None else dseen[:, I:],))
        return doutput

    def first_gradients(self) -> tuple[Tensor, ...]:
        """Of emit, memory and weightings, once the first step has gone back."""
        steps = self.back_from + 1
        hidden = self.hidden[:steps].flatten(0, 1)
        gradients = *_emit_gradients(self.draw[:steps], hidden), self.dmemory.transpose(1, 2)
        return *gradients, self.dw

    def end_back(self) -> None:
        """Forget what a backward pass works with."""
        del self.dmemory, self.dw, self.stretch, self.told, self.draw, self.nothing, self.backward


def _once(backward: Callable[..., Any]) -> Callable[..., Any]:
    """Refuse to be differentiated twice at once.

    torch's own `once_differentiable` raises when the second derivative is taken; but where it is
    asked for some inputs alone, torch leaves out the part that would raise, and what remains is
    wrong.
    """

    @wraps(backward)
    def first_order(*arguments: Any) -> Any:
        if torch.is_grad_enabled():
            raise NotImplementedError(
                "the fused engine has first derivatives alone, and create_graph=True is for second "
                "ones; set net.engine = 'reference' before the forward pass"
            )
        return backward(*arguments)

    return first_order


class _TapeStep(torch.autograd.Function):
    """One step of a `Tape`."""

    @staticmethod
    def forward(
        ctx: Any, tape: Tape, t: int, x: Tensor, output: Tensor, *_: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        ctx.tape, ctx.t = tape, t
        ctx.save_for_backward(tape.weight)  # torch then notices when it is changed in between
        seen = tape.fill(t, x, output)
        if t + 1 == len(tape.raw):
            return seen, *tape.finish()
        return seen, tape.raw.new_empty(1)

    @staticmethod
    @_once
    def backward(ctx: Any, dseen: Tensor | None, *dpassing: Tensor | None) -> tuple[Any, ...]:
        tape, t = ctx.tape, ctx.t
        (weight,) = ctx.saved_tensors
        if t + 1 == len(tape.raw):
            tape.begin_back(weight, t, *dpassing)
        elif dpassing[0] is None:
            tape.begin_back(weight, t)
        doutput = tape.back(t, dseen)
        dx = dseen[:, : tape.sizes[3]] if ctx.needs_input_grad[2] and dseen is not None else None
        if t > 0 and ctx.needs_input_grad[4]:
            return None, None, dx, doutput, tape.nothing
        gradients = tape.first_gradients() if t == 0 else (None,)
        tape.end_back()
        return None, None, dx, doutput, *gradients


PRECISIONS = {torch.float32: "float32", torch.float64: "float64"}
LIBRARY = torch.library.Library("ntm", "DEF")
STRAIGHT: dict[str, Callable[..., Any]] = {}
"""The functions behind the operators, with their derivatives; for what has been checked."""
PLAIN = {Tensor, torch.nn.Parameter}


def _call(name: str, *arguments: Any) -> Any:
    """Call the operator ``ntm::name``; straight, where that makes no difference.

    The dispatcher's way from Python to Python takes as long as the memory takes for a step.
    """
    tensors = _tensors(arguments)
    if watched() or not plain(tensors):
        check_together(tensors)
        return getattr(torch.ops.ntm, name).default(*arguments)
    check_alike(tensors)
    return STRAIGHT[name](*arguments)


def _tensors(arguments: Sequence[Any]) -> list[Tensor]:
    return [one for one in arguments if isinstance(one, Tensor)]


_is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor


def plain(tensors: Sequence[Tensor]) -> bool:
    """Whether they are numbers in the CPU's memory, as they lie there."""
    for one in tensors:
        if type(one) not in PLAIN or not one.is_cpu or one.is_neg() or _is_wrapped(one):
            return False
    return True


def _operator(name: str, *keys: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function of tensors as the operator ``ntm::name``, for the CPU and other devices.

    What `torch.library.custom_op` does, less its checks at every call: on short sequences they take
    as long as the machine.
    """

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        def checked(*arguments: Any) -> Any:
            check_alike(_tensors(arguments))
            return function(*arguments)

        schema = torch.library.infer_schema(function, mutates_args=())
        LIBRARY.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
        for key in ("CPU", *keys):
            LIBRARY.impl(name, checked, key)
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
            others are kept for the backward pass.
        save: As ``setup_context`` of `torch.autograd.Function`.
        backward: Of the context and the derivatives of the differentiable outputs; None stands
            for zeros, which would cost memory and time.

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
            save(ctx, tuple(inputs), made)
            if straight:
                return made[:outputs]
            ctx.mark_non_differentiable(*made[outputs:])
            return made

        @staticmethod
        @_once
        def backward(ctx: Any, *derivatives: Any) -> Any:
            return *backward(ctx, *derivatives[:outputs]), None

    # Less what `torch.autograd.Function` does for `torch.func`, of which nothing comes here.
    apply = super(torch.autograd.Function, Differentiable).apply

    def differentiable(straight: bool, *arguments: Any) -> Any:
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*arguments):
            return (apply if straight else Differentiable.apply)(*arguments, straight)
        return below_autograd(straight, *arguments)

    STRAIGHT[name] = partial(differentiable, True)
    LIBRARY.impl(name, partial(differentiable, False), "Autograd")


def _on_cpu(controller: str, direction: str, *arguments: Any, **more: Any) -> None:
    """Do a `Job` of a whole sequence, forward or backward; the rest is for it."""
    kept = arguments[3][0]
    Job(getattr(_kernels(controller, kept), direction), *arguments, **more).run()


def _on_gpu(*arguments: Any, **more: Any) -> None:
    from ntm.kernels.cuda import launch  # only those who use it load Triton

    launch.run(*arguments, **more)


RUNNERS: dict[str, Callable[..., None]] = {"cpu": _on_cpu, "cuda": _on_gpu}
"""What does a job of whole sequences, by the kind of device that its tensors are on."""


def _run(controller: str, direction: str, *arguments: Any, **more: Any) -> None:
    kept = arguments[3][0]
    device = "cpu" if kept.is_cpu else kept.device.type
    RUNNERS[device](controller, direction, *arguments, **more)


def _check_heads(
    B: int, H: int, parts: tuple[Tensor, Tensor, Tensor, Tensor, Tensor], layout: Sequence[int]
) -> tuple[int, int]:
    """Refuse what the compiled functions would not notice; P and R·M."""
    emit, bias, memory, w, reads = parts
    if memory.dim() != 3 or memory.shape[0] != B:
        raise ValueError(f"memory must be (B, N, M), B = {B}, got {tuple(memory.shape)}")
    _, N, M = memory.shape
    R, W = layout[:2]
    P = _emitted(layout, M)
    _check_shape("weight of the emissions", emit, (P, H))
    _check_shape("bias of the emissions", bias, (P,))
    _check_shape("weightings", w, (B, R + W, N))
    _check_shape("reads", reads, (B, R, M))
    return P, R * M


def _emitted(layout: Sequence[int], M: int) -> int:
    """P, of `_codes` of a layout."""
    R, W, shifts = layout[:3]
    return (R + W) * (M + shifts + 3) + 2 * W * M


def _check_shape(name: str, tensor: Tensor | None, shape: tuple[int, ...]) -> None:
    if tensor is not None and tensor.shape != shape:
        raise ValueError(f"{name} must be {shape}, got {tuple(tensor.shape)}")


@_operator("lstm_loop", "CUDA")
def _lstm_loop(
    inputs: Tensor,
    by_seen: Tensor,
    by_hidden: Tensor,
    bias_seen: Tensor,
    bias_hidden: Tensor,
    by_below: Tensor | None,
    deeper: Tensor | None,
    biases: Tensor | None,
    emit: Tensor,
    bias: Tensor,
    memory: Tensor,
    w: Tensor,
    reads: Tensor,
    hidden: Tensor,
    cell: Tensor,
    layout: list[int],
    norm_floor: float,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    T, B, I = inputs.shape
    L, _, H = hidden.shape
    P, seen_width = _check_heads(B, H, (emit, bias, memory, w, reads), layout)
    _check_shape("weight on the input", by_seen, (4 * H, I + seen_width))
    _check_shape("weight on the output before", by_hidden, (4 * H, H))
    _check_shape("bias", bias_seen, (4 * H,))
    _check_shape("bias", bias_hidden, (4 * H,))
    _check_shape("upper layers' weights on what is below", by_below, (L - 1, 4 * H, H))
    _check_shape("upper layers' weights on the output before", deeper, (L - 1, 4 * H, H))
    _check_shape("upper layers' biases", biases, (L - 1, 4 * H))
    _check_shape("hidden", hidden, (L, B, H))
    _check_shape("cell", cell, (L, B, H))
    output, seen, raw, end, *ends = _outputs(T, P, (memory, w, reads), hidden, cell)
    sizes = B, T, L, I, H, *memory.shape[1:]
    memories = _kept_memories(T, keep)
    kept = inputs.new_empty(_kept("lstm", sizes, layout, memories))
    _run(
        "lstm",
        "forward",
        sizes,
        layout,
        norm_floor,
        (kept, F.linear(inputs, by_seen[:, :I], bias_seen), by_seen, by_hidden, bias_hidden,
         by_below, deeper, biases, emit, bias, output, seen, raw, end, *ends),
        (memory, w, reads, hidden, cell),
        kept=memories,
    )  # fmt: skip
    w_end, reads_end, hidden_end, cell_end = ends
    memory_end = end.transpose(1, 2)
    return output, seen, raw, memory_end, w_end, reads_end, hidden_end, cell_end, kept


@torch.library.register_fake("ntm::lstm_loop")
def _(  # type: ignore[no-untyped-def]
    inputs, by_seen, by_hidden, bias_seen, bias_hidden, by_below, deeper, biases, emit, bias,
    memory, w, reads, hidden, cell, layout, floor, keep,
):  # fmt: skip
    T, B, I = inputs.shape
    L, _, H = hidden.shape
    output, seen, raw, end, *ends = _outputs(T, bias.shape[0], (memory, w, reads), hidden, cell)
    sizes = B, T, L, I, H, *memory.shape[1:]
    numbers = _kept("lstm", sizes, layout, _kept_memories(T, keep))
    return output, seen, raw, end.transpose(1, 2), *ends, inputs.new_empty(numbers)


def _save_lstm(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    seen, by_seen, by_hidden, _, _, by_below, deeper, _, emit, _, memory, *_ = inputs
    *_, ctx.layout, ctx.floor, _ = inputs
    L, B, H = output[6].shape
    ctx.sizes = [B, seen.shape[0], L, seen.shape[2], H, *memory.shape[1:]]
    ctx.save_for_backward(seen, by_seen, by_hidden, by_below, deeper, emit, output[2], output[8])


def _lstm_backward(ctx: Any, *derivatives: Tensor | None) -> tuple[Any, ...]:
    inputs, by_seen, *weights, raw, kept = ctx.saved_tensors
    dgates, draw, dstart = _call(
        "lstm_loop_backward", *derivatives, by_seen, *weights, raw, kept, ctx.sizes, ctx.layout,
        ctx.floor,
    )  # fmt: skip
    B, T, L, I, H, _, M = ctx.sizes
    width, steps, numbers = ctx.layout[0] * M, T * B, (T + 1) * B * H
    at = kept.storage_offset() + dgates.numel()
    before, after = (
        kept.as_strided((L, steps, H), (numbers, H, 1), at + of * B * H) for of in (0, 1)
    )
    reads = kept.as_strided((steps, width), (width, 1), at + L * numbers)
    flat = dgates.view(L, steps, 4 * H)
    first = flat[0]
    dbias = first.sum(0)
    above: tuple[Tensor | None, ...] = (None, None, None)
    if L > 1:
        back = flat[1:].transpose(1, 2)
        above = back @ after[:-1], back @ before[1:], flat[1:].sum(1)
    return (
        dgates[0] @ by_seen[:, :I] if ctx.needs_input_grad[0] else None,
        torch.mm(first.t(), torch.cat([inputs.flatten(0, 1), reads], 1)),
        torch.mm(first.t(), before[0]),
        dbias,
        dbias,
        *above,
        *_emit_gradients(draw, after[-1]),
        *_start_gradients(ctx, 10, dstart),
        None,
        None,
        None,
    )


@_operator("lstm_loop_backward", "CUDA")
def _lstm_loop_backward(
    doutput: Tensor | None,
    dseen: Tensor | None,
    dgiven: Tensor | None,
    dmemory: Tensor | None,
    dw: Tensor | None,
    dreads: Tensor | None,
    dhidden: Tensor | None,
    dcell: Tensor | None,
    by_seen: Tensor,
    by_hidden: Tensor,
    by_below: Tensor | None,
    deeper: Tensor | None,
    emit: Tensor,
    raw: Tensor,
    kept: Tensor,
    sizes: list[int],
    layout: list[int],
    norm_floor: float,
) -> tuple[Tensor, Tensor, Tensor]:
    B, T, L, _, H, _, _ = sizes
    dgates, draw = kept.new_empty(L, T, B, 4 * H), kept.new_empty(T, B, emit.shape[0])
    dstart = kept.new_empty(B * (2 * L * H + _heads_state(sizes, layout)))
    _run(
        "lstm",
        "backward",
        sizes,
        layout,
        norm_floor,
        (kept, raw, by_seen, by_hidden, by_below, deeper, emit, dgates, draw, dstart),
        (doutput, dseen, dgiven, dmemory, dw, dreads, dhidden, dcell),
        kept=_kept_memories(T, True),
    )
    return dgates, draw, dstart


@torch.library.register_fake("ntm::lstm_loop_backward")
def _(  # type: ignore[no-untyped-def]
    doutput, dseen, dgiven, dmemory, dw, dreads, dhidden, dcell, by_seen, by_hidden, by_below,
    deeper, emit, raw, kept, sizes, layout, floor,
):  # fmt: skip
    B, T, L, _, H, _, _ = sizes
    dgates, draw = kept.new_empty(L, T, B, 4 * H), kept.new_empty(T, B, emit.shape[0])
    return dgates, draw, kept.new_empty(B * (2 * L * H + _heads_state(sizes, layout)))


_differentiate("lstm_loop", 8, _save_lstm, _lstm_backward)


@_operator("feedforward_loop", "CUDA")
def _feedforward_loop(
    sums: Tensor,
    by_seen: Tensor,
    deeper: Tensor | None,
    biases: Tensor | None,
    activation: int,
    emit: Tensor,
    bias: Tensor,
    memory: Tensor,
    w: Tensor,
    reads: Tensor,
    layout: list[int],
    norm_floor: float,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    T, B, H = sums.shape
    P, seen_width = _check_heads(B, H, (emit, bias, memory, w, reads), layout)
    if by_seen.dim() != 2 or by_seen.shape[1] < seen_width or len(by_seen) != H:
        raise ValueError(
            f"weight on the input must be (H, I + R·M) = ({H}, at least {seen_width}), got "
            f"{tuple(by_seen.shape)}"
        )
    above = 0 if deeper is None else len(deeper)
    _check_shape("upper layers' weights", deeper, (above, H, H))
    _check_shape("upper layers' biases", biases, (above, H))
    output, seen, raw, end, w_end, reads_end = _outputs(T, P, (memory, w, reads), sums)
    sizes = _feedforward_sizes(sums, by_seen, deeper, memory, reads)
    memories = _kept_memories(T, keep)
    kept = sums.new_empty(_kept("feedforward", sizes, layout, memories))
    _run(
        "feedforward",
        "forward",
        sizes,
        layout,
        norm_floor,
        (kept, sums, by_seen, deeper, biases, emit, bias, output, seen, raw, end, w_end, reads_end),
        (memory, w, reads),
        activation=activation,
        kept=memories,
    )
    return output, seen, raw, end.transpose(1, 2), w_end, reads_end, kept


def _feedforward_sizes(
    sums: Tensor, by_seen: Tensor, deeper: Tensor | None, memory: Tensor, reads: Tensor
) -> list[int]:
    T, B, H = sums.shape
    L = 1 if deeper is None else 1 + len(deeper)
    return [B, T, L, by_seen.shape[1] - reads.shape[1] * reads.shape[2], H, *memory.shape[1:]]


@torch.library.register_fake("ntm::feedforward_loop")
def _(  # type: ignore[no-untyped-def]
    sums, by_seen, deeper, biases, activation, emit, bias, memory, w, reads, layout, floor, keep
):
    T = len(sums)
    output, seen, raw, end, *ends = _outputs(T, bias.shape[0], (memory, w, reads), sums)
    sizes = _feedforward_sizes(sums, by_seen, deeper, memory, reads)
    numbers = _kept("feedforward", sizes, layout, _kept_memories(T, keep))
    return output, seen, raw, end.transpose(1, 2), *ends, sums.new_empty(numbers)


def _save_feedforward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    sums, by_seen, deeper, _, ctx.activation, emit, _, memory, _, reads, *rest = inputs
    ctx.layout, ctx.floor, _ = rest
    ctx.sizes = _feedforward_sizes(sums, by_seen, deeper, memory, reads)
    ctx.save_for_backward(by_seen, deeper, emit, output[2], output[6])


def _feedforward_backward(ctx: Any, *derivatives: Tensor | None) -> tuple[Any, ...]:
    by_seen, deeper, emit, raw, kept = ctx.saved_tensors
    dsums, draw, dstart = _call(
        "feedforward_loop_backward", *derivatives, by_seen, deeper, emit, raw, kept, ctx.activation,
        ctx.sizes, ctx.layout, ctx.floor,
    )  # fmt: skip
    B, T, L, I, H, _, M = ctx.sizes
    width = ctx.layout[0] * M
    values = kept.as_strided((L, T * B, H), (T * B * H, H, 1))
    at = kept.storage_offset() + values.numel()
    reads = kept.as_strided((T * B, width), (width, 1), at)
    flat = dsums.flatten(1, 2)
    above: tuple[Tensor | None, ...] = (None, None)
    if L > 1:
        above = flat[1:].transpose(1, 2) @ values[:-1], flat[1:].sum(1)
    return (
        dsums[0],
        F.pad(flat[0].t() @ reads, (I, 0)),
        *above,
        None,
        *_emit_gradients(draw, values[-1]),
        *_start_gradients(ctx, 7, dstart),
        None,
        None,
        None,
    )


@_operator("feedforward_loop_backward", "CUDA")
def _feedforward_loop_backward(
    doutput: Tensor | None,
    dseen: Tensor | None,
    dgiven: Tensor | None,
    dmemory: Tensor | None,
    dw: Tensor | None,
    dreads: Tensor | None,
    by_seen: Tensor,
    deeper: Tensor | None,
    emit: Tensor,
    raw: Tensor,
    kept: Tensor,
    activation: int,
    sizes: list[int],
    layout: list[int],
    norm_floor: float,
) -> tuple[Tensor, Tensor, Tensor]:
    B, T, L, _, H, _, _ = sizes
    dsums, draw = kept.new_empty(L, T, B, H), kept.new_empty(T, B, emit.shape[0])
    dstart = kept.new_empty(B * _heads_state(sizes, layout))
    _run(
        "feedforward",
        "backward",
        sizes,
        layout,
        norm_floor,
        (kept, raw, by_seen, deeper, emit, dsums, draw, dstart),
        (doutput, dseen, dgiven, dmemory, dw, dreads),
        activation=activation,
        kept=_kept_memories(T, True),
    )
    return dsums, draw, dstart


@torch.library.register_fake("ntm::feedforward_loop_backward")
def _(  # type: ignore[no-untyped-def]
    doutput, dseen, dgiven, dmemory, dw, dreads, by_seen, deeper, emit, raw, kept, activation,
    sizes, layout, floor,
):  # fmt: skip
    B, T, L, _, H, _, _ = sizes
    dsums, draw = kept.new_empty(L, T, B, H), kept.new_empty(T, B, emit.shape[0])
    return dsums, draw, kept.new_empty(B * _heads_state(sizes, layout))


_differentiate("feedforward_loop", 6, _save_feedforward, _feedforward_backward)


@_operator("memory_step")
def _memory_step(
    raw: Tensor, memory: Tensor, previous: Tensor, layout: list[int], norm_floor: float
) -> tuple[Tensor, Tensor, Tensor]:
    B, N, M = memory.shape
    _check_shape("weightings", previous, (B, layout[0] + layout[1], N))
    _check_shape("emissions", raw, (B, _emitted(layout, M)))
    after, w, reads = _after_step(raw, memory, previous, layout)
    Job(
        _kernels("step", raw).forward,
        (B, 0, 0, 0, 0, N, M),
        layout,
        norm_floor,
        (raw, after, w, reads),
        (memory, previous),
    ).run()
    return after.transpose(1, 2), w, reads


@torch.library.register_fake("ntm::memory_step")
def _(raw, memory, previous, layout, norm_floor):  # type: ignore[no-untyped-def]
    after, w, reads = _after_step(raw, memory, previous, layout)
    return after.transpose(1, 2), w, reads


def _after_step(
    raw: Tensor, memory: Tensor, previous: Tensor, layout: list[int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Room for what a step makes; the memory's elements before its locations."""
    B, N, M = memory.shape
    return raw.new_empty(B, M, N), raw.new_empty(previous.shape), raw.new_empty(B, layout[0], M)


def _save_step(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    raw, memory, previous, ctx.layout, ctx.floor = inputs
    ctx.save_for_backward(raw, memory, previous, *output[:2])


def _step_backward(ctx: Any, *derivatives: Tensor | None) -> tuple[Any, ...]:
    saved = ctx.saved_tensors
    return *_call("memory_step_backward", *derivatives, *saved, ctx.layout, ctx.floor), None, None


@_operator("memory_step_backward")
def _memory_step_backward(
    dafter: Tensor | None,
    dw: Tensor | None,
    dreads: Tensor | None,
    raw: Tensor,
    memory: Tensor,
    previous: Tensor,
    after: Tensor,
    w: Tensor,
    layout: list[int],
    norm_floor: float,
) -> tuple[Tensor, Tensor, Tensor]:
    B, N, M = memory.shape
    draw, dmemory, dprevious = _before_step(raw, memory, previous)
    Job(
        _kernels("step", raw).backward,
        (B, 0, 0, 0, 0, N, M),
        layout,
        norm_floor,
        (raw, dmemory, dprevious, draw),
        (memory, previous, after, w, dafter, dw, dreads),
    ).run()
    return draw, dmemory.transpose(1, 2), dprevious


@torch.library.register_fake("ntm::memory_step_backward")
def _(  # type: ignore[no-untyped-def]
    dafter, dw, dreads, raw, memory, previous, after, w, layout, norm_floor
):
    draw, dmemory, dprevious = _before_step(raw, memory, previous)
    return draw, dmemory.transpose(1, 2), dprevious


def _before_step(raw: Tensor, memory: Tensor, previous: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Room for the derivatives of what went into a step; the memory's as in `_after_step`."""
    B, N, M = memory.shape
    return raw.new_empty(raw.shape), raw.new_empty(B, M, N), raw.new_empty(previous.shape)


_differentiate("memory_step", 3, _save_step, _step_backward)


def _outputs(T: int, P: int, heads: tuple[Tensor, Tensor, Tensor], *hidden: Tensor) -> list[Tensor]:
    """Room for the controller's outputs, reads and emissions of every step, and the state after.

    Args:
        T: Time steps.
        P: Emissions of a step.
        heads: memory (B, N, M), weightings and reads as before the first step; room for memory has
            its elements before its locations.
        hidden: hidden and cell likewise; or something as wide as the controller's outputs.

    """
    memory, w, reads = heads
    B, N, M = memory.shape
    passing = hidden if len(hidden) == 2 else ()
    return [
        memory.new_empty(T, B, hidden[0].shape[2]),
        memory.new_empty(T, B, reads.shape[1] * M),
        memory.new_empty(T, B, P),
        memory.new_empty(B, M, N),
        *(part.new_empty(part.shape) for part in (w, reads, *passing)),
    ]


def _kept(controller: str, sizes: Sequence[int], layout: Sequence[int], memories: int) -> int:
    """Numbers kept of a run."""
    return sum(map(math.prod, kept_shapes(controller, sizes, layout, memories)))


def _kept_memories(T: int, keep: bool) -> int:
    return -(-T // STRIDE) if keep else 0


def _heads_state(sizes: Sequence[int], layout: Sequence[int]) -> int:
    """Numbers of one sequence's memory, weightings and reads."""
    *_, N, M = sizes
    R, W = layout[:2]
    return N * M + (R + W) * N + R * M


def _start_gradients(ctx: Any, place: int, dstart: Tensor) -> tuple[Tensor | None, ...]:
    """Of memory, weightings, reads and, if there are, hidden and cell before the first step.

    Args:
        ctx: Of an operator of which they are the arguments from `place` on.
        place: See there.
        dstart: All of them, one after the other.

    """
    B, _, L, _, H, N, M = ctx.sizes
    R, W = ctx.layout[:2]
    shapes = [(B, M, N), (B, R + W, N), (B, R, M)]
    if dstart.shape[0] > B * _heads_state(ctx.sizes, ctx.layout):
        shapes += [(L, B, H)] * 2
    if not any(ctx.needs_input_grad[place : place + len(shapes)]):
        return (None,) * len(shapes)
    parts = dstart.split([a * b * c for a, b, c in shapes])
    memory, *others = (part.view(shape) for part, shape in zip(parts, shapes, strict=True))
    return memory.transpose(1, 2), *others


def _emit_gradients(draw: Tensor, hidden: Tensor) -> tuple[Tensor, Tensor]:
    """Of the weight and the bias that make emissions of the controller's output, (T · B, H)."""
    flat = draw.flatten(0, 1)
    return torch.mm(flat.t(), hidden), flat.sum(0)


def _codes(layout: Layout) -> list[int]:
    R, W, S, key_activation, add_activation, read_first = layout
    codes = [ACTIVATIONS[key_activation], ACTIVATIONS[add_activation]]
    return [R, W, 2 * S + 1, *codes, int(read_first)]


def load(controller: str, dtype: torch.dtype) -> Kernels:
    """What `kernels` has for a controller in a precision; loads or compiles it the first time."""
    return kernels(controller, PRECISIONS[dtype])


def _kernels(controller: str, like: Tensor) -> Kernels:
    return load(controller, like.dtype)
