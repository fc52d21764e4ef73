"""What training holds against a machine that sharpens, and that the machine heeds it."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from comparing import CONTROLLERS, OUT, WIDTH

from ntm.machine import NTM, SharpeningPenalty

R, W, M, S = 2, 1, 3, 1


def network(controller: str = "lstm", **arguments) -> NTM:
    torch.manual_seed(0)
    make = CONTROLLERS[controller]
    return NTM(WIDTH, OUT, 7, M, R, W, S, controller=make, **arguments)


def plain_sharpening(net: NTM, inputs: torch.Tensor) -> list[list[list[float]]]:
    """γ by step, sequence and head, from what the reference loop emits."""
    emitted = []
    seen = net.emit.register_forward_hook(lambda *call: emitted.append(call[2].tolist()))
    net.engine = "reference"
    net(inputs)
    seen.remove()
    each = M + 1 + 1 + (2 * S + 1) + 1  # k, β, g, s, γ
    last = [each - 1, 2 * each - 1, 3 * each - 1]
    return [[[1 + math.log1p(math.exp(raw[i])) for i in last] for raw in step] for step in emitted]


@pytest.mark.parametrize("engine", ["fused", "reference"])
@pytest.mark.parametrize("controller", ["lstm", "feedforward", "own"])
def test_it_is_the_weight_times_what_the_heads_sharpen(controller, engine):
    net = network(controller)
    inputs = torch.randn(4, 2, WIDTH)
    expected = torch.tensor(plain_sharpening(net, inputs)) - 1
    net.engine = engine
    logits, penalties = SharpeningPenalty(0.5, 1.0)(net, inputs)
    torch.testing.assert_close(penalties, 0.5 * expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(logits, net(inputs)[0])


def test_logits_come_batch_first_where_inputs_do():
    net = network(batch_first=True)
    inputs = torch.randn(2, 4, WIDTH)
    logits, sharpening = net.with_sharpening(inputs)
    assert logits.shape == (2, 4, OUT)
    assert sharpening.shape == (4, 2, R + W)
    assert torch.equal(logits, net(inputs)[0])


def test_heads_learn_not_to_sharpen():
    net, penalty = network(), SharpeningPenalty(1.0, 1.0)
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
        ((-0.1, 0.5), "weight must be at least 0, got -0.1"),
        ((0.1, 1.5), "until must be a share, in [0, 1], got 1.5"),
        ((0.1, -1), "until must be a share"),
    ],
    ids=str,
)
def test_what_cannot_be_is_refused(arguments, message):
    with pytest.raises(ValueError, match="^" + message.replace("[", r"\[")):
        SharpeningPenalty(*arguments)
