"""The dynamic N-grams task (G14 section 4.4): predict bits whose odds are learned as they come."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ntm.checks import check_at_least
from ntm.tasks.kinds import DRAWN, Shape
from ntm.tasks.task import Batch, Goal, Point, Task, as_batch, blank


class DynamicNGrams(Task):
    """Bits, each drawn by the odds that a random table holds for the few bits before it.

    The table is new for every sequence: a probability of 1 for each of the 2^C possible contexts,
    from Beta(½, ½), so most are close to 0 or 1. The first C bits are fair coins. At every step the
    machine hears the last bit and predicts the next. 7 steps with a context of C = 2, whose table
    has all but surely 1 after 0 0 and 0 1 and 0 after 1 0 and 1 1::

        step         0  1  2  3  4  5  6
        input bit    .  1  0  0  1  1  0
        target bit   1  0  0  1  1  0  0
        mask         1  1  1  1  1  1  1

    Args:
        steps: T, above ``context``.
        context: C, bits that decide on the next one, at least 1.
        name: What the task is called in run folders and reports.

    Raises:
        ValueError: A number is out of range; the message begins with the argument's name.

    """

    input_size = 1
    output_size = 1
    solved = Goal("bits_above_optimum", 1.0)

    def __init__(self, steps: int = 200, context: int = 5, name: str = "dynamic_ngrams") -> None:
        check_at_least("context", context, 1)
        check_at_least("steps", steps, context + 1)
        self.name = name
        self.context = context
        self.numbers = {"steps": (steps, steps)}
        self.least = {"steps": context + 1}
        self.shown = ((steps,),)

    def draw(
        self, rng: np.random.Generator, batch_size: int, point: Point, kind: str = DRAWN
    ) -> Batch:
        """Draw sequences of so many steps, each from a table of its own; see `Task.draw`."""
        (steps,) = point
        inputs, targets, mask = blank(steps, batch_size, 1, 1)
        targets[:] = self.vectors_of(rng, kind, (steps, batch_size, 1))
        inputs[1:] = targets[:-1]
        mask[:] = 1
        return as_batch(inputs, targets, mask)

    def vectors_of(self, rng: np.random.Generator, kind: str, shape: Shape) -> np.ndarray:
        """A bit a step, each sequence by a table of its own."""
        steps, batch_size, _ = shape
        tables = rng.beta(0.5, 0.5, (batch_size, 2**self.context)).tolist()
        coins = rng.random((batch_size, steps)).tolist()
        bits = [self._bits(*drawn) for drawn in zip(tables, coins, strict=True)]
        return np.array(bits, np.float32).T[:, :, None]

    def _bits(self, table: list[float], coins: list[float]) -> list[bool]:
        # Each bit depends on the last: plain numbers are faster here than arrays.
        bits = [coin < 0.5 for coin in coins[: self.context]]
        code = 0
        for bit in bits:
            code = 2 * code + bit
        last = len(table) - 1
        for coin in coins[self.context :]:
            bit = coin < table[code]
            bits.append(bit)
            code = (2 * code + bit) & last
        return bits

    def chance(self, point: Point) -> float:
        """One bit a step."""
        return point[0]

    def optimum(self, batch: Batch) -> Tensor:
        """Bits paid by P(1) = (N₁ + ½) / (N₁ + N₀ + 1), counted after the same context, (B,).

        The mean of the Beta that the table's prior and the counts so far make (G14, eq. 10).
        """
        bits = batch.targets[:, :, 0].double()
        steps = len(bits) - self.context
        codes = sum(2**i * bits[self.context - 1 - i :][:steps] for i in range(self.context))
        # By context, in order of time: what was counted before is then what stands above.
        codes, order = torch.sort(codes, dim=0, stable=True)
        bits = bits[self.context :].gather(0, order)
        index = torch.arange(steps, device=bits.device).unsqueeze(1).expand_as(order)
        first = torch.cat([index[:1] == 0, codes[1:] != codes[:-1]])
        start = (index * first).cummax(0).values
        ones = bits.cumsum(0) - bits
        ones = ones - ones.gather(0, start)
        chance = (ones + 0.5) / (index - start + 1)
        return self.context - torch.where(bits > 0.5, chance, 1 - chance).log2().sum(0)
