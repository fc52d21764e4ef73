"""The repeat-copy task (G14 section 4.2): say a sequence again as often as told, then stop."""

from __future__ import annotations

import math

import numpy as np

from ntm.checks import check_at_least, check_range, check_share
from ntm.tasks.kinds import DRAWN, KINDS
from ntm.tasks.task import Batch, Point, Task, as_batch, blank


class RepeatCopy(Task):
    """Random bit vectors, how often to say them on a channel of its own, then that many copies.

    One sequence of length L = 2 and 2 bits, R = 2 times, takes T = L + 1 + L·R + 1 = 8 steps; r is
    the number of repeats, normalised by mean and standard deviation over the task's own range::

        step          0  1  2  3  4  5  6  7
        input bit 0   1  0  .  .  .  .  .  .
        input bit 1   0  1  .  .  .  .  .  .
        delimiter     .  .  1  .  .  .  .  .
        repeats       .  .  r  .  .  .  .  .
        target bit 0  .  .  .  1  0  1  0  .
        target bit 1  .  .  .  0  1  0  1  .
        end marker    .  .  .  .  .  .  .  1
        mask          .  .  .  1  1  1  1  1

    Args:
        bits: Width of a vector, at least 1; I = bits + 2, O = bits + 1.
        min_length: Shortest sequence in training, at least 1.
        max_length: Longest sequence in training, at least ``min_length``.
        min_repeats: Fewest repeats in training, at least 1.
        max_repeats: Most repeats in training, at least ``min_repeats``.
        end_marker: End with a step that asks for nothing but a flag on the last output channel;
            without it O = bits and the step is left out.
        mixed: Draw length and repeats for every sequence instead of once for every batch; shorter
            ones end early and are masked.
        mix: Share of the training sequences in which every bit is set with a probability that is
            drawn for the sequence, uniform in [0, 1]; 0 draws them as the paper does.
        name: What the task is called in run folders and reports.

    Raises:
        ValueError: A number is out of range; the message begins with the argument's name.

    """

    kinds = tuple(KINDS)
    shown = ((5, 5), (10, 10), (20, 10), (10, 20), (15, 15))

    def __init__(
        self,
        bits: int = 6,
        min_length: int = 1,
        max_length: int = 10,
        min_repeats: int = 1,
        max_repeats: int = 10,
        end_marker: bool = True,
        mixed: bool = False,
        mix: float = 0.0,
        name: str = "repeat_copy",
    ) -> None:
        check_at_least("bits", bits, 1)
        check_range("length", min_length, max_length, 1)
        check_range("repeats", min_repeats, max_repeats, 1)
        check_share("mix", mix)
        self.name = name
        self.mix = mix
        self.bits = bits
        self.input_size = bits + 2
        self.output_size = bits + end_marker
        self.numbers = {
            "length": (min_length, max_length),
            "repeats": (min_repeats, max_repeats),
        }
        self.mixed = mixed
        self.end_marker = end_marker
        if end_marker:
            self.parts = {"data": slice(0, bits), "end_marker": slice(bits, bits + 1)}

    def draw(
        self, rng: np.random.Generator, batch_size: int, point: Point, kind: str = DRAWN
    ) -> Batch:
        """Draw sequences of one length, repeated equally often; see `Task.draw`."""
        length, repeats = point
        bits, begin = self.bits, length + 1
        end = begin + length * repeats
        inputs, targets, mask = blank(
            end + self.end_marker, batch_size, self.input_size, self.output_size
        )
        vectors = self.vectors_of(rng, kind, (length, batch_size, bits))
        inputs[:length, :, :bits] = vectors
        inputs[length, :, bits] = 1
        inputs[length, :, bits + 1] = self.normalised(repeats)
        targets[begin:end, :, :bits] = np.tile(vectors, (repeats, 1, 1))
        targets[end:, :, bits:] = 1
        mask[begin:] = 1
        return as_batch(inputs, targets, mask)

    def normalised(self, repeats: int) -> float:
        """What the machine is told: mean 0 and variance 1 over the range of training."""
        low, high = self.numbers["repeats"]
        values = high - low + 1
        deviation = math.sqrt((values**2 - 1) / 12) or 1.0
        return (repeats - (low + high) / 2) / deviation

    def chance(self, point: Point) -> float:
        """All bits of all vectors, each time; the end marker can be known."""
        length, repeats = point
        return self.bits * length * repeats
