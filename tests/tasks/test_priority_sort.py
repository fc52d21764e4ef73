"""The priority-sort task against its own picture, and its draws against what was asked for."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ntm.tasks import Batch, PrioritySort


def draw(task: PrioritySort, batch_size: int, items: int, seed: int = 0) -> Batch:
    return task.draw(np.random.default_rng(seed), batch_size, (items,))


def check_row(batch: Batch, row: int, bits: int) -> int:
    """Hold one sequence with a delimiter against what its own inputs ask for; give its items."""
    inputs, targets, mask = (part[:, row].tolist() for part in batch)
    items = [step[bits + 1] for step in inputs].index(1)
    assert inputs[items] == [0] * (bits + 1) + [1]
    remaining = []
    for step in inputs[:items]:
        assert all(bit in (0, 1) for bit in step[:bits])
        assert -1 <= step[bits] <= 1
        assert step[bits + 1] == 0
        remaining.append((step[bits], step[:bits]))
    begin = items + 1
    end = begin + int(sum(mask))
    for step in targets[begin:end]:
        highest = max(remaining, key=lambda item: item[0])
        assert step == highest[1]
        remaining.remove(highest)
    assert all(step == [0] * (bits + 2) for step in inputs[begin:])
    assert all(step == [0] * bits for step in targets[:begin] + targets[end:])
    assert mask == [0] * begin + [1] * (end - begin) + [0] * (len(mask) - end)
    return items


def test_three_items_by_hand():
    """Of three items two are asked for: the one of highest priority, then the next."""
    batch = draw(PrioritySort(3), 1, 3)
    inputs = batch.inputs[:, 0].tolist()
    low, middle, high = sorted(range(3), key=lambda t: inputs[t][3])
    assert inputs[low][3] < inputs[middle][3] < inputs[high][3]
    assert inputs[3:] == [[0, 0, 0, 0, 1], [0] * 5, [0] * 5]
    assert batch.targets[:, 0].tolist() == [[0] * 3] * 4 + [inputs[high][:3], inputs[middle][:3]]
    assert batch.mask[:, 0].tolist() == [0, 0, 0, 0, 1, 1]


@settings(deadline=None, max_examples=40)
@given(
    bits=st.integers(1, 8),
    items=st.integers(2, 12),
    batch_size=st.integers(1, 4),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_sequence_is_what_its_inputs_ask_for(bits, items, batch_size, seed):
    task = PrioritySort(bits)
    batch = draw(task, batch_size, items, seed)
    steps = items + 1 + max(1, items * 4 // 5)
    assert (task.input_size, task.output_size) == (bits + 2, bits)
    assert batch.inputs.shape == (steps, batch_size, bits + 2)
    assert batch.targets.shape == (steps, batch_size, bits)
    assert batch.mask.shape == (steps, batch_size)
    assert all(str(part.dtype) == "torch.float32" for part in batch)
    assert [check_row(batch, row, bits) for row in range(batch_size)] == [items] * batch_size


@pytest.mark.parametrize(("items", "answers"), [(2, 1), (3, 2), (5, 4), (10, 8), (20, 16)])
def test_four_in_five_are_asked_for(items, answers):
    assert draw(PrioritySort(), 1, items).mask.sum() == answers
    assert PrioritySort().chance((items,)) == 8 * answers


def test_without_a_delimiter_its_step_and_channel_are_missing():
    flagged = draw(PrioritySort(4), 3, 6)
    plain = draw(PrioritySort(4, delimiter=False), 3, 6)
    assert PrioritySort(4, delimiter=False).input_size == 5
    kept = [t for t in range(len(flagged.inputs)) if t != 6]
    assert plain.inputs.equal(flagged.inputs[kept][..., :5])
    assert plain.targets.equal(flagged.targets[kept])
    assert plain.mask.equal(flagged.mask[kept])


def test_priorities_are_uniform():
    """By thirds of the range, five standard deviations."""
    priorities = draw(PrioritySort(), 500, 20).inputs[:20, :, 8].flatten()
    for low in (-1, -1 / 3, 1 / 3):
        inside = ((priorities >= low) & (priorities < low + 2 / 3)).sum().item()
        assert abs(inside - 10000 / 3) < 5 * (10000 * 2 / 9) ** 0.5


@pytest.mark.parametrize("kind", ["drawn", "tied", "sorted"])
def test_no_two_priorities_are_equal_however_many(kind):
    """Of 6,001 in single precision some are at first, in about every second sequence."""
    batch = PrioritySort(1).draw(np.random.default_rng(0), 8, (6001,), kind)
    for priorities in batch.inputs[:6001, :, 1].numpy().T:
        assert (np.diff(np.sort(priorities)) > 0).all()
        assert kind != "sorted" or (np.diff(priorities) < 0).all()


def test_the_ends_of_the_range_are_drawn_and_nothing_beyond():
    task, rng = PrioritySort(1), np.random.default_rng(0)
    drawn = [check_row(task.sample(rng, 1, ((2, 6),)), 0, 1) for _ in range(200)]
    assert set(drawn) == {2, 3, 4, 5, 6}


def test_mixed_sequences_end_early_and_are_masked():
    task = PrioritySort(2, 2, 5, mixed=True)
    batch = task.sample(np.random.default_rng(0), 60, task.ranges)
    assert {check_row(batch, row, 2) for row in range(60)} == {2, 3, 4, 5}
    assert len(batch.mask) == 10


def test_the_same_seed_draws_the_same():
    one, same, other = (draw(PrioritySort(), 3, 4, seed) for seed in (1, 1, 2))
    assert all(a.equal(b) for a, b in zip(one, same, strict=True))
    assert not one.inputs.equal(other.inputs)


def test_what_it_says_of_itself():
    task = PrioritySort()
    assert task.ranges == ((20, 20),)
    assert task.least == {"items": 2}
    assert task.shown == ((10,), (20,), (30,))
    assert PrioritySort(min_items=2, max_items=12).shown == ((10,), (12,), (20,), (30,))


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"bits": 0}, "bits"),
        ({"min_items": 1}, "min_items"),
        ({"min_items": 5, "max_items": 4}, "max_items"),
    ],
)
def test_refuses_by_name(arguments, name):
    with pytest.raises(ValueError, match=rf"^{name} "):
        PrioritySort(**arguments)
