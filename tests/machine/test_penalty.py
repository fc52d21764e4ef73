"""What training holds against a machine that sharpens and writes, and that it heeds it."""

from __future__ import annotations

import itertools
import math
from itertools import pairwise

import pytest
import torch
from comparing import CONTROLLERS, OUT, WIDTH

from ntm.machine import NTM, EffortPenalty

R, W, M, S = 2, 1, 3, 1


def network(controller: str = "lstm", **arguments) -> NTM:
    torch.manual_seed(0)
    make = CONTROLLERS[controller]
    return NTM(WIDTH, OUT, 7, M, R, W, S, controller=make, **arguments)


def plain_efforts(net: NTM, inputs: torch.Tensor) -> list[list[tuple[float, float]]]:
    """Means of γ − 1 and of e + a² by step and sequence, from what the reference loop emits."""
    emitted = []
    seen = net.emit.register_forward_hook(lambda *call: emitted.append(call[2].tolist()))
    net.engine = "reference"
    net(inputs)
    seen.remove()
    each = M + 1 + 1 + (2 * S + 1) + 1  # k, β, g, s, γ
    efforts = []
    for step in emitted:
        efforts.append([])
        for raw in step:
            sharpened = [math.log1p(math.exp(raw[each * k - 1])) for k in (1, 2, 3)]
            writes = raw[3 * each :]
            erased = [1 / (1 + math.exp(-x)) for x in writes[: W * M]]
            added = [math.tanh(x) ** 2 for x in writes[W * M :]]
            efforts[-1].append((sum(sharpened) / 3, (sum(erased) + sum(added)) / (W * M)))
    return efforts


@pytest.mark.parametrize("engine", ["fused", "reference"])
@pytest.mark.parametrize("controller", ["lstm", "feedforward", "own"])
def test_it_is_the_prices_times_what_the_heads_do(controller, engine):
    net = network(controller)
    inputs = torch.randn(4, 2, WIDTH)
    efforts = torch.tensor(plain_efforts(net, inputs))
    assert efforts.shape == (4, 2, 2)
    net.engine = engine
    logits, penalties = EffortPenalty(0.5, 0.2, 1.0)(net, inputs)
    expected = 0.5 * efforts[..., 0] + 0.2 * efforts[..., 1]
    torch.testing.assert_close(penalties, expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(logits, net(inputs)[0])


def test_the_first_of_sharpening_is_free():
    net, free = network(), 0.7
    inputs = torch.randn(4, 2, WIDTH)
    _, raw = net.with_emissions(inputs)
    each = M + 1 + 1 + (2 * S + 1) + 1
    expected = torch.zeros(4, 2)
    for head in (1, 2, 3):
        for step, sequence in itertools.product(range(4), range(2)):
            sharpened = math.log1p(math.exp(raw[step, sequence, each * head - 1].item()))
            expected[step, sequence] += max(sharpened - free, 0) / 3
    assert 0 < (expected > 0).sum() < expected.numel()
    _, penalties = EffortPenalty(1.0, 0.0, 1.0, free=free)(net, inputs)
    torch.testing.assert_close(penalties, expected, rtol=1e-4, atol=1e-6)


def test_logits_come_batch_first_where_inputs_do():
    net = network(batch_first=True)
    inputs = torch.randn(2, 4, WIDTH)
    logits, raw = net.with_emissions(inputs)
    assert logits.shape == (2, 4, OUT)
    assert raw.shape == (4, 2, net.layout.size)
    assert torch.equal(logits, net(inputs)[0])


@pytest.mark.parametrize("engine", ["fused", "reference"])
def test_segments_change_no_emission(engine):
    net = network(engine=engine)
    inputs = torch.randn(5, 2, WIDTH)
    whole = net.with_emissions(inputs)
    net.segment = 2
    for got, expected in zip(net.with_emissions(inputs), whole, strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("prices", [(1.0, 0.0), (0.0, 1.0)], ids=["sharpening", "writing"])
def test_heads_learn_to_spare_what_has_a_price(prices):
    net, penalty = network(), EffortPenalty(*prices, until=1.0)
    inputs = torch.randn(4, 8, WIDTH)
    optimizer = torch.optim.SGD(net.parameters(), lr=1.0)
    means = []
    for _ in range(20):
        mean = penalty(net, inputs)[1].mean()
        means.append(mean.item())
        optimizer.zero_grad()
        mean.backward()
        optimizer.step()
    assert all(later < earlier for earlier, later in pairwise(means))
    assert means[-1] < means[0] / 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-0.1, 0, 0.5), "sharpening must be at least 0, got -0.1"),
        ((0.1, -1, 0.5), "writing must be at least 0, got -1"),
        ((0.1, 0, 1.5), "until must be a share, in [0, 1], got 1.5"),
        ((0.1, 0, -1), "until must be a share"),
        ((0.1, 0, 0.5, -0.02), "free must be at least 0, got -0.02"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(arguments, message):
    with pytest.raises(ValueError, match="^" + message.replace("[", r"\[")):
        EffortPenalty(*arguments)
