"""The fused engine against the reference loop: outputs, final state and every gradient."""

from __future__ import annotations

import functools
import gc
import itertools
import os
import random
import subprocess
import sys
import weakref

import numba
import pytest
import torch
from comparing import (
    CONTROLLERS,
    OUT,
    WHOLE,
    assert_double_agrees,
    assert_same_bits,
    assert_single_agrees,
    error,
    machine,
    outcome,
    parts_of,
    random_inputs,
)
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.nn import functional as F

from ntm.kernels import calling, compiling, fused
from ntm.kernels.compiling import kernels
from ntm.kernels.conventions import DENSE
from ntm.machine import NTM, FeedforwardController, LSTMController, NTMState
from ntm.machine.addressing import NORM_FLOOR
from ntm.machine.heads import HeadLayout
from ntm.machine.memory import Uniform
from ntm.machine.ntm import memory_step

EVERY_CONTROLLER = pytest.mark.parametrize("controller", CONTROLLERS)
ONE_OF_A_KIND = pytest.mark.parametrize("controller", ["lstm", "feedforward x3", "own"])
ORDER = pytest.mark.parametrize("read_first", [True, False], ids=["read first", "write first"])
ACTIVATIONS = ["identity", "tanh", "sigmoid", "relu"]
SMALL = (7, 3, 2, 2, 1, 6, 3)


def drawn(count: int, seed: str) -> list[tuple[int, ...]]:
    """Odd sizes N, M, R, W, S, T, B; every value of each comes up about equally often."""
    draw = random.Random(seed)

    def turns(*values: int) -> list[int]:
        each = [values[i % len(values)] for i in range(count)]
        draw.shuffle(each)
        return each

    sizes = zip(
        turns(1, 2, 7, 128, 131), turns(1, 3, 20), turns(1, 2, 3), turns(1, 2, 3),
        turns(0, 1, 2, 3), turns(1, 2, 21), turns(1, 3, 8), strict=True,
    )  # fmt: skip
    return [(N, M, R, W, min(S, (N - 1) // 2), T, B) for N, M, R, W, S, T, B in sizes]


def cases(count: int, salt: str = "") -> list[tuple[str, tuple[int, ...], bool]]:
    """For every controller so many sizes, half of them with each order of reading."""
    return [
        (controller, sizes, turn % 2 == 0)
        for controller in CONTROLLERS
        for turn, sizes in enumerate(drawn(count, controller + salt))
    ]


# Agreement


@pytest.mark.parametrize(("controller", "sizes", "read_first"), cases(10), ids=str)
def test_double_precision_agrees(controller, sizes, read_first):
    net = machine(sizes, controller, read_first=read_first).double()
    assert_double_agrees(net, random_inputs(sizes))


@pytest.mark.parametrize(("controller", "sizes", "read_first"), cases(10), ids=str)
def test_single_precision_is_as_exact_as_the_reference(controller, sizes, read_first):
    net = machine(sizes, controller, read_first=read_first)
    assert_single_agrees(net, random_inputs(sizes))


MORE = pytest.mark.parametrize(
    "count",
    [pytest.param(40, marks=pytest.mark.slow), pytest.param(150, marks=pytest.mark.soak)],
)


@MORE
@EVERY_CONTROLLER
def test_more_of_the_grid_agrees(controller, count):
    for turn, sizes in enumerate(drawn(150, "more")[:count]):
        net = machine(sizes, controller, read_first=turn % 3 > 0).double()
        assert_double_agrees(net, random_inputs(sizes))


@MORE
@EVERY_CONTROLLER
def test_more_of_the_grid_agrees_in_single_precision(controller, count):
    for turn, sizes in enumerate(drawn(150, "more")[:count]):
        net = machine(sizes, controller, read_first=turn % 3 > 0)
        assert_single_agrees(net, random_inputs(sizes))


@pytest.mark.parametrize("locations", [7, 128, 131])
def test_locations_that_are_alike_get_the_same_weight_to_the_bit(locations):
    """Also those of the last vector, which is not full: sharpening would drive them apart."""
    raw = torch.randn(200, 12, generator=torch.Generator().manual_seed(0))
    raw[:, [0, 5]] += raw[:, [0, 5]].sign()  # keys longer than the least length
    words = torch.rand(200, locations, 1, generator=torch.Generator().manual_seed(1)) + 0.05
    before = torch.full((200, 2, locations), 1 / locations)
    layout = (1, 1, 0, "tanh", "tanh", True)
    # Words of one element and of one sign all have the same direction.
    _, weightings, _ = fused.memory_step(raw, words, before, layout, NORM_FLOOR)
    assert torch.equal(weightings, weightings[..., :1].expand_as(weightings))


@pytest.mark.parametrize(
    ("steps", "batch"), [(3, 4), (4, 5), (5, 1), (8, 9), (9, 4)], ids=str
)  # on either side of a kept memory, and of a block of sequences
@ONE_OF_A_KIND
def test_every_length_and_batch_size_agrees(controller, steps, batch):
    sizes = (7, 3, 1, 2, 1, steps, batch)
    assert_double_agrees(machine(sizes, controller).double(), random_inputs(sizes))


@pytest.mark.parametrize("hidden_size", [1, 8, 19])
@pytest.mark.parametrize("controller", WHOLE)
def test_every_hidden_size_agrees(controller, hidden_size):
    make = functools.partial(WHOLE[controller], hidden_size=hidden_size)
    assert_double_agrees(machine(SMALL, make).double(), random_inputs(SMALL))


@pytest.mark.parametrize(("key", "add"), list(itertools.product(ACTIVATIONS, ACTIVATIONS)))
@pytest.mark.parametrize("controller", ["lstm", "own"])
def test_activations_of_the_heads_agree(controller, key, add):
    net = machine(SMALL, controller, key_activation=key, add_activation=add).double()
    assert_double_agrees(net, random_inputs(SMALL))


@pytest.mark.parametrize("num_layers", [1, 3])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_of_the_feedforward_controller_agree(activation, num_layers):
    make = functools.partial(
        FeedforwardController, hidden_size=11, num_layers=num_layers, activation=activation
    )
    inputs = random_inputs(SMALL)
    net = machine(SMALL, make)
    if activation == "identity":  # nothing else keeps it from growing beyond all bounds
        with torch.no_grad():
            net.controller.layers[0].weight.mul_(0.3)
    assert_single_agrees(net, inputs)
    assert_double_agrees(net, inputs)


@pytest.mark.parametrize("memory", ["constant", "random"])
@pytest.mark.parametrize("weighting", ["first_location", "uniform"])
@ONE_OF_A_KIND
@pytest.mark.filterwarnings("ignore:constant memory under a uniform")
def test_fixed_initial_states_agree(controller, weighting, memory):
    fixed = {"initial_memory": memory, "initial_weighting": weighting, "initial_reads": "zeros"}
    net = machine(SMALL, controller, **fixed).double()
    assert_double_agrees(net, random_inputs(SMALL))


@ORDER
@EVERY_CONTROLLER
def test_a_masked_loss_of_the_logits_alone_agrees(controller, read_first):
    """No derivative comes in from the state, nor from the steps and sequences left out."""
    net = machine(SMALL, controller, read_first=read_first).double()
    inputs = random_inputs(SMALL)
    mask = torch.zeros(*inputs.shape[:2], 1, dtype=torch.float64)
    mask[3:, 0] = mask[4:, 1] = 1
    found = {}
    for engine in ("reference", "fused"):
        net.engine = engine
        net.zero_grad()
        logits, _ = net(inputs)
        targets = torch.linspace(0, 1, OUT, dtype=torch.float64).expand_as(logits)
        F.binary_cross_entropy_with_logits(
            logits, targets, weight=mask.expand_as(logits), reduction="sum"
        ).backward()
        found[engine] = {name: parameter.grad for name, parameter in net.named_parameters()}
    for name, truth in found["reference"].items():
        assert error(found["fused"][name], truth) <= 1e-10, name


@ONE_OF_A_KIND
def test_a_state_passed_on_goes_on_as_one_long_sequence_with_its_gradients(controller):
    sizes = (7, 3, 2, 1, 1, 9, 3)
    net = machine(sizes, controller).double()
    net.engine = "fused"
    inputs = random_inputs(sizes).requires_grad_()
    whole, end = net(inputs)
    first, state = net(inputs[:4])
    second, after = net(inputs[4:], state)
    parts = torch.cat([first, second])
    assert error(parts, whole) <= 1e-12
    for name, part in parts_of(after).items():
        assert error(part, parts_of(end)[name]) <= 1e-12, name
    leaves = (inputs, *net.parameters())
    by_whole = torch.autograd.grad(whole.square().sum(), leaves)
    by_parts = torch.autograd.grad(parts.square().sum(), leaves)
    for one, other in zip(by_parts, by_whole, strict=True):
        assert error(one, other) <= 1e-10


@ONE_OF_A_KIND
def test_the_gradient_of_a_given_state_agrees(controller):
    net = machine(SMALL, controller).double()
    found = {}
    for engine in ("reference", "fused"):
        net.engine = engine
        _, state = net(random_inputs(SMALL))
        given = [part.detach().requires_grad_() for part in state[:3]]
        logits, after = net(random_inputs(SMALL), state._replace(**dict(zip(
            state._fields, given, strict=False
        ))))  # fmt: skip
        total = logits.square().sum() + after.memory.square().sum() + after.reads.sum()
        found[engine] = torch.autograd.grad(total, given)
    for truth, value in zip(found["reference"], found["fused"], strict=True):
        assert error(value, truth) <= 1e-10


@ONE_OF_A_KIND
def test_a_graph_gone_through_in_parts_and_again_gives_the_same_gradients(controller):
    """Of steps in the middle, of all of them, of the first ones; of inputs and start alone."""
    sizes = (7, 3, 2, 1, 1, 9, 3)
    net = machine(sizes, controller).double()
    found = {}
    for engine in ("reference", "fused"):
        net.engine = engine
        inputs = random_inputs(sizes).requires_grad_()
        logits, end = net(inputs)
        totals = [logits[2:6], logits, logits[:1], end.memory, logits[2:6], end.weightings[0]]
        found[engine] = [
            torch.autograd.grad(part.square().sum(), leaves, retain_graph=True, allow_unused=True)
            for part in totals
            for leaves in ([inputs, *net.parameters()], [inputs], [net.initial_memory.value])
        ]
    for truths, values in zip(found["reference"], found["fused"], strict=True):
        for truth, value in zip(truths, values, strict=True):
            if truth is None:  # not reached; zeros are as good
                assert value is None or not value.any()
            else:
                assert error(value, truth) <= 1e-10


@pytest.mark.parametrize("segment", [None, 3], ids=["whole", "segments"])
@ONE_OF_A_KIND
def test_emissions_and_the_gradients_of_what_is_made_of_them(controller, segment):
    net = machine((7, 3, 2, 1, 1, 8, 3), controller).double()
    net.segment = segment
    found = {}
    for engine in ("reference", "fused"):
        net.engine = engine
        inputs = random_inputs((7, 3, 2, 1, 1, 8, 3)).requires_grad_()
        logits, raw = net.with_emissions(inputs)
        weighted = raw * torch.linspace(-1, 2, raw.numel(), dtype=raw.dtype).view(raw.shape)
        leaves = [inputs, *net.parameters()]
        totals = [weighted.sum(), weighted[2:4].sum(), weighted.sum() + logits.square().sum()]
        found[engine] = [
            raw,
            *(
                part
                for total in totals
                for part in torch.autograd.grad(
                    total, leaves, retain_graph=True, allow_unused=True, materialize_grads=True
                )
            ),
        ]
    assert any(part.any() for part in found["reference"])
    for truth, value in zip(found["reference"], found["fused"], strict=True):
        assert error(value, truth) <= 1e-10


@ONE_OF_A_KIND
def test_weights_changed_before_the_backward_pass_are_an_error(controller):
    net = machine(SMALL, controller)
    net.engine = "fused"
    logits, _ = net(random_inputs(SMALL, torch.float32))
    with torch.no_grad():
        net.emit.weight.add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        logits.sum().backward()


@pytest.mark.parametrize(
    "change",
    [lambda out: out[:, :2], lambda out: out[:, :1], lambda out: out[:1], lambda out: out.double()],
    ids=["narrower", "one wide", "one sequence", "another precision"],
)
@pytest.mark.parametrize("engine", ["reference", "fused"])
def test_an_output_of_another_kind_than_it_was_is_an_error(engine, change):
    net = machine(SMALL, "own")
    net.engine = engine
    net.controller.register_forward_hook(lambda _, __, given: (change(given[0]), given[1]))
    with pytest.raises(RuntimeError, match=r"shape|size|dtype|output must be"):
        net(random_inputs(SMALL, torch.float32))


@ONE_OF_A_KIND
def test_emissions_without_bias_are_those_of_the_reference(controller):
    net = machine(SMALL, controller)
    net.emit = torch.nn.Linear(net.emit.in_features, net.emit.out_features, bias=False)
    net.double()
    inputs = random_inputs(SMALL)
    for values, truths in zip(
        outcome(net, "fused", inputs), outcome(net, "reference", inputs), strict=True
    ):
        assert values.keys() == truths.keys()
        for name, truth in truths.items():
            assert error(values[name], truth) <= 1e-10, name


@pytest.mark.parametrize("grad", [True, False], ids=["training", "evaluation"])
@pytest.mark.parametrize("engine", ["reference", "fused"])
@pytest.mark.parametrize("wider", [-1, 1], ids=["narrower", "wider"])
@ONE_OF_A_KIND
def test_emissions_of_another_width_are_an_error(controller, wider, engine, grad):
    net = machine(SMALL, controller)
    net.engine = engine
    net.emit = torch.nn.Linear(net.emit.in_features, net.emit.out_features + wider)
    with torch.set_grad_enabled(grad), pytest.raises(RuntimeError):
        net(random_inputs(SMALL, torch.float32))


def test_a_backward_pass_that_ends_before_the_first_step_leaves_nothing(monkeypatch):
    made, tape = [], fused.Tape
    monkeypatch.setattr(fused, "Tape", lambda *args: made.append(tape(*args)) or made[0])
    net = machine(SMALL, "own").requires_grad_(False)
    net.engine = "fused"
    later = torch.zeros(()).requires_grad_()
    calls = itertools.count()
    net.controller.register_forward_hook(
        lambda _, __, given: (given[0] + later if next(calls) == 2 else given[0], given[1])
    )
    logits, _ = net(random_inputs(SMALL, torch.float32))
    logits.sum().backward()
    assert later.grad != 0
    assert not hasattr(made[0], "backward")


def test_nothing_of_a_sequence_is_left_once_it_is_forgotten(monkeypatch):
    made = []

    class Watched(fused.Tape):
        def __init__(self, *arguments) -> None:
            super().__init__(*arguments)
            made.append(weakref.ref(self))

    monkeypatch.setattr(fused, "Tape", Watched)
    net = machine(SMALL, "own")
    net.engine = "fused"
    inputs = random_inputs(SMALL, torch.float32)
    gc.disable()
    try:
        for backward in (True, False):
            logits, state = net(inputs)
            if backward:
                logits.sum().backward()
                assert not hasattr(made[0](), "draw")
            del logits, state
        calls = itertools.count()
        net.controller.register_forward_hook(lambda *_: 1 / (3 - next(calls)) and None)
        with pytest.raises(ZeroDivisionError):
            net(inputs)
    finally:
        gc.enable()
    assert [tape() for tape in made] == [None, None, None]


class Doubled(torch.nn.Module):
    """Emissions of a user's own."""

    def __init__(self, linear: torch.nn.Linear) -> None:
        super().__init__()
        self.linear = linear
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, hidden: Tensor) -> Tensor:
        return 2 * self.linear(hidden)


@ONE_OF_A_KIND
def test_hooks_on_the_backward_pass_and_own_emissions_take_effect(controller):
    inputs = random_inputs(SMALL)
    net = machine(SMALL, controller).double()
    called = []
    handle = net.emit.register_full_backward_hook(lambda *_: called.append(1))
    outcome(net, "fused", inputs)
    assert len(called) == len(inputs)
    handle.remove()
    net.emit = Doubled(net.emit)
    assert_double_agrees(net, inputs)


def test_a_controller_of_other_depth_gets_its_own_start():
    net = NTM(3, 2, 7, 2, engine="fused")
    inputs = torch.zeros(4, 1, 3)
    net(inputs)
    net.controller = LSTMController(5, 100, num_layers=2)
    net.emit = torch.nn.Linear(100, net.layout.size)
    _, state = net(inputs)
    assert state.controller[0].shape == (2, 1, 100)
    net.initial_weighting = Uniform(2, 7)
    assert torch.equal(net(inputs)[0], net(inputs, net.initial_state(1))[0])


@pytest.mark.parametrize("controller", ["lstm", "lstm x2", "feedforward x3"])
def test_dropout_in_training_drops_the_same(controller):
    make = functools.partial(CONTROLLERS[controller], dropout=0.4)
    net = machine(SMALL, make).double()
    inputs = random_inputs(SMALL)
    assert_double_agrees(net, inputs)
    trained, _ = outcome(net, "fused", inputs)
    net.eval()
    assert_double_agrees(net, inputs)
    evaluated, _ = outcome(net, "fused", inputs)
    assert not torch.equal(trained["logits"], evaluated["logits"])


@pytest.mark.parametrize("threads", [1, 2])
@ONE_OF_A_KIND
def test_the_sequences_of_a_batch_do_not_touch_one_another(controller, threads):
    sizes = (7, 3, 2, 2, 1, 6, 8)
    net = machine(sizes, controller).double()
    inputs = random_inputs(sizes)
    other = inputs.clone()
    other[:, 3] += 1
    torch.set_num_threads(threads)
    one, one_gradients = outcome(net, "fused", inputs)
    two, two_gradients = outcome(net, "fused", other)
    rest = [b for b in range(8) if b != 3]
    for by_first, by_second in (
        (one["logits"], two["logits"]),
        (one_gradients["d inputs"], two_gradients["d inputs"]),
    ):
        assert torch.equal(by_first[:, rest], by_second[:, rest])
        assert not torch.equal(by_first[:, 3], by_second[:, 3])
    alone, _ = outcome(net, "fused", inputs[:, 3:4])
    assert error(alone["logits"], one["logits"][:, 3:4]) <= 1e-12


# What torch asks of an operator


@ORDER
@ONE_OF_A_KIND
def test_gradcheck(controller, read_first):
    sizes = (5, 2, 1, 2, 1, 5, 2)
    make = functools.partial(CONTROLLERS[controller], hidden_size=4)
    net = machine(sizes, make, read_first=read_first).double()
    net.engine = "fused"
    names, values = zip(*net.named_parameters(), strict=True)

    def run(inputs, *values):
        weights = dict(zip(names, values, strict=True))
        logits, state = torch.func.functional_call(net, weights, (inputs,))
        return logits, *parts_of(state).values()

    inputs = random_inputs(sizes).requires_grad_()
    assert torch.autograd.gradcheck(run, (inputs, *values), fast_mode=True)


def arguments_of(name: str, dtype: torch.dtype) -> tuple:
    """What an operator is called with, on a machine of N 7, M 3, one head of each kind, S 1."""
    T, B, N, M, H, L = 5, 3, 7, 3, 4, 2
    P = 2 * (M + 6) + 2 * M

    def leaf(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=dtype).requires_grad_()

    def weightings() -> Tensor:
        return torch.rand(B, 2, N, dtype=dtype).softmax(-1).detach().requires_grad_()

    torch.manual_seed(0)
    layout = [1, 1, 3, 1, 1, 1]
    start = (leaf(B, N, M), weightings(), leaf(B, 1, M))
    if name == "lstm_loop":
        first = leaf(4 * H, 2 + M), leaf(4 * H, H), leaf(4 * H), leaf(4 * H)
        second = leaf(1, 4 * H, H), leaf(1, 4 * H, H), leaf(1, 4 * H)
        weights = *first, *second, leaf(P, H), leaf(P)
        passing = leaf(L, B, H), leaf(L, B, H)
        return (leaf(T, B, 2), *weights, *start, *passing, layout, NORM_FLOOR, True)
    if name == "feedforward_loop":
        weights = leaf(T, B, H), leaf(H, 2 + M), leaf(L, H, H), leaf(L, H), 1, leaf(P, H), leaf(P)
        return (*weights, *start, layout, NORM_FLOOR, True)
    return leaf(B, P), leaf(B, N, M), weightings(), layout, NORM_FLOOR


OPERATOR = pytest.mark.parametrize("name", ["lstm_loop", "feedforward_loop", "memory_step"])


@OPERATOR
def test_the_operator_is_a_good_citizen_of_torch(name):
    operator = getattr(torch.ops.ntm, name).default
    torch.library.opcheck(operator, arguments_of(name, torch.float32))


@OPERATOR
@pytest.mark.parametrize("change", ["longer", "shorter", "flat", "single", "freed"])
def test_no_operator_takes_a_tensor_for_another(name, change):
    given = arguments_of(name, torch.float64)
    operator = getattr(torch.ops.ntm, name)
    for place, tensor in enumerate(given):
        if not isinstance(tensor, torch.Tensor):
            continue
        if name == "feedforward_loop" and place == 1 and change in ("longer", "shorter"):
            continue  # as wide as the inputs, which it does not get to see
        changed = tensor.detach().clone()
        if change in ("longer", "shorter"):
            sizes = list(tensor.shape)
            sizes[-1] += 1 if change == "longer" else -1
            changed = torch.zeros(sizes, dtype=tensor.dtype)
        elif change == "flat":
            changed = changed.reshape(-1) if tensor.dim() > 1 else changed.unsqueeze(0)
        elif change == "single":
            changed = changed.float()
        else:
            changed.untyped_storage().resize_(changed.untyped_storage().nbytes() // 2)
        with pytest.raises((ValueError, TypeError, RuntimeError, IndexError)):
            operator(*given[:place], changed, *given[place + 1 :])


@OPERATOR
def test_the_operators_derivative_is_one_too(name, monkeypatch):
    """Shapes without data, and nothing of the arguments written to."""
    call, seen = fused._call, []

    def watched(called, *arguments):
        seen.append(arguments)
        return call(called, *arguments)

    monkeypatch.setattr(fused, "_call", watched)
    outputs = getattr(torch.ops.ntm, name)(*arguments_of(name, torch.float32))
    sum(part.square().sum() for part in outputs if part.requires_grad).backward()
    (arguments,) = seen
    arguments = tuple(a.detach() if isinstance(a, Tensor) else a for a in arguments)
    torch.library.opcheck(
        getattr(torch.ops.ntm, f"{name}_backward").default,
        arguments,
        test_utils=("test_schema", "test_faketensor"),
    )


@OPERATOR
def test_the_straight_way_comes_to_the_same_bits_as_the_dispatchers(name, monkeypatch):
    found = []
    for by_dispatcher in (True, False):
        monkeypatch.setattr(fused, "watched", lambda answer=by_dispatcher: answer)
        arguments = arguments_of(name, torch.float32)
        outputs = [part for part in fused._call(name, *arguments) if part.requires_grad]
        leaves = [a for a in arguments if isinstance(a, Tensor)]
        gradients = torch.autograd.grad(sum(part.square().sum() for part in outputs), leaves)
        found.append([*outputs, *gradients])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


@OPERATOR
def test_tensors_without_data_give_shapes_alone(name):
    """In their mode and after it, and where they are on no device at all."""
    arguments = arguments_of(name, torch.float32)
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(a) if isinstance(a, Tensor) else a for a in arguments]
        assert all(isinstance(part, FakeTensor) for part in fused._call(name, *fakes))
    assert all(isinstance(part, FakeTensor) for part in fused._call(name, *fakes))
    bare = [a.to("meta") if isinstance(a, Tensor) else a for a in arguments]
    assert all(part.is_meta for part in fused._call(name, *bare))


@ONE_OF_A_KIND
def test_under_a_compiler_the_machine_is_the_same(controller):
    sizes = (7, 3, 1, 1, 1, 3, 2)
    net = machine(sizes, controller).double()
    net.engine = "fused"
    inputs = random_inputs(sizes)
    found = []
    for run in (net, torch.compile(net, backend="aot_eager")):
        logits, _ = run(inputs)
        found.append([logits, *torch.autograd.grad(logits.square().sum(), [*net.parameters()])])
    for one, other in zip(*found, strict=True):
        assert error(other, one) <= 1e-12


@ONE_OF_A_KIND
def test_differentiating_twice_is_refused(controller):
    net = machine(SMALL, controller)
    net.engine = "fused"
    logits, _ = net(random_inputs(SMALL, torch.float32))
    with pytest.raises(NotImplementedError, match="first derivatives alone"):
        torch.autograd.grad(logits.sum(), [net.emit.bias], create_graph=True)


@OPERATOR
def test_gradcheck_of_the_operator(name):
    operator = getattr(torch.ops.ntm, name)

    def run(*arguments):
        return tuple(part for part in operator(*arguments) if part.requires_grad)

    assert torch.autograd.gradcheck(run, arguments_of(name, torch.float64), fast_mode=True)


@pytest.mark.parametrize("controller", ["lstm", "feedforward"])
def test_without_gradients_no_memories_are_kept(controller, monkeypatch):
    call, kept = fused._call, []

    def watched(name, *arguments):
        kept.append(getattr(torch.ops.ntm, name)(*arguments)[-1].numel())
        return call(name, *arguments)

    monkeypatch.setattr(fused, "_call", watched)
    net = machine(SMALL, controller)
    net.engine = "fused"
    inputs = random_inputs(SMALL, torch.float32)
    with torch.no_grad():
        net(inputs)
    net(inputs)
    without, with_memories = kept
    assert with_memories - without == 2 * 3 * 3 * 7  # before steps 0 and 4 of 6, (B, M, N) each


# What is not finite


@pytest.fixture
def torch_fills_new_memory_with_nan():
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    assert torch.zeros(1).new_empty(9).isnan().all()
    assert torch.empty_like(torch.zeros(9)).isnan().all()
    assert torch.empty(8, dtype=torch.uint8).view(torch.float64).isnan()
    yield
    torch.use_deterministic_algorithms(before)


@pytest.mark.usefixtures("torch_fills_new_memory_with_nan")
@ORDER
@EVERY_CONTROLLER
def test_memory_from_torch_is_never_read_before_it_is_written(controller, read_first):
    net = machine(SMALL, controller, read_first=read_first).double()
    inputs = random_inputs(SMALL)
    filled = outcome(net, "fused", inputs)
    torch.use_deterministic_algorithms(False)
    assert_same_bits(filled, outcome(net, "fused", inputs))
    assert all(part.isfinite().all() for half in filled for part in half.values())


@pytest.fixture
def margins(monkeypatch):
    """Memory on either side of what the compiled functions may write to besides their results."""
    found = []

    def scratch(room: int) -> Tensor:
        memory = torch.full((room + 8192,), 7, dtype=torch.uint8)
        found.extend([memory[:4096], memory[4096 + room :]])
        return memory[4096 : 4096 + room]

    begin = fused.Tape.begin_back

    def begin_with_margins(tape, *arguments) -> None:
        begin(tape, *arguments)
        tape.told = scratch(tape.told.nbytes).view(tape.told.dtype)
        tape.backward.row[DENSE + 5] = tape.told.data_ptr()

    monkeypatch.setattr(calling, "_scratch", scratch)
    monkeypatch.setattr(fused.Tape, "begin_back", begin_with_margins)
    return found


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("sizes", [SMALL, (1, 1, 3, 1, 0, 4, 5), (131, 3, 1, 3, 3, 9, 2)], ids=str)
@EVERY_CONTROLLER
def test_nothing_is_written_beside_scratch(controller, sizes, dtype, margins):
    net = machine(sizes, controller).to(dtype)
    outcome(net, "fused", random_inputs(sizes).to(dtype))
    assert margins
    assert all((margin == 7).all() for margin in margins)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_single_step_writes_nothing_beside_scratch(dtype, margins):
    after, w, reads = torch.ops.ntm.memory_step(*arguments_of("memory_step", dtype))
    (after.sum() + w.square().sum() + reads.sum()).backward()
    assert len(margins) == 4
    assert all((margin == 7).all() for margin in margins)


@ONE_OF_A_KIND
def test_the_users_default_device_changes_nothing(controller):
    net = machine(SMALL, controller)
    net.engine = "fused"
    inputs = random_inputs(SMALL).float()
    found = []
    for device in ("cpu", "meta"):
        net.zero_grad()
        with torch.device(device):
            logits, _ = net(inputs)
            logits.square().sum().backward()
        gradients = {name: p.grad for name, p in net.named_parameters() if p.grad is not None}
        found.append({"logits": logits, **gradients})
    assert_same_bits((found[0],), (found[1],))


@pytest.mark.usefixtures("torch_fills_new_memory_with_nan")
def test_steps_of_a_tape_after_the_last_one_asked_for_have_no_part_in_the_gradients():
    torch.manual_seed(0)
    inputs, outputs = torch.randn(5, 2, 3), torch.randn(5, 2, 4)
    emit = torch.randn(12, 4).requires_grad_(), torch.randn(12).requires_grad_()
    start = torch.full((2, 7, 1), 0.5), torch.full((2, 2, 7), 1 / 7)
    found = []
    for steps in (2, 5):
        layout = (1, 1, 0, "tanh", "tanh", True)
        tape = fused.Tape(inputs[:steps], emit, *start, layout, NORM_FLOOR)
        passing, reads = (*emit, *start), []
        for t in range(steps):
            seen, passing = tape.step(t, inputs[t], outputs[t], passing)
            reads.append(seen[:, 3:])
        found.append(torch.autograd.grad(reads[1].square().sum(), emit))
    for few, many in zip(*found, strict=True):
        assert torch.equal(few, many)


def assert_same_kinds(value: Tensor, truth: Tensor, name: str) -> None:
    """NaN, infinity and finite numbers stand at the same places."""
    for kind in (torch.isnan, torch.isposinf, torch.isneginf):
        assert torch.equal(kind(value), kind(truth)), (name, kind.__name__)


PLACES = ["inputs", "memory", "weighting", "key", "strength", "gate", "shift", "sharpening"]
PLACES += ["erase", "add", "all alike"]


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")], ids=str)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@ORDER
@ONE_OF_A_KIND
def test_what_is_not_finite_shows_at_the_same_places(controller, read_first, dtype, place, poison):
    sizes = (7, 3, 1, 1, 1, 5, 3)
    net = machine(sizes, controller, read_first=read_first).to(dtype)
    inputs = random_inputs(sizes, dtype)
    with torch.no_grad():
        state = net.initial_state(3)
        state = state._replace(memory=state.memory.clone(), weightings=state.weightings.clone())
        if place == "inputs":
            inputs[2, 1, 0] = poison
        elif place == "memory":
            state.memory[1, 2, 0] = poison
        elif place == "weighting":
            state.weightings[1, 0, 2] = poison
        elif place == "all alike":
            state.memory[1] = poison
        else:  # of the read head's orders, and the write head's erase and add
            at = {"key": 1, "strength": 3, "gate": 4, "shift": 6, "sharpening": 8, "erase": 18}
            net.emit.bias[at.get(place, 21)] = poison
        net.engine = "reference"
        truth, truth_state = net(inputs, state)
        net.engine = "fused"
        value, state = net(inputs, state)
    assert_same_kinds(value, truth, "logits")
    for name, part in parts_of(state).items():
        assert_same_kinds(part, parts_of(truth_state)[name], name)
    if place in ("inputs", "memory", "weighting", "all alike"):
        assert value[:, 0].isfinite().all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), -1.0, 0.0, 2.0])
def test_relu_of_what_is_not_finite_and_its_derivative_are_those_of_torch(value):
    raw = torch.zeros(1, 12)
    raw[0, 0] = raw[0, 11] = value  # the read head's key and the add vector
    start = torch.full((1, 3, 1), 0.5), torch.full((1, 2, 3), 1 / 3)
    layout = HeadLayout(1, 1, 1, 0, "relu", "relu", True)
    found = []
    for engine in ("reference", "fused"):
        raw = raw.detach().requires_grad_()
        if engine == "fused":
            outputs = fused.memory_step(raw, *start, layout[1:], NORM_FLOOR)
        else:
            outputs = memory_step(raw, layout, NTMState(*start, torch.zeros(1, 1, 1), None))
        sum(part.sum() for part in outputs).backward()
        found.append([*outputs, raw.grad])
    for truth, got in zip(*found, strict=True):
        torch.testing.assert_close(got, truth, equal_nan=True, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("controller", ["lstm", "own"])
def test_nan_reaches_the_gradients(controller):
    sizes = (7, 3, 1, 1, 1, 5, 3)
    net = machine(sizes, controller)
    inputs = random_inputs(sizes, torch.float32)
    inputs[2, 1, 0] = float("nan")
    (_, truth), (_, value) = outcome(net, "reference", inputs), outcome(net, "fused", inputs)
    for name in truth:
        assert torch.equal(value[name].isnan(), truth[name].isnan()), name
    assert value["d inputs"][:, 0].isfinite().all()


# The same bits


@pytest.mark.parametrize("threads", [1, 2])
@EVERY_CONTROLLER
def test_the_same_bits_twice(controller, threads):
    sizes = (128, 20, 1, 1, 1, 21, 5)
    net = machine(sizes, controller)
    inputs = random_inputs(sizes, torch.float32)
    torch.set_num_threads(threads)
    one = outcome(net, "fused", inputs)
    assert_same_bits(one, outcome(net, "fused", inputs))


HASHES = """
import hashlib, sys
import torch
from comparing import machine, outcome, random_inputs

torch.set_num_threads(1)
found = {}
for name in sys.argv[1:]:
    controller, dtype = name.split(",")
    sizes = 128, 20, 1, 2, 1, 10, 5
    net = machine(sizes, controller, read_first=dtype == "float32").to(getattr(torch, dtype))
    parts = outcome(net, "fused", random_inputs(sizes, getattr(torch, dtype)))
    content = b"".join(part[key].numpy().tobytes() for part in parts for key in sorted(part))
    found[name] = hashlib.sha256(content).hexdigest()
print(*(f"{name}={found[name]}" for name in sorted(found)), sep="\\n")
"""


def test_the_same_bits_in_every_process():
    """Whatever was loaded before, and whatever memory not yet written to holds."""
    kinds = ["lstm", "feedforward x3", "own"]
    names = [f"{kind},{dtype}" for kind in kinds for dtype in ("float32", "float64")]
    orders = [names, names[::-1], names, names[2:] + names[:2]]
    # The C library fills new memory with 0x7f, a number beyond all others.
    environments = [{}, {}, {"MALLOC_PERTURB_": "128"}, {}]
    path = os.pathsep.join(sys.path)
    said = []
    for pair in (0, 2):  # two at a time
        started = [
            subprocess.Popen(
                [sys.executable, "-c", HASHES, *order],
                env=os.environ | more | {"PYTHONPATH": path},
                stdout=subprocess.PIPE,
                text=True,
            )
            for order, more in zip(orders[pair:], environments[pair : pair + 2], strict=False)
        ]
        said += [process.communicate()[0] for process in started]
    assert len(said[0].split("\n")) == len(names) + 1
    assert said == [said[0]] * 4


# The cache


def test_the_users_own_cache_of_numba_is_left_alone(monkeypatch):
    monkeypatch.setattr(numba.config, "CACHE_DIR", "of the user")
    kernels.__wrapped__("any", "float32")
    assert numba.config.CACHE_DIR == "of the user"


PROGRAM = """
import torch, ntm
net = ntm.NTM(3, 2, 7, 2, controller=torch.nn.Linear(5, 4), engine="fused")
net(torch.zeros(2, 1, 3))[0].sum().backward()
print(float(net.emit.weight.grad.abs().sum()) >= 0)
"""


@pytest.mark.soak
def test_it_runs_where_no_cache_can_be_written(tmp_path):
    place = tmp_path / "a file, not a folder"
    place.write_text("")
    environment = os.environ | {"XDG_CACHE_HOME": str(place)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "True", done.stderr


@pytest.mark.slow
def test_it_runs_where_the_disk_is_full(tmp_path):
    """No file of the cache can become longer than 2,000 bytes."""
    limit = "import resource, logging; logging.basicConfig(level='INFO')\n"
    limit += "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))\n"
    done = subprocess.run(
        [sys.executable, "-c", limit + PROGRAM],
        env=os.environ | {"XDG_CACHE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "True", done.stderr
    assert done.stderr.count("cache of the fused engine cannot be used") == 1


@pytest.mark.slow
def test_a_helper_compiles_the_way_back_and_keeps_it(tmp_path):
    with compiling._helped("step", "float32", tmp_path):
        pass
    (kept,) = tmp_path.rglob("*.nbi")
    assert "step_backward" in kept.name


@pytest.mark.soak
def test_it_compiles_where_no_helper_can_start(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.executable = '/nowhere'\n{PROGRAM}"],
        env=os.environ | {"XDG_CACHE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "True", done.stderr


@pytest.mark.parametrize("error", [RuntimeError("no home"), KeyError("uid"), OSError("gone")])
def test_a_user_without_a_home_keeps_no_cache(error, monkeypatch):
    def nowhere() -> None:
        raise error

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(compiling.Path, "home", nowhere)
    assert compiling._cache_folder("lstm-float32") is None
