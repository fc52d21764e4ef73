"""From easy to hard: which difficulties a run trains on, and when it moves on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ntm.checks import check_at_least
from ntm.metrics import SOLVED_BELOW


class Curriculum:
    """Stages of growing difficulty over one budget.

    A stage ends when it is solved or when its share of the budget is spent; the last one has all
    that is left. A run without a curriculum has one stage.

    Args:
        difficulties: The task's whole range, both ends included.
        sequences: The budget of the whole run.
        upper: Upper end of each stage's range; null stands for the task's own.
        shares: Share of the budget that each stage may spend, as many as stages, summing to 1.
        stage: Run only this stage, 1 to n, with the whole budget; null runs all.

    Raises:
        ValueError: The stages do not fit; the message begins with the argument's name.

    """

    def __init__(
        self,
        difficulties: tuple[int, int],
        sequences: int,
        upper: Sequence[int | None] = (None,),
        shares: Sequence[float] = (1.0,),
        stage: int | None = None,
    ) -> None:
        lowest, highest = difficulties
        bounds = [highest if bound is None else bound for bound in upper]
        if (
            not bounds
            or sorted(set(bounds)) != bounds
            or bounds[0] < lowest
            or bounds[-1] > highest
        ):
            raise ValueError(
                f"upper must grow within the task's range {lowest} to {highest}, got {list(upper)}"
            )
        if len(shares) != len(bounds) or min(shares) <= 0 or abs(sum(shares) - 1) > 1e-6:
            raise ValueError(
                f"shares must be {len(bounds)} numbers above 0 that sum to 1, got {list(shares)}"
            )
        if stage is not None:
            check_at_least("stage", stage, 1)
            if stage > len(bounds):
                raise ValueError(f"stage must be at most {len(bounds)}, got {stage}")
            bounds, shares = [bounds[stage - 1]], [1.0]
        self.ranges = [(lowest, bound) for bound in bounds]
        self.budgets = [share * sequences for share in shares]
        self._began = 0
        self._ended: list[dict[str, Any]] = []

    @property
    def difficulties(self) -> tuple[int, int]:
        """The range to train on now, both ends included."""
        return self.ranges[len(self._ended)]

    @property
    def stage(self) -> int:
        """The stage that runs now, from 1."""
        return len(self._ended) + 1

    def update(self, sequences: int, wrong_bits: float) -> bool:
        """Take note of a validation on the stage's own difficulties, and move on if it is time.

        Args:
            sequences: Seen since the run began.
            wrong_bits: Per sequence, on the stage's own difficulties.

        Returns:
            Whether a new stage begins.

        """
        spent = sequences - self._began
        over = wrong_bits < SOLVED_BELOW or spent >= self.budgets[self.stage - 1]
        if self.stage == len(self.ranges) or not over:
            return False
        self._ended.append(self._record(sequences, wrong_bits))
        self._began = sequences
        return True

    def report(self, sequences: int, wrong_bits: float) -> list[dict[str, Any]]:
        """Every stage begun so far: its range, the sequences it took, its last wrong bits."""
        if sequences == self._began:
            return list(self._ended)
        return [*self._ended, self._record(sequences, wrong_bits)]

    def state_dict(self) -> dict[str, Any]:
        """Plain values to go on from."""
        return {"began": self._began, "ended": [dict(stage) for stage in self._ended]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self._began = state["began"]
        self._ended = [dict(stage) for stage in state["ended"]]

    def _record(self, sequences: int, wrong_bits: float) -> dict[str, Any]:
        return {
            "range": list(self.difficulties),
            "sequences": sequences - self._began,
            "wrong_bits_per_sequence": wrong_bits,
        }
