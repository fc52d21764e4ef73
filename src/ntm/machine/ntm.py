"""The Neural Turing Machine (G14 section 3): a controller, a memory, and heads between them."""

from __future__ import annotations

import logging
import shutil
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from functools import cache, partial
from importlib.util import find_spec
from typing import Any, NamedTuple, cast
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.utils._pytree import _register_namedtuple
from torch.utils.checkpoint import checkpoint

from ntm.checks import check_at_least, check_choice, check_inputs, no_tensor
from ntm.kernels.engines import FUSED, not_there
from ntm.kernels.watching import kept_elsewhere, transformed, watched
from ntm.machine.addressing import NORM_FLOOR, address
from ntm.machine.controllers import (
    FeedforwardController,
    LSTMController,
    adapt,
    hooked,
    is_patched,
    is_plainly,
    learned_vector,
)
from ntm.machine.heads import ACTIVATIONS, Emissions, HeadLayout, decode
from ntm.machine.memory import (
    INITIAL_MEMORIES,
    INITIAL_WEIGHTINGS,
    ConstantMemory,
    FirstLocation,
    Uniform,
    read,
    write,
)

ENGINES = ("auto", "reference", "compiled", "fused")
logger = logging.getLogger("ntm")


class NTMState(NamedTuple):
    """Everything the machine carries from one time step to the next."""

    memory: Tensor
    """M_t, (B, N, M)."""
    weightings: Tensor
    """w_t of every head, read heads first, (B, R+W, N)."""
    reads: Tensor
    """r_t, (B, R, M)."""
    controller: Any
    """The controller's own state."""


# So that it is saved with an exported program, and loaded where only data may be.
_register_namedtuple(NTMState, serialized_type_name="ntm.NTMState")
torch.serialization.add_safe_globals([NTMState])


class Trace(NamedTuple):
    """What the machine did at every step, for looking at it."""

    logits: Tensor
    """(T, B, O)."""
    memory: Tensor
    """After each step, (T, B, N, M)."""
    read_weightings: Tensor
    """(T, B, R, N)."""
    write_weightings: Tensor
    """(T, B, W, N)."""
    reads: Tensor
    """(T, B, R, M)."""
    erases: Tensor
    """(T, B, W, M)."""
    adds: Tensor
    """(T, B, W, M)."""


class Steps(NamedTuple):
    """What all steps of the time loop came to."""

    outputs: Tensor
    """Of the controller, (T, B, H)."""
    reads: Tensor
    """(T, B, R·M)."""
    raw: Tensor | None
    """Emissions, (T, B, P), P being `HeadLayout.size`; None where they were not asked for."""
    state: NTMState
    """After the last step."""


Weights = tuple[Tensor, ...]
"""Of a layer, in the order in which torch has them."""
Step = Callable[[Tensor, HeadLayout, NTMState], tuple[Tensor, Tensor, Tensor]]
"""Maps raw emissions (B, layout.size) and a state to the new memory, weightings and reads."""


def memory_step(raw: Tensor, layout: HeadLayout, state: NTMState) -> tuple[Tensor, Tensor, Tensor]:
    """Decode, address, read and write once."""
    # Sharp weightings do not survive 8 bits of mantissa: all of it in memory's precision.
    device = raw.device.type
    lowered = device != "meta" and torch.is_autocast_enabled(device)
    with torch.autocast(device, enabled=False) if lowered else nullcontext():
        emissions = decode(raw.to(state.memory.dtype), layout)
        return _obey(emissions, layout, state)


def _obey(
    emissions: Emissions, layout: HeadLayout, state: NTMState
) -> tuple[Tensor, Tensor, Tensor]:
    R = layout.num_read_heads
    memory = state.memory
    addressing = emissions[:5]
    if layout.read_first:
        weightings = address(memory, state.weightings, *addressing)
        reads = read(memory, weightings[:, :R])
        memory = write(memory, weightings[:, R:], emissions.erase, emissions.add)
        return memory, weightings, reads
    writing = address(memory, state.weightings[:, R:], *(part[:, R:] for part in addressing))
    memory = write(memory, writing, emissions.erase, emissions.add)
    reading = address(memory, state.weightings[:, :R], *(part[:, :R] for part in addressing))
    return memory, torch.cat([reading, writing], dim=1), read(memory, reading)


def reference_loop(
    controller: Callable[[Tensor, Any], tuple[Tensor, Any]],
    emit: Callable[[Tensor], Tensor],
    layout: HeadLayout,
    inputs: Tensor,
    state: NTMState,
    step: Step = memory_step,
    emissions: bool = False,
) -> Steps:
    """The definition of the machine: one plain step after the other.

    Every engine maps inputs and state to the same outputs, final state and gradients.

    Args:
        controller: Maps ((B, I + R·M), state) to ((B, H), state).
        emit: Maps the controller's output (B, H) to the raw emissions (B, layout.size).
        layout: What the emissions mean.
        inputs: (T, B, I), T at least 1.
        state: Before the first step.
        step: What the memory does in a step; by definition `memory_step`.
        emissions: Whether those are asked for.

    Returns:
        What all steps came to.

    """
    steps = reference_steps(controller, emit, layout, inputs, state, step)
    return _gathered(steps, emissions)


def _gathered(steps: Iterable[tuple[Tensor, NTMState, Tensor]], emissions: bool) -> Steps:
    outputs, reads, raws = [], [], []
    for output, state, raw in steps:
        outputs.append(output)
        reads.append(state.reads.flatten(1))
        if emissions:
            raws.append(raw)
    emitted = torch.stack(raws) if emissions else None
    return Steps(torch.stack(outputs), torch.stack(reads), emitted, state)


def reference_steps(
    controller: Callable[[Tensor, Any], tuple[Tensor, Any]],
    emit: Callable[[Tensor], Tensor],
    layout: HeadLayout,
    inputs: Tensor,
    state: NTMState,
    step: Step = memory_step,
) -> Iterator[tuple[Tensor, NTMState, Tensor]]:
    """Yield the controller's output, the state and the raw emissions after every step."""
    for x in inputs:
        seen = torch.cat([x, state.reads.flatten(1).to(x.dtype)], dim=-1)
        output, controller_state = controller(seen, state.controller)
        raw = emit(output)
        memory, weightings, reads = step(raw, layout, state)
        state = NTMState(memory, weightings, reads, controller_state)
        yield output, state, raw


_STARTS: WeakKeyDictionary[nn.Module, tuple[Any, NTMState]] = WeakKeyDictionary()
"""The initial state that a network used last, and what it is for."""


class NTM(nn.Module):
    """A Neural Turing Machine with the calling convention of ``torch.nn.LSTM``.

    At each step the controller sees the input and the last reads; from its output the heads take
    their orders, address the memory, read it and write it; the logits are a linear map of the
    controller's output and the new reads. Nothing of a sequence stays on the module, and the
    sequences of a batch do not touch one another. Symbols as in the legend of `ntm`.

    Args:
        input_size: I, width of the inputs.
        output_size: O, width of the logits.
        memory_size: N, locations in memory, at least 1.
        word_size: M, elements of a location, at least 1.
        num_read_heads: R, at least 1.
        num_write_heads: W, at least 1.
        shift_range: S, heads may shift by −S … S; 2S + 1 ≤ N.
        controller: A module that accepts inputs of width `controller_input_size`, or a function
            that makes one when called with ``input_size=…``.
        initial_memory: ``constant`` (1e-6), ``random`` (fixed) or ``learned``.
        initial_weighting: ``first_location``, ``uniform`` or ``learned``.
        initial_reads: ``zeros`` or ``learned``.
        key_activation: What keys pass through: ``identity, tanh, sigmoid, relu``.
        add_activation: What add vectors pass through, likewise.
        read_first: Read before writing within a step (default), or after. G14 does not say.
        batch_first: Inputs and logits are (B, T, ·) instead of (T, B, ·). The state is not
            affected.
        engine: What runs the time loop: ``reference``, the plain one and the definition;
            ``fused``, compiled functions for the CPU, several times faster, and kernels for CUDA;
            ``compiled``, `torch.compile` of a step; ``auto``, fused where it can run
            (`ntm.kernels.engines`), else the reference. All give the same outputs and gradients up
            to rounding.
        segment: Steps after which only the state is kept for the backward pass, which runs the
            steps between again: less memory for long sequences, more time. None keeps all.

    Inputs:
        inputs: (T, B, I), T at least 1.
        state: An `NTMState`, or any tuple of its parts; absent, the sequences start afresh.

    Outputs:
        logits: (T, B, O).
        state: After the last step; pass it in again to go on.

    Raises:
        ValueError: A size or name is out of range; the message begins with the argument's name.

    Example:
        >>> net = NTM(input_size=9, output_size=8)
        >>> logits, state = net(torch.zeros(5, 2, 9))
        >>> logits.shape, state.memory.shape
        (torch.Size([5, 2, 8]), torch.Size([2, 128, 20]))

    """

    def __init__(
        self,
        input_size: int,
        output_size: int,
        memory_size: int = 128,
        word_size: int = 20,
        num_read_heads: int = 1,
        num_write_heads: int = 1,
        shift_range: int = 1,
        controller: nn.Module | Callable[..., nn.Module] = LSTMController,
        initial_memory: str = "constant",
        initial_weighting: str = "first_location",
        initial_reads: str = "zeros",
        key_activation: str = "tanh",
        add_activation: str = "tanh",
        read_first: bool = True,
        batch_first: bool = False,
        engine: str = "auto",
        segment: int | None = None,
    ) -> None:
        super().__init__()
        for name in ("input_size", "output_size", "memory_size", "word_size"):
            check_at_least(name, locals()[name], 1)
        for name in ("num_read_heads", "num_write_heads"):
            check_at_least(name, locals()[name], 1)
        check_at_least("shift_range", shift_range, 0)
        check_shifts_fit(shift_range, memory_size)
        check_choice("initial_memory", initial_memory, INITIAL_MEMORIES)
        check_choice("initial_weighting", initial_weighting, INITIAL_WEIGHTINGS)
        check_choice("initial_reads", initial_reads, ("zeros", "learned"))
        check_choice("key_activation", key_activation, ACTIVATIONS)
        check_choice("add_activation", add_activation, ACTIVATIONS)
        check_choice("engine", engine, ENGINES)
        if segment is not None:
            check_at_least("segment", segment, 1)

        if initial_memory == "constant" and initial_weighting == "uniform":
            warnings.warn(
                "constant memory under a uniform initial weighting never learns to use the memory: "
                "every location is alike, and nothing breaks the tie. Use "
                "initial_weighting='first_location' or initial_memory='random'",
                stacklevel=2,
            )
        self.input_size = input_size
        self.output_size = output_size
        self.memory_size = memory_size
        self.batch_first = batch_first
        self.engine = engine
        self._announced: str | None = None
        self.segment = segment
        self.layout = HeadLayout(
            word_size,
            num_read_heads,
            num_write_heads,
            shift_range,
            key_activation,
            add_activation,
            read_first,
        )
        width = self.controller_input_size(input_size, word_size, num_read_heads)
        self.controller = adapt(_made(controller, width), width)
        hidden_size = self.controller.output_size
        self.emit = nn.Linear(hidden_size, self.layout.size)
        # Larger than torch's own start: the heads tell locations apart sooner (docs/recipe.md).
        nn.init.xavier_uniform_(self.emit.weight)
        nn.init.zeros_(self.emit.bias)
        self.output = nn.Linear(hidden_size + num_read_heads * word_size, output_size)
        self.initial_memory = INITIAL_MEMORIES[initial_memory](memory_size, word_size)
        self.initial_weighting = INITIAL_WEIGHTINGS[initial_weighting](
            self.layout.num_heads, memory_size
        )
        self.initial_reads = (
            learned_vector(num_read_heads, word_size) if initial_reads == "learned" else None
        )

    @staticmethod
    def controller_input_size(input_size: int, word_size: int = 20, num_read_heads: int = 1) -> int:
        """Width of what the controller sees at each step: the input and the last reads."""
        return input_size + num_read_heads * word_size

    @property
    def _weight(self) -> Tensor:
        """A weight of the heads, for its precision and device; they may be a module of a user's."""
        weight = getattr(self.emit, "weight", None)
        return weight if isinstance(weight, Tensor) else next(self.parameters(), torch.empty(0))

    def initial_state(self, batch_size: int) -> NTMState:
        """The state before the first step of ``batch_size`` sequences."""
        like = _precise(self._weight)
        N, R, M = self.memory_size, self.layout.num_read_heads, self.layout.word_size
        learned = self.initial_reads
        reads = like.new_zeros(R, M) if learned is None else learned.to(like)
        return NTMState(
            memory=self.initial_memory(N, like).expand(batch_size, -1, -1),
            weightings=self.initial_weighting(N, like).expand(batch_size, -1, -1),
            reads=reads.expand(batch_size, -1, -1),
            controller=self.controller.initial_state(batch_size),
        )

    def _start(self, batch_size: int, weight: Tensor) -> NTMState:
        """`initial_state`, not to be written to: made once where it is always the same.

        Making it takes as long as the memory's arithmetic of ten steps.
        """
        controller: Any = self.controller
        # On the CPU alone: elsewhere a CUDA graph may be made of it.
        if watched() or not weight.is_cpu or not self._starts_alike(controller):
            return self.initial_state(batch_size)
        key = (
            batch_size, self.memory_size, weight.dtype, type(self.initial_weighting),
            id(controller), len(controller.layers), controller.output_size,
        )  # fmt: skip
        kept, state = _STARTS.get(self, (None, None))
        if state is None or kept != key:
            with torch.inference_mode(False):  # what inference mode makes is of no use in training
                state = self.initial_state(batch_size)
            _STARTS[self] = key, state
        return state

    def _starts_alike(self, controller: nn.Module) -> bool:
        """Whether nothing in the initial state is learned, drawn, or made by a user's module."""
        return (
            type(self.initial_memory) is ConstantMemory
            and type(self.initial_weighting) in (FirstLocation, Uniform)
            and self.initial_reads is None
            and (
                type(controller) is FeedforwardController
                or (type(controller) is LSTMController and controller.initial_hidden is None)
            )
        )

    def forward(self, inputs: Tensor, state: NTMState | None = None) -> tuple[Tensor, NTMState]:
        """Run over whole sequences; see the class for shapes."""
        steps = self._run(*self._enter(inputs, state))
        return self._leave(self._logits(steps.outputs, steps.reads)), steps.state

    def with_emissions(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of sequences that start afresh, and every step's raw emissions, (T, B, P).

        P is ``layout.size``; `HeadLayout` says what stands where. They may belong to the backward
        pass: do not write to them.
        """
        steps = self._run(*self._enter(inputs, None), emissions=True)
        return self._leave(self._logits(steps.outputs, steps.reads)), cast(Tensor, steps.raw)

    def _run(self, inputs: Tensor, state: NTMState, emissions: bool = False) -> Steps:
        engine = self.engine_for(inputs.device, inputs.dtype)
        if engine == "fused" and transformed():
            if self.engine == "fused":
                raise _cannot("fused", "it has no derivatives for torch.func and forward mode")
            engine = "reference"
        elif self.engine == "auto" and engine != self._announced:
            self._announce(engine, inputs)
        loop = getattr(self, f"_{engine}_loop")
        if self.segment is None or not torch.is_grad_enabled():
            return loop(inputs, state, emissions)
        return _in_segments(loop, inputs, state, self.segment, emissions)

    def engine_for(self, device: torch.device | str, dtype: torch.dtype) -> str:
        """The engine that runs the time loop on a device, in a precision.

        Raises:
            ValueError: One was asked for that cannot run there; the message says why.

        """
        if self.engine == "reference":
            return self.engine
        device = torch.device(device).type
        if self.engine == "auto":
            return "reference" if self._not_by_itself(device, dtype) else "fused"
        fused = self.engine == "fused"
        hindrance = self._not_fused(device, dtype) if fused else _not_compiled(device)
        if hindrance is not None:
            raise _cannot(self.engine, hindrance)
        return self.engine

    def is_fast_on(self, device: str, dtype: torch.dtype) -> bool:
        """Whether the fused engine is what runs on a device."""
        try:
            return self.engine_for(device, dtype) == "fused"
        except ValueError:
            return False

    def load_engine(self, device: torch.device | str, dtype: torch.dtype) -> None:
        """Load the CPU's fused engine where it is what runs; the first call would, or compile it.

        Raises:
            ValueError: As `engine_for`.

        """
        if self.engine_for(device, dtype) != "fused" or torch.device(device).type != "cpu":
            return
        kinds = {LSTMController: "lstm", FeedforwardController: "feedforward"}
        step_by_step = isinstance(self._whole_loop(), str)
        _fused().load("any" if step_by_step else kinds[type(self.controller)], dtype)

    def _announce(self, engine: str, inputs: Tensor) -> None:
        """Say once which engine was picked, and why."""
        self._announced = engine
        why = self._not_by_itself(inputs.device.type, inputs.dtype) or self._fused_unit()
        logger.info("engine auto: %s, %s", engine, why)

    def _not_by_itself(self, device: str, dtype: torch.dtype) -> str | None:
        """Why the fused engine is not taken where none is named; None if it is."""
        why = self._not_fused(device, dtype)
        if why is None and not FUSED[device].has_run:
            return f"fused has never run on {device}; engine=fused takes it all the same"
        return why

    def _not_fused(self, device: str, dtype: torch.dtype) -> str | None:
        """Why the fused engine does not apply; None if it does."""
        why = not_there(device, dtype)
        too_much = None if why else FUSED[device].too_much
        if too_much is None:
            return why
        loop, controller = self._whole_loop(), cast(LSTMController, self.controller)
        if isinstance(loop, str):
            return f"fused runs whole sequences alone on {device}: {loop}"
        M, R, W, S, *_ = self.layout
        layers, H = len(controller.layers), controller.output_size
        why = too_much(layers, H, self.memory_size, M, R, W, 2 * S + 1)
        return None if why is None else f"fused on {device} {why}"

    def _fused_unit(self) -> str:
        """How much of the loop is one compiled function."""
        loop = self._whole_loop()
        return f"step by step: {loop}" if isinstance(loop, str) else "whole sequences at once"

    def _whole_loop(self) -> Callable[..., Steps] | str:
        """What runs whole sequences in one compiled function, or why nothing does."""
        controller: Any = self.controller
        kind: type[nn.Module]
        if type(controller) is LSTMController:
            loop, kind = self._whole_lstm_loop, nn.LSTMCell
        elif type(controller) is FeedforwardController:
            if controller.activation not in ACTIVATIONS:
                return "the controller's activation is a function of its own"
            loop, kind = self._whole_feedforward_loop, nn.Linear
        else:
            return "the controller is a module of its own"
        # Taken once: a module's way to a part of it is long, and this is done for every batch.
        layers, dropout, emit = controller.layers, controller.dropout, self.emit
        if type(dropout) is not nn.Dropout:
            return "the controller's dropout is a module of its own"
        if dropout.p > 0 and self.training:
            return "the controller drops out"
        emit_weights = self._plain_emissions(emit, controller.output_size)
        if emit_weights is None:
            return "the emissions are a module of their own"
        if not all(is_plainly(kind, layer) for layer in layers):
            return "a layer of the controller is a module of its own"
        if is_patched(controller):
            return "the controller's own way to be called was replaced"
        if hooked(emit, controller, dropout, *layers):
            return "hooks wait for the controller or the emissions to be called"
        width = self.controller_input_size(self.input_size, *self.layout[:2])
        weights = [_WEIGHTS[kind](layer) for layer in layers]
        if not _fit(weights, kind, controller.output_size, width):
            return "a layer of the controller has another shape, or no bias"
        return partial(loop, weights, emit_weights)

    def _reference_loop(self, inputs: Tensor, state: NTMState, emissions: bool) -> Steps:
        return reference_loop(
            self.controller, self._emit, self.layout, inputs, state, emissions=emissions
        )

    def _compiled_loop(self, inputs: Tensor, state: NTMState, emissions: bool) -> Steps:
        step = _compiled_step(inputs.device.type)

        def steps() -> Iterator[tuple[Tensor, NTMState, Tensor]]:
            now = state
            for x in inputs:
                output, now, raw = step(self.controller, self._emit, self.layout, x, now)
                yield output, now, raw

        return _gathered(steps(), emissions)

    def _fused_loop(self, inputs: Tensor, state: NTMState, emissions: bool) -> Steps:
        loop = self._whole_loop()
        if not isinstance(loop, str):
            return loop(inputs, state, emissions)
        if torch.is_grad_enabled() and self._may_tape(inputs, state):
            return self._taped_loop(inputs, state, emissions)
        return reference_loop(
            self.controller, self._emit, self.layout, inputs, state, _fused_step, emissions
        )

    def _may_tape(self, inputs: Tensor, state: NTMState) -> bool:
        """Whether nobody is to see the single steps, or to keep what they save."""
        emit = self._plain_emissions(self.emit, self.controller.output_size)
        if emit is None or hooked(self.emit) or watched() or kept_elsewhere():
            return False
        return _fused().plain((inputs, *emit, *state[:3]))

    def _plain_emissions(self, emit: Any, H: int) -> Weights | None:
        """Weight and bias of the emissions; None if they are made otherwise than by a layer."""
        if not is_plainly(nn.Linear, emit):
            return None
        weight, bias = emit.weight, emit.bias
        return None if bias is None or weight.shape != (self.layout.size, H) else (weight, bias)

    def _taped_loop(self, inputs: Tensor, state: NTMState, emissions: bool) -> Steps:
        """The fused step inside the plain loop, for training."""
        emit, start = (self.emit.weight, self.emit.bias), state[:2]
        tape = _fused().Tape(inputs, emit, *start, self.layout[1:], NORM_FLOOR)
        xs = inputs.unbind()
        seen = torch.cat([xs[0], state.reads.flatten(1)], dim=-1)
        own = state.controller
        passing: Any = *emit, *start
        for t, x in enumerate((*xs[1:], xs[-1])):
            output, own = self.controller(seen, own)
            seen, passing = tape.step(t, x, output, passing)
        outputs, reads, raw, memory, weightings = passing
        last = reads[-1].view(state.reads.shape)
        after = NTMState(memory.transpose(1, 2), weightings, last, own)
        return Steps(outputs, reads, raw if emissions else None, after)

    def _whole_lstm_loop(
        self, layers: list[Weights], emit: Weights, inputs: Tensor, state: NTMState, emissions: bool
    ) -> Steps:
        outputs, reads, raw, after = _fused().lstm_loop(
            inputs,
            layers,
            emit,
            (*state[:3], *state.controller),
            self.layout[1:],
            NORM_FLOOR,
        )
        memory, weightings, last_reads, *passing = after
        state = NTMState(memory, weightings, last_reads, tuple(passing))
        return Steps(outputs, reads, raw if emissions else None, state)

    def _whole_feedforward_loop(
        self, layers: list[Weights], emit: Weights, inputs: Tensor, state: NTMState, emissions: bool
    ) -> Steps:
        outputs, reads, raw, after = _fused().feedforward_loop(
            inputs,
            layers,
            cast(FeedforwardController, self.controller).activation,
            emit,
            state[:3],
            self.layout[1:],
            NORM_FLOOR,
        )
        memory, weightings, last_reads = after
        state = NTMState(memory, weightings, last_reads, None)
        return Steps(outputs, reads, raw if emissions else None, state)

    @torch.no_grad()
    def trace(self, inputs: Tensor, state: NTMState | None = None) -> Trace:
        """What happens inside while the machine runs over ``inputs``; always time-major."""
        inputs, state = self._enter(inputs, state)
        R = self.layout.num_read_heads
        steps = list(reference_steps(self.controller, self._emit, self.layout, inputs, state))
        emissions = [decode(raw.to(inputs.dtype), self.layout) for _, _, raw in steps]
        hidden = torch.stack([output for output, _, _ in steps])
        reads = torch.stack([state.reads for _, state, _ in steps])
        return Trace(
            logits=self._logits(hidden, reads.flatten(2)),
            memory=torch.stack([state.memory for _, state, _ in steps]),
            read_weightings=torch.stack([state.weightings[:, :R] for _, state, _ in steps]),
            write_weightings=torch.stack([state.weightings[:, R:] for _, state, _ in steps]),
            reads=reads,
            erases=torch.stack([part.erase for part in emissions]),
            adds=torch.stack([part.add for part in emissions]),
        )

    def resize_memory(self, memory_size: int) -> None:
        """Give the machine another number of locations; no weight changes.

        Raises:
            ValueError: A scheme is learned per location, or the shifts no longer fit.

        """
        check_at_least("memory_size", memory_size, 1)
        check_shifts_fit(self.layout.shift_range, memory_size)
        if memory_size != self.memory_size:
            for name in ("initial_memory", "initial_weighting"):
                if any(True for _ in getattr(self, name).parameters()):
                    raise ValueError(
                        f"memory_size is fixed at {self.memory_size}: {name}=learned holds one "
                        f"trained value a location, got {memory_size}"
                    )
        self.memory_size = memory_size

    def _enter(self, inputs: Tensor, state: NTMState | None) -> tuple[Tensor, NTMState]:
        """Check the inputs, make them time-major, and begin where ``state`` says."""
        if not isinstance(inputs, Tensor):
            raise no_tensor(inputs)
        device, weight = inputs.device.type, self._weight
        lowered = device != "meta" and torch.is_autocast_enabled(device)
        own = inputs.dtype if lowered else weight.dtype
        check_inputs(inputs.shape, self.input_size, self.batch_first, inputs.dtype, own)
        if self.batch_first:
            inputs = inputs.transpose(0, 1)
        if state is None:
            return inputs, self._start(inputs.shape[1], weight)
        state = _as_state(state)
        self._check_state(state, inputs.shape[1], weight)
        return inputs, state

    def _check_state(self, state: NTMState, B: int, weight: Tensor) -> None:
        """Refuse another machine's state: compiled functions would not notice."""
        layout = self.layout
        K, R, M = layout.num_heads, layout.num_read_heads, layout.word_size
        precision = _precise(weight).dtype
        _check_part("memory", state.memory, "(B, N, M)", (B, self.memory_size, M), precision)
        _check_part(
            "weightings", state.weightings, "(B, R+W, N)", (B, K, self.memory_size), precision
        )
        _check_part("reads", state.reads, "(B, R, M)", (B, R, M), precision)
        if isinstance(self.controller, LSTMController):
            shape = len(self.controller.layers), B, self.controller.output_size
            lowered = torch.is_autocast_enabled(weight.device.type)
            for name, part in zip(("hidden", "cell"), state.controller, strict=True):
                own = part.dtype if lowered else weight.dtype
                _check_part(f"controller's {name}", part, "(layers, B, H)", shape, own)

    def _emit(self, output: Tensor) -> Tensor:
        """Raw emissions, in the weights' precision even where autocast lowers the controller's."""
        return self.emit(output.to(self._weight.dtype))

    def _logits(self, hidden: Tensor, reads: Tensor) -> Tensor:
        return self.output(torch.cat([hidden, reads.to(hidden.dtype)], dim=-1))

    def _leave(self, logits: Tensor) -> Tensor:
        """Logits as the caller's inputs lay."""
        return logits.transpose(0, 1) if self.batch_first else logits


def _as_state(state: Any) -> NTMState:
    if isinstance(state, NTMState):
        return state
    if not isinstance(state, (tuple, list)) or len(state) != len(NTMState._fields):
        size = f" of {len(state)}" if isinstance(state, (tuple, list)) else ""
        raise ValueError(
            f"state must be an NTMState or a tuple ({', '.join(NTMState._fields)}), got "
            f"{type(state).__name__}{size}"
        )
    return NTMState(*state)


def _precise(weight: Tensor) -> Tensor:
    """Something in the precision of memory, weightings and reads: sharp weightings need it."""
    enough = weight.dtype in (torch.float32, torch.float64)
    return weight if enough else weight.new_empty(0, dtype=torch.float32)


def _check_part(
    name: str, part: Tensor, letters: str, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    if tuple(part.shape) != shape:
        raise ValueError(f"state's {name} must be {letters} = {shape}, got {tuple(part.shape)}")
    if part.dtype != dtype:
        raise ValueError(f"state's {name} must be in {dtype}, got {part.dtype}")


def _lstm_weights(cell: Any) -> Weights:
    return cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh


def _linear_weights(layer: Any) -> Weights:
    return layer.weight, layer.bias


_WEIGHTS: dict[type[nn.Module], Callable[[Any], Weights]] = {
    nn.LSTMCell: _lstm_weights,
    nn.Linear: _linear_weights,
}


def _fit(layers: list[Weights], kind: type[nn.Module], H: int, width: int) -> bool:
    """Whether they are the weights of plain layers, one on top of the other."""
    G = 4 * H
    for layer in layers:
        lstm = (G, width), (G, H), (G,), (G,)
        linear = (H, width), (H,)
        for part, shape in zip(layer, lstm if kind is nn.LSTMCell else linear, strict=True):
            if part is None or part.shape != shape or part.layout is not torch.strided:
                return False
        width = H
    return len(layers) > 0


def _in_segments(
    loop: Callable[..., Steps], inputs: Tensor, state: NTMState, segment: int, emissions: bool
) -> Steps:
    """Run a loop so that its backward pass needs the inside of one segment at a time."""
    parts = []
    for part in inputs.split(segment):
        parts.append(checkpoint(loop, part, state, emissions, use_reentrant=False))
        state = parts[-1].state
    outputs, reads, raws, _ = zip(*parts, strict=True)
    raw = torch.cat(raws) if emissions else None
    return Steps(torch.cat(outputs), torch.cat(reads), raw, state)


def _fused() -> Any:
    """The compiled machine; only those who use it load Numba."""
    from ntm.kernels import fused

    return fused


def _fused_step(raw: Tensor, layout: HeadLayout, state: NTMState) -> tuple[Tensor, Tensor, Tensor]:
    if raw.shape[-1] != layout.size:  # the compiled function would not notice
        raise RuntimeError(f"emissions must be {layout.size} wide, got {raw.shape[-1]}")
    return _fused().memory_step(raw, state.memory, state.weightings, layout[1:], NORM_FLOOR)


@cache
def _compiled_step(device: str) -> Callable[..., tuple[Tensor, NTMState, Tensor]]:
    """One step of the reference loop under `torch.compile`; on a GPU with CUDA graphs."""

    def step(
        controller: Callable[[Tensor, Any], tuple[Tensor, Any]],
        emit: Callable[[Tensor], Tensor],
        layout: HeadLayout,
        x: Tensor,
        state: NTMState,
    ) -> tuple[Tensor, NTMState, Tensor]:
        return next(reference_steps(controller, emit, layout, x.unsqueeze(0), state))

    return torch.compile(step, mode="reduce-overhead" if device == "cuda" else None)


def _cannot(engine: str, why: str) -> ValueError:
    return ValueError(f"engine {engine} cannot run: {why}; use auto or reference")


def _not_compiled(device: str) -> str | None:
    """Why the compiled engine does not apply; None if it does."""
    if device == "cpu" and not any(map(shutil.which, ("c++", "g++", "clang++", "cl"))):
        return "compiled needs a C++ compiler on the CPU, and there is none"
    if device == "cuda" and find_spec("triton") is None:
        return "compiled needs Triton on a GPU, and it is not installed"
    if device not in ("cpu", "cuda"):
        return f"compiled is for the CPU and CUDA, got {device}"
    return None


def check_shifts_fit(shift_range: int, memory_size: int) -> None:
    """Refuse shifts that would reach a location twice on the ring."""
    if 2 * shift_range + 1 > memory_size:
        raise ValueError(
            f"shift_range must satisfy 2·shift_range + 1 ≤ memory_size = {memory_size}, "
            f"got {shift_range}"
        )


def _made(controller: nn.Module | Callable[..., nn.Module], input_size: int) -> nn.Module:
    if isinstance(controller, nn.Module):
        return controller
    try:
        return controller(input_size=input_size)
    except ValueError as error:
        raise ValueError(f"controller.{error}") from error
