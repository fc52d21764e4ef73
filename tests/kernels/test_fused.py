"""The fused engine against the reference loop: outputs, final state and every gradient."""

from __future__ import annotations

import functools
import itertools
import os
import subprocess
import sys

import pytest
import torch
from torch import Tensor

from ntm.kernels import fused  # noqa: F401  registers the operators
from ntm.machine import NTM, FeedforwardController, LSTMController, NTMState
from ntm.machine import ntm as ntm_module
from ntm.machine.addressing import NORM_FLOOR

WIDTH, OUT = 5, 3

GRID = [
    # N, M, R, W, S, T, B
    (1, 1, 1, 1, 0, 1, 1),
    (2, 3, 1, 2, 0, 2, 3),
    (7, 1, 3, 1, 3, 21, 3),
    (7, 3, 2, 3, 2, 2, 8),
    (7, 20, 1, 1, 1, 21, 1),
    (128, 20, 1, 1, 1, 21, 8),
    (128, 3, 3, 3, 3, 2, 1),
    (131, 1, 2, 2, 2, 1, 8),
    (131, 20, 1, 3, 0, 21, 3),
    (131, 3, 2, 1, 1, 22, 5),
]
SCHEMES = {"initial_memory": "learned", "initial_weighting": "learned", "initial_reads": "learned"}


def machine(sizes: tuple[int, ...], **arguments) -> NTM:
    """A machine with weights large enough that every part of it works."""
    N, M, R, W, S, _, _ = sizes
    torch.manual_seed(0)
    controller = functools.partial(LSTMController, hidden_size=11, initial_state="learned")
    net = NTM(WIDTH, OUT, N, M, R, W, S, controller=controller, **(SCHEMES | arguments))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(2)
    return net


def outcome(net: NTM, engine: str, inputs: Tensor, state: NTMState | None = None):
    """Logits, the state after, and the gradients of everything, by name."""
    net.engine = engine
    net.zero_grad()
    inputs = inputs.clone().requires_grad_()
    logits, after = net(inputs, state)
    parts = {
        "logits": logits,
        "memory": after.memory,
        "weightings": after.weightings,
        "reads": after.reads,
        "hidden": after.controller[0],
        "cell": after.controller[1],
    }
    generator = torch.Generator().manual_seed(1)
    sum(
        (part * torch.randn(part.shape, generator=generator, dtype=part.dtype)).sum()
        for part in parts.values()
    ).backward()
    grads = {f"d {name}": p.grad for name, p in net.named_parameters() if p.grad is not None}
    return {name: part.detach() for name, part in parts.items()}, grads | {"d inputs": inputs.grad}


def error(value: Tensor, truth: Tensor) -> float:
    """Largest error over the largest value."""
    largest = truth.abs().max().clamp_min(1e-30)
    return ((value.to(truth.dtype) - truth).abs().max() / largest).item()


@pytest.mark.parametrize("read_first", [True, False], ids=["read first", "write first"])
@pytest.mark.parametrize("sizes", GRID, ids=str)
def test_double_precision_agrees(sizes, read_first):
    net = machine(sizes, read_first=read_first).double()
    inputs = torch.randn(sizes[5], sizes[6], WIDTH, dtype=torch.float64)
    truth, value = outcome(net, "reference", inputs), outcome(net, "fused", inputs)
    for part in range(2):
        assert truth[part].keys() == value[part].keys()
        for name in truth[part]:
            assert error(value[part][name], truth[part][name]) <= 1e-10, name


@pytest.mark.parametrize("read_first", [True, False], ids=["read first", "write first"])
@pytest.mark.parametrize("sizes", GRID, ids=str)
def test_single_precision_is_as_exact_as_the_reference(sizes, read_first):
    net = machine(sizes, read_first=read_first)
    inputs = torch.randn(sizes[5], sizes[6], WIDTH)
    own, value = outcome(net, "reference", inputs), outcome(net, "fused", inputs)
    truth = outcome(net.double(), "reference", inputs.double())
    for part in range(2):
        for name in truth[part]:
            allowed = max(1e-5, 2 * error(own[part][name], truth[part][name]))
            assert error(value[part][name], truth[part][name]) <= allowed, name


@pytest.mark.parametrize(
    ("key", "add"), list(itertools.product(["identity", "relu", "sigmoid"], ["identity", "tanh"]))
)
def test_activations_agree(key, add):
    sizes = (7, 3, 2, 2, 1, 6, 3)
    net = machine(sizes, key_activation=key, add_activation=add).double()
    inputs = torch.randn(6, 3, WIDTH, dtype=torch.float64)
    for truth, value in zip(
        outcome(net, "reference", inputs), outcome(net, "fused", inputs), strict=True
    ):
        for name in truth:
            assert error(value[name], truth[name]) <= 1e-10, name


@pytest.mark.parametrize("memory", ["constant", "random"])
@pytest.mark.parametrize("weighting", ["first_location", "uniform"])
@pytest.mark.filterwarnings("ignore:constant memory under a uniform")
def test_fixed_initial_states_agree(memory, weighting):
    sizes = (7, 3, 1, 1, 1, 6, 3)
    net = machine(
        sizes, initial_memory=memory, initial_weighting=weighting, initial_reads="zeros"
    ).double()
    inputs = torch.randn(6, 3, WIDTH, dtype=torch.float64)
    for truth, value in zip(
        outcome(net, "reference", inputs), outcome(net, "fused", inputs), strict=True
    ):
        for name in truth:
            assert error(value[name], truth[name]) <= 1e-10, name


def test_a_state_passed_on_goes_on_as_one_long_sequence_with_its_gradients():
    sizes = (7, 3, 2, 1, 1, 9, 3)
    net = machine(sizes).double()
    net.engine = "fused"
    inputs = torch.randn(9, 3, WIDTH, dtype=torch.float64, requires_grad=True)
    whole, _ = net(inputs)
    first, state = net(inputs[:4])
    second, _ = net(inputs[4:], state)
    parts = torch.cat([first, second])
    assert error(parts, whole) <= 1e-12
    (by_whole,) = torch.autograd.grad(whole.square().sum(), inputs)
    (by_parts,) = torch.autograd.grad(parts.square().sum(), inputs)
    assert error(by_parts, by_whole) <= 1e-12


def test_gradcheck():
    sizes = (5, 2, 1, 1, 1, 3, 2)
    net = machine(sizes).double()
    net.engine = "fused"
    names, values = zip(*net.named_parameters(), strict=True)
    inputs = torch.randn(3, 2, WIDTH, dtype=torch.float64, requires_grad=True)

    def run(inputs, *values):
        weights = dict(zip(names, values, strict=True))
        logits, state = torch.func.functional_call(net, weights, (inputs,))
        return logits, state.memory, state.weightings, state.reads

    assert torch.autograd.gradcheck(run, (inputs, *values), fast_mode=True)


def arguments_of_the_operator(dtype: torch.dtype):
    net = machine((7, 3, 1, 1, 1, 5, 3)).to(dtype)
    state = net.initial_state(3)
    cell = net.controller.layers[0]
    tensors = [
        torch.randn(5, 3, 44, dtype=dtype),
        cell.weight_hh,
        cell.weight_ih[:, WIDTH:],
        net.emit.weight,
        net.emit.bias,
        *(part[0] for part in state.controller),
        state.memory.transpose(1, 2),
        state.weightings,
        state.reads.flatten(1),
    ]
    leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    return (*leaves, [1, 1, 3, 1, 1, 1], NORM_FLOOR, True)


def test_the_operator_is_a_good_citizen_of_torch():
    torch.library.opcheck(torch.ops.ntm.lstm_loop.default, arguments_of_the_operator(torch.float32))


def test_scratch_memory_is_never_read_before_it_is_written(monkeypatch):
    sizes = (7, 3, 2, 2, 1, 6, 3)
    net = machine(sizes).double()
    inputs = torch.randn(6, 3, WIDTH, dtype=torch.float64)
    truth = outcome(net, "fused", inputs)
    empty = Tensor.new_empty
    like = torch.empty_like
    nan = float("nan")
    monkeypatch.setattr(Tensor, "new_empty", lambda *a, **k: empty(*a, **k).fill_(nan))
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: like(*a, **k).fill_(nan))
    value = outcome(net, "fused", inputs)
    for part in range(2):
        for name in truth[part]:
            assert torch.equal(value[part][name], truth[part][name]), name


@pytest.mark.parametrize("poison", [float("nan"), float("inf"), -float("inf")], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_what_is_not_finite_shows_at_the_same_places(poison, dtype):
    sizes = (7, 3, 1, 1, 1, 5, 3)
    net = machine(sizes).to(dtype)
    inputs = torch.randn(5, 3, WIDTH, dtype=dtype)
    inputs[2, 1, 0] = poison

    def kinds(values: Tensor) -> Tensor:
        return torch.isnan(values) * 2 + torch.isinf(values)

    with torch.no_grad():
        net.engine = "reference"
        truth, truth_state = net(inputs)
        net.engine = "fused"
        value, state = net(inputs)
    assert torch.equal(kinds(value), kinds(truth))
    for one, other in zip(state[:3], truth_state[:3], strict=True):
        assert torch.equal(kinds(one), kinds(other))
    assert torch.isfinite(value[:, 0]).all()


@pytest.mark.parametrize("threads", [1, 2])
def test_the_same_bits_twice(threads):
    sizes = (128, 20, 1, 1, 1, 21, 8)
    net = machine(sizes)
    inputs = torch.randn(21, 8, WIDTH)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        one, other = outcome(net, "fused", inputs), outcome(net, "fused", inputs)
    finally:
        torch.set_num_threads(before)
    for part in range(2):
        for name in one[part]:
            assert torch.equal(one[part][name], other[part][name]), name


def test_without_gradients_no_memories_are_kept():
    *tensors, layout, floor, _ = arguments_of_the_operator(torch.float32)
    assert torch.ops.ntm.lstm_loop(*tensors, layout, floor, False)[8].numel() == 0
    assert torch.ops.ntm.lstm_loop(*tensors, layout, floor, True)[8].shape[0] == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "engine auto: fused, whole sequences at once"),
        ({"controller": FeedforwardController}, "engine auto: fused, whole sequences at once"),
        (
            {"controller": functools.partial(LSTMController, num_layers=2)},
            "engine auto: fused, step by step: the LSTM controller has more than one layer",
        ),
        (
            {"controller": functools.partial(LSTMController, dropout=0.5)},
            "engine auto: fused, step by step: the controller drops out",
        ),
    ],
    ids=["lstm", "feedforward", "two layers", "dropout"],
)
def test_auto_says_once_what_it_picked_and_why(arguments, said, caplog):
    caplog.set_level("INFO", logger="ntm")
    ntm_module._announce.cache_clear()
    auto = NTM(WIDTH, OUT, 7, 3, engine="auto", **arguments)
    assert auto.engine_for("cpu", torch.float32) == "fused"
    auto(torch.randn(3, 2, WIDTH))
    assert [r.message for r in caplog.records if r.message.startswith("engine")] == [said]


def test_other_precisions_and_devices_are_refused_with_the_reason():
    net = NTM(WIDTH, OUT, 7, 3, engine="fused")
    with pytest.raises(ValueError, match="another precision"):
        net.engine_for("cpu", torch.bfloat16)
    with pytest.raises(ValueError, match="for the CPU, got cuda"):
        net.engine_for("cuda", torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(ValueError, match="precision"):
        net(torch.randn(3, 2, WIDTH))


def test_weights_move_between_engines():
    one, other = NTM(WIDTH, OUT, 7, 3, engine="fused"), NTM(WIDTH, OUT, 7, 3, engine="reference")
    other.load_state_dict(one.state_dict())
    inputs = torch.randn(6, 2, WIDTH)
    with torch.no_grad():
        assert torch.allclose(one(inputs)[0], other(inputs)[0], atol=1e-5)


PROGRAM = """
import torch, ntm
net = ntm.NTM(3, 2, 7, 2, engine="fused")
net(torch.zeros(2, 1, 3))[0].sum().backward()
print(float(net.emit.weight.grad.abs().sum()) >= 0)
"""


@pytest.mark.slow
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
def test_several_processes_share_a_fresh_cache(tmp_path):
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path)}
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM], env=environment, stdout=subprocess.PIPE, text=True
        )
        for _ in range(3)
    ]
    assert [process.communicate()[0].strip() for process in started] == ["True"] * 3
