"""Every metric against plain loops over Python floats."""

import math

import pytest
import torch

from ntm.metrics import SequenceMetrics, count, cross_entropy, target_bits, wrong_bits
from ntm.tasks import Batch


def batch_of(steps: int, sequences: int, bits: int, seed: int) -> tuple[torch.Tensor, Batch]:
    """Logits of some size and a batch whose mask is ragged, with targets set outside it too."""
    draw = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(steps, sequences, bits, generator=draw)
    targets = torch.randint(0, 2, (steps, sequences, bits), generator=draw).float()
    mask = torch.zeros(steps, sequences)
    for row in range(sequences):
        begin = row % 3
        mask[begin : steps - row % 2, row] = 1
    return logits, Batch(torch.zeros(steps, sequences, bits + 1), targets, mask)


def plain(logits: torch.Tensor, batch: Batch) -> list[tuple[float, int, int]]:
    """(nats, wrong bits, target bits) of every sequence."""
    counted = []
    values, targets, mask = logits.tolist(), batch.targets.tolist(), batch.mask.tolist()
    for row in range(len(mask[0])):
        nats, wrong, bits = 0.0, 0, 0
        for t in range(len(mask)):
            if mask[t][row] == 0:
                continue
            for logit, target in zip(values[t][row], targets[t][row], strict=True):
                probability = 1 / (1 + math.exp(-logit))
                nats -= math.log(probability if target == 1 else 1 - probability)
                wrong += (1 if probability > 0.5 else 0) != target
                bits += 1
        counted.append((nats, wrong, bits))
    return counted


def plain_metrics(counted: list[tuple[float, int, int]]) -> dict[str, float]:
    nats, wrong, bits = (sum(column) for column in zip(*counted, strict=True))
    return {
        "loss": nats / bits,
        "bits_per_sequence": nats / math.log(2) / len(counted),
        "wrong_bits_per_sequence": wrong / len(counted),
        "accuracy": (bits - wrong) / bits,
    }


SIZES = [(5, 4, 3), (1, 1, 1), (7, 1, 2), (4, 6, 1)]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_counts_of_every_sequence(size):
    logits, batch = batch_of(*size, seed=1)
    nats, wrong, bits = (list(column) for column in zip(*plain(logits, batch), strict=True))
    counts = count(logits, batch)
    assert counts.nats.tolist() == pytest.approx(nats, rel=1e-4)
    assert counts.wrong.tolist() == wrong
    assert counts.bits.tolist() == bits
    assert torch.equal(counts.nats, cross_entropy(logits, batch))
    assert torch.equal(counts.wrong, wrong_bits(logits, batch))
    assert torch.equal(counts.bits, target_bits(batch))


def test_metrics_over_batches_are_those_of_all_sequences():
    """Batches of unequal sizes: a mean of means would be another number."""
    metrics, counted = SequenceMetrics(), []
    for seed, size in enumerate(SIZES):
        logits, batch = batch_of(*size, seed=seed)
        metrics.update(*count(logits, batch))
        counted += plain(logits, batch)
    got = {name: float(value) for name, value in metrics.compute().items()}
    assert got == pytest.approx(plain_metrics(counted), rel=1e-4)


def test_metrics_of_two_devices_are_those_of_all_sequences():
    devices, counted = (SequenceMetrics(), SequenceMetrics()), []
    for seed, size in enumerate(SIZES):
        logits, batch = batch_of(*size, seed=seed)
        devices[seed % 2].update(*count(logits, batch))
        counted += plain(logits, batch)
    first, second = devices
    first.merge_state(second)
    got = {name: float(value) for name, value in first.compute().items()}
    assert got == pytest.approx(plain_metrics(counted), rel=1e-4)


def test_reset_forgets():
    metrics = SequenceMetrics()
    metrics.update(*count(*batch_of(3, 2, 2, seed=0)))
    metrics.reset()
    logits, batch = batch_of(5, 3, 2, seed=9)
    metrics.update(*count(logits, batch))
    got = {name: float(value) for name, value in metrics.compute().items()}
    assert got == pytest.approx(plain_metrics(plain(logits, batch)), rel=1e-4)


def test_units_by_hand():
    """Two sequences of two target bits; all outputs ½, so one bit of entropy each."""
    logits = torch.zeros(2, 2, 1)
    targets = torch.tensor([[[1.0], [1.0]], [[1.0], [0.0]]])
    metrics = SequenceMetrics()
    metrics.update(*count(logits, Batch(torch.zeros(2, 2, 2), targets, torch.ones(2, 2))))
    got = {name: float(value) for name, value in metrics.compute().items()}
    assert got == pytest.approx(
        {
            "loss": math.log(2),
            "bits_per_sequence": 2.0,
            # An output of exactly ½ is a 0: wrong for the three ones, right for the zero.
            "wrong_bits_per_sequence": 1.5,
            "accuracy": 0.25,
        }
    )


def test_what_is_above_the_optimum_is_told_where_that_is_known():
    metrics = SequenceMetrics()
    metrics.update(*count(*batch_of(5, 4, 3, seed=6)))
    plain = metrics.results(None)
    assert plain == metrics.compute()
    bits = plain["bits_per_sequence"].item()
    assert metrics.results(optimum=2.5) == {**plain, "bits_above_optimum": bits - 2.5}


def test_what_is_masked_does_not_count():
    logits, batch = batch_of(5, 4, 3, seed=2)
    before = count(logits, batch)
    outside = (batch.mask == 0).unsqueeze(-1)
    assert outside.any()
    logits = torch.where(outside, -50 * torch.sign(logits), logits)
    batch = batch._replace(targets=torch.where(outside, 1 - batch.targets, batch.targets))
    for a, b in zip(before, count(logits, batch), strict=True):
        assert torch.equal(a, b)


def test_logits_are_left_as_they_are():
    logits, batch = batch_of(5, 4, 3, seed=3)
    kept = [part.clone() for part in (logits, *batch)]
    count(logits, batch)
    assert all(torch.equal(a, b) for a, b in zip(kept, (logits, *batch), strict=True))


def test_far_logits_stay_finite():
    logits = torch.tensor([200.0, -200.0]).reshape(2, 1, 1)
    batch = Batch(torch.zeros(2, 1, 2), torch.tensor([0.0, 1.0]).reshape(2, 1, 1), torch.ones(2, 1))
    assert cross_entropy(logits, batch).item() == pytest.approx(400)
    assert wrong_bits(logits, batch).item() == 2


def test_loss_has_the_gradient_of_cross_entropy():
    logits, batch = batch_of(5, 4, 3, seed=4)
    logits.requires_grad_()
    cross_entropy(logits, batch).sum().backward()
    expected = [
        [
            [
                (1 / (1 + math.exp(-logit)) - target) * due
                for logit, target in zip(bits, targets, strict=True)
            ]
            for bits, targets, due in zip(rows, row_targets, row_mask, strict=True)
        ]
        for rows, row_targets, row_mask in zip(
            logits.tolist(), batch.targets.tolist(), batch.mask.tolist(), strict=True
        )
    ]
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, torch.tensor(expected))


def test_half_precision_logits_are_counted_in_single():
    logits, batch = batch_of(5, 4, 3, seed=5)
    half = logits.bfloat16()
    assert torch.equal(cross_entropy(half, batch), cross_entropy(half.float(), batch))


def test_double_precision_logits_are_counted_in_double():
    logits, batch = batch_of(5, 4, 3, seed=5)
    expected = [nats for nats, _, _ in plain(logits.double(), batch)]
    assert cross_entropy(logits.double(), batch).tolist() == pytest.approx(expected, rel=1e-12)


def test_nats_are_added_in_double():
    """2²⁴ + 1 is no number of single precision."""
    metrics = SequenceMetrics()
    metrics.update(torch.tensor([2.0**24, 1.0]), torch.tensor([0, 0]), torch.tensor([1, 1]))
    assert metrics.nats.item() == 2**24 + 1


def test_a_device_without_double_precision_holds_single():
    def go(part: torch.Tensor) -> torch.Tensor:
        if part.dtype == torch.float64:
            raise TypeError("Cannot convert a MPS Tensor to float64")
        return part.clone()

    metrics = SequenceMetrics()
    metrics.update(torch.tensor([0.5]), torch.tensor([1]), torch.tensor([3]))
    metrics._apply(go)
    assert (metrics.nats.dtype, metrics.nats.item()) == (torch.float32, 0.5)
    assert (metrics.bits.dtype, metrics.bits.item()) == (torch.int64, 3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("convert", ["to", "half", "bfloat16"])
def test_counts_are_whole_whatever_the_network_is(dtype, convert):
    """Of a module in low precision with a batch in it: 65,504 is the last number of float16."""
    logits, batch = batch_of(40, 100, 30, seed=5)
    module = torch.nn.ModuleDict({"metrics": SequenceMetrics()})
    module = module.to(dtype) if convert == "to" else getattr(module, convert)()
    metrics = module["metrics"]
    lowered = Batch(*(part.to(dtype) for part in batch))
    for _ in range(3):
        metrics.update(*count(logits.to(dtype), lowered))
    expected = plain_metrics(3 * plain(logits.to(dtype).double(), batch))
    assert metrics.bits.dtype == metrics.wrong.dtype == torch.int64
    assert metrics.bits.item() > 65504
    values = {name: value.item() for name, value in metrics.compute().items()}
    assert values == pytest.approx(expected, rel=1e-5)
