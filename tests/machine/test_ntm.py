import copy
import functools
import io
import itertools
import math
import re
import warnings

import numpy as np
import plain
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import gradcheck
from torch.func import functional_call

from ntm import NTM, FeedforwardController, LSTMController, NTMState
from ntm.machine.memory import RandomMemory, Uniform

QUICK = settings(max_examples=20, deadline=None, derandomize=True)
IN, OUT, N, M, H = 3, 2, 6, 3, 4
T, B = 5, 2

# Some tests pair these on purpose.
pytestmark = pytest.mark.filterwarnings("ignore:constant memory under a uniform")

CONTROLLERS = {
    "lstm": functools.partial(LSTMController, hidden_size=H),
    "two_lstm": functools.partial(LSTMController, hidden_size=H, num_layers=2),
    "feedforward": functools.partial(FeedforwardController, hidden_size=H),
}
every_controller = pytest.mark.parametrize("controller", ["lstm", "feedforward"])
every_order = pytest.mark.parametrize(
    "read_first", [True, False], ids=["read_first", "write_first"]
)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def network(controller="lstm", spread=0.7, seed=0, dtype=torch.float64, **kinds):
    """A small machine whose gates and weightings are far from even."""
    torch.manual_seed(seed)
    make = CONTROLLERS.get(controller, controller)
    # The reference is the definition; tests/kernels hold the other engines against it.
    sizes = {"memory_size": N, "word_size": M, "controller": make, "engine": "reference"}
    net = NTM(IN, OUT, **{**sizes, **kinds}).to(dtype)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_(0, spread)
    return net


def random_inputs(steps=T, batch=B, seed=1, dtype=torch.float64):
    gen = torch.Generator().manual_seed(seed)
    return torch.randn(steps, batch, IN, generator=gen, dtype=dtype)


def random_state(net, batch=B, seed=2):
    """A state as from the middle of a sequence."""
    gen = torch.Generator().manual_seed(seed)

    def like(part):
        return torch.randn(part.shape, generator=gen, dtype=part.dtype)

    memory, weightings, reads, controller = net.initial_state(batch)
    return NTMState(
        like(memory),
        torch.softmax(like(weightings), -1),
        like(reads),
        None if controller is None else tuple(map(like, controller)),
    )


def flat(state):
    """The tensors of a state."""
    return [*state[:3], *(state.controller or ())]


def names(state):
    inner = [] if state.controller is None else ["hidden", "cell"]
    return ["memory", "weightings", "reads", *inner]


def assert_same_run(actual, expected, **tolerance):
    """Compare logits and every part of the state."""
    torch.testing.assert_close(
        actual[0], expected[0], **tolerance, msg=lambda text: f"logits: {text}"
    )
    parts = zip(names(expected[1]), flat(actual[1]), flat(expected[1]), strict=True)
    for name, ours, theirs in parts:
        torch.testing.assert_close(
            ours, theirs, **tolerance, msg=lambda text, name=name: f"{name}: {text}"
        )


# Against loops


def by_loops(net, controller, inputs, state, **maps):
    """The run by plain loops, as (logits, NTMState)."""
    weights = {name: value.tolist() for name, value in net.state_dict().items()}
    layers = 2 if controller == "two_lstm" else 1
    make = plain.feedforward_controller if controller == "feedforward" else plain.lstm_controller
    runs = []
    for b in range(inputs.shape[1]):
        inner = None
        if state.controller is not None:
            inner = tuple(part[:, b].tolist() for part in state.controller)
        start = (state.memory[b].tolist(), state.weightings[b].tolist(), state.reads[b].tolist())
        runs.append(
            plain.machine(
                weights,
                make(weights, layers),
                inputs[:, b].tolist(),
                (*start, inner),
                net.layout.word_size,
                net.layout.num_read_heads,
                net.layout.num_write_heads,
                net.layout.shift_range,
                net.layout.read_first,
                floor=1e-6,
                **maps,
            )
        )

    def stacked(values, dim=0):
        return torch.stack([torch.tensor(v, dtype=torch.float64) for v in values], dim)

    logits = stacked([logits for logits, _ in runs], 1)
    ends = [end for _, end in runs]
    inner = None
    if state.controller is not None:
        inner = tuple(stacked([end[3][part] for end in ends], 1) for part in range(2))
    return logits, NTMState(*(stacked([end[part] for end in ends]) for part in range(3)), inner)


@pytest.mark.parametrize(
    ("reads", "writes", "reach"),
    [(1, 1, 1), (2, 3, 2), (3, 1, 0), (1, 2, 1)],
    ids=["1r1w", "2r3w", "3r1w", "1r2w"],
)
@pytest.mark.parametrize("controller", CONTROLLERS)
@every_order
def test_forward(controller, reads, writes, reach, read_first):
    net = network(
        controller,
        num_read_heads=reads,
        num_write_heads=writes,
        shift_range=reach,
        read_first=read_first,
    )
    inputs, state = random_inputs(), random_state(net)
    expected = by_loops(net, controller, inputs, state)
    assert_same_run(net(inputs, state), expected, rtol=1e-9, atol=1e-10)


@every_controller
@every_order
def test_forward_from_the_start(controller, read_first):
    net = network(controller, read_first=read_first)
    zeros = torch.zeros(B, 1, M).double()
    focus = torch.tensor([[1.0] + [0.0] * (N - 1)] * 2).double().expand(B, 2, N)
    memory = torch.full((B, N, M), 1e-6).double()
    inner = (torch.zeros(1, B, H).double(),) * 2 if controller == "lstm" else None
    expected = by_loops(net, controller, random_inputs(), NTMState(memory, focus, zeros, inner))
    assert_same_run(net(random_inputs()), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("name", "function"),
    [("identity", plain.identity), ("sigmoid", plain.sigmoid), ("relu", plain.relu)],
    ids=["identity", "sigmoid", "relu"],
)
@pytest.mark.parametrize("part", ["key", "add"])
def test_activations_take_effect(part, name, function):
    net = network(**{f"{part}_activation": name})
    inputs, state = random_inputs(), random_state(net)
    expected = by_loops(net, "lstm", inputs, state, **{f"{part}_map": function})
    assert_same_run(net(inputs, state), expected, rtol=1e-9, atol=1e-10)
    assert not torch.allclose(network()(inputs, state)[0], expected[0])


# Gradients


@every_controller
@every_order
def test_gradient(controller, read_first):
    """With respect to inputs, every part of the state and every parameter."""
    make = CONTROLLERS[controller]
    net = network(
        controller=functools.partial(make, hidden_size=2),
        read_first=read_first,
        num_write_heads=2,
        memory_size=4,
        word_size=2,
    )
    state = random_state(net)
    keys = list(dict(net.named_parameters()))
    tensors = [random_inputs(2), *flat(state), *(p.detach() for p in net.parameters())]

    def run(inputs, memory, weightings, reads, *rest):
        inner = None if state.controller is None else rest[:2]
        weights = dict(zip(keys, rest[0 if inner is None else 2 :], strict=True))
        start = NTMState(memory, weightings, reads, inner)
        logits, end = functional_call(net, weights, (inputs, start))
        return logits, *flat(end)

    assert gradcheck(run, [t.clone().requires_grad_() for t in tensors])


def test_gradient_of_learned_starts():
    net = network(
        memory_size=4,
        word_size=2,
        controller=functools.partial(LSTMController, hidden_size=2, initial_state="learned"),
        initial_memory="learned",
        initial_weighting="learned",
        initial_reads="learned",
    )
    keys = list(dict(net.named_parameters()))

    def run(inputs, *parameters):
        logits, end = functional_call(net, dict(zip(keys, parameters, strict=True)), (inputs,))
        return logits, *flat(end)

    leaves = [p.detach().clone().requires_grad_() for p in net.parameters()]
    assert gradcheck(run, (random_inputs(3).requires_grad_(), *leaves))


@every_controller
def test_every_parameter_learns(controller):
    net = network(
        controller, initial_memory="learned", initial_weighting="learned", initial_reads="learned"
    )
    net(random_inputs())[0].square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


# Sequences of a batch


options = st.fixed_dictionaries(
    {
        "controller": st.sampled_from(list(CONTROLLERS)),
        "num_read_heads": st.integers(1, 3),
        "num_write_heads": st.integers(1, 3),
        "shift_range": st.integers(0, 2),
        "read_first": st.booleans(),
        "initial_memory": st.sampled_from(["constant", "random", "learned"]),
        "initial_weighting": st.sampled_from(["first_location", "uniform", "learned"]),
        "seed": st.integers(0, 10**6),
        "spread": st.sampled_from([0.1, 1.0, 3.0]),
    }
)


@QUICK
@given(options, st.integers(0, 2), st.integers(0, T - 1))
def test_sequences_do_not_mix(kinds, changed, step):
    net = network(**kinds)
    inputs = random_inputs(batch=3)
    others = [b for b in range(3) if b != changed]
    before = net(inputs)
    inputs[step, changed] += 1
    after = net(inputs)
    assert torch.equal(after[0][:, others], before[0][:, others])
    for name, old, new in zip(names(after[1]), flat(before[1]), flat(after[1]), strict=True):
        along = 1 if name in ("hidden", "cell") else 0
        kept = torch.tensor(others)
        assert torch.equal(old.index_select(along, kept), new.index_select(along, kept)), name
    assert not torch.equal(after[0][step:, changed], before[0][step:, changed])
    assert torch.equal(after[0][:step], before[0][:step])


@every_controller
@every_order
def test_gradient_does_not_cross_sequences_or_go_back_in_time(controller, read_first):
    net = network(controller, read_first=read_first, num_write_heads=2, num_read_heads=2)
    for b, t in itertools.product(range(3), range(4)):
        inputs, state = random_inputs(4, 3).requires_grad_(), random_state(net, 3)
        memory = state.memory.requires_grad_()
        logits, _ = net(inputs, state)
        logits[t, b].sum().backward()
        reached = torch.zeros(4, 3, dtype=torch.bool)
        reached[: t + 1, b] = True
        assert torch.equal(inputs.grad.abs().sum(-1) > 0, reached)
        assert torch.equal(memory.grad.abs().sum((1, 2)) > 0, torch.arange(3) == b)


@QUICK
@given(options, st.integers(1, 4))
def test_batch_equals_one_by_one(kinds, batch):
    net = network(**kinds)
    inputs = random_inputs(batch=batch)
    logits, state = net(inputs)
    assert state.memory.shape[0] == batch
    for b in range(batch):
        alone, end = net(inputs[:, b : b + 1])
        torch.testing.assert_close(alone[:, 0], logits[:, b])
        torch.testing.assert_close(end.memory[0], state.memory[b])


# State


@QUICK
@given(options, st.lists(st.integers(1, 6), max_size=3))
def test_pieces_equal_the_whole(kinds, cuts):
    net = network(**kinds)
    inputs = random_inputs(7)
    edges = [0, *sorted(set(cuts)), 7]
    pieces, state = [], None
    for start, stop in itertools.pairwise(edges):
        logits, state = net(inputs[start:stop], state)
        pieces.append(logits)
    assert_same_run((torch.cat(pieces), state), net(inputs), rtol=1e-12, atol=1e-12)


@QUICK
@given(options)
def test_state_holds_distributions(kinds):
    net = network(**kinds)
    for state in (net.initial_state(B), net(random_inputs())[1]):
        assert (state.weightings >= 0).all()
        total = state.weightings.sum(-1)
        torch.testing.assert_close(total, torch.ones_like(total))


def test_shapes():
    net = network("two_lstm", num_read_heads=2, num_write_heads=3)
    logits, state = net(random_inputs())
    assert logits.shape == (T, B, OUT)
    assert state.memory.shape == (B, N, M)
    assert state.weightings.shape == (B, 5, N)
    assert state.reads.shape == (B, 2, M)
    assert [part.shape for part in state.controller] == [(2, B, H), (2, B, H)]


def test_states_passed_in_are_not_changed():
    net = network(num_write_heads=2)
    state = random_state(net)
    before = [part.clone() for part in flat(state)]
    net(random_inputs(), state)
    net.trace(random_inputs(), state)
    assert all(map(torch.equal, flat(state), before))


@pytest.mark.parametrize("initial_memory", ["constant", "random", "learned"])
@pytest.mark.parametrize("initial_weighting", ["first_location", "uniform", "learned"])
def test_nothing_stays_on_the_module(initial_memory, initial_weighting):
    net = network(initial_memory=initial_memory, initial_weighting=initial_weighting)
    first = net(random_inputs(seed=4))

    def contents():
        return {
            f"{name}.{key}": value
            for name, module in net.named_modules()
            for key, value in vars(module).items()
            if key != "_modules"
        }

    before = copy.deepcopy(contents())
    net(random_inputs(steps=2, batch=3, seed=5))
    net.trace(random_inputs(seed=6))
    after = contents()
    assert before.keys() == after.keys()
    for key, value in before.items():
        assert same(value, after[key]), key
    assert_same_run(net(random_inputs(seed=4)), first, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("initial_memory", ["constant", "random", "learned"])
def test_training_goes_on_after_inference_mode(initial_memory, dtype):
    net = network(initial_memory=initial_memory, dtype=dtype)
    with torch.inference_mode():
        net(random_inputs(dtype=dtype))
    net(random_inputs(dtype=dtype))[0].sum().backward()
    assert net.emit.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("engine", ["reference", "fused"])
def test_the_start_is_always_that_of_the_moment(engine):
    """Though the last one is taken again where it would be the same."""
    net = NTM(IN, OUT, N, M, engine=engine)
    inputs = random_inputs(batch=1, dtype=torch.float32)
    first = net(inputs)
    mine = net.initial_state(1)
    mine.memory.fill_(7)
    mine.weightings.fill_(7)
    assert_same_run(net(inputs), first, rtol=0, atol=0)
    net.resize_memory(N + 3)
    assert net(inputs)[1].memory.shape[1] == N + 3
    net.double()
    inputs = inputs.double()
    assert net(inputs)[1].memory.dtype == torch.float64
    net.initial_memory = RandomMemory(N + 3, M)
    assert_same_run(net(inputs), net(inputs, net.initial_state(1)), rtol=0, atol=0)
    net.initial_reads = torch.nn.Parameter(torch.ones(1, M).double())
    net(inputs)[0].sum().backward()
    assert net.initial_reads.grad.abs().sum() > 0


LEARNED = {
    "reads": {"initial_reads": "learned"},
    "controller": {
        "controller": functools.partial(LSTMController, hidden_size=H, initial_state="learned")
    },
}


@pytest.mark.parametrize("engine", ["reference", "fused"])
@pytest.mark.parametrize("learned", LEARNED)
def test_a_learned_start_is_that_of_the_moment(learned, engine):
    net = NTM(IN, OUT, N, M, engine=engine, **LEARNED[learned])
    inputs = random_inputs(dtype=torch.float32)
    with torch.no_grad():
        net(inputs)
    for _ in range(2):
        net.zero_grad()
        net(inputs)[0].sum().backward()
        for name, parameter in net.named_parameters():
            assert "initial" not in name or parameter.grad.abs().sum() > 0
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(0.1)
    assert_same_run(net(inputs), net(inputs, net.initial_state(B)), rtol=0, atol=0)


@pytest.mark.parametrize("engine", ["reference", "fused"])
def test_a_replaced_part_starts_as_it_does(engine):
    net = NTM(IN, OUT, N, M, controller=CONTROLLERS["lstm"], engine=engine)
    inputs = random_inputs(dtype=torch.float32)
    net(inputs)
    net.initial_weighting = Uniform(2, N)
    assert_same_run(net(inputs), net(inputs, net.initial_state(B)), rtol=0, atol=0)
    net.controller = FeedforwardController(IN + M, H)
    assert_same_run(net(inputs), net(inputs, net.initial_state(B)), rtol=0, atol=0)


@pytest.mark.parametrize("engine", ["reference", "fused"])
def test_a_learned_start_that_is_replaced_is_taken(engine):
    learned = {"initial_reads": "learned", **LEARNED["controller"]}
    for parts in (learned, {"initial_reads": "learned"}, LEARNED["controller"]):
        net = NTM(IN, OUT, N, M, engine=engine, **parts)
        inputs = random_inputs(dtype=torch.float32)
        net(inputs)
        if net.initial_reads is not None:
            net.initial_reads = torch.nn.Parameter(torch.ones(1, M))
        if net.controller.initial_hidden is not None:
            net.controller.initial_hidden = torch.nn.Parameter(torch.ones(1, H))
        assert_same_run(net(inputs), net(inputs, net.initial_state(B)), rtol=0, atol=0)


@pytest.mark.parametrize("engine", ["reference", "fused"])
def test_a_start_made_without_data_does_not_outlive_its_mode(engine):
    net = NTM(IN, OUT, N, M, engine=engine)
    inputs = random_inputs(dtype=torch.float32)
    with FakeTensorMode(allow_non_fake_inputs=True):
        net(inputs)
    logits, state = net(inputs)
    assert {type(part) for part in (logits, *flat(state))} == {torch.Tensor}


def same(left, right):
    """Equality that looks into containers of tensors."""
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, np.ndarray):
        return np.array_equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[k], right[k]) for k in left)
    if isinstance(left, (tuple, list)):
        return len(left) == len(right) and all(map(same, left, right))
    return left == right


# Initial state


def test_documented_start():
    state = NTM(IN, OUT, N, M, num_read_heads=2).initial_state(B)
    assert torch.equal(state.memory, torch.full((B, N, M), 1e-6))
    assert torch.equal(state.weightings, torch.eye(N)[0].expand(B, 3, N))
    assert torch.equal(state.reads, torch.zeros(B, 2, M))
    assert torch.equal(state.controller[0], torch.zeros(1, B, 100))
    assert torch.equal(state.controller[1], torch.zeros(1, B, 100))


def test_uniform_start():
    state = NTM(IN, OUT, N, M, initial_weighting="uniform").initial_state(B)
    assert torch.equal(state.weightings, torch.full((B, 2, N), 1 / N))


def test_random_start_is_the_same_for_every_sequence():
    net = NTM(IN, OUT, N, M, initial_memory="random")
    memory = net.initial_state(B).memory
    assert memory.dtype == torch.float32
    assert torch.equal(memory[0], memory[1])
    assert memory.abs().max() <= 1 / math.sqrt(M)
    assert not any("memory" in name for name, _ in net.named_parameters())


def test_learned_start_is_the_parameter():
    net = NTM(
        IN,
        OUT,
        N,
        M,
        initial_memory="learned",
        initial_weighting="learned",
        initial_reads="learned",
    )
    state = net.initial_state(B)
    assert torch.equal(state.memory[1], net.initial_memory.value)
    assert torch.equal(state.reads[1], net.initial_reads)
    torch.testing.assert_close(state.weightings[1], torch.softmax(net.initial_weighting.value, -1))


@every_controller
def test_no_state_means_the_initial_state(controller):
    net = network(controller, initial_memory="random")
    inputs = random_inputs()
    assert_same_run(net(inputs), net(inputs, net.initial_state(B)), rtol=0, atol=0)


# Another number of locations


@QUICK
@given(options, st.integers(5, 20))
def test_resized_equals_built_at_that_size(kinds, locations):
    kinds = {
        **kinds,
        "initial_memory": kinds["initial_memory"].replace("learned", "random"),
        "initial_weighting": kinds["initial_weighting"].replace("learned", "uniform"),
    }
    net, built = network(**kinds), network(**kinds, memory_size=locations)
    net(random_inputs())
    net.resize_memory(locations)
    built.load_state_dict(net.state_dict())
    assert net.memory_size == locations
    assert_same_run(net(random_inputs()), built(random_inputs()), rtol=0, atol=0)


@QUICK
@given(
    st.sampled_from(list(CONTROLLERS)),
    st.integers(1, 2),
    st.integers(1, 2),
    st.booleans(),
    st.sampled_from(["constant", "random"]),
    st.integers(0, 10**6),
    st.integers(T * 2 + 1, 20),
    st.integers(1, 30),
)
def test_growing_adds_locations_and_changes_none(
    controller, reads, writes, read_first, initial_memory, seed, locations, more
):
    # By content every location counts, and on the ring the last one is beside the first. With the
    # gate at 0 and no shift backwards, T steps stay within the first 2·T locations.
    net = network(
        controller,
        seed=seed,
        memory_size=locations,
        num_read_heads=reads,
        num_write_heads=writes,
        shift_range=2,
        read_first=read_first,
        initial_memory=initial_memory,
    )
    only_forward(net)
    logits, state = net(random_inputs())
    net.resize_memory(locations + more)
    grown_logits, grown = net(random_inputs())

    close = functools.partial(torch.testing.assert_close, rtol=1e-12, atol=1e-12)
    close(grown_logits, logits)
    close(grown.reads, state.reads)
    close(grown.memory[:, :locations], state.memory)
    close(grown.weightings[..., :locations], state.weightings)
    assert (grown.weightings[..., locations:] == 0).all()
    start = net.initial_state(B).memory
    assert torch.equal(grown.memory[:, locations:], start[:, locations:])


def only_forward(net):
    """Hold every gate at 0 and every backward shift at 0."""
    size = sum(net.layout.address_sizes)
    with torch.no_grad():
        for head in range(net.layout.num_heads):
            gate = head * size + net.layout.word_size + 1
            backward = gate + 1
            for index in (gate, backward, backward + 1):
                net.emit.weight[index] = 0
                net.emit.bias[index] = -1e4


def test_shrinking_and_growing_back_changes_nothing():
    net = network(initial_memory="random", initial_weighting="uniform")
    before = net(random_inputs())
    net.resize_memory(4)
    assert net(random_inputs())[1].memory.shape == (B, 4, M)
    net.resize_memory(N)
    assert_same_run(net(random_inputs()), before, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["initial_memory", "initial_weighting"])
def test_learned_schemes_refuse_to_grow(name):
    net = network(**{name: "learned"})
    before = net(random_inputs())
    for locations in (N - 1, N + 1):
        with pytest.raises(ValueError, match=rf"^memory_size .*{name}=learned.*got {locations}$"):
            net.resize_memory(locations)
    net.resize_memory(N)
    assert_same_run(net(random_inputs()), before, rtol=0, atol=0)


@pytest.mark.parametrize(("locations", "name"), [(0, "memory_size"), (4, "shift_range")])
def test_resizing_out_of_range(locations, name):
    net = network(shift_range=2)
    with pytest.raises(ValueError, match=rf"^{name} must .*got"):
        net.resize_memory(locations)
    assert net.memory_size == N


def test_a_single_location_is_a_memory():
    net = network(shift_range=0)
    net.resize_memory(1)
    logits, state = net(random_inputs())
    assert logits.isfinite().all()
    assert torch.equal(state.weightings, torch.ones_like(state.weightings))


def test_state_of_another_size_is_refused():
    net = network()
    state = net.initial_state(B)
    net.resize_memory(9)
    with pytest.raises(ValueError, match=r"^state's memory must .*\(2, 9, 3\), got \(2, 6, 3\)$"):
        net(random_inputs(), state)


# Extremes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("initial_weighting", ["first_location", "uniform"])
@pytest.mark.parametrize("gate", [-1e4, 1e4], ids=["gate_0", "gate_1"])
@pytest.mark.parametrize("strength", [-1e4, 1e4], ids=["beta_0", "beta_1e4"])
@pytest.mark.parametrize("sharpening", [-1e4, 1e3], ids=["gamma_1", "gamma_1e3"])
def test_saturated_heads_stay_finite(sharpening, strength, gate, initial_weighting, dtype):
    net = network(dtype=dtype, initial_weighting=initial_weighting)
    size = sum(net.layout.address_sizes)
    with torch.no_grad():
        for head in range(2):
            scalars = head * size + M
            net.emit.bias[scalars] = strength
            net.emit.bias[scalars + 1] = gate
            net.emit.bias[scalars + 5] = sharpening
    assert_finite(net, dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("spread", [0.0, 30.0], ids=["zero_weights", "huge_weights"])
@every_controller
def test_extreme_weights_stay_finite(controller, spread, dtype):
    # With all weights 0, keys, adds and erased memory are 0 or alike everywhere.
    assert_finite(network(controller, spread, dtype=dtype), dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_empty_memory_stays_finite(dtype):
    net = network(dtype=dtype)
    state = net.initial_state(B)
    assert_finite(net, dtype, state._replace(memory=torch.zeros_like(state.memory)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_flat_start_over_many_locations_stays_finite(dtype):
    net = network(dtype=dtype, memory_size=4096, initial_weighting="uniform")
    size = sum(net.layout.address_sizes)
    with torch.no_grad():
        for head in range(2):
            net.emit.bias[head * size + M + 5] = 49
    assert_finite(net, dtype)


def assert_finite(net, dtype, state=None):
    inputs = random_inputs(8, dtype=dtype).requires_grad_()
    logits, end = net(inputs, state)
    for name, part in zip(["logits", *names(end)], [logits, *flat(end)], strict=True):
        assert part.dtype == dtype, name
        assert part.isfinite().all(), name
    torch.testing.assert_close(end.weightings.sum(-1), torch.ones_like(end.weightings[..., 0]))
    (logits.sum() + sum(part.sum() for part in flat(end))).backward()
    assert inputs.grad.isfinite().all()
    for name, parameter in net.named_parameters():
        assert parameter.grad.isfinite().all(), name


# Lower precision

STARTS = ("initial_memory", "initial_weighting", "initial_reads")


@every_controller
@every_order
def test_autocast_keeps_the_memory_exact(controller, read_first):
    net = network(
        controller, 0.3, dtype=torch.float32, read_first=read_first, initial_memory="random"
    )
    inputs = random_inputs(dtype=torch.float32)
    expected_logits, expected = net(inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, state = net(inputs)
    for name in ("memory", "weightings", "reads"):
        part = getattr(state, name)
        assert part.dtype == torch.float32, name
        torch.testing.assert_close(part, getattr(expected, name), rtol=0.05, atol=0.02)
    torch.testing.assert_close(state.weightings.sum(-1), torch.ones(B, 2))
    torch.testing.assert_close(logits.float(), expected_logits, rtol=0.05, atol=0.05)


@every_controller
def test_autocast_trains(controller):
    net = network(controller, 0.3, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = net(random_inputs(dtype=torch.float32))[0].float().square().sum()
    loss.backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_under_autocast_lowered_inputs_and_states_are_taken():
    net = network("lstm", 0.3, dtype=torch.float32)
    inputs = random_inputs(dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, state = net(inputs)
        lowered = state._replace(controller=tuple(part.bfloat16() for part in state.controller))
        for start in (state, lowered):
            assert net(inputs, start)[0].isfinite().all()


@every_controller
@pytest.mark.parametrize("starts", [{}, dict.fromkeys(STARTS, "learned")], ids=["", "learned"])
def test_bfloat16_network_keeps_a_float32_memory(controller, starts):
    net = network(controller, 0.3, dtype=torch.bfloat16, **starts)
    assert {part.dtype for part in net.initial_state(B)[:3]} == {torch.float32}
    logits, state = net(random_inputs(dtype=torch.bfloat16))
    assert logits.dtype == torch.bfloat16
    assert logits.isfinite().all()
    assert {part.dtype for part in state[:3]} == {torch.float32}
    torch.testing.assert_close(state.weightings.sum(-1), torch.ones(B, 2))


# Sizes


def count(net):
    return sum(parameter.numel() for parameter in net.parameters())


def heads_and_output(outputs, word, reads, writes, reach, hidden):
    """Linear maps with bias: controller to emissions, controller and reads to logits."""
    emitted = (reads + writes) * (word + 3 + 2 * reach + 1) + writes * 2 * word
    return emitted * (hidden + 1) + outputs * (hidden + reads * word + 1)


def test_count_with_lstm():
    # Four gates, each a map of input and read and one of the hidden state, both with bias.
    lstm = 4 * 100 * ((9 + 20) + 100 + 2)
    heads = heads_and_output(8, 20, 1, 1, 1, 100)
    assert lstm + heads == 62_660
    assert count(NTM(9, 8)) == 62_660


def test_count_with_many_heads_and_layers():
    make = functools.partial(LSTMController, hidden_size=7, num_layers=3, initial_state="learned")
    net = NTM(5, 4, 11, 6, 2, 3, 2, make, "learned", "learned", "learned")
    lstm = 4 * 7 * (5 + 2 * 6 + 7 + 2) + 2 * 4 * 7 * (7 + 7 + 2) + 2 * 3 * 7
    starts = 11 * 6 + 5 * 11 + 2 * 6
    assert count(net) == lstm + heads_and_output(4, 6, 2, 3, 2, 7) + starts


def test_count_with_feedforward():
    net = NTM(9, 8, controller=FeedforwardController)
    assert count(net) == 100 * (9 + 20 + 1) + heads_and_output(8, 20, 1, 1, 1, 100)
    net = NTM(9, 8, controller=functools.partial(FeedforwardController, num_layers=3))
    layers = 100 * (9 + 20 + 1) + 2 * 100 * (100 + 1)
    assert count(net) == layers + heads_and_output(8, 20, 1, 1, 1, 100)


def test_count_does_not_depend_on_locations():
    assert count(NTM(9, 8, 16)) == count(NTM(9, 8, 2000, initial_memory="random"))


# Checkpoints


@pytest.mark.parametrize("initial_memory", ["constant", "random", "learned"])
@pytest.mark.parametrize("initial_weighting", ["first_location", "uniform", "learned"])
@pytest.mark.parametrize("initial_reads", ["zeros", "learned"])
@pytest.mark.parametrize("controller", ["lstm_zeros", "lstm_learned", "feedforward"])
def test_checkpoint(initial_memory, initial_weighting, initial_reads, controller):
    make = CONTROLLERS["feedforward"]
    if controller != "feedforward":
        start = controller.removeprefix("lstm_")
        make = functools.partial(LSTMController, hidden_size=H, initial_state=start)

    def build(seed):
        return network(
            seed=seed,
            controller=make,
            initial_memory=initial_memory,
            initial_weighting=initial_weighting,
            initial_reads=initial_reads,
        )

    saved, loaded = build(1), build(2)
    inputs = random_inputs()
    assert not torch.equal(loaded(inputs)[0], saved(inputs)[0])
    file = io.BytesIO()
    torch.save(saved.state_dict(), file)
    file.seek(0)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    assert_same_run(loaded(inputs), saved(inputs), rtol=0, atol=0)


def test_grown_network_loads_into_one_of_the_old_size():
    grown, loaded = network(initial_memory="random"), network(seed=1, initial_memory="random")
    grown.resize_memory(3 * N)
    loaded.load_state_dict(grown.state_dict())
    torch.testing.assert_close(
        loaded.initial_state(B).memory, grown.initial_state(B).memory[:, :N], rtol=0, atol=0
    )


# batch_first


@every_controller
def test_batch_first(controller):
    net, turned = network(controller), network(controller, batch_first=True)
    inputs, state = random_inputs(batch=3), random_state(net, 3)
    logits, end = net(inputs, state)
    turned_logits, turned_end = turned(inputs.transpose(0, 1), state)
    assert turned_logits.shape == (3, T, OUT)
    assert_same_run((turned_logits.transpose(0, 1), turned_end), (logits, end), rtol=0, atol=0)
    # Without a state as well: the batch is told from the time.
    assert torch.equal(turned(inputs.transpose(0, 1))[0].transpose(0, 1), net(inputs)[0])


def test_trace_is_time_major():
    net = network(batch_first=True)
    inputs = random_inputs(batch=3).transpose(0, 1)
    trace = net.trace(inputs)
    assert trace.logits.shape == (T, 3, OUT)
    assert torch.equal(trace.logits.transpose(0, 1), net(inputs)[0])


# Trace


@every_controller
@every_order
def test_trace(controller, read_first):
    R, W = 2, 3
    net = network(controller, num_read_heads=R, num_write_heads=W, read_first=read_first)
    inputs, start = random_inputs(), random_state(net)
    trace = net.trace(inputs, start)
    assert [part.shape for part in trace] == [
        (T, B, OUT),
        (T, B, N, M),
        (T, B, R, N),
        (T, B, W, N),
        (T, B, R, M),
        (T, B, W, M),
        (T, B, W, M),
    ]
    assert not any(part.requires_grad for part in trace)

    close = functools.partial(torch.testing.assert_close, rtol=1e-12, atol=1e-12)
    state = start
    for t in range(T):
        logits, after = net(inputs[t : t + 1], state)
        close(trace.logits[t], logits[0])
        close(trace.memory[t], after.memory)
        close(trace.read_weightings[t], after.weightings[:, :R])
        close(trace.write_weightings[t], after.weightings[:, R:])
        close(trace.reads[t], after.reads)
        rebuilt = [
            plain.write(
                state.memory[b].tolist(),
                trace.write_weightings[t, b].tolist(),
                trace.erases[t, b].tolist(),
                trace.adds[t, b].tolist(),
            )
            for b in range(B)
        ]
        close(trace.memory[t], torch.tensor(rebuilt, dtype=torch.float64))
        seen = state.memory if read_first else after.memory
        reads = [
            [plain.read(seen[b].tolist(), w) for w in trace.read_weightings[t, b].tolist()]
            for b in range(B)
        ]
        close(trace.reads[t], torch.tensor(reads, dtype=torch.float64))
        state = after
    close(trace.logits, net(inputs, start)[0])


def test_trace_starts_afresh_without_a_state():
    net = network(initial_memory="random")
    inputs = random_inputs()
    assert torch.equal(net.trace(inputs).logits, net.trace(inputs, net.initial_state(B)).logits)


# Engines


@every_controller
@every_order
def test_engines_agree(controller, read_first):
    kinds = {"num_read_heads": 2, "num_write_heads": 2, "read_first": read_first}
    runs = []
    for engine in ("reference", "auto"):
        net = network(controller, engine=engine, **kinds)
        inputs = random_inputs().requires_grad_()
        logits, state = net(inputs, random_state(net))
        (logits.square().sum() + sum(part.square().sum() for part in flat(state))).backward()
        gradients = {name: p.grad for name, p in net.named_parameters()}
        runs.append(((logits, state), {**gradients, "inputs": inputs.grad}))
    (expected, expected_gradients), (actual, gradients) = runs
    assert_same_run(actual, expected, rtol=1e-9, atol=1e-9)
    for name, gradient in expected_gradients.items():
        torch.testing.assert_close(
            gradients[name],
            gradient,
            rtol=1e-9,
            atol=1e-9,
            msg=lambda text, name=name: f"gradient of {name}: {text}",
        )


# Refusals


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("input_size", 0),
        ("output_size", 0),
        ("memory_size", 0),
        ("word_size", 0),
        ("num_read_heads", 0),
        ("num_write_heads", 0),
        ("shift_range", -1),
        ("shift_range", 4),
        ("initial_memory", "zeros"),
        ("initial_weighting", "first"),
        ("initial_reads", "random"),
        ("key_activation", "softmax"),
        ("add_activation", None),
        ("engine", "fast"),
    ],
)
def test_arguments_out_of_range(name, value):
    sizes = {"input_size": IN, "output_size": OUT, "memory_size": 8}
    with pytest.raises(ValueError, match=rf"^{name} must .*got {value!r}$"):
        NTM(**{**sizes, name: value})


def test_a_segment_has_a_step():
    with pytest.raises(ValueError, match=r"^segment must be at least 1, got 0$"):
        NTM(IN, OUT, N, M, segment=0)


@pytest.mark.parametrize("scheme", ["memory", "weighting", "reads"])
def test_an_unknown_scheme_is_refused_with_those_there_are(scheme):
    known = {
        "memory": "constant, random, learned",
        "weighting": "first_location, uniform, learned",
        "reads": "zeros, learned",
    }[scheme]
    name = f"initial_{scheme}"
    with pytest.raises(ValueError, match=f"^{name} must be one of {known}, got 'none'$"):
        NTM(IN, OUT, N, M, **{name: "none"})


def test_what_never_learns_is_warned_of():
    with pytest.warns(UserWarning) as warned:  # noqa: PT030
        NTM(IN, OUT, N, M, initial_weighting="uniform")
    assert [str(warning.message) for warning in warned] == [
        "constant memory under a uniform initial weighting never learns to use the memory: every "
        "location is alike, and nothing breaks the tie. Use initial_weighting='first_location' or "
        "initial_memory='random'"
    ]


@pytest.mark.parametrize(
    "starts",
    [{}, {"initial_memory": "random", "initial_weighting": "uniform"}],
    ids=["first location", "random memory"],
)
def test_what_can_learn_is_not(starts):
    with warnings.catch_warnings():  # a mark would come behind that of the module
        warnings.simplefilter("error")
        NTM(IN, OUT, N, M, **starts)


def test_shifts_that_do_not_fit_are_refused_with_what_does():
    with pytest.raises(ValueError) as refusal:  # noqa: PT011
        NTM(IN, OUT, 8, shift_range=4)
    assert str(refusal.value) == (
        "shift_range must satisfy 2·shift_range + 1 ≤ memory_size = 8, got 4"
    )


def test_by_default_it_is_the_machine_of_the_paper():
    net = NTM(9, 8)
    assert net.layout == (20, 1, 1, 1, "tanh", "tanh", True)
    assert (net.memory_size, net.batch_first, net.engine, net.segment) == (128, False, "auto", None)
    assert (net.input_size, net.output_size) == (9, 8)
    assert type(net.controller) is LSTMController


def test_a_segment_is_as_long_as_asked_for():
    assert NTM(IN, OUT, N, M, segment=3).segment == 3


def test_heads_start_evenly_and_larger_than_linear_layers_do():
    net = NTM(9, 8)
    outputs, inputs = net.emit.weight.shape
    bound = math.sqrt(6 / (inputs + outputs))  # Glorot and Bengio 2010, eq. 16
    assert 0.98 * bound < net.emit.weight.abs().max() <= bound
    assert torch.equal(net.emit.bias, torch.zeros(outputs))


def test_widest_shift_fits():
    net = network(memory_size=7, shift_range=3)
    assert net(random_inputs())[0].isfinite().all()


@pytest.mark.parametrize("batch_first", [False, True], ids=["time_first", "batch_first"])
@pytest.mark.parametrize(
    "shape",
    [(T, IN), (IN,), (1, T, B, IN), (T, B, IN + 1), (T, B, 0), (0, B, IN), (T, 0, IN)],
    ids=["2d", "1d", "4d", "wide", "no_width", "no_time", "no_batch"],
)
@pytest.mark.parametrize("method", ["forward", "trace"])
def test_inputs_of_wrong_shape(method, shape, batch_first):
    net = network(batch_first=batch_first)
    order = r"\(B, T, I\)" if batch_first else r"\(T, B, I\)"
    got = str(shape).replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(ValueError, match=rf"^inputs must .*{order} with I={IN}.*got {got}$"):
        getattr(net, method)(torch.zeros(shape).double())


OF_ANOTHER_MACHINE = {
    "shorter words": lambda s: s._replace(memory=s.memory[..., :1]),
    "a smaller cell": lambda s: s._replace(controller=(s.controller[0], s.controller[1][..., :2])),
    "fewer heads": lambda s: s._replace(weightings=s.weightings[:, :1]),
    "weightings of fewer locations": lambda s: s._replace(weightings=s.weightings[..., :4]),
    "weightings of one sequence": lambda s: s._replace(weightings=s.weightings[:1]),
    "shorter reads": lambda s: s._replace(reads=s.reads[..., :1]),
    "another precision": lambda s: s._replace(reads=s.reads.float()),
    "more layers": lambda s: s._replace(controller=tuple(p.repeat(2, 1, 1) for p in s.controller)),
    "smaller layers": lambda s: s._replace(controller=tuple(p[..., :2] for p in s.controller)),
    "layers in another precision": lambda s: s._replace(
        controller=tuple(p.float() for p in s.controller)
    ),
}
SAID = {
    "shorter words": "memory must be (B, N, M) = (2, 6, 3), got (2, 6, 1)",
    "a smaller cell": "controller's cell must be (layers, B, H) = (1, 2, 4), got (1, 2, 2)",
    "fewer heads": "weightings must be (B, R+W, N) = (2, 2, 6), got (2, 1, 6)",
    "weightings of fewer locations": "weightings must be (B, R+W, N) = (2, 2, 6), got (2, 2, 4)",
    "weightings of one sequence": "weightings must be (B, R+W, N) = (2, 2, 6), got (1, 2, 6)",
    "shorter reads": "reads must be (B, R, M) = (2, 1, 3), got (2, 1, 1)",
    "another precision": "reads must be in torch.float64, got torch.float32",
    "more layers": "controller's hidden must be (layers, B, H) = (1, 2, 4), got (2, 2, 4)",
    "smaller layers": "controller's hidden must be (layers, B, H) = (1, 2, 4), got (1, 2, 2)",
    "layers in another precision": (
        "controller's hidden must be in torch.float64, got torch.float32"
    ),
}


@pytest.mark.parametrize("engine", ["reference", "fused"])
@pytest.mark.parametrize("change", OF_ANOTHER_MACHINE)
def test_state_of_another_machine_is_refused(change, engine):
    net = network(engine=engine)
    state = OF_ANOTHER_MACHINE[change](net.initial_state(B))
    with pytest.raises(ValueError, match=rf"^state's {re.escape(SAID[change])}$"):
        net(random_inputs(), state)


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("engine", ["reference", "fused"])
def test_a_controllers_state_has_two_parts(engine, parts):
    net = network(engine=engine)
    state = net.initial_state(B)
    with pytest.raises(ValueError, match=r"argument 2 is (shorter|longer)"):
        net(random_inputs(), state._replace(controller=(state.controller * 2)[:parts]))


def test_state_of_another_batch_is_refused():
    net = network()
    with pytest.raises(ValueError, match=r"^state's memory must .*\(2, 6, 3\), got \(3, 6, 3\)$"):
        net(random_inputs(), net.initial_state(3))
