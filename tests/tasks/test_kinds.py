"""Kinds of sequence against plain definitions, and the densities that training mixes in."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from ntm.tasks import AssociativeRecall, Copy, DynamicNGrams, PrioritySort, RepeatCopy, Task
from ntm.tasks.kinds import DRAWN, KINDS, MIXED
from ntm.tasks.sampling import EVALUATION, TEST, TRAINING, VALIDATION, sample, sample_at

TASKS: list[tuple[Task, tuple[int, ...]]] = [
    (Copy(bits=5), (7,)),
    (RepeatCopy(bits=5), (7, 2)),
    (AssociativeRecall(bits=6), (4,)),
    (PrioritySort(bits=5), (7,)),
]
with_vectors = pytest.mark.parametrize(
    ("task", "point"), TASKS, ids=[task.name for task, _ in TASKS]
)


def heard(task: Task, point: tuple[int, ...], kind: str, count: int = 50) -> list[list[list[int]]]:
    """The vectors of each sequence, in the order in which they are heard."""
    inputs = sample_at(task, EVALUATION, count, point, kind).inputs
    bits = task.output_size - (task.name == "repeat_copy")
    steps = range(point[0])
    if task.name == "associative_recall":
        steps = [4 * item + step for item in range(point[0]) for step in (1, 2, 3)]
    return [[[int(inputs[t, b, i]) for i in range(bits)] for t in steps] for b in range(count)]


def is_silent(vector: list[int]) -> bool:
    return not any(vector)


HOLDS = {
    "zeros": lambda vectors: all(map(is_silent, vectors)),
    "ones": lambda vectors: all(bit == 1 for vector in vectors for bit in vector),
    "same": lambda vectors: all(vector == vectors[0] for vector in vectors),
    "one_hot": lambda vectors: all(sum(vector) == 1 for vector in vectors),
    "alternating": lambda vectors: all(
        [a + b for a, b in zip(one, other, strict=True)] == [1] * len(one)
        for one, other in itertools.pairwise(vectors)
    ),
    "silent_pair": lambda vectors: any(
        is_silent(one) and is_silent(other) for one, other in itertools.pairwise(vectors)
    ),
}
DENSITY = {"drawn": 0.5, "sparse": 0.1, "dense": 0.9}


def test_every_kind_is_held_to_its_definition():
    assert set(KINDS) == set(HOLDS) | set(DENSITY)


@pytest.mark.parametrize("kind", HOLDS)
@with_vectors
def test_a_kind_that_is_a_rule(task, point, kind):
    sequences = heard(task, point, kind)
    assert all(HOLDS[kind](vectors) for vectors in sequences)
    if kind not in ("zeros", "ones"):
        assert len({str(vectors) for vectors in sequences}) > 5
    drawn = heard(task, point, DRAWN)
    assert not all(HOLDS[kind](vectors) for vectors in drawn)


@pytest.mark.parametrize("kind", DENSITY)
@with_vectors
def test_a_kind_that_is_a_density(task, point, kind):
    bits = np.array(heard(task, point, kind, 400))
    share = DENSITY[kind]
    error = math.sqrt(share * (1 - share) / bits.size)
    assert abs(bits.mean() - share) < 5 * error


@with_vectors
def test_a_silent_pair_may_be_anywhere(task, point):
    firsts = set()
    for vectors in heard(task, point, "silent_pair", 300):
        silent = [is_silent(vector) for vector in vectors]
        pairs = [k for k, both in enumerate(itertools.pairwise(silent)) if all(both)]
        firsts |= {*pairs} if len(pairs) == 1 else set()
    assert firsts == set(range(len(vectors) - 1))


@pytest.mark.parametrize("length", [1, 2])
def test_a_silent_pair_in_a_sequence_it_fills(length):
    sequences = heard(Copy(bits=5), (length,), "silent_pair")
    assert all(map(is_silent, itertools.chain(*sequences)))


def test_the_shortest_sequence_has_every_kind():
    for kind in KINDS:
        assert sample_at(Copy(), EVALUATION, 3, (1,), kind).inputs.shape == (3, 3, 9)


@pytest.mark.parametrize("task", [task for task, _ in TASKS], ids=lambda task: task.name)
def test_without_a_mix_all_splits_are_as_drawn(task):
    for split in (TRAINING, VALIDATION, TEST):
        one = sample(task, split, 3, 4, task.ranges)
        other = sample(task, split, 3, 4, task.ranges, kind=DRAWN)
        assert all((a == b).all() for a, b in zip(one, other, strict=True))


def test_bits_with_odds_of_their_own_have_no_kinds():
    assert DynamicNGrams().kinds == (DRAWN,)


@pytest.mark.parametrize("make", [Copy, RepeatCopy, AssociativeRecall, PrioritySort])
def test_a_mix_changes_training_alone_and_is_a_function_of_the_seed(make):
    plain, mixing = make(), make(mix=0.5)

    def batch(task: Task, split: int, seed: int = 0) -> list:
        return [part.tolist() for part in sample(task, split, 5, 4, task.ranges, seed=seed)]

    assert batch(mixing, TRAINING) == batch(mixing, TRAINING)
    assert batch(mixing, TRAINING) != batch(plain, TRAINING)
    assert batch(mixing, TRAINING, 1) != batch(mixing, TRAINING, 2)
    for split in (VALIDATION, TEST, EVALUATION):
        assert batch(mixing, split) == batch(plain, split)


def test_the_density_of_mixed_sequences_is_uniform():
    """Kolmogorov and Smirnov on 400 sequences of 4,000 bits: a right mix fails once in 10,000."""
    task = Copy(mix=1.0)
    densities = []
    for k in range(50):
        rng = np.random.default_rng(k)
        batch = task.draw(rng, 8, (500,), MIXED)
        densities += batch.targets[501:].mean((0, 2)).tolist()
    ranks = np.arange(1, 401) / 400
    distance = np.abs(np.sort(densities) - ranks).max()
    assert distance < 2.23 / math.sqrt(400)


@pytest.mark.parametrize("mix", [0.2, 0.7])
def test_so_many_sequences_are_mixed(mix):
    """Far from a half, in 4,000 bits, is a density of its own: nine in ten of them."""
    task = Copy(mix=mix)
    rng = np.random.default_rng(0)
    densities = task.draw(rng, 1000, (500,), MIXED).targets[501:].mean((0, 2)).numpy()
    share = (np.abs(densities - 0.5) > 0.05).mean() / 0.9
    assert abs(share - mix) < 5 * math.sqrt(mix * (1 - mix) / 1000)


@pytest.mark.parametrize("mix", [-0.1, 1.1])
@pytest.mark.parametrize("make", [Copy, RepeatCopy, AssociativeRecall, PrioritySort])
def test_a_mix_is_a_share(make, mix):
    with pytest.raises(ValueError, match="mix must be a share"):
        make(mix=mix)


class TestRecall:
    def test_no_episode_is_ambiguous(self):
        """Two bits and two vectors: most episodes as drawn would be."""
        task = AssociativeRecall(bits=2, vectors=2)
        for kind in task.kinds:
            inputs, targets, _ = sample_at(task, EVALUATION, 100, (5,), kind)
            for b in range(100):
                items = [inputs[3 * k + 1 : 3 * k + 3, b, :2].tolist() for k in range(5)]
                query = inputs[16:18, b, :2].tolist()
                answer = targets[-2:, b].tolist()
                followers = [items[k + 1] for k in range(4) if items[k] == query]
                assert followers
                assert all(item == answer for item in followers)

    def test_two_items_share_their_first_vectors_and_one_is_asked_about(self):
        task = AssociativeRecall()
        inputs, _, _ = sample_at(task, EVALUATION, 100, (4,), "shared_start")
        for b in range(100):
            items = [inputs[4 * k + 1 : 4 * k + 4, b, :6].tolist() for k in range(4)]
            query = inputs[17:20, b, :6].tolist()
            sharing = [item for item in items if item[:2] == query[:2]]
            assert query in sharing
            assert any(item[2] == [1 - bit for bit in query[2]] for item in sharing)

    def test_any_two_items_may_share_their_start(self):
        """By their distance in order, each sequence for itself."""
        inputs, _, _ = sample_at(AssociativeRecall(bits=20), EVALUATION, 300, (4,), "shared_start")
        starts = np.stack([inputs[4 * k + 1 : 4 * k + 3, :, :20].numpy() for k in range(4)])
        pairs = [
            (one, other)
            for b in range(300)
            for one, other in itertools.combinations(range(4), 2)
            if (starts[one, :, b] == starts[other, :, b]).all()
        ]
        assert len(pairs) == 300
        assert {*pairs} == {*itertools.combinations(range(4), 2)}

    def test_one_vector_has_no_start_to_share(self):
        assert "shared_start" not in AssociativeRecall(vectors=1).kinds
        assert "shared_start" in AssociativeRecall(vectors=2).kinds

    def test_more_items_than_can_be_told_apart_are_refused(self):
        task = AssociativeRecall(bits=1, vectors=1)
        reason = "items must be few enough to be told apart by 1 vectors of 1 bits, got 200"
        with pytest.raises(ValueError, match=f"^{reason}$"):
            sample_at(task, EVALUATION, 10, (200,))


class TestSort:
    def test_ties_within_a_hundredth_that_are_none(self):
        inputs = sample_at(PrioritySort(), EVALUATION, 50, (20,), "tied").inputs
        for b in range(50):
            priorities = sorted(inputs[:20, b, 8].tolist())
            assert priorities[0] >= -1
            assert priorities[-1] <= 1
            steps = [high - low for low, high in itertools.pairwise(priorities)]
            assert min(steps) > 0
            # Each of ten pairs is less than 0.01 apart; what lies between may be less still.
            assert sum(step < 0.01 for step in steps) >= 10

    def test_what_is_tied_is_heard_anywhere_in_any_order(self):
        priorities = sample_at(PrioritySort(), EVALUATION, 400, (2,), "tied").inputs[:2, :, 8]
        assert 0.35 < (priorities[0] > priorities[1]).float().mean() < 0.65
        priorities = sample_at(PrioritySort(), EVALUATION, 400, (20,), "tied").inputs[:20, :, 8]
        closest = [np.argsort(column)[:2] for column in priorities.T.numpy()]
        apart = {abs(int(first) - int(second)) for first, second in closest}
        assert len(apart) > 10

    def test_every_tie_is_of_its_own_width(self):
        priorities = sample_at(PrioritySort(), EVALUATION, 400, (2,), "tied").inputs[:2, :, 8]
        apart = (priorities[0] - priorities[1]).abs()
        assert 0 < apart.min() < 0.001
        assert 0.009 < apart.max() < 0.01

    def test_sorted_is_heard_in_the_order_of_the_answer(self):
        inputs, targets, _ = sample_at(PrioritySort(), EVALUATION, 50, (20,), "sorted")
        assert (inputs[:16, :, :8] == targets[21:]).all()
        assert (np.diff(inputs[:20, :, 8].numpy(), axis=0) < 0).all()

    def test_no_two_priorities_are_equal(self):
        """Of 3,000 in single precision some would be, nearly always."""
        priorities = sample_at(PrioritySort(bits=1), EVALUATION, 5, (9000,)).inputs[:9000, :, 1]
        for b in range(5):
            assert len(set(priorities[:, b].tolist())) == 9000
