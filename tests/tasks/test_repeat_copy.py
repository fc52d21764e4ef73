"""The repeat-copy task against its own picture, and its draws against what was asked for."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ntm.tasks import Batch, RepeatCopy


def draw(task: RepeatCopy, batch_size: int, point: tuple[int, int], seed: int = 0) -> Batch:
    return task.draw(np.random.default_rng(seed), batch_size, point)


def check_row(batch: Batch, row: int, bits: int, marker: bool) -> tuple[int, int, float]:
    """Hold one sequence against what its own inputs ask for; give length, repeats and r."""
    inputs, targets, mask = (part[:, row].tolist() for part in batch)
    length = 0
    while inputs[length][bits] == 0:
        assert all(value in (0, 1) for value in inputs[length][:bits])
        assert inputs[length][bits + 1] == 0
        length += 1
    told = inputs[length]
    assert told[: bits + 1] == [0] * bits + [1]
    asked = int(sum(mask)) - marker
    assert asked % length == 0
    expected = []
    for _ in range(asked // length):
        for step in inputs[:length]:
            expected.append(step[:bits] + [0] * marker)
    if marker:
        expected.append([0] * bits + [1])
    begin = length + 1
    end = begin + len(expected)
    assert all(step == [0] * (bits + 2) for step in inputs[begin:])
    assert targets[begin:end] == expected
    assert all(step == [0] * (bits + marker) for step in targets[:begin] + targets[end:])
    assert mask == [0] * begin + [1] * len(expected) + [0] * (len(mask) - end)
    return length, asked // length, told[bits + 1]


def test_the_picture_in_the_docstring():
    """Two vectors, twice, then the end marker: by hand."""
    batch = draw(RepeatCopy(2, 1, 2, 1, 2), 1, (2, 2))
    r = batch.inputs[2, 0, 3].item()
    assert r == pytest.approx(1)  # of 1 and 2, mean 1.5 and deviation 0.5
    (a, b), (c, d) = batch.inputs[:2, 0, :2].tolist()
    assert batch.inputs[:, 0].tolist() == [
        [a, b, 0, 0],
        [c, d, 0, 0],
        [0, 0, 1, r],
        *[[0, 0, 0, 0]] * 5,
    ]
    nothing = [[0, 0, 0]] * 3
    assert batch.targets[:, 0].tolist() == [*nothing, *[[a, b, 0], [c, d, 0]] * 2, [0, 0, 1]]
    assert batch.mask[:, 0].tolist() == [0, 0, 0, 1, 1, 1, 1, 1]


@settings(deadline=None, max_examples=40)
@given(
    bits=st.integers(1, 8),
    length=st.integers(1, 7),
    repeats=st.integers(1, 7),
    batch_size=st.integers(1, 4),
    marker=st.booleans(),
)
def test_every_sequence_is_what_its_inputs_ask_for(bits, length, repeats, batch_size, marker):
    task = RepeatCopy(bits, end_marker=marker)
    batch = draw(task, batch_size, (length, repeats))
    steps = length + 1 + length * repeats + marker
    assert (task.input_size, task.output_size) == (bits + 2, bits + marker)
    assert batch.inputs.shape == (steps, batch_size, bits + 2)
    assert batch.targets.shape == (steps, batch_size, bits + marker)
    assert batch.mask.shape == (steps, batch_size)
    assert all(str(part.dtype) == "torch.float32" for part in batch)
    for row in range(batch_size):
        assert check_row(batch, row, bits, marker)[:2] == (length, repeats)


def test_the_number_told_is_normalised_over_the_range_of_training():
    told = [draw(RepeatCopy(), 1, (1, repeats)).inputs[1, 0, 7].item() for repeats in range(1, 11)]
    assert np.mean(told) == pytest.approx(0, abs=1e-6)
    assert np.std(told) == pytest.approx(1, abs=1e-6)
    beyond = draw(RepeatCopy(), 1, (1, 20)).inputs[1, 0, 7].item()
    assert beyond == pytest.approx((20 - 5.5) / math.sqrt(8.25))


def test_a_range_of_one_number_of_repeats_is_told_as_its_distance():
    task = RepeatCopy(min_repeats=3, max_repeats=3)
    assert draw(task, 1, (1, 3)).inputs[1, 0, 7] == 0
    assert draw(task, 1, (1, 5)).inputs[1, 0, 7] == 2


def test_the_ends_of_both_ranges_are_drawn_and_nothing_beyond():
    task, rng = RepeatCopy(1), np.random.default_rng(0)
    drawn = [check_row(task.sample(rng, 1, ((2, 4), (3, 5))), 0, 1, True)[:2] for _ in range(200)]
    assert set(drawn) == {(length, repeats) for length in (2, 3, 4) for repeats in (3, 4, 5)}


def test_mixed_sequences_end_early_and_are_masked():
    task = RepeatCopy(2, 1, 3, 1, 3, mixed=True)
    batch = task.sample(np.random.default_rng(0), 60, task.ranges)
    drawn = {check_row(batch, row, 2, True)[:2] for row in range(60)}
    assert len(drawn) == 9
    assert len(batch.mask) == 14


def test_the_same_seed_draws_the_same():
    one, same, other = (draw(RepeatCopy(), 3, (4, 2), seed) for seed in (1, 1, 2))
    assert all(a.equal(b) for a, b in zip(one, same, strict=True))
    assert not one.inputs.equal(other.inputs)


def test_what_it_says_of_itself():
    task = RepeatCopy(6)
    assert task.chance((3, 4)) == 72
    assert task.parts == {"data": slice(0, 6), "end_marker": slice(6, 7)}
    assert RepeatCopy(end_marker=False).parts == {}
    assert task.ranges == ((1, 10), (1, 10))
    assert len(task.points()) == 100


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"bits": 0}, "bits"),
        ({"min_length": 0}, "min_length"),
        ({"min_length": 5, "max_length": 4}, "max_length"),
        ({"min_repeats": 0}, "min_repeats"),
        ({"min_repeats": 5, "max_repeats": 4}, "max_repeats"),
    ],
)
def test_refuses_by_name(arguments, name):
    with pytest.raises(ValueError, match=rf"^{name} "):
        RepeatCopy(**arguments)
