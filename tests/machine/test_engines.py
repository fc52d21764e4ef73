"""Which engine runs, why another does not, and that all are one machine."""

from __future__ import annotations

import functools

import pytest
import torch
from comparing import (
    CONTROLLERS,
    OUT,
    WIDTH,
    assert_same_bits,
    assert_single_agrees,
    error,
    machine,
    outcome,
    random_inputs,
)
from torch.nn.utils import prune
from torch.profiler import ProfilerActivity, profile

from ntm.kernels import engines
from ntm.kernels.compiling import kernels
from ntm.kernels.cuda import bounds
from ntm.machine import NTM, FeedforwardController, LSTMController
from ntm.machine import ntm as ntm_module
from ntm.metrics import SequenceMetrics, count, cross_entropy, target_bits
from ntm.tasks import Copy
from ntm.tasks.sampling import TRAINING, VALIDATION, sample

SMALL = (7, 3, 2, 2, 1, 6, 3)


# The choice


@pytest.mark.parametrize(
    ("controller", "dropout", "engine", "loaded"),
    [
        ("lstm", 0.0, "fused", 1),
        ("lstm", 0.5, "fused", 1),
        ("feedforward", 0.0, "auto", 1),
        ("own", 0.0, "auto", 1),
        ("lstm", 0.0, "reference", 0),
    ],
)
def test_a_training_step_finds_loaded_what_load_engine_loads(controller, dropout, engine, loaded):
    net = machine(SMALL, controller)
    if dropout:
        net.controller.dropout.p = dropout
    net.engine = engine
    kernels.cache_clear()
    net.load_engine("cpu", torch.float32)
    assert kernels.cache_info().misses == loaded
    net(random_inputs(SMALL, torch.float32))[0].sum().backward()
    assert kernels.cache_info().misses == loaded


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({}, "whole sequences at once"),
        ({"controller": FeedforwardController}, "whole sequences at once"),
        (
            {"controller": functools.partial(LSTMController, num_layers=2)},
            "whole sequences at once",
        ),
        (
            {"controller": functools.partial(LSTMController, dropout=0.5)},
            "step by step: the controller drops out",
        ),
        (
            {"controller": functools.partial(FeedforwardController, dropout=0.5)},
            "step by step: the controller drops out",
        ),
        (
            {"controller": functools.partial(FeedforwardController, activation=torch.cos)},
            "step by step: the controller's activation is a function of its own",
        ),
        (
            {"controller": CONTROLLERS["own"]},
            "step by step: the controller is a module of its own",
        ),
    ],
    ids=["lstm", "feedforward", "lstm x2", "dropout", "feedforward dropout", "cosine", "own"],
)
def test_auto_says_once_what_it_picked_and_why(arguments, said, caplog):
    auto = NTM(WIDTH, OUT, 7, 3, engine="auto", **arguments)
    assert auto.engine_for("cpu", torch.float32) == "fused"
    caplog.set_level("INFO", logger="ntm")
    for _ in range(2):
        auto(torch.randn(3, 2, WIDTH))
    messages = [r.message for r in caplog.records if r.message.startswith("engine")]
    assert messages == [f"engine auto: fused, {said}"]


def test_auto_takes_the_reference_where_fused_does_not_apply_and_says_why(caplog):
    auto = NTM(WIDTH, OUT, 7, 3)
    assert auto.engine_for("mps", torch.float32) == "reference"
    assert auto.engine_for("cpu", torch.bfloat16) == "reference"
    caplog.set_level("INFO", logger="ntm")
    auto._announce("reference", torch.empty(3, 2, WIDTH, device="meta"))
    auto._announced = None
    auto.bfloat16()(torch.zeros(3, 2, WIDTH, dtype=torch.bfloat16))
    assert [r.message for r in caplog.records] == [
        "engine auto: reference, fused is for cpu and cuda, got meta",
        "engine auto: reference, fused is for float32 and float64 on cpu, got another precision",
    ]


class Louder(LSTMController):
    """A controller of a user's own that is one of ours but for a factor."""

    def forward(self, inputs, state):
        outputs, state = super().forward(inputs, state)
        return 2 * outputs, state


def test_what_a_user_adds_to_a_controller_takes_effect():
    louder = NTM(WIDTH, OUT, 7, 3, controller=functools.partial(Louder, hidden_size=5))
    pruned = NTM(WIDTH, OUT, 7, 3, controller=functools.partial(LSTMController, hidden_size=5))
    prune.random_unstructured(pruned.controller.layers[0], "weight_hh", amount=0.5)
    heard = NTM(WIDTH, OUT, 7, 3, controller=functools.partial(LSTMController, hidden_size=5))
    heard.emit.register_forward_hook(lambda *arguments: 2 * arguments[-1])
    inputs = torch.randn(4, 2, WIDTH)
    for net in (louder, pruned, heard):
        found = []
        for engine in ("reference", "fused"):
            net.engine = engine
            found.append(net(inputs)[0])
        assert error(found[1], found[0]) <= 1e-5
    assert "module of its own" in louder._fused_unit()
    assert "hooks wait" in pruned._fused_unit()
    assert "hooks wait" in heard._fused_unit()


class Bare(torch.nn.Module):
    """A layer that is not one of torch's."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, *inputs):
        return self.layer(*inputs)


def without_bias(net):
    net.controller.layers[0] = torch.nn.LSTMCell(WIDTH + 3, 100, bias=False)


def of_own_call(net):
    net.controller.forward = net.controller.forward


CHANGES = {
    "the controller's dropout is a module of its own": lambda net: setattr(
        net.controller, "dropout", torch.nn.Identity()
    ),
    "the emissions are a module of their own": lambda net: setattr(net, "emit", Bare(net.emit)),
    "a layer of the controller is a module of its own": lambda net: net.controller.layers.insert(
        0, Bare(net.controller.layers.pop(0))
    ),
    "the controller's own way to be called was replaced": of_own_call,
    "hooks wait for the controller or the emissions to be called": lambda net: (
        net.controller.layers[0].register_forward_hook(lambda *_: None)
    ),
    "a layer of the controller has another shape, or no bias": without_bias,
}


@pytest.mark.parametrize("why", CHANGES)
def test_what_is_changed_runs_step_by_step_to_the_same_numbers(why):
    net = NTM(WIDTH, OUT, 7, 3)
    assert net._fused_unit() == "whole sequences at once"
    CHANGES[why](net)
    assert net._fused_unit() == f"step by step: {why}"
    inputs = torch.randn(4, 2, WIDTH)
    net.engine = "fused"
    found = net(inputs)[0]
    net.engine = "reference"
    assert error(found, net(inputs)[0]) <= 1e-5


PARTS = {
    "emit": lambda net: net.emit,
    "controller": lambda net: net.controller,
    "dropout": lambda net: net.controller.dropout,
    "layer": lambda net: net.controller.layers[0],
}
HOOKS = (
    "register_forward_hook",
    "register_forward_pre_hook",
    "register_full_backward_hook",
    "register_full_backward_pre_hook",
)


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("register", HOOKS)
def test_any_hook_on_any_part_is_heard_until_it_is_removed(register, part):
    net = NTM(WIDTH, OUT, 7, 3, engine="fused")
    calls = []
    hook = getattr(PARTS[part](net), register)(lambda *_: calls.append(part))
    assert "hooks wait" in net._fused_unit()
    net(torch.randn(3, 2, WIDTH))[0].sum().backward()
    assert len(calls) == 3
    hook.remove()
    assert net._fused_unit() == "whole sequences at once"


def test_a_hook_on_all_modules_is_heard():
    net = NTM(WIDTH, OUT, 7, 3, engine="fused")
    called = []
    hook = torch.nn.modules.module.register_module_forward_hook(
        lambda *call: called.append(call[0])
    )
    try:
        assert "hooks wait" in net._fused_unit()
        net(torch.randn(3, 2, WIDTH))
    finally:
        hook.remove()
    assert called.count(net.emit) == called.count(net.controller) == 3
    assert net._fused_unit() == "whole sequences at once"


def test_emissions_without_bias_run_step_by_step_to_the_same_numbers():
    net = NTM(WIDTH, OUT, 7, 3, engine="fused")
    net.emit = torch.nn.Linear(100, net.layout.size, bias=False)
    assert net._fused_unit() == "step by step: the emissions are a module of their own"
    inputs = torch.randn(4, 2, WIDTH)
    found = net(inputs)[0]
    net.engine = "reference"
    assert error(found, net(inputs)[0]) <= 1e-5


def test_emissions_of_another_width_are_refused():
    net = NTM(WIDTH, OUT, 7, 3, engine="fused")
    net.emit = torch.nn.Linear(100, 9)
    size = net.layout.size
    with pytest.raises(RuntimeError, match=f"^emissions must be {size} wide, got 9$"):
        net(torch.randn(4, 2, WIDTH))


def test_dropout_is_no_hindrance_once_training_is_over():
    net = NTM(WIDTH, OUT, 7, 3, controller=functools.partial(LSTMController, dropout=0.5))
    assert "drops out" in net._fused_unit()
    assert net.eval()._fused_unit() == "whole sequences at once"


def test_other_precisions_and_devices_are_refused_with_the_reason():
    net = NTM(WIDTH, OUT, 7, 3, engine="fused")
    with pytest.raises(ValueError, match=r"^engine fused cannot run: .* another precision; use"):
        net.engine_for("cpu", torch.bfloat16)
    with pytest.raises(ValueError, match=r"^engine fused cannot run: .*cpu and cuda, got mps"):
        net.engine_for("mps", torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(ValueError, match="precision"):
        net(torch.randn(3, 2, WIDTH))
    assert net.is_fast_on("cpu", torch.float32)
    assert not net.is_fast_on("cpu", torch.bfloat16)
    net.engine = "reference"
    assert net.engine_for("mps", torch.bfloat16) == "reference"


@pytest.mark.parametrize("controller", CONTROLLERS)
def test_emissions_asked_for_without_gradients_are_those_of_the_plain_loop(controller):
    net = machine(SMALL, controller)
    inputs = random_inputs(SMALL, torch.float32)
    found = []
    for engine in ("reference", "fused"):
        net.engine = engine
        with torch.no_grad():
            found.append(net.with_emissions(inputs))
    for plain, fused in zip(*found, strict=True):
        assert error(fused, plain) <= 1e-5


@pytest.fixture
def with_triton(monkeypatch):
    """And with an engine for CUDA that is taken by itself."""
    monkeypatch.setitem(engines.INSTALLED, "triton", True)
    monkeypatch.setitem(engines.FUSED, "cuda", engines.FUSED["cuda"]._replace(has_run=True))


def test_an_engine_that_has_never_run_on_a_device_is_taken_by_name_alone(monkeypatch):
    monkeypatch.setitem(engines.INSTALLED, "triton", True)
    for has_run in (False, True):
        changed = engines.FUSED["cuda"]._replace(has_run=has_run)
        monkeypatch.setitem(engines.FUSED, "cuda", changed)
        net = on_cuda()
        assert net.engine_for("cuda", torch.float32) == ("fused" if has_run else "reference")
        assert net.is_fast_on("cuda", torch.float32) == has_run
        net.engine = "fused"
        assert net.engine_for("cuda", torch.float32) == "fused"
        assert net.is_fast_on("cuda", torch.float32)


def on_cuda(**arguments) -> NTM:
    """A machine that fits, but for the arguments."""
    given = {"memory_size": 7, "word_size": 3} | arguments
    return NTM(WIDTH, OUT, engine="auto", **given)


@pytest.mark.usefixtures("with_triton")
@pytest.mark.parametrize("controller", [LSTMController, FeedforwardController])
def test_on_cuda_the_fused_engine_takes_the_machine_of_the_paper(controller):
    for net in (on_cuda(), on_cuda(memory_size=128, word_size=20, controller=controller)):
        assert net.engine_for("cuda", torch.float32) == "fused"
        net.load_engine("cuda", torch.float32)  # nothing to load, and nothing of the CPU's


def heard(net: NTM) -> NTM:
    net.emit.register_forward_hook(lambda *_: None)
    return net


REFUSED = {
    "layers": (
        lambda: on_cuda(controller=functools.partial(LSTMController, num_layers=2)),
        "fused on cuda is for controllers of one layer, got 2",
    ),
    "hidden": (
        lambda: on_cuda(controller=functools.partial(LSTMController, hidden_size=129)),
        "16384 numbers of the controller's weights, in powers of two, got 65536",
    ),
    "words": (
        lambda: on_cuda(word_size=129),
        "16384 numbers of the controller's weights, in powers of two, got 32768",
    ),
    "memory": (
        lambda: on_cuda(memory_size=129, word_size=33),
        "8192 numbers of memory, in powers of two, got 16384",
    ),
    "heads": (
        lambda: on_cuda(
            memory_size=65, word_size=33, num_write_heads=5,
            controller=functools.partial(LSTMController, hidden_size=20),
        ),
        "32768 numbers of memory times heads, in powers of two, got 65536",
    ),
    "locations": (
        lambda: on_cuda(memory_size=128, num_read_heads=5),
        "65536 numbers of heads times locations squared, in powers of two, got 131072",
    ),
    "own": (
        lambda: on_cuda(controller=CONTROLLERS["own"]),
        "whole sequences alone on cuda: the controller is a module of its own",
    ),
    "hooks": (
        lambda: heard(on_cuda()),
        "whole sequences alone on cuda: hooks wait for the controller or the emissions",
    ),
}  # fmt: skip


@pytest.mark.usefixtures("with_triton")
@pytest.mark.parametrize("case", REFUSED)
def test_on_cuda_what_does_not_fit_goes_to_the_reference_and_is_refused_by_name(case):
    make, reason = REFUSED[case]
    net = make()
    assert net.engine_for("cuda", torch.float32) == "reference"
    assert net.engine_for("cpu", torch.float32) == "fused"
    net.engine = "fused"
    with pytest.raises(ValueError, match=r"^engine fused cannot run: .*; use auto or ref") as told:
        net.engine_for("cuda", torch.float32)
    assert reason in str(told.value)


def test_on_cuda_it_needs_triton_and_single_precision(monkeypatch):
    net = on_cuda()
    monkeypatch.setitem(engines.INSTALLED, "triton", False)
    assert net.engine_for("cuda", torch.float32) == "reference"
    net.engine = "fused"
    with pytest.raises(ValueError, match="needs triton on cuda, and it is not installed"):
        net.engine_for("cuda", torch.float32)
    monkeypatch.setitem(engines.INSTALLED, "triton", True)
    with pytest.raises(ValueError, match="for float32 on cuda, got another precision"):
        net.engine_for("cuda", torch.float64)
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: device == "cuda")
    with pytest.raises(ValueError, match="for float32 on cuda, got another precision"):
        net.engine_for("cuda", torch.float32)
    assert net.engine_for("cpu", torch.float32) == "fused"


def test_many_sequences_share_a_program_where_their_memories_are_small():
    small, of_the_paper = (20, 16, 8, 1, 1, 3), (100, 128, 20, 1, 1, 3)
    assert [bounds.block(B, *small) for B in (1, 2047, 2048)] == [1, 1, 16]
    assert bounds.block(2048, *of_the_paper) == 1


def test_compiled_is_refused_with_the_reason(monkeypatch):
    net = NTM(WIDTH, OUT, 7, 3, engine="compiled")

    def reason(device):
        with pytest.raises(ValueError) as refusal:  # noqa: PT011
            net.engine_for(device, torch.float32)
        before, _, why = str(refusal.value).partition(": ")
        assert before == "engine compiled cannot run"
        assert why.endswith("; use auto or reference")
        return why.removesuffix("; use auto or reference")

    assert reason("mps") == "compiled is for the CPU and CUDA, got mps"
    monkeypatch.setattr(ntm_module, "find_spec", lambda name: None if name == "triton" else name)
    assert reason("cuda") == "compiled needs Triton on a GPU, and it is not installed"
    monkeypatch.setattr(ntm_module, "find_spec", lambda name: name)
    assert net.engine_for("cuda", torch.float32) == "compiled"
    monkeypatch.setenv("PATH", "")
    assert reason("cpu") == "compiled needs a C++ compiler on the CPU, and there is none"


@pytest.mark.parametrize("name", ["c++", "g++", "clang++", "cl"])
def test_any_compiler_will_do(name, tmp_path, monkeypatch):
    (tmp_path / name).touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    net = NTM(WIDTH, OUT, 7, 3, engine="compiled")
    assert net.engine_for("cpu", torch.float32) == "compiled"


def test_weights_move_between_engines():
    one, other = NTM(WIDTH, OUT, 7, 3, engine="fused"), NTM(WIDTH, OUT, 7, 3, engine="reference")
    other.load_state_dict(one.state_dict())
    inputs = torch.randn(6, 2, WIDTH)
    with torch.no_grad():
        assert torch.allclose(one(inputs)[0], other(inputs)[0], atol=1e-5)


# torch.compile


@pytest.mark.slow  # half a minute to compile
def test_compiled_agrees():
    net, inputs = machine(SMALL), random_inputs(SMALL)
    assert_single_agrees(net, inputs, "compiled")
    net, inputs, found = net.float(), inputs.float(), []
    for engine in ("reference", "compiled"):
        net.engine = engine
        found.append(net.with_emissions(inputs))
    for plain, compiled in zip(*found, strict=True):
        assert error(compiled, plain) <= 1e-5


# Segments


@pytest.mark.parametrize("segment", [1, 4, 6, 100])
@pytest.mark.parametrize("controller", ["lstm", "feedforward x3", "own"])
@pytest.mark.parametrize("engine", ["reference", "fused"])
def test_segments_change_no_output_and_no_gradient(engine, controller, segment):
    net = machine(SMALL, controller).double()
    inputs = random_inputs(SMALL)
    whole = outcome(net, engine, inputs)
    net.segment = segment
    for expected, got in zip(whole, outcome(net, engine, inputs), strict=True):
        assert expected.keys() == got.keys()
        for name in expected:
            assert error(got[name], expected[name]) <= 1e-12, name


@pytest.mark.parametrize("engine", ["reference", "fused"])
def test_segments_drop_out_the_same_when_they_run_again(engine):
    dropping = functools.partial(CONTROLLERS["lstm x2"], dropout=0.4)
    net = machine(SMALL, dropping).double()
    inputs = random_inputs(SMALL)
    whole = outcome(net, engine, inputs)
    net.segment = 2
    for expected, got in zip(whole, outcome(net, engine, inputs), strict=True):
        for name in expected:
            assert error(got[name], expected[name]) <= 1e-12, name


def test_without_gradients_segments_do_nothing():
    net = machine(SMALL)
    net.engine = "fused"
    inputs = random_inputs(SMALL, torch.float32)
    with torch.no_grad():
        whole, _ = net(inputs)
        net.segment = 2
        assert torch.equal(net(inputs)[0], whole)


def most_bytes(net: NTM, inputs: torch.Tensor) -> int:
    """What torch holds at most at once through a forward and backward pass, beyond the start."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        net(inputs)[0].sum().backward()
    held = most = 0
    for event in seen.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most


@pytest.mark.parametrize(("engine", "steps"), [("reference", 100), ("fused", 800)])
@pytest.mark.parametrize("controller", ["lstm", "own"])
def test_segments_hold_less(controller, engine, steps):
    sizes = (64, 10, 1, 1, 1, steps, 2)
    net = machine(sizes, controller)
    net.engine = engine
    inputs = random_inputs(sizes, torch.float32)
    net(inputs[:1])  # compiles, where it has to
    whole = most_bytes(net, inputs)
    net.segment = round(steps**0.5)
    assert most_bytes(net, inputs) < whole / 4


def test_whole_sequences_hold_little_more_than_one_memory_a_step():
    sizes = (128, 20, 1, 1, 1, 100, 4)
    net = machine(sizes)
    net.engine = "fused"
    inputs = random_inputs(sizes, torch.float32)
    net(inputs[:1])
    one_memory_a_step = 100 * 4 * 128 * 20 * 4
    assert most_bytes(net, inputs) <= 1.3 * one_memory_a_step


# Training


def solve(engine: str, steps: int) -> tuple[NTM, list[float]]:
    """Train a small machine to copy two or three vectors of three bits; validate now and then."""
    torch.manual_seed(0)
    task = Copy(bits=3, min_length=1, max_length=3)
    controller = functools.partial(LSTMController, hidden_size=40)
    net = NTM(4, 3, 8, 6, controller=controller, engine=engine)
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-2)
    wrong = []
    for k in range(steps):
        batch = sample(task, TRAINING, k, 16, ((1, 3),))
        logits, _ = net(batch.inputs)
        optimizer.zero_grad()
        (cross_entropy(logits, batch).sum() / target_bits(batch).sum()).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        if (k + 1) % 100 == 0:
            wrong.append(wrong_bits(net, task))
            if wrong[-1] < 0.1:
                break
    return net, wrong


@torch.no_grad()
def wrong_bits(net: NTM, task: Copy) -> float:
    metrics = SequenceMetrics()
    for k in range(4):
        batch = sample(task, VALIDATION, k, 16, ((1, 3),))
        metrics.update(*count(net(batch.inputs)[0], batch))
    return float(metrics.compute()["wrong_bits_per_sequence"])


@pytest.mark.parametrize(
    "engine", ["reference", "fused", pytest.param("compiled", marks=pytest.mark.soak)]
)
def test_training_reaches_the_solved_state_and_goes_over_to_another_engine(engine):
    net, wrong = solve(engine, 3000)
    assert wrong[0] > 0.3
    assert wrong[-1] < 0.1
    task = Copy(bits=3, min_length=1, max_length=3)
    for other in {"reference", "fused"} - {engine}:
        net.engine = other
        assert wrong_bits(net, task) == pytest.approx(wrong[-1], abs=0.02)


def test_training_with_the_fused_engine_repeats_to_the_bit():
    (one, _), (other, _) = solve("fused", 50), solve("fused", 50)
    assert_same_bits((one.state_dict(), {}), (other.state_dict(), {}))
