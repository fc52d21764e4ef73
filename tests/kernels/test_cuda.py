"""The loops for GPUs, interpreted on tensors of the CPU, against the reference; and compiled.

Interpreted, a kernel is exact in what it computes, and says nothing of races or of speed. Triton
decides when a kernel is defined, so these tests have a process of their own:
``TRITON_INTERPRET=1 python -m pytest -m triton``.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from comparing import assert_single_agrees, error, machine, random_inputs

from ntm.kernels import fused
from ntm.kernels.cuda import bounds
from ntm.machine import NTM, FeedforwardController, LSTMController

pytestmark = pytest.mark.triton
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("TRITON_INTERPRET=1 must be set before the process starts", allow_module_level=True)
interpreter = pytest.importorskip(
    "triton.runtime.interpreter", reason="requirements-cuda.txt installs Triton"
)
ROOT = Path(__file__).parents[2]
lstm = functools.partial(LSTMController, hidden_size=5, initial_state="learned")
feedforward = functools.partial(FeedforwardController, hidden_size=5)
BOTH = pytest.mark.parametrize("controller", [lstm, feedforward], ids=["lstm", "feedforward"])


class Interpreted:
    """Jobs of the fused engine that the interpreter runs."""

    def __init__(self, monkeypatch) -> None:
        from ntm.kernels.cuda import launch  # Triton may not be there

        self.monkeypatch, self.launch, self.kept = monkeypatch, launch, []
        monkeypatch.setitem(fused.RUNNERS, "cpu", self.run)

    def run(self, *arguments, **more) -> None:
        self.kept.append(more["kept"])
        self.launch.run(*arguments, **more)

    def together(self, block: int) -> None:
        """Let a program run so many sequences."""
        self.monkeypatch.setattr(bounds, "block", lambda *_: block)


@pytest.fixture
def interpreted(monkeypatch) -> Iterator[Interpreted]:
    patched = set()

    def call(function, *arguments, **more):
        """Triton's prepares the language anew at every call, which takes most of the time."""
        if id(function.fn.__globals__) not in patched:
            patched.add(id(function.fn.__globals__))
            interpreter._patch_lang(function.fn)
        return function.rewrite()(*arguments, **more)

    monkeypatch.setattr(interpreter.InterpretedFunction, "__call__", call)
    made = Interpreted(monkeypatch)
    yield made
    assert made.kept


CASES = {
    "lstm": (lstm, (7, 3, 1, 1, 1, 3, 2), 1, {}),
    "lstm, write first": (lstm, (7, 3, 2, 3, 1, 2, 3), 4, {"read_first": False}),
    "lstm, beyond a kept memory": (lstm, (8, 4, 1, 1, 2, 6, 1), 1, {}),
    "lstm, one of all": (lstm, (1, 1, 1, 1, 0, 1, 1), 1, {}),
    "lstm, sixteen together": (
        functools.partial(lstm, hidden_size=17), (5, 16, 1, 1, 1, 2, 17), 16, {},
    ),
    "lstm, given start": (
        functools.partial(lstm, initial_state="zeros"), (5, 3, 1, 2, 1, 2, 2), 2,
        {"initial_memory": "constant", "initial_weighting": "first_location",
         "initial_reads": "zeros"},
    ),
    "feedforward": (feedforward, (7, 3, 1, 1, 2, 2, 2), 1, {}),
    "feedforward, write first": (feedforward, (6, 2, 3, 1, 1, 2, 3), 4, {"read_first": False}),
    "feedforward, beyond a kept memory": (feedforward, (5, 3, 1, 1, 1, 5, 2), 2, {}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_it_is_as_exact_as_the_reference(case, interpreted):
    """Outputs, every part of the state, and the gradients of inputs, weights and start."""
    controller, sizes, block, arguments = CASES[case]
    interpreted.together(block)
    assert_single_agrees(machine(sizes, controller, **arguments), random_inputs(sizes))


@pytest.mark.parametrize(
    ("key", "add", "own"),
    [
        ("identity", "relu", "sigmoid"),
        ("sigmoid", "identity", "relu"),
        ("relu", "sigmoid", "identity"),
    ],
)
def test_activations_are_as_exact_as_the_reference(key, add, own, interpreted):
    interpreted.together(2)
    sizes = (5, 3, 1, 1, 1, 2, 2)
    controller = functools.partial(feedforward, activation=own)
    net = machine(sizes, controller, key_activation=key, add_activation=add)
    assert_single_agrees(net, random_inputs(sizes))


@BOTH
def test_a_state_passed_on_goes_on_with_its_gradients(controller, interpreted):
    """Two runs against the reference's one; the loss leaves out the last step and the state."""
    interpreted.together(2)
    sizes = (6, 3, 1, 1, 1, 4, 2)
    net = machine(sizes, controller)
    inputs = random_inputs(sizes, torch.float32)
    net.engine = "fused"
    first, state = net(inputs[:2])
    second, _ = net(inputs[2:], state)
    got = torch.autograd.grad(torch.cat([first, second])[:3].square().sum(), [*net.parameters()])
    net.double().engine = "reference"
    logits, _ = net(inputs.double())
    wanted = torch.autograd.grad(logits[:3].square().sum(), [*net.parameters()])
    for name, one, other in zip(dict(net.named_parameters()), got, wanted, strict=True):
        assert error(one, other) <= 1e-4, name


@BOTH
def test_gradients_of_the_first_steps_alone_and_of_emissions(controller, interpreted):
    interpreted.together(2)
    sizes = (6, 3, 1, 1, 1, 3, 2)
    net = machine(sizes, controller)
    found = []
    for engine in ("fused", "reference"):
        net.engine = engine
        inputs = random_inputs(sizes, next(net.parameters()).dtype).requires_grad_()
        logits, raw = net.with_emissions(inputs)
        total = logits[0].sum() + raw[:2].square().sum()
        found.append(torch.autograd.grad(total, [inputs, *net.parameters()]))
        net.double()
    for one, other in zip(*found, strict=True):
        assert error(one, other) <= 1e-4
    assert not found[0][0][2].any()


@BOTH
def test_without_gradients_it_keeps_no_memories(controller, interpreted):
    interpreted.together(2)
    sizes = (6, 3, 1, 1, 1, 2, 2)
    net = machine(sizes, controller)
    net.engine = "fused"
    inputs = random_inputs(sizes, torch.float32)
    with torch.no_grad():
        alone, _ = net(inputs)
    logits, _ = net(inputs)
    assert interpreted.kept == [0, 1]
    assert torch.equal(alone, logits)


@torch.no_grad()
def test_it_makes_no_difference_how_many_sequences_a_program_runs(interpreted):
    sizes = (6, 3, 1, 1, 1, 2, 3)
    net = machine(sizes, lstm)
    net.engine = "fused"
    found = []
    for block in (1, 2, 4):
        interpreted.together(block)
        logits, state = net(random_inputs(sizes, torch.float32))
        found.append([logits, *state[:3], *state.controller])
    for one, two, four in zip(*found, strict=True):
        assert error(two, one) <= 1e-6
        assert error(four, one) <= 1e-6


def test_what_is_not_finite_shows_in_its_sequence_alone(interpreted):
    interpreted.together(2)
    sizes = (6, 3, 1, 1, 1, 2, 2)
    net = machine(sizes, lstm)
    inputs = random_inputs(sizes, torch.float32)
    inputs[0, 0, 0] = torch.nan
    for engine in ("fused", "reference"):
        net.engine = engine
        with torch.no_grad():
            logits, state = net(inputs)
        for part in (logits.transpose(0, 1), *state[:3]):
            assert part[0].isnan().all(), engine
            assert part[1].isfinite().all(), engine


# What is refused, also by those who call the operators themselves


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"dtype": torch.float64}, r"for float32, got torch\.float64"),
        ({"num_layers": 2}, "controllers of one layer, got 2"),
        ({"memory_size": 300}, "heads times locations squared"),
    ],
    ids=["double", "layers", "locations"],
)
def test_what_does_not_fit_is_refused_by_the_loops(changed, message, monkeypatch):
    from ntm.kernels.cuda import launch

    monkeypatch.setitem(fused.RUNNERS, "cpu", launch.run)
    controller = functools.partial(LSTMController, hidden_size=5,
                                   num_layers=changed.get("num_layers", 1))  # fmt: skip
    net = NTM(3, 2, changed.get("memory_size", 6), 4, controller=controller, engine="fused")
    net.to(changed.get("dtype", torch.float32))
    with pytest.raises((TypeError, ValueError), match=message):
        net(torch.zeros(2, 1, 3, dtype=changed.get("dtype")))


def freed(weight: torch.Tensor) -> torch.Tensor:
    weight = weight.clone()
    weight.untyped_storage().resize_(weight.untyped_storage().nbytes() // 2)
    return weight


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda weight: weight.to("meta"), "must be on cpu, got meta"),
        (lambda weight: weight.to_sparse(), "must be dense, got torch.sparse_coo"),
        (freed, "was it given back"),
        (lambda weight: weight.double(), "must be of one precision"),
    ],
    ids=["elsewhere", "sparse", "freed", "double"],
)
@pytest.mark.parametrize("place", [2, 8], ids=["by_hidden", "emit"])
def test_what_does_not_lie_where_the_others_do_is_refused(place, change, message, monkeypatch):
    """As the CPU's functions do: a kernel would not notice."""
    from ntm.kernels.cuda import launch

    monkeypatch.setitem(fused.RUNNERS, "cpu", launch.run)
    T, B, N, M, H = 2, 1, 4, 2, 3
    P = 2 * (M + 6) + 2 * M
    first = [torch.zeros(4 * H, 2 + M), torch.zeros(4 * H, H), *torch.zeros(2, 4 * H)]
    start = [torch.zeros(B, N, M), torch.zeros(B, 2, N), torch.zeros(B, 1, M)]
    given = [torch.zeros(T, B, 2), *first, None, None, None, torch.zeros(P, H), torch.zeros(P),
             *start, *torch.zeros(2, 1, B, H), [1, 1, 3, 1, 1, 1], 1e-2, True]  # fmt: skip
    given[place] = change(given[place])
    with pytest.raises((ValueError, TypeError), match=message):
        fused._call("lstm_loop", *given)


@pytest.mark.parametrize("name", ["lstm_loop", "feedforward_loop"])
def test_the_operators_are_there_for_the_device(name):
    for operator in (name, f"{name}_backward"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"ntm::{operator}", "CUDA")
    assert not torch._C._dispatch_has_kernel_for_dispatch_key("ntm::memory_step", "CUDA")


# Compiled for a device that is not there

MOST_REGISTERS, MOST_SPILLED, MOST_SHARED = 255, 1024, 48 * 1024
COMPILED = {
    "the default machine": "--capability 90 --controllers lstm",
    "write first": "--capability 80 --controllers feedforward --sizes 8 3 1 2 1 --hidden 5 "
    "--write-first",
    "sixteen together": "--capability 90 --controllers lstm --sizes 16 4 1 1 1 --hidden 32 "
    "--block 16",
}


@pytest.mark.parametrize("case", COMPILED)
def test_it_compiles_and_fits(case, tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "scripts/registers.py", *COMPILED[case].split()],
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)}, cwd=ROOT, capture_output=True,
        text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = [line.strip("| ").split(" | ") for line in done.stdout.splitlines()[2:]]
    assert [row[2] for row in found] == ["forward", "backward"]
    for *_, registers, spilled, shared in found:
        assert 0 < int(registers) <= MOST_REGISTERS
        assert int(spilled) <= MOST_SPILLED
        assert int(shared) <= MOST_SHARED
