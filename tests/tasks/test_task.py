"""What every task promises, whichever it is."""

from __future__ import annotations

import hashlib
import itertools
from types import SimpleNamespace
from typing import get_origin

import numpy as np
import pytest
import torch

import ntm.tasks
from ntm.tasks import (
    AssociativeRecall,
    Batch,
    Copy,
    DynamicNGrams,
    PrioritySort,
    RepeatCopy,
    Task,
)
from ntm.tasks.sampling import (
    EVALUATION,
    TRAINING,
    VALIDATION,
    fixed_set,
    joined,
    places_at,
    rows,
    sample,
    sample_at,
)
from ntm.training.data import SequenceData

SMALL: dict[str, Task] = {
    "copy": Copy(bits=3, min_length=1, max_length=6),
    "copy, mixed": Copy(bits=3, min_length=1, max_length=6, mixed_lengths=True),
    "repeat_copy": RepeatCopy(bits=2, min_length=1, max_length=3, min_repeats=1, max_repeats=3),
    "associative_recall": AssociativeRecall(bits=3, vectors=2, min_items=2, max_items=4),
    "dynamic_ngrams": DynamicNGrams(steps=12, context=2),
    "priority_sort": PrioritySort(bits=3, min_items=3, max_items=6),
}
each = pytest.mark.parametrize("task", SMALL.values(), ids=SMALL)


def same(one: Batch, other: Batch) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def drawn_points(task: Task, ranges: tuple, batches: int) -> set[tuple[int, ...]]:
    """The points that training asks a task for."""
    asked: set[tuple[int, ...]] = set()
    draw = task.draw

    def noting(
        rng: np.random.Generator, batch_size: int, point: tuple[int, ...], kind: str
    ) -> Batch:
        asked.add(point)
        return draw(rng, batch_size, point, kind)

    task.draw = noting  # type: ignore[method-assign]
    try:
        for k in range(batches):
            sample(task, TRAINING, k, 2, ranges)
    finally:
        del task.draw
    return asked


def test_all_tasks_there_are_are_held_to_it():
    made = {getattr(ntm.tasks, name) for name in ntm.tasks.__all__}
    classes = {one for one in made if isinstance(one, type) and get_origin(one) is None}  # 3.10
    tasks = {one for one in classes if issubclass(one, Task)} - {Task}
    assert tasks == {type(task) for task in SMALL.values()}


@each
def test_numbers_cover_their_ranges_ends_included_and_nothing_beyond(task):
    assert drawn_points(task, task.ranges, 400) == set(task.points())
    narrow = tuple((low, min(low + 1, high)) for low, high in task.ranges)
    points = drawn_points(task, narrow, 200)
    for values, (low, high) in zip(zip(*points, strict=True), narrow, strict=True):
        assert {*values} == {low, high}


@each
def test_the_same_batch_for_the_same_seed_split_index_and_ranges(task):
    first = sample(task, TRAINING, 7, 4, task.ranges, seed=3)
    assert same(first, sample(task, TRAINING, 7, 4, task.ranges, seed=3))
    others = [(TRAINING, 8, 3), (VALIDATION, 7, 3), (TRAINING, 7, 4)]
    for split, index, seed in others:
        assert not same_shape_and_bits(first, sample(task, split, index, 4, task.ranges, seed=seed))


DIGESTS = {
    "copy": "a372dc88ec076ddb",
    "copy, mixed": "a77914caa43bcef3",
    "repeat_copy": "4f01e6b723ec6ffc",
    "associative_recall": "9a979d06424cae2e",
    "dynamic_ngrams": "9d9728fa7a956857",
    "priority_sort": "f51be4ef7c5b79c9",
}


@each
def test_sequences_are_those_that_results_were_published_with(task):
    """Of training and, of every kind, of the closing evaluation."""
    drawn = [sample(task, TRAINING, k, 5, task.ranges, seed=200) for k in range(3)]
    drawn += [sample_at(task, EVALUATION, 20, task.points()[-1], kind) for kind in task.kinds]
    digest = hashlib.sha256()
    for part in itertools.chain(*drawn):
        digest.update(part.numpy().tobytes())
    (name,) = (name for name, one in SMALL.items() if one is task)
    assert digest.hexdigest()[:16] == DIGESTS[name]


def test_memory_is_aligned_wherever_it_was_drawn():
    class Anywhere(Copy):
        def draw(self, rng, batch_size, point, kind="drawn"):
            batch = super().draw(rng, batch_size, point, kind)
            shifted = [torch.zeros(1 + part.numel())[1:].view(part.shape) for part in batch]
            assert all(part.data_ptr() % 64 for part in shifted)
            return Batch(*(to.copy_(part) for to, part in zip(shifted, batch, strict=True)))

    batch = sample(Anywhere(), TRAINING, 0, 3, Copy().ranges)
    assert same(batch, sample(Copy(), TRAINING, 0, 3, Copy().ranges))
    assert [part.data_ptr() % 64 for part in batch] == [0, 0, 0]


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_processes_deal_a_batch_out(world_size):
    batch = sample(SMALL["copy"], TRAINING, 0, 6, ((4, 4),))
    for rank in range(world_size):
        for whole, part in zip(batch, rows(batch, rank, world_size), strict=True):
            mine = [whole[:, row] for row in range(6) if row % world_size == rank]
            assert part.equal(torch.stack(mine, dim=1))


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_what_is_dealt_out_can_be_joined_again(world_size):
    """Also where some have a row more than others."""
    batch = sample(SMALL["copy"], TRAINING, 0, 7, ((4, 4),))
    dealt = [rows(batch, rank, world_size) for rank in range(world_size)]
    for whole, *shares in zip(batch, *dealt, strict=True):
        assert joined(shares).equal(whole)


def test_lengths_apart_are_all_of_the_kind():
    batch = sample(SMALL["copy, mixed"], TRAINING, 0, 20, ((1, 6),), kind="ones")
    assert batch.targets.equal(batch.mask[..., None].expand_as(batch.targets))


def same_shape_and_bits(one: Batch, other: Batch) -> bool:
    return one.inputs.shape == other.inputs.shape and same(one, other)


@each
def test_workers_change_nothing(task):
    def batches(workers: int) -> list[Batch]:
        data = SequenceData(
            task, seed=0, batch_size=4, sequences=48, validate_every=48, num_workers=workers
        )
        data.trainer = SimpleNamespace(current_epoch=0, global_rank=0, world_size=1)
        return list(data.train_dataloader())

    alone, apart = batches(0), batches(4)
    assert len(alone) == len(apart) == 12
    assert all(same(a, b) for a, b in zip(alone, apart, strict=True))


@each
def test_batches_are_time_major_bits_under_a_mask(task):
    for batch in (sample(task, TRAINING, k, 3, task.ranges) for k in range(20)):
        steps = len(batch.inputs)
        assert batch.inputs.shape == (steps, 3, task.input_size)
        assert batch.targets.shape == (steps, 3, task.output_size)
        assert batch.mask.shape == (steps, 3)
        assert all(part.dtype == torch.float32 for part in batch)
        assert {*batch.mask.unique().tolist()} <= {0.0, 1.0}
        assert {*batch.targets.unique().tolist()} <= {0.0, 1.0}
        assert (batch.targets * (1 - batch.mask[..., None]) == 0).all()
        assert (batch.mask.sum(0) > 0).all()


@each
def test_chance_is_no_more_than_a_bit_for_each_bit_that_is_asked_for(task):
    for point in task.points():
        batch = task.draw(np.random.default_rng(0), 2, point)
        bits = batch.mask[:, 0].sum().item() * task.output_size
        assert 0 < task.chance(point) <= bits
        if task.optimum(batch) is not None:
            assert (task.optimum(batch) <= bits).all()


@each
def test_the_fixed_set_has_all_points_equally_often(task):
    batches = fixed_set(task, VALIDATION, 20)
    assert len(batches) == len(task.points())
    assert len({batch.inputs.shape[1] for batch in batches}) == 1
    assert 20 <= sum(batch.inputs.shape[1] for batch in batches) < 20 + len(batches)


@each
def test_a_point_is_a_value_for_each_number(task):
    high = {name: upper for name, (_, upper) in task.numbers.items()}
    point = task.point(high)
    assert point == tuple(high.values())
    assert task.named(point) == high
    for name, value in high.items():
        assert f"{name} {value}" in task.label(point)
    if len(high) == 1:
        assert task.point(next(iter(high.values()))) == point


@each
@pytest.mark.parametrize("what", ["text", "missing", "unknown", "fraction", "truth", "low"])
def test_what_is_no_point_is_refused_with_one_that_is(task, what):
    good = {name: upper for name, (_, upper) in task.numbers.items()}
    first = next(iter(good))
    least = task.least.get(first, 1)
    bad = {
        "text": good | {first: "many"},
        "missing": {},
        "unknown": good | {"colour": 3},
        "fraction": good | {first: 2.5},
        "truth": good | {first: True},
        "low": good | {first: least - 1},
    }[what]
    with pytest.raises(ValueError, match=first) as refusal:
        task.point(bad)
    said = str(refusal.value)
    expected = [f"at least {least}, got {least - 1}"] if what == "low" else [task.name, "such as"]
    for words in expected:
        assert words in said


ASKED = {
    "copy": "length, such as {length: 10} or 10",
    "repeat_copy": "length, repeats, such as {length: 5, repeats: 5}",
    "associative_recall": "items, such as {items: 2} or 2",
    "dynamic_ngrams": "steps, such as {steps: 12} or 12",
}


@pytest.mark.parametrize(("name", "such"), ASKED.items(), ids=ASKED)
def test_the_point_that_is_named_is_one_that_the_task_shows(name, such):
    with pytest.raises(ValueError) as refusal:  # noqa: PT011
        SMALL[name].point("3")
    numbers = f"a point of {name} is a whole number for each of {such}"
    assert str(refusal.value) == f"{numbers}, got '3'"


def test_a_task_that_shows_no_point_names_the_largest_of_training():
    task = Copy(max_length=6)
    task.shown = ()
    with pytest.raises(ValueError, match=r"such as \{length: 6\} or 6, got None$"):
        task.point(None)


def test_two_numbers_have_no_bare_point():
    with pytest.raises(ValueError, match=r"length, repeats.*got 3$"):
        SMALL["repeat_copy"].point(3)


FREE = {
    "copy": (Copy(bits=3), (4,)),
    "repeat_copy": (RepeatCopy(bits=2), (3, 2)),
    "associative_recall": (AssociativeRecall(bits=6), (4,)),
    "dynamic_ngrams": (DynamicNGrams(steps=15, context=3), (15,)),
    "priority_sort": (PrioritySort(bits=2), (6,)),
}


@pytest.mark.parametrize("name", FREE)
def test_every_free_bit_has_its_places(name):
    """The sequence is rebuilt from its bits, and what is left of it holds none."""
    task, point = FREE[name]
    for kind in task.kinds:
        places = places_at(task, EVALUATION, point, kind)
        if places is None:  # items are changed after they are drawn
            assert kind == "shared_start"
            continue
        batch = sample_at(task, EVALUATION, 1, point, kind)
        for part, where in ((batch.inputs, places.inputs), (batch.targets, places.targets)):
            values = part[:, 0].numpy()
            held = where >= 0
            assert np.array_equal(values[held], places.bits[where[held]])
            assert set(where[~held]) <= {-1}
        assert places.bits.dtype.kind == "i"
        # A machine can know the answer to what it heard, and to nothing else.
        said, heard = (set(where[where >= 0]) for where in (places.targets, places.inputs))
        assert said - heard <= ({len(places.bits) - 1} if name == "dynamic_ngrams" else set())
        assert said | heard == set(range(len(places.bits)))


class TestTasksOfOnesOwn:
    def test_bits_from_elsewhere_have_no_places(self):
        class Elsewhere(Copy):
            def draw(self, rng, batch_size, point, kind="drawn"):
                batch = super().draw(rng, batch_size, point, "zeros")
                batch.inputs[:2] = torch.from_numpy(rng.integers(0, 2, batch.inputs[:2].shape))
                batch.targets[:] = 0
                return batch

        places = places_at(Elsewhere(bits=2), EVALUATION, (2,))
        assert places is None or not (places.inputs[:2] >= 0).any()

    def test_a_task_that_asks_for_no_vectors_has_no_places(self):
        class Blank(Copy):
            def draw(self, rng, batch_size, point, kind="drawn"):
                return Batch(torch.zeros(5, 1, 3), torch.zeros(5, 1, 2), torch.zeros(5, 1))

        assert places_at(Blank(bits=2), EVALUATION, (2,)) is None

    def test_how_it_is_drawn_depends_on_bits(self):
        class Sorted(Copy):
            def draw(self, rng, batch_size, point, kind="drawn"):
                vectors = self.vectors_of(rng, kind, (point[0], batch_size, self.output_size))
                batch = super().draw(rng, batch_size, point, "zeros")
                batch.targets[-point[0] :] = torch.from_numpy(-np.sort(-vectors, axis=0)).float()
                return batch

        assert places_at(Sorted(bits=8), EVALUATION, (6,)) is None


def test_a_number_that_has_no_least_is_at_least_one():
    with pytest.raises(ValueError, match=r"^length must be at least 1, got 0$"):
        Copy().point(0)
    assert Copy().point(1) == (1,)


def test_a_point_in_words():
    assert RepeatCopy().label((20, 10)) == "length 20, repeats 10"
    with pytest.raises(ValueError, match="longer"):
        Copy().named((20, 10))


BY_DEFAULT: dict[type[Task], tuple] = {
    Copy: ("copy", 9, 8, {"length": (1, 20)}),
    RepeatCopy: ("repeat_copy", 8, 7, {"length": (1, 10), "repeats": (1, 10)}),
    AssociativeRecall: ("associative_recall", 8, 6, {"items": (2, 6)}),
    DynamicNGrams: ("dynamic_ngrams", 1, 1, {"steps": (200, 200)}),
    PrioritySort: ("priority_sort", 10, 8, {"items": (20, 20)}),
}


@pytest.mark.parametrize(("make", "expected"), BY_DEFAULT.items(), ids=lambda v: str(v)[:40])
def test_by_default_a_task_is_that_of_the_paper(make, expected):
    task = make()
    assert (task.name, task.input_size, task.output_size, task.numbers) == expected
    assert (task.mixed, task.mix, task.trained_on) == (False, 0.0, "drawn")


@pytest.mark.parametrize("make", [Copy, RepeatCopy, AssociativeRecall, PrioritySort])
def test_what_a_task_is_told_it_says(make):
    apart = "mixed_lengths" if make is Copy else "mixed"
    task = make(mix=0.25, name="mine", **{apart: True})
    assert (task.name, task.mix, task.mixed, task.trained_on) == ("mine", 0.25, True, "mixed")
