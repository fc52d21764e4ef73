"""The copy task (G14 section 4.1): hear a sequence of random vectors, then say it again."""

from __future__ import annotations

import numpy as np

from ntm.checks import check_at_least, check_range, check_share
from ntm.tasks.kinds import DRAWN, KINDS
from ntm.tasks.task import Batch, Point, Task, as_batch, blank


class Copy(Task):
    """Random bit vectors, a delimiter on a channel of its own, then the same vectors out.

    One sequence of length L = 3 and 2 bits takes T = 2L + 1 = 7 steps::

        step          0  1  2  3  4  5  6
        input bit 0   1  0  1  .  .  .  .
        input bit 1   0  0  1  .  .  .  .
        delimiter     .  .  .  1  .  .  .
        target bit 0  .  .  .  .  1  0  1
        target bit 1  .  .  .  .  0  0  1
        mask          .  .  .  .  1  1  1

    Args:
        bits: Width of a vector, at least 1; I = bits + 1, O = bits.
        min_length: Shortest sequence in training, at least 1.
        max_length: Longest sequence in training, at least ``min_length``.
        mixed_lengths: Draw a length for every sequence instead of one for every batch; shorter
            ones end early and are masked.
        start_flag: Begin with a step that holds nothing but a flag on the last channel; then
            I = bits + 2 and T = 2L + 2.
        mix: Share of the training sequences in which every bit is set with a probability that is
            drawn for the sequence, uniform in [0, 1]; 0 draws them as the paper does.
        name: What the task is called in run folders and reports.

    Raises:
        ValueError: A number is out of range; the message begins with the argument's name.

    """

    kinds = tuple(KINDS)
    shown = ((10,), (20,), (30,), (50,), (80,), (120,))

    def __init__(
        self,
        bits: int = 8,
        min_length: int = 1,
        max_length: int = 20,
        mixed_lengths: bool = False,
        start_flag: bool = False,
        mix: float = 0.0,
        name: str = "copy",
    ) -> None:
        check_at_least("bits", bits, 1)
        check_range("length", min_length, max_length, 1)
        check_share("mix", mix)
        self.name = name
        self.mix = mix
        self.input_size = bits + 1 + start_flag
        self.output_size = bits
        self.numbers = {"length": (min_length, max_length)}
        self.mixed = mixed_lengths
        self.start_flag = start_flag

    def draw(
        self, rng: np.random.Generator, batch_size: int, point: Point, kind: str = DRAWN
    ) -> Batch:
        """Draw sequences of one length; see `Task.draw`."""
        (length,) = point
        bits, begin = self.output_size, int(self.start_flag)
        end = begin + length
        inputs, targets, mask = blank(end + 1 + length, batch_size, self.input_size, bits)
        vectors = self.vectors_of(rng, kind, (length, batch_size, bits))
        inputs[:begin, :, -1] = 1
        inputs[begin:end, :, :bits] = vectors
        inputs[end, :, bits] = 1
        targets[end + 1 :] = vectors
        mask[end + 1 :] = 1
        return as_batch(inputs, targets, mask)

    def chance(self, point: Point) -> float:
        """All bits of all vectors."""
        return point[0] * self.output_size
