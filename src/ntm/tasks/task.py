"""What a task is: a source of sequences whose answers are known, and what it says of itself."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ntm.tasks.kinds import DRAWN, MIXED, Shape, draw_vectors

Point = tuple[int, ...]
"""One value for each of a task's numbers, in their order."""
Ranges = tuple[tuple[int, int], ...]
"""A range for each of a task's numbers, in their order, both ends included."""


class Batch(NamedTuple):
    """Sequences and what a network should answer; time-major."""

    inputs: Tensor
    """(T, B, I), float32."""
    targets: Tensor
    """Target bits, 0 or 1, (T, B, O), float32; 0 where no answer is due."""
    mask: Tensor
    """1 at the steps where an answer is due, else 0, (T, B), float32."""


class Goal(NamedTuple):
    """When a task counts as solved: a metric is below a bound."""

    metric: str
    """A name of `ntm.metrics`."""
    below: float


class Task(ABC):
    """Sequences to learn from, drawn at *points*: one value for each of the task's *numbers*.

    A task of one's own sets the attributes below and defines `draw` and `chance`. Nothing else in
    the project knows one task from another: curricula narrow the numbers' ranges, evaluations and
    charts go by points, and a run is solved when ``solved`` says so.
    """

    name: str
    """Names the default run folder."""
    input_size: int
    """I, width of the inputs."""
    output_size: int
    """O, width of the answers."""
    numbers: Mapping[str, tuple[int, int]]
    """By name, the range that training draws from, both ends included."""
    least: Mapping[str, int] = {}
    """By name, the smallest value that a number can have at all; 1 unless said."""
    solved: Goal = Goal("wrong_bits_per_sequence", 0.1)
    """CB18's bound unless the task says otherwise."""
    shown: Sequence[Point] = ()
    """Where the closing evaluation of a run looks: inside and beyond the ranges of training."""
    parts: Mapping[str, slice] = {}
    """Output channels whose wrong bits are also counted apart, by name."""
    mixed: bool = False
    """Whether training draws a point for every sequence of a batch instead of one for all."""
    kinds: Sequence[str] = (DRAWN,)
    """Kinds of sequence that `draw` knows: those of `ntm.tasks.kinds`, and the task's own."""
    mix: float = 0.0
    """Share of the training sequences whose bits have a density of their own."""

    @abstractmethod
    def draw(
        self, rng: np.random.Generator, batch_size: int, point: Point, kind: str = DRAWN
    ) -> Batch:
        """Draw sequences of a kind at one point; T is theirs."""

    @abstractmethod
    def chance(self, point: Point) -> float:
        """Bits per sequence of who answers every random target bit by a fair coin."""

    def optimum(self, batch: Batch) -> Tensor | None:
        """Bits that the best possible predictor pays for each sequence, (B,); None: unknown."""
        return None

    @property
    def ranges(self) -> Ranges:
        """The whole ranges of training."""
        return tuple(self.numbers.values())

    def point(self, given: object) -> Point:
        """The point that somebody means: a value for each number by name, or the only one bare.

        Raises:
            ValueError: Says what such a point is here, and what was given.

        """
        names = list(self.numbers)
        values: Mapping[Any, Any] = given if isinstance(given, Mapping) else {names[0]: given}
        numbers = [values.get(name) for name in names]
        if set(values) != set(names) or any(type(number) is not int for number in numbers):
            example = self.named(self.shown[0] if self.shown else tuple(h for _, h in self.ranges))
            shown = "{" + ", ".join(f"{name}: {value}" for name, value in example.items()) + "}"
            bare = f" or {next(iter(example.values()))}" if len(names) == 1 else ""
            raise ValueError(
                f"a point of {self.name} is a whole number for each of {', '.join(names)}, "
                f"such as {shown}{bare}, got {given!r}"
            )
        for name, value in values.items():
            least = self.least.get(name, 1)
            if value < least:
                raise ValueError(f"{name} must be at least {least}, got {value}")
        return tuple(values[name] for name in names)

    def named(self, point: Point) -> dict[str, int]:
        """A point's values by their names."""
        return dict(zip(self.numbers, point, strict=True))

    def label(self, point: Point) -> str:
        """A point in words: ``length 20, repeats 10``."""
        return ", ".join(f"{name} {value}" for name, value in self.named(point).items())

    def points(self) -> list[Point]:
        """Every point of the whole ranges."""
        return list(itertools.product(*(range(low, high + 1) for low, high in self.ranges)))

    def vectors_of(self, rng: np.random.Generator, kind: str, shape: Shape) -> np.ndarray:
        """Bit vectors of a kind for `draw`; see `ntm.tasks.kinds`.

        Every bit that chance decides comes from here, so that one can be set instead of drawn.
        """
        return draw_vectors(rng, kind, shape, self.mix)

    @property
    def trained_on(self) -> str:
        """The kind that training draws."""
        return MIXED if self.mix > 0 else DRAWN

    def sample(
        self, rng: np.random.Generator, batch_size: int, ranges: Ranges, kind: str = DRAWN
    ) -> Batch:
        """Draw sequences of a kind, each number uniform over its range, both ends included.

        One point for the whole batch; where the task is ``mixed``, one for every sequence, and
        the shorter ones end early.
        """
        apart = self.mixed and any(low < high for low, high in ranges)
        count = batch_size if apart else 1
        drawn = [rng.integers(low, high + 1, count).tolist() for low, high in ranges]
        points = list(zip(*drawn, strict=True))
        if not apart:
            return self.draw(rng, batch_size, points[0], kind)
        return side_by_side([self.draw(rng, 1, point, kind) for point in points])


def side_by_side(batches: Sequence[Batch]) -> Batch:
    """One batch of all sequences; 0 and no mask after the end of the shorter ones."""
    steps = max(len(batch.inputs) for batch in batches)
    parts = []
    for tensors in zip(*batches, strict=True):
        width = sum(tensor.shape[1] for tensor in tensors)
        whole = torch.zeros(steps, width, *tensors[0].shape[2:])
        at = 0
        for tensor in tensors:
            whole[: len(tensor), at : at + tensor.shape[1]] = tensor
            at += tensor.shape[1]
        parts.append(whole)
    return Batch(*parts)


def blank(steps: int, batch_size: int, input_size: int, output_size: int) -> tuple[np.ndarray, ...]:
    """Inputs, targets and mask of zeros, in torch's own memory, for `Task.draw` to fill in."""
    return (
        torch.zeros(steps, batch_size, input_size).numpy(),
        torch.zeros(steps, batch_size, output_size).numpy(),
        torch.zeros(steps, batch_size).numpy(),
    )


def as_batch(*arrays: np.ndarray) -> Batch:
    """The batch that inputs, targets and mask make."""
    return Batch(*map(torch.from_numpy, arrays))
