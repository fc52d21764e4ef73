"""The dynamic N-grams task: its draws, and its optimum against the formula and the literature."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ntm.tasks import Batch, DynamicNGrams


def draw(task: DynamicNGrams, batch_size: int, steps: int, seed: int = 0) -> Batch:
    return task.draw(np.random.default_rng(seed), batch_size, (steps,))


def paid(bits: list[int], context: int) -> float:
    """Bits that who counts as he goes pays for one sequence."""
    counts: dict[tuple, list[int]] = {}
    total = 0.0
    for t, bit in enumerate(bits):
        if t < context:
            total += 1
            continue
        seen = counts.setdefault(tuple(bits[t - context : t]), [0, 0])
        total -= math.log2((seen[bit] + 0.5) / (sum(seen) + 1))
        seen[bit] += 1
    return total


def of_bits(bits: list[list[int]]) -> Batch:
    targets = torch.tensor(bits, dtype=torch.float32).T.unsqueeze(-1)
    return Batch(torch.zeros_like(targets), targets, torch.ones(targets.shape[:2]))


@settings(deadline=None, max_examples=40)
@given(
    context=st.integers(1, 6),
    more=st.integers(1, 40),
    batch_size=st.integers(1, 4),
    seed=st.integers(0, 2**32 - 1),
)
def test_inputs_are_the_targets_one_step_later_and_every_step_counts(
    context, more, batch_size, seed
):
    steps = context + more
    task = DynamicNGrams(steps, context)
    batch = draw(task, batch_size, steps, seed)
    assert batch.inputs.shape == batch.targets.shape == (steps, batch_size, 1)
    assert batch.mask.tolist() == [[1] * batch_size] * steps
    assert all(str(part.dtype) == "torch.float32" for part in batch)
    optimum = task.optimum(batch)
    assert optimum.shape == (batch_size,)
    assert optimum.dtype == torch.float64
    for row in range(batch_size):
        bits = [int(bit) for bit in batch.targets[:, row, 0].tolist()]
        assert set(bits) <= {0, 1}
        assert batch.inputs[:, row, 0].tolist() == [0, *bits[:-1]]
        assert optimum[row].item() == pytest.approx(paid(bits, context))


def test_the_optimum_by_hand():
    """One bit of context: a fair coin, then (N + ½) / (N₁ + N₀ + 1) of what came."""
    #       coin  1→1  1→1  1→0  0→0  0→1
    shares = [1 / 2, 1 / 2, 1.5 / 2, 0.5 / 3, 1 / 2, 0.5 / 2]
    batch = of_bits([[1, 1, 1, 0, 0, 1]])
    expected = -sum(math.log2(share) for share in shares)
    assert DynamicNGrams(6, 1).optimum(batch).item() == pytest.approx(expected)


def test_the_optimum_costs_what_arithmetic_says():
    """132.97 bits are expected, with a deviation of 36 over sequences."""
    task = DynamicNGrams()
    optimum = task.optimum(draw(task, 4000, 200))
    assert 0 < optimum.std() / 4000**0.5 < 0.6
    assert optimum.mean().item() == pytest.approx(132.97, abs=3 * 36 / 4000**0.5)


def test_every_sequence_keeps_to_a_table_of_its_own():
    """With one bit of context, ones after a one are as frequent late in a sequence as early."""
    bits = draw(DynamicNGrams(2000, 1), 100, 2000).targets[:, :, 0]
    shares = []
    for half in (bits[:1000], bits[1000:]):
        ones = half[:-1].sum(0)
        shares.append(((half[:-1] * half[1:]).sum(0) / ones)[bits[:1000].sum(0).gt(200)])
    early, late = shares
    assert (early - late).abs().median() < 0.03
    assert early.std() > 0.2


def test_probabilities_are_from_a_beta_of_two_halves():
    """A row of the table used twice in a row says the same with E[p² + (1 − p)²] = 3/4."""
    bits = draw(DynamicNGrams(3, 1), 40000, 3).targets[:, :, 0]
    assert abs(bits[:2].mean().item() - 0.5) < 4 * 0.5 / 80000**0.5
    stayed = bits[:, bits[0] == bits[1]]
    assert abs((stayed[1] == stayed[2]).float().mean().item() - 0.75) < 0.02


def test_the_same_seed_draws_the_same():
    one, same, other = (draw(DynamicNGrams(), 3, 200, seed) for seed in (1, 1, 2))
    assert all(a.equal(b) for a, b in zip(one, same, strict=True))
    assert not one.targets.equal(other.targets)


def test_what_it_says_of_itself():
    task = DynamicNGrams()
    assert (task.input_size, task.output_size) == (1, 1)
    assert task.ranges == ((200, 200),)
    assert task.least == {"steps": 6}
    assert task.shown == ((200,),)
    assert task.chance((200,)) == 200
    assert task.solved == ("bits_above_optimum", 1.0)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [({"context": 0}, "context"), ({"steps": 5}, "steps"), ({"steps": 3, "context": 3}, "steps")],
)
def test_refuses_by_name(arguments, name):
    with pytest.raises(ValueError, match=rf"^{name} "):
        DynamicNGrams(**arguments)
