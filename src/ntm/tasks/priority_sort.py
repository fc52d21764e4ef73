"""The priority-sort task (G14 section 4.5): say the vectors of highest priority, in its order."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ntm.checks import check_at_least, check_range, check_share
from ntm.tasks.kinds import DRAWN, KINDS
from ntm.tasks.task import Batch, Point, Task, as_batch, blank

TIED, SORTED = "tied", "sorted"
TIE = 0.01
"""Priorities that tie are less than this apart."""


class PrioritySort(Task):
    """Random bit vectors with a priority each, a delimiter, then four in five, highest first.

    Five items of 1 bit take T = 5 + 1 + 4 = 10 steps; priorities are uniform in [−1, 1]::

        step          0    1    2    3    4    5    6    7    8    9
        input bit 0   1    0    0    1    1    .    .    .    .    .
        priority      0.3 -0.9  0.8 -0.2  0.5  .    .    .    .    .
        delimiter     .    .    .    .    .    1    .    .    .    .
        target bit 0  .    .    .    .    .    .    0    1    1    1
        mask          .    .    .    .    .    .    1    1    1    1

    Two equal priorities would make an episode ambiguous; none is drawn. Beside the kinds of every
    task there are ``tied``, where items have their priorities in pairs less than 0.01 apart, and
    ``sorted``, heard in the order in which they are to be said.

    Args:
        bits: Width of a vector, at least 1; I = bits + 2, O = bits.
        min_items: Fewest items in training, at least 2.
        max_items: Most items in training, at least ``min_items``; of 20, 16 are asked for.
        delimiter: A step with a flag on the last channel after the items; without it I = bits + 1.
        mixed: Draw a number of items for every sequence instead of one for every batch; shorter
            ones end early and are masked.
        mix: Share of the training sequences in which every bit is set with a probability that is
            drawn for the sequence, uniform in [0, 1]; 0 draws them as the paper does.
        name: What the task is called in run folders and reports.

    Raises:
        ValueError: A number is out of range; the message begins with the argument's name.

    """

    kinds = (*KINDS, TIED, SORTED)
    least: Mapping[str, int] = {"items": 2}

    def __init__(
        self,
        bits: int = 8,
        min_items: int = 20,
        max_items: int = 20,
        delimiter: bool = True,
        mixed: bool = False,
        mix: float = 0.0,
        name: str = "priority_sort",
    ) -> None:
        check_at_least("bits", bits, 1)
        check_range("items", min_items, max_items, 2)
        check_share("mix", mix)
        self.name = name
        self.mix = mix
        self.input_size = bits + 1 + delimiter
        self.output_size = bits
        self.numbers = {"items": (min_items, max_items)}
        self.shown = tuple((items,) for items in sorted({10, 20, 30, max_items}))
        self.mixed = mixed
        self.delimiter = delimiter

    @staticmethod
    def answers(items: int) -> int:
        """How many of the items are asked for: G14's 16 of 20."""
        return max(1, items * 4 // 5)

    def draw(
        self, rng: np.random.Generator, batch_size: int, point: Point, kind: str = DRAWN
    ) -> Batch:
        """Draw sequences of equally many items; see `Task.draw`."""
        (items,) = point
        bits, answers = self.output_size, self.answers(items)
        begin = items + self.delimiter
        inputs, targets, mask = blank(begin + answers, batch_size, self.input_size, bits)
        vectors = self.vectors_of(rng, kind, (items, batch_size, bits))
        priorities = self._priorities(rng, (items, batch_size), kind)
        inputs[:items, :, :bits] = vectors
        inputs[:items, :, bits] = priorities
        inputs[items:begin, :, -1] = 1
        highest = np.argsort(-priorities, axis=0)[:answers]
        targets[begin:] = vectors[highest, np.arange(batch_size)]
        mask[begin:] = 1
        return as_batch(inputs, targets, mask)

    @staticmethod
    def _priorities(rng: np.random.Generator, shape: tuple[int, int], kind: str) -> np.ndarray:
        """All different within a sequence, (items, B), float32."""
        priorities = rng.uniform(-1, 1, shape)
        if kind == TIED:
            half = shape[0] // 2
            priorities *= 1 - TIE
            near = rng.uniform(-TIE, TIE, (half, shape[1]))
            priorities[half : 2 * half] = priorities[:half] + near
            priorities = rng.permuted(priorities, axis=0)
        if kind == SORTED:
            priorities = -np.sort(-priorities, axis=0)
        priorities = priorities.astype(np.float32)
        ordered = np.sort(priorities, axis=0)
        equal = ordered[1:] == ordered[:-1]
        if equal.any():
            again = equal.any(0)
            shape = shape[0], int(again.sum())
            priorities[:, again] = PrioritySort._priorities(rng, shape, kind)
        return priorities

    def chance(self, point: Point) -> float:
        """All bits of the vectors asked for."""
        return self.output_size * self.answers(point[0])
