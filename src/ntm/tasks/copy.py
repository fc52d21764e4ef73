"""The copy task (G14 section 4.1): hear a sequence of random vectors, then say it again."""

from __future__ import annotations

import numpy as np
import torch

from ntm.checks import check_at_least
from ntm.tasks.task import Batch


class Copy:
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
        name: What the task is called in run folders and reports.

    Raises:
        ValueError: A number is out of range; the message begins with the argument's name.

    """

    difficulty = "length"

    def __init__(
        self,
        bits: int = 8,
        min_length: int = 1,
        max_length: int = 20,
        mixed_lengths: bool = False,
        start_flag: bool = False,
        name: str = "copy",
    ) -> None:
        check_at_least("bits", bits, 1)
        check_at_least("min_length", min_length, 1)
        if max_length < min_length:
            raise ValueError(
                f"max_length must be at least min_length = {min_length}, got {max_length}"
            )
        self.name = name
        self.input_size = bits + 1 + start_flag
        self.output_size = bits
        self.difficulties = (min_length, max_length)
        self.mixed_lengths = mixed_lengths
        self.start_flag = start_flag

    def sample(
        self, rng: np.random.Generator, batch_size: int, difficulties: tuple[int, int]
    ) -> Batch:
        """Draw sequences; see `Task.sample`. T is that of the longest length drawn."""
        shortest, longest = difficulties
        drawn = rng.integers(shortest, longest + 1, batch_size if self.mixed_lengths else 1)
        lengths = np.broadcast_to(drawn, batch_size)
        bits = self.output_size
        begin = int(self.start_flag)
        steps = begin + 2 * lengths.max() + 1
        inputs = np.zeros((steps, batch_size, self.input_size), np.float32)
        targets = np.zeros((steps, batch_size, bits), np.float32)
        mask = np.zeros((steps, batch_size), np.float32)
        vectors = rng.integers(0, 2, (lengths.max(), batch_size, bits))
        inputs[:begin, :, -1] = 1
        for length in np.unique(drawn):
            rows = lengths == length
            end = begin + length
            answer = slice(end + 1, end + length + 1)
            inputs[begin:end, rows, :bits] = vectors[:length, rows]
            inputs[end, rows, bits] = 1
            targets[answer, rows] = vectors[:length, rows]
            mask[answer, rows] = 1
        return Batch(torch.from_numpy(inputs), torch.from_numpy(targets), torch.from_numpy(mask))
