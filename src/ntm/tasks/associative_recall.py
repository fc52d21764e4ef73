"""The associative-recall task (G14 section 4.3): shown an item, say the one that came after it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ntm.checks import check_at_least, check_range, check_share
from ntm.tasks.kinds import DRAWN, KINDS
from ntm.tasks.task import Batch, Point, Task, as_batch, blank

SHARED_START = "shared_start"
TRIES = 1000
"""Episodes drawn for each that is not ambiguous, at most."""


class AssociativeRecall(Task):
    """Items of random bit vectors, one of them again as a query, then the item that followed it.

    Two items of V = 2 vectors of 1 bit, the first of them asked about, take
    T = (V + 1)·items + 2V + 2 = 12 steps; the query is any item but the last::

        step             0  1  2  3  4  5  6  7  8  9 10 11
        input bit 0      .  1  0  .  1  1  .  1  0  .  .  .
        item delimiter   1  .  .  1  .  .  .  .  .  .  .  .
        query delimiter  .  .  .  .  .  .  1  .  .  1  .  .
        target bit 0     .  .  .  .  .  .  .  .  .  .  1  1
        mask             .  .  .  .  .  .  .  .  .  .  1  1

    An episode is ambiguous, and not drawn, where the query was heard more than once and not always
    before the same item. Beside the kinds of every task there is ``shared_start``, where the query
    and another item differ in their last vector alone.

    Args:
        bits: Width of a vector, at least 1; I = bits + 2, O = bits.
        vectors: Vectors of an item, at least 1.
        min_items: Fewest items in training, at least 2.
        max_items: Most items in training, at least ``min_items``.
        mixed: Draw a number of items for every sequence instead of one for every batch; shorter
            ones end early and are masked.
        mix: Share of the training sequences in which every bit is set with a probability that is
            drawn for the sequence, uniform in [0, 1]; 0 draws them as the paper does.
        name: What the task is called in run folders and reports.

    Raises:
        ValueError: A number is out of range; the message begins with the argument's name. `draw`:
            so many items of so few bits are nearly always ambiguous.

    """

    least: Mapping[str, int] = {"items": 2}
    shown = ((2,), (6,), (10,), (12,), (15,), (20,))

    def __init__(
        self,
        bits: int = 6,
        vectors: int = 3,
        min_items: int = 2,
        max_items: int = 6,
        mixed: bool = False,
        mix: float = 0.0,
        name: str = "associative_recall",
    ) -> None:
        check_at_least("bits", bits, 1)
        check_at_least("vectors", vectors, 1)
        check_range("items", min_items, max_items, 2)
        check_share("mix", mix)
        self.name = name
        self.mix = mix
        self.vectors = vectors
        self.input_size = bits + 2
        self.output_size = bits
        self.numbers = {"items": (min_items, max_items)}
        self.mixed = mixed
        self.kinds = (*KINDS, SHARED_START) if vectors > 1 else tuple(KINDS)

    def draw(
        self, rng: np.random.Generator, batch_size: int, point: Point, kind: str = DRAWN
    ) -> Batch:
        """Draw sequences of equally many items, each with a query of its own; see `Task.draw`."""
        (count,) = point
        bits, vectors = self.output_size, self.vectors
        heard = (vectors + 1) * count
        answer = heard + vectors + 2
        inputs, targets, mask = blank(answer + vectors, batch_size, self.input_size, bits)
        items, query = self._unambiguous(rng, batch_size, count, kind)
        row = np.arange(batch_size)
        steps = inputs[:heard].reshape(count, vectors + 1, batch_size, -1)
        steps[:, 0, :, bits] = 1
        steps[:, 1:, :, :bits] = items
        inputs[[heard, answer - 1], :, bits + 1] = 1
        inputs[heard + 1 : answer - 1, :, :bits] = items[query, :, row].swapaxes(0, 1)
        targets[answer:] = items[query + 1, :, row].swapaxes(0, 1)
        mask[answer:] = 1
        return as_batch(inputs, targets, mask)

    def _unambiguous(
        self, rng: np.random.Generator, batch_size: int, count: int, kind: str
    ) -> tuple[np.ndarray, np.ndarray]:
        """Items (items, V, B, bits), and which of each sequence is asked about."""
        items, query = self._episodes(rng, batch_size, count, kind)
        again, drawn = _ambiguous(items, query), batch_size
        while again.size and drawn < TRIES * (batch_size - again.size + 1):
            items[:, :, again], query[again] = self._episodes(rng, again.size, count, kind)
            drawn += again.size
            again = again[_ambiguous(items[:, :, again], query[again])]
        if not again.size:
            return items, query
        raise ValueError(
            f"items must be few enough to be told apart by {self.vectors} vectors of "
            f"{self.output_size} bits, got {count}"
        )

    def _episodes(
        self, rng: np.random.Generator, batch_size: int, count: int, kind: str
    ) -> tuple[np.ndarray, np.ndarray]:
        bits, vectors = self.output_size, self.vectors
        drawn = self.vectors_of(rng, kind, (count * vectors, batch_size, bits))
        items = drawn.reshape(count, vectors, batch_size, bits)
        query = rng.integers(0, count - 1, batch_size)
        if kind == SHARED_START:
            row = np.arange(batch_size)
            other = (query + rng.integers(1, count, batch_size)) % count
            items[other, :-1, row] = items[query, :-1, row]
            items[other, -1, row] = 1 - items[query, -1, row]
        return items, query

    def chance(self, point: Point) -> float:
        """All bits of one item."""
        return self.output_size * self.vectors


def _ambiguous(items: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Sequences in which the query was also heard before another item than its answer."""
    asked = items[query, :, np.arange(len(query))].swapaxes(0, 1)
    heard = (items[:-1] == asked).all((1, 3))
    several = np.flatnonzero(heard.sum(0) > 1)
    if not several.size:
        return several
    answer = items[query[several] + 1, :, several].swapaxes(0, 1)
    followed = (items[1:, :, several] == answer).all((1, 3))
    return several[(heard[:, several] & ~followed).any(0)]
