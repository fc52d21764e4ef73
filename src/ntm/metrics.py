"""Loss and metrics, each with its unit in its name; all counted over the target bits only.

==========================  ==========================================================
loss                        cross-entropy, nats, mean over target bits
bits_per_sequence           cross-entropy, log2, summed over a sequence, mean over sequences
wrong_bits_per_sequence     wrong target bits at threshold 0.5, mean over sequences
accuracy                    share of right target bits, in [0, 1]
bits_above_optimum          bits_per_sequence less that of the best possible predictor on the
                            same sequences, where the task knows it
==========================  ==========================================================
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torchmetrics
from torch import Tensor
from torch.nn import functional as F

from ntm.tasks import Batch

SOLVED_BELOW = 0.1
"""Wrong bits per sequence below which a task counts as solved (CB18)."""


def cross_entropy(logits: Tensor, batch: Batch) -> Tensor:
    """Cross-entropy in nats of every sequence, summed over its target bits: (B,)."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    targets = batch.targets.to(logits.dtype)
    nats = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return (nats.sum(-1) * batch.mask).sum(0)


def wrong_bits(logits: Tensor, batch: Batch) -> Tensor:
    """Wrong target bits of every sequence, outputs thresholded at 0.5: (B,)."""
    wrong = (logits > 0) != (batch.targets > 0.5)
    return (wrong.sum(-1) * (batch.mask > 0)).sum(0)


def target_bits(batch: Batch) -> Tensor:
    """Number of target bits of every sequence: (B,)."""
    return (batch.mask > 0).sum(0) * batch.targets.shape[-1]


class Counts(NamedTuple):
    """What the metrics are made of, for each sequence of a batch."""

    nats: Tensor
    """Cross-entropy in nats, (B,)."""
    wrong: Tensor
    """Wrong target bits, (B,)."""
    bits: Tensor
    """Target bits, (B,)."""


def count(logits: Tensor, batch: Batch) -> Counts:
    """Count a batch, from logits (T, B, O)."""
    return Counts(cross_entropy(logits, batch), wrong_bits(logits, batch), target_bits(batch))


class SequenceMetrics(torchmetrics.Metric):
    """Adds up batches, on every device of a run, and gives the metrics of them all.

    Counts are whole numbers and the sum of nats is of double precision, whatever the network is.
    """

    full_state_update = False
    nats: Tensor
    wrong: Tensor
    bits: Tensor
    sequences: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("nats", default=torch.tensor(0.0).double(), dist_reduce_fx="sum")
        for name in ("wrong", "bits", "sequences"):
            self.add_state(name, default=torch.tensor(0), dist_reduce_fx="sum")

    def _apply(self, fn: Callable[..., Tensor], *arguments: Any, **named: Any) -> SequenceMetrics:
        """Go to another device, but not to another precision: half of one holds no sums."""

        def as_precise(sums: Tensor) -> Tensor:
            try:
                return fn(sums).to(sums.dtype)
            except TypeError:  # a device without double precision
                return fn(sums.float())

        return super()._apply(as_precise, *arguments, **named)  # type: ignore[return-value]

    def update(self, nats: Tensor, wrong: Tensor, bits: Tensor) -> None:
        """Count sequences in, by their `Counts`."""
        self.nats += nats.sum(dtype=self.nats.dtype)
        self.wrong += wrong.sum()
        self.bits += bits.sum()
        self.sequences += len(bits)

    def results(self, optimum: float | None) -> dict[str, Tensor]:
        """What `compute` gives, with what is paid above the ``optimum`` where that is known."""
        values = self.compute()
        if optimum is not None:
            values["bits_above_optimum"] = values["bits_per_sequence"] - optimum
        return values

    def compute(self) -> dict[str, Tensor]:
        """The metrics by name, over all that was counted since the last reset."""
        return {
            "loss": self.nats / self.bits,
            "bits_per_sequence": self.nats / math.log(2) / self.sequences,
            "wrong_bits_per_sequence": self.wrong / self.sequences,
            "accuracy": 1 - self.wrong / self.bits,
        }
