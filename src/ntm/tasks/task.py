"""What a task is: a source of sequences whose answers are known."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import numpy as np
from torch import Tensor


class Batch(NamedTuple):
    """Sequences and what a network should answer; time-major."""

    inputs: Tensor
    """(T, B, I), float32."""
    targets: Tensor
    """Target bits, 0 or 1, (T, B, O), float32; 0 where no answer is due."""
    mask: Tensor
    """1 at the steps where an answer is due, else 0, (T, B), float32."""


class Task(Protocol):
    """What the data module, the evaluation and the pictures ask of a task.

    ``difficulty`` is the one number that a task grows by: the length of a sequence to copy, the
    number of items to recall. Curricula and evaluations speak in it.
    """

    name: str
    """Names the default run folder."""
    difficulty: str
    """What the difficulty counts, as a column heading: ``length``."""
    input_size: int
    """I."""
    output_size: int
    """O."""
    difficulties: tuple[int, int]
    """The task's whole range, both ends included."""

    def sample(
        self, rng: np.random.Generator, batch_size: int, difficulties: tuple[int, int]
    ) -> Batch:
        """Draw sequences, their difficulty uniform over the range, both ends included."""
