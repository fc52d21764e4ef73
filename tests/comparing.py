"""One machine under two engines: outputs, the state after, and every gradient."""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ntm.machine import NTM, FeedforwardController, LSTMController, NTMState

WIDTH, OUT = 5, 3
SCHEMES = {"initial_memory": "learned", "initial_weighting": "learned", "initial_reads": "learned"}
Sizes = tuple[int, int, int, int, int, int, int]
"""N, M, R, W, S, T, B."""
Outcome = dict[str, Tensor]


class Accumulator(nn.Module):
    """A controller of a user's own, with a state of two tensors."""

    def __init__(self, input_size: int, hidden_size: int = 11) -> None:
        super().__init__()
        self.linear = nn.Linear(input_size, hidden_size)
        self.rate = nn.Parameter(torch.full((hidden_size,), 0.3))
        self.start = nn.Parameter(torch.linspace(-0.2, 0.2, hidden_size))

    def initial_state(self, batch_size: int) -> dict[str, Tensor]:
        total = self.start.expand(batch_size, -1)
        return {"total": total, "last": torch.zeros_like(total)}

    def forward(self, inputs: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        new = torch.tanh(self.linear(inputs) + 0.5 * state["last"])
        total = state["total"] + self.rate * (new - state["total"])
        return torch.tanh(total + new), {"total": total, "last": new}


learned_lstm = partial(LSTMController, hidden_size=11, initial_state="learned")
WHOLE: dict[str, Callable[..., nn.Module]] = {
    "lstm": learned_lstm,
    "lstm x2": partial(learned_lstm, num_layers=2),
    "feedforward": partial(FeedforwardController, hidden_size=11),
    "feedforward x3": partial(FeedforwardController, hidden_size=11, num_layers=3),
}
"""Controllers that are part of the compiled function."""
CONTROLLERS = WHOLE | {"own": Accumulator}
"""With one that drives the compiled memory step by step."""


def machine(sizes: Sizes, controller: str | Callable[..., nn.Module] = "lstm", **arguments) -> NTM:
    """A machine with weights large enough that every part of it works."""
    torch.manual_seed(0)
    make = CONTROLLERS[controller] if isinstance(controller, str) else controller
    net = NTM(WIDTH, OUT, *sizes[:5], controller=make, **(SCHEMES | arguments))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(2)
    return net


def random_inputs(sizes: Sizes, dtype: torch.dtype = torch.float64) -> Tensor:
    """(T, B, I), the same for the same sizes."""
    generator = torch.Generator().manual_seed(2)
    return torch.randn(*sizes[5:], WIDTH, generator=generator, dtype=torch.float64).to(dtype)


def outcome(net: NTM, engine: str, inputs: Tensor) -> tuple[Outcome, Outcome]:
    """Logits and the state after, and the gradients of everything, by name.

    The derivative that comes from outside is random for every number that goes out.
    """
    net.engine = engine
    net.zero_grad()
    inputs = inputs.clone().requires_grad_()
    torch.manual_seed(3)  # of dropout
    logits, after = net(inputs)
    parts = {"logits": logits, **parts_of(after)}
    generator = torch.Generator().manual_seed(1)
    total = sum(
        (part * torch.randn(part.shape, generator=generator, dtype=torch.float64)).sum()
        for part in parts.values()
    )
    total.backward()
    leaves = {"inputs": inputs, **dict(net.named_parameters())}
    return (
        {name: part.detach() for name, part in parts.items()},
        {f"d {name}": p.grad.clone() for name, p in leaves.items() if p.grad is not None},
    )


def parts_of(state: NTMState) -> Outcome:
    """Every tensor of a state, by name."""
    return {
        "memory": state.memory,
        "weightings": state.weightings,
        "reads": state.reads,
        **{f"controller {i}": part for i, part in enumerate(_tensors(state.controller))},
    }


def _tensors(state: Any) -> Iterator[Tensor]:
    if isinstance(state, Tensor):
        yield state
    elif state is not None:
        for part in state.values() if isinstance(state, dict) else state:
            yield from _tensors(part)


def error(value: Tensor, truth: Tensor) -> float:
    """Largest error over the largest value."""
    largest = truth.abs().max().clamp_min(1e-30)
    return ((value.to(truth.dtype) - truth).abs().max() / largest).item()


def assert_double_agrees(net: NTM, inputs: Tensor) -> None:
    """A float64 machine under the fused engine and under the reference, to 1e-10."""
    truth, value = outcome(net, "reference", inputs), outcome(net, "fused", inputs)
    for expected, got in zip(truth, value, strict=True):
        assert expected.keys() == got.keys()
        for name in expected:
            assert got[name].shape == expected[name].shape, name
            assert error(got[name], expected[name]) <= 1e-10, name


def assert_single_agrees(net: NTM, inputs: Tensor, engine: str = "fused") -> None:
    """A float32 machine to 1e-5 of the float64 reference, or twice the float32 reference's error.

    That error is the largest on the weights themselves and on eight of their neighbours. What is
    beyond it by chance, as one run of hundreds is on some processor, is not so on all nine: there
    the middle of the machine's errors is held against the middle of the reference's. Leaves the
    machine in float64.
    """
    inputs = inputs.float()
    value, single = outcome(net, engine, inputs), copy.deepcopy(net)
    truth = outcome(net.double(), "reference", inputs.double())
    off = _errors(value, truth)
    bounds = dict.fromkeys(off, 1e-5)
    near = [single, *(_moved(single, seed) for seed in range(8))]
    of_reference: list[dict[str, float]] = []
    for other in near:
        if all(e <= bounds[name] for name, e in off.items()):
            return
        of_reference.append(_errors(outcome(other, "reference", inputs), truth))
        bounds = {name: max(bounds[name], 2 * of_reference[-1][name]) for name in bounds}
    beyond = [name for name, e in off.items() if not e <= bounds[name]]
    of_engine = [_errors(outcome(other, engine, inputs), truth) for other in near] if beyond else []
    for name in beyond:
        own = statistics.median(errors[name] for errors in of_engine)
        its = statistics.median(errors[name] for errors in of_reference)
        assert own <= max(1e-5, 2 * its), (name, own, its)


def _errors(value: tuple[Outcome, Outcome], truth: tuple[Outcome, Outcome]) -> dict[str, float]:
    """Of a float32 machine, by name."""
    found = {}
    for got, expected in zip(value, truth, strict=True):
        assert expected.keys() == got.keys()
        for name in expected:
            assert got[name].dtype == torch.float32, name
            found[name] = error(got[name], expected[name])
    return found


def _moved(net: NTM, seed: int) -> NTM:
    """Every weight rounded up or down by chance.

    What that does to the float32 reference is as much its error as what it does on the weights
    themselves: on a machine of one location a single run may hit the truth by luck.
    """
    moved = copy.deepcopy(net)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in moved.parameters():
            up = torch.randint(2, weight.shape, generator=generator) == 1
            weight.copy_(torch.nextafter(weight, torch.where(up, torch.inf, -torch.inf)))
    return moved


def assert_same_bits(one: tuple[Outcome, Outcome], other: tuple[Outcome, Outcome]) -> None:
    """Nothing differs, and nothing is NaN."""
    for first, second in zip(one, other, strict=True):
        assert first.keys() == second.keys()
        for name in first:
            assert torch.equal(first[name], second[name]), name
