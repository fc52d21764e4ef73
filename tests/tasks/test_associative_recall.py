"""The associative-recall task against its own picture, and its draws against what was asked for."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ntm.tasks import AssociativeRecall, Batch
from ntm.tasks.associative_recall import _ambiguous


def draw(task: AssociativeRecall, batch_size: int, items: int, seed: int = 0) -> Batch:
    return task.draw(np.random.default_rng(seed), batch_size, (items,))


def check_row(batch: Batch, row: int, bits: int, vectors: int) -> tuple[list, list]:
    """Hold one sequence against what its own inputs ask for; give its items and its query."""
    inputs, targets, mask = (part[:, row].tolist() for part in batch)
    items, queries, t = [], [], 0
    while not queries or len(queries) < 2:
        item_flag, query_flag = inputs[t][bits:]
        assert item_flag + query_flag == 1
        assert inputs[t][:bits] == [0] * bits
        last = bool(queries)
        (items if item_flag else queries).append([])
        t += 1
        for _ in range(0 if last else vectors):
            assert inputs[t][bits:] == [0, 0]
            assert all(bit in (0, 1) for bit in inputs[t][:bits])
            (queries or items)[-1].append(inputs[t][:bits])
            t += 1
    query = queries[0]
    assert query in items[:-1]
    assert all(step == [0] * (bits + 2) for step in inputs[t:])
    end = t + vectors
    assert targets[t:end] in [after for item, after in pairwise(items) if item == query]
    assert all(step == [0] * bits for step in targets[:t] + targets[end:])
    assert mask == [0] * t + [1] * vectors + [0] * (len(mask) - end)
    return items, query


def test_the_picture_in_the_docstring():
    """Two items of two vectors of one bit: the first is asked about, the second is the answer."""
    batch = draw(AssociativeRecall(1, 2), 1, 2)
    inputs = batch.inputs[:, 0].tolist()
    a, b, c, d = (int(inputs[t][0]) for t in (1, 2, 4, 5))
    item, query, silence = [0, 1, 0], [0, 0, 1], [0, 0, 0]
    assert inputs == [
        *(item, [a, 0, 0], [b, 0, 0]),
        *(item, [c, 0, 0], [d, 0, 0]),
        *(query, [a, 0, 0], [b, 0, 0], query),
        *(silence, silence),
    ]
    assert batch.targets[:, 0, 0].tolist() == [0] * 10 + [c, d]
    assert batch.mask[:, 0].tolist() == [0] * 10 + [1, 1]


@settings(deadline=None, max_examples=40)
@given(
    bits=st.integers(1, 8),
    vectors=st.integers(1, 4),
    items=st.integers(2, 7),
    batch_size=st.integers(1, 4),
)
def test_every_sequence_is_what_its_inputs_ask_for(bits, vectors, items, batch_size):
    task = AssociativeRecall(bits, vectors)
    batch = draw(task, batch_size, items)
    steps = items * (vectors + 1) + 1 + vectors + 1 + vectors
    assert (task.input_size, task.output_size) == (bits + 2, bits)
    assert batch.inputs.shape == (steps, batch_size, bits + 2)
    assert batch.targets.shape == (steps, batch_size, bits)
    assert batch.mask.shape == (steps, batch_size)
    assert all(str(part.dtype) == "torch.float32" for part in batch)
    for row in range(batch_size):
        assert len(check_row(batch, row, bits, vectors)[0]) == items


def test_each_sequence_asks_about_any_item_but_the_last():
    """By items wide enough to be told apart: every place about equally often."""
    batch = draw(AssociativeRecall(20), 3000, 6)
    places = [0] * 6
    for row in range(3000):
        items, query = check_row(batch, row, 20, 3)
        places[items.index(query)] += 1
    assert places[5] == 0
    assert all(abs(count - 600) < 5 * 600**0.5 for count in places[:5])


def test_the_ends_of_the_range_are_drawn_and_nothing_beyond():
    task, rng = AssociativeRecall(1, 1), np.random.default_rng(0)
    drawn = [len(check_row(task.sample(rng, 1, ((2, 6),)), 0, 1, 1)[0]) for _ in range(200)]
    assert set(drawn) == {2, 3, 4, 5, 6}


def test_mixed_sequences_end_early_and_are_masked():
    task = AssociativeRecall(2, 2, 2, 4, mixed=True)
    batch = task.sample(np.random.default_rng(0), 60, task.ranges)
    assert {len(check_row(batch, row, 2, 2)[0]) for row in range(60)} == {2, 3, 4}
    assert len(batch.mask) == 18


def test_the_same_seed_draws_the_same():
    one, same, other = (draw(AssociativeRecall(), 3, 4, seed) for seed in (1, 1, 2))
    assert all(a.equal(b) for a, b in zip(one, same, strict=True))
    assert not one.inputs.equal(other.inputs)


def test_what_it_says_of_itself():
    task = AssociativeRecall()
    assert task.chance((6,)) == 18
    assert task.ranges == ((2, 6),)
    assert task.least == {"items": 2}


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"bits": 0}, "bits"),
        ({"vectors": 0}, "vectors"),
        ({"min_items": 1}, "min_items"),
        ({"min_items": 5, "max_items": 4}, "max_items"),
    ],
)
def test_refuses_by_name(arguments, name):
    with pytest.raises(ValueError, match=rf"^{name} "):
        AssociativeRecall(**arguments)


def test_what_is_ambiguous_by_plain_loops():
    """Of five items of one bit: about half, and not all that hear the query twice."""
    rng, bits, count = np.random.default_rng(0), 1, 5
    items = rng.integers(0, 2, (count, 1, 400, bits))
    query = rng.integers(0, count - 1, 400)
    expected, heard_again = [], 0
    for b, asked in enumerate(query):
        said = items[:, 0, b, 0].tolist()
        followers = [after for item, after in pairwise(said) if item == said[asked]]
        heard_again += len(followers) > 1
        if any(after != said[asked + 1] for after in followers):
            expected.append(b)
    assert 100 < len(expected) < heard_again - 20
    assert _ambiguous(items, query).tolist() == expected


def test_what_is_nearly_always_ambiguous_is_refused_before_long():
    """After a thousand episodes without one that will do, whatever the batch."""
    task, drawn = AssociativeRecall(bits=1, vectors=1), []
    task._episodes = lambda *args: drawn.append(args[1]) or AssociativeRecall._episodes(task, *args)
    with pytest.raises(ValueError, match="items must be few enough"):
        draw(task, 300, 60)
    assert 1000 <= sum(drawn) <= 1300
