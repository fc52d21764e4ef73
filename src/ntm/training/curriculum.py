"""From easy to hard: which ranges a run trains on, and when it moves on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ntm.checks import check_at_least
from ntm.tasks import Goal, Ranges

Upper = Sequence[int | None]
"""Upper end of a number's range, stage by stage; null stands for the task's own."""


class Curriculum:
    """Stages of growing ranges over one budget.

    A stage ends when it is solved or when its share of the budget is spent; the last one has all
    that is left. A run without a curriculum has one stage.

    Args:
        numbers: The task's numbers, each with its whole range, both ends included.
        goal: What solves the task, and a stage on its own points.
        sequences: The budget of the whole run.
        upper: Upper end of each stage's range, by the name of a number; a list alone where the task
            has one number. A number that is not named has its whole range throughout.
        shares: Share of the budget that each stage may spend, as many as stages, summing to 1.
        stage: Run only this stage, 1 to n, with the whole budget; null runs all.
        grow: In place of these, upper ends that grow one by one and by the budget alone:
            ``start``, the first of each number by name, or null for the lower ends, and ``over``,
            the share of the budget that it takes. A start may lie below the range of the task:
            training then draws from there up until it has grown, and from the range after that.

    Raises:
        ValueError: The stages do not fit; the message begins with the argument's name.

    """

    def __init__(
        self,
        numbers: Mapping[str, tuple[int, int]],
        goal: Goal,
        sequences: int,
        upper: Upper | Mapping[str, Upper] = (None,),
        shares: Sequence[float] = (1.0,),
        stage: int | None = None,
        grow: Mapping[str, Any] | None = None,
    ) -> None:
        if grow is None:
            stages, shares = _staged(numbers, upper, shares), list(shares)
        else:
            stages, shares = _growing(numbers, **_read(grow))
        if stage is not None:
            check_at_least("stage", stage, 1)
            if stage > len(stages):
                raise ValueError(f"stage must be at most {len(stages)}, got {stage}")
            stages, shares = [stages[stage - 1]], [1.0]
        self.numbers = list(numbers)
        self.goal = goal
        self.stages = stages
        self.budgets = [share * sequences for share in shares]
        self.ends_when_solved = grow is None
        self._began = 0
        self._ended: list[dict[str, Any]] = []

    @property
    def ranges(self) -> Ranges:
        """What to train on now."""
        return self.stages[len(self._ended)]

    @property
    def stage(self) -> int:
        """The stage that runs now, from 1."""
        return len(self._ended) + 1

    def update(self, sequences: int, score: float) -> bool:
        """Take note of a validation on the stage's own points, and move on if it is time.

        Args:
            sequences: Seen since the run began.
            score: The goal's metric on the stage's own points; nan where it has none.

        Returns:
            Whether a new stage begins.

        """
        begun = len(self._ended)
        while self.stage < len(self.stages) and self._is_over(sequences, score):
            # Growth keeps to its own times: several stages may end between two validations.
            end = sequences if self.ends_when_solved else self._began + self.budgets[self.stage - 1]
            self._ended.append(self._record(round(end), score))
            self._began = round(end)
            if self.ends_when_solved:
                break  # what it has solved is this stage alone
        return len(self._ended) > begun

    def _is_over(self, sequences: int, score: float) -> bool:
        solved = self.ends_when_solved and score < self.goal.below
        return solved or sequences - self._began >= self.budgets[self.stage - 1]

    def report(self, sequences: int, score: float) -> list[dict[str, Any]]:
        """Every stage begun so far: its ranges, the sequences it took, its last score."""
        if sequences == self._began:
            return list(self._ended)
        return [*self._ended, self._record(sequences, score)]

    def state_dict(self) -> dict[str, Any]:
        """Plain values to go on from."""
        return {"began": self._began, "ended": [dict(stage) for stage in self._ended]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self._began = state["began"]
        self._ended = [self._named(stage) for stage in state["ended"]]

    def _named(self, stage: dict[str, Any]) -> dict[str, Any]:
        """A stage of before names no number, and has one."""
        if "range" not in stage:
            return dict(stage)
        others = {key: value for key, value in stage.items() if key != "range"}
        return {"ranges": {self.numbers[0]: stage["range"]}, **others}

    def _record(self, sequences: int, score: float) -> dict[str, Any]:
        return {
            "ranges": {n: list(ends) for n, ends in zip(self.numbers, self.ranges, strict=True)},
            "sequences": sequences - self._began,
            self.goal.metric: None if score != score else score,
        }


def _staged(
    numbers: Mapping[str, tuple[int, int]],
    upper: Upper | Mapping[str, Upper],
    shares: Sequence[float],
) -> list[Ranges]:
    """Stages by their upper ends."""
    ends = {name: _ends(name, bounds, numbers) for name, bounds in _named(upper, numbers)}
    if not shares or min(shares) <= 0 or abs(sum(shares) - 1) > 1e-6:
        raise ValueError(f"shares must be numbers above 0 that sum to 1, got {list(shares)}")
    for name, bounds in ends.items():
        if len(bounds) != len(shares):
            raise ValueError(
                f"shares must be as many as the stages of {name}, {len(bounds)}, got {list(shares)}"
            )
    return [
        tuple(
            (low, ends[name][k]) if name in ends else (low, high)
            for name, (low, high) in numbers.items()
        )
        for k in range(len(shares))
    ]


def _read(grow: Mapping[str, Any]) -> dict[str, Any]:
    unknown = [key for key in grow if key not in ("start", "over")]
    if unknown:
        raise ValueError(f"grow must have start and over, got {unknown[0]!r}")
    return dict(grow)


def _growing(
    numbers: Mapping[str, tuple[int, int]],
    start: Mapping[str, int] | None = None,
    over: float = 0.6,
) -> tuple[list[Ranges], list[float]]:
    """Stages whose upper ends grow by one, and the share of the budget that each has."""
    if not 0 < over <= 1:
        raise ValueError(f"grow.over must be above 0, at most 1, got {over}")
    begin = {name: low for name, (low, _) in numbers.items()} if start is None else dict(start)
    for name, first in begin.items():
        if name not in numbers:
            raise ValueError(f"grow.start must name {', '.join(numbers)}, got {name!r}")
        if not 1 <= first <= numbers[name][1]:
            raise ValueError(f"grow.start must be 1 to {numbers[name][1]} for {name}, got {first}")
    steps = max((numbers[name][1] - first for name, first in begin.items()), default=0)
    stages = [
        tuple(
            _grown(ends, begin.get(name, ends[1]), k / steps if steps else 1.0)
            for name, ends in numbers.items()
        )
        for k in range(steps + 1)
    ]
    return stages, [over / steps] * steps + [1.0]


def _grown(ends: tuple[int, int], first: int, grown: float) -> tuple[int, int]:
    """The range of a number that has grown from ``first`` by a share of its way."""
    low, high = ends
    if grown == 1:
        return ends
    return min(low, first), round(first + grown * (high - first))


def _named(
    upper: Upper | Mapping[str, Upper], numbers: Mapping[str, tuple[int, int]]
) -> list[tuple[str, Upper]]:
    """Upper ends by the name of their number."""
    if isinstance(upper, Mapping):
        unknown = [name for name in upper if name not in numbers]
        if unknown:
            raise ValueError(f"upper must name {', '.join(numbers)}, got {unknown[0]!r}")
        return list(upper.items())
    if len(numbers) == 1 or all(bound is None for bound in upper):
        return [(name, upper) for name in numbers]
    example = ", ".join(f"{name}: […]" for name in numbers)
    raise ValueError(f"upper must say which number it is of: {{{example}}}, got {list(upper)}")


def _ends(name: str, bounds: Upper, numbers: Mapping[str, tuple[int, int]]) -> list[int]:
    """The upper ends of a number, null filled in."""
    low, high = numbers[name]
    ends = [high if bound is None else bound for bound in bounds]
    if not ends or sorted(set(ends)) != ends or ends[0] < low or ends[-1] > high:
        raise ValueError(
            f"upper must grow within the task's range {low} to {high} of {name}, got {list(bounds)}"
        )
    return ends
