"""Data without state: every batch from its arguments, whoever asks and in whatever order."""

import hashlib
from types import SimpleNamespace

import pytest
import torch

from ntm.tasks import Batch, Copy
from ntm.tasks.sampling import EVALUATION, TEST, TRAINING, VALIDATION, rows, sample
from ntm.training.data import SequenceData

TASK = Copy(bits=3, min_length=1, max_length=6)
BASE = {
    "split": TRAINING,
    "index": 5,
    "batch_size": 4,
    "ranges": ((4, 6),),
    "seed": 0,
}


def same(one: Batch, other: Batch) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def data(**arguments) -> SequenceData:
    chosen = {"seed": 0, "batch_size": 8, "sequences": 128, "validate_every": 64} | arguments
    return at_epoch(SequenceData(chosen.pop("task", TASK), **chosen), 0)


def at_epoch(made: SequenceData, epoch: int, rank: int = 0, world_size: int = 1) -> SequenceData:
    made.trainer = SimpleNamespace(
        current_epoch=epoch, global_rank=rank, world_size=world_size, fast_dev_run=False
    )
    return made


def length(batch: Batch) -> int:
    return (len(batch.inputs) - 1) // 2


class TestSample:
    def test_is_a_function_of_its_arguments(self):
        first = sample(TASK, **BASE)
        sample(TASK, **BASE | {"index": 6})  # what else is drawn in between does not count
        torch.manual_seed(3)
        assert same(first, sample(TASK, **BASE))

    @pytest.mark.parametrize(
        "change",
        [
            {"seed": 1},
            {"seed": 2**40},
            {"split": VALIDATION},
            {"split": TEST},
            {"split": EVALUATION},
            {"index": 4},
            {"index": 0},
            {"ranges": ((5, 6),)},
            {"ranges": ((4, 5),)},
        ],
        ids=str,
    )
    def test_every_argument_counts(self, change):
        """Over many batches, as two of unlike lengths differ whatever is ignored."""
        for more in range(20):
            base = BASE | {"index": BASE["index"] + 100 * more}
            other = base | change
            if "index" in change:
                other["index"] += 100 * more
            assert not same(sample(TASK, **base), sample(TASK, **other))

    def test_seed_0_is_a_seed_like_others(self):
        assert not same(sample(TASK, **BASE), sample(TASK, **BASE | {"seed": 12}))
        assert same(sample(TASK, **BASE), sample(TASK, **BASE | {"seed": 0}))
        unseeded = {name: value for name, value in BASE.items() if name != "seed"}
        assert same(sample(TASK, **BASE), sample(TASK, **unseeded))

    def test_never_changes_between_versions(self):
        batch = sample(Copy(), TRAINING, 7, 16, ((1, 20),), seed=3)
        digest = hashlib.sha256(b"".join(part.numpy().tobytes() for part in batch)).hexdigest()
        assert digest == "e40fdb56e655f01db1a767fea1d7483c9c9e06d0bfaae6c611873c51ea12de42"


class TestRows:
    @pytest.mark.parametrize("world_size", [1, 2, 3, 8])
    def test_of_all_ranks_together_are_the_batch(self, world_size):
        batch = sample(Copy(2, 1, 5, mixed_lengths=True), TRAINING, 0, 8, ((1, 5),))
        whole = [torch.full_like(part, -1) for part in batch]
        for rank in range(world_size):
            for part, into in zip(rows(batch, rank, world_size), whole, strict=True):
                for i, row in enumerate(range(rank, 8, world_size)):
                    into[:, row] = part[:, i]
        assert same(Batch(*whole), batch)


class TestTraining:
    def test_worker_count_changes_nothing(self):
        alone = list(data().train_dataloader())
        for workers in (1, 2):
            drawn = list(data(num_workers=workers).train_dataloader())
            assert len(drawn) == len(alone) == 8
            assert all(same(a, b) for a, b in zip(drawn, alone, strict=True))

    def test_lengths_change_within_each_workers_epoch(self):
        drawn = list(data(num_workers=2).train_dataloader())
        for worker in (0, 1):
            assert len({length(batch) for batch in drawn[worker::2]}) > 1

    def test_no_batch_comes_twice(self):
        long = Copy(4, 10, 10)
        made = data(task=long)
        seen = [
            tuple(batch.inputs.flatten().tolist())
            for epoch in range(2)
            for batch in at_epoch(made, epoch).train_dataloader()
        ]
        assert len(set(seen)) == len(seen) == 16

    @pytest.mark.parametrize("epoch", [0, 1, 3])
    def test_batch_k_counts_from_the_runs_start(self, epoch):
        made = data(sequences=8 * 10, validate_every=8 * 3)
        drawn = list(at_epoch(made, epoch).train_dataloader())
        assert len(drawn) == (1 if epoch == 3 else 3)
        for k, batch in enumerate(drawn, start=3 * epoch):
            assert same(batch, sample(TASK, TRAINING, k, 8, ((1, 6),), 0))

    def test_the_interval_between_validations_changes_no_batch(self):
        often, seldom = data(validate_every=16), data(validate_every=128)
        drawn = [b for epoch in range(8) for b in at_epoch(often, epoch).train_dataloader()]
        assert all(same(a, b) for a, b in zip(drawn, seldom.train_dataloader(), strict=True))

    def test_the_seed_decides(self):
        one, other = (list(data(seed=seed).train_dataloader()) for seed in (0, 1))
        assert not any(same(a, b) for a, b in zip(one, other, strict=True))

    def test_a_new_range_is_taken_by_the_next_loader(self):
        made = data()
        made.ranges = ((2, 2),)
        assert {length(batch) for batch in made.train_dataloader()} == {2}

    @pytest.mark.parametrize("workers", [0, 1])
    def test_ranks_share_every_batch(self, workers):
        made = data(num_workers=workers, sequences=16)
        whole = list(made.train_dataloader())
        for rank in (0, 1):
            part = list(at_epoch(made, 0, rank, 2).train_dataloader())
            assert all(same(a, rows(b, rank, 2)) for a, b in zip(part, whole, strict=True))
            assert part[0].inputs.shape[1] == 4


@pytest.mark.parametrize(
    ("sequences", "batch_size", "validate_every", "per_epoch", "ends"),
    [
        (96, 16, 32, 2, [32, 64, 96]),
        (100, 16, 40, 3, [48, 96, 112]),
        (97, 16, 32, 2, [32, 64, 96, 112]),
        (10, 4, 1000, 3, [12]),
        (5, 1, 2, 2, [2, 4, 5]),
        (3, 8, 1, 1, [8]),
        (1, 1, 1, 1, [1]),
    ],
    ids=lambda value: str(value).replace(" ", ""),
)
def test_budgets_are_rounded_up_to_batches(sequences, batch_size, validate_every, per_epoch, ends):
    made = data(sequences=sequences, batch_size=batch_size, validate_every=validate_every)
    assert made.batches_per_epoch == per_epoch
    assert made.epochs == len(ends)
    assert [made.sequences_after(epoch) for epoch in range(made.epochs)] == ends
    seen = 0
    for epoch, end in enumerate(ends):
        loader = at_epoch(made, epoch).train_dataloader()
        seen += sum(batch.inputs.shape[1] for batch in loader)
        assert seen == end


class TestFixedSets:
    @pytest.mark.parametrize("longest", [1, 3, 20])
    @pytest.mark.parametrize("mixed", [False, True], ids=["one-length", "mixed"])
    def test_all_lengths_equally_often(self, longest, mixed):
        made = data(task=Copy(2, 1, longest, mixed_lengths=mixed))
        for loader, least in ((made.val_dataloader(), 640), (made.test_dataloader(), 2000)):
            counts: dict[int, int] = {}
            for index, batch in enumerate(loader):
                assert made.points[index] == (length(batch),)
                for due in batch.mask.sum(0).int().tolist():
                    counts[due] = counts.get(due, 0) + 1
            assert sorted(counts) == list(range(1, longest + 1))
            assert len(set(counts.values())) == 1
            assert least <= sum(counts.values()) < least + longest

    def test_are_the_same_for_every_run(self):
        first = data()
        other = at_epoch(data(seed=7, batch_size=3, sequences=9, num_workers=0), 2)
        other.ranges = ((1, 2),)  # a curriculum's stage changes what is trained on, only
        for name in ("val_dataloader", "test_dataloader"):
            pairs = zip(getattr(first, name)(), getattr(other, name)(), strict=True)
            assert all(same(a, b) for a, b in pairs)
        assert all(
            same(a, b) for a, b in zip(first.val_dataloader(), first.val_dataloader(), strict=True)
        )

    def test_are_few_for_a_trial(self):
        """Of `trainer.fast_dev_run`: a task of one point would make it wait for 2,000 of them."""
        trial = data(batch_size=2)
        trial.trainer.fast_dev_run = True
        for name in ("val_dataloader", "test_dataloader"):
            batches = list(getattr(trial, name)())
            assert len(batches) == len(TASK.points())
            assert {batch.inputs.shape[1] for batch in batches} == {2}

    def test_share_no_sequence(self):
        # Long enough that none could be drawn twice by chance.
        task = Copy(8, 10, 12)
        made = data(task=task, sequences=400)
        sets = [
            {
                tuple(batch.inputs[:, row].flatten().tolist())
                for batch in loader
                for row in range(batch.inputs.shape[1])
            }
            for loader in (
                made.train_dataloader(),
                made.val_dataloader(),
                made.test_dataloader(),
            )
        ]
        assert not sets[0] & sets[1]
        assert not sets[0] & sets[2]
        assert not sets[1] & sets[2]

    def test_are_drawn_apart(self):
        """Not the same bits in batches of another size, of which no sequence need be the same."""
        task = Copy(8, 10, 12)
        made = data(task=task)
        for one, other in zip(made.val_dataloader(), made.test_dataloader(), strict=True):
            steps = length(one)
            bits, others = (batch.inputs[:steps, :, :8].flatten() for batch in (one, other))
            agree = (bits == others[: len(bits)]).float().mean().item()
            assert 0.45 < agree < 0.55

    def test_ranks_share_them(self):
        made = data()
        whole = list(made.val_dataloader())
        parts = [list(at_epoch(made, 0, rank, 2).val_dataloader()) for rank in (0, 1)]
        for batch, one, other in zip(whole, *parts, strict=True):
            assert one.inputs.shape[1] + other.inputs.shape[1] == batch.inputs.shape[1]
            assert same(one, rows(batch, 0, 2))
            assert same(other, rows(batch, 1, 2))


def test_batches_lie_where_products_round_alike_in_every_process():
    for k in range(20):
        assert all(part.data_ptr() % 64 == 0 for part in sample(Copy(), TRAINING, k, 3, ((1, 20),)))
