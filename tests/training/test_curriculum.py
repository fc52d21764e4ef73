"""Stages in their order and within their budgets, whatever the wrong bits do."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ntm.tasks import Goal
from ntm.training.curriculum import Curriculum

STAGED = {"upper": [5, 10, None], "shares": [0.2, 0.3, 0.5]}
GOAL = Goal("wrong_bits_per_sequence", 0.1)
WRONG = 9.0
SOLVED = 0.0


def staged(**changes) -> Curriculum:
    return Curriculum({"length": (1, 20)}, GOAL, 1000, **STAGED | changes)


def test_without_stages_there_is_one():
    curriculum = Curriculum({"length": (3, 20)}, GOAL, 1000)
    assert curriculum.ranges == ((3, 20),)
    assert not curriculum.update(500, SOLVED)
    assert not curriculum.update(1000, WRONG)
    assert curriculum.report(1000, WRONG) == [
        {"ranges": {"length": [3, 20]}, "sequences": 1000, "wrong_bits_per_sequence": WRONG}
    ]


def test_moves_on_when_solved():
    curriculum = staged()
    assert (curriculum.stage, curriculum.ranges) == (1, ((1, 5),))
    assert curriculum.update(100, SOLVED)
    assert (curriculum.stage, curriculum.ranges) == (2, ((1, 10),))
    assert curriculum.update(110, SOLVED)
    assert (curriculum.stage, curriculum.ranges) == (3, ((1, 20),))


@pytest.mark.parametrize(
    ("wrong", "moves"), [(0.0999, True), (0.1, False), (0.11, False), (float("nan"), False)]
)
def test_solved_is_fewer_than_a_tenth_of_a_wrong_bit(wrong, moves):
    assert staged().update(100, wrong) is moves


def test_moves_on_when_its_share_is_spent():
    curriculum = staged()
    assert not curriculum.update(199, WRONG)
    assert curriculum.update(200, WRONG)
    assert not curriculum.update(499, WRONG)
    assert curriculum.update(500, WRONG)
    assert curriculum.stage == 3


def test_a_share_counts_from_where_its_stage_began():
    curriculum = staged()
    assert curriculum.update(50, SOLVED)
    assert not curriculum.update(349, WRONG)
    assert curriculum.update(350, WRONG)


def test_the_last_stage_gets_what_is_left_and_is_never_left():
    curriculum = staged()
    curriculum.update(50, SOLVED)
    curriculum.update(100, SOLVED)
    for sequences in range(150, 1001, 50):
        assert not curriculum.update(sequences, SOLVED if sequences > 500 else WRONG)
        assert (curriculum.stage, curriculum.ranges) == (3, ((1, 20),))
    assert curriculum.report(1000, 0.01) == [
        {"ranges": {"length": [1, 5]}, "sequences": 50, "wrong_bits_per_sequence": SOLVED},
        {"ranges": {"length": [1, 10]}, "sequences": 50, "wrong_bits_per_sequence": SOLVED},
        {"ranges": {"length": [1, 20]}, "sequences": 900, "wrong_bits_per_sequence": 0.01},
    ]


@pytest.mark.parametrize(("stage", "bounds"), [(1, (1, 5)), (2, (1, 10)), (3, (1, 20))])
def test_one_stage_alone_has_the_whole_budget(stage, bounds):
    curriculum = staged(stage=stage)
    for sequences in (100, 999, 1000):
        assert not curriculum.update(sequences, SOLVED)
        assert curriculum.ranges == (bounds,)
    assert [part["ranges"]["length"] for part in curriculum.report(1000, SOLVED)] == [list(bounds)]


def test_goes_on_from_its_state():
    curriculum = staged()
    curriculum.update(50, SOLVED)
    state = json.loads(json.dumps(curriculum.state_dict()))
    other = staged()
    other.load_state_dict(state)
    for one in (curriculum, other):
        assert one.ranges == ((1, 10),)
        assert not one.update(349, WRONG)
        assert one.update(350, WRONG)
    assert other.report(400, 3.0) == curriculum.report(400, 3.0)
    # What was saved is a copy: going on does not change it, nor does it share its records.
    assert state == {"began": 50, "ended": curriculum.report(400, 3.0)[:1]}


def test_a_saved_state_does_not_change_later():
    curriculum = staged()
    curriculum.update(50, SOLVED)
    state = curriculum.state_dict()
    text = json.dumps(state)
    curriculum.update(350, WRONG)
    assert json.dumps(state) == text


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"upper": []}, "upper"),
        ({"upper": [10, 5, 20]}, "upper"),
        ({"upper": [5, 5, 20]}, "upper"),
        ({"upper": [0, 10, 20]}, "upper"),
        ({"upper": [5, 10, 21]}, "upper"),
        ({"upper": [5, None, 20]}, "upper"),
        ({"shares": [0.5, 0.5]}, "shares"),
        ({"shares": [0.5, 0.5, 0.0]}, "shares"),
        ({"shares": [0.9, -0.4, 0.5]}, "shares"),
        ({"shares": [0.2, 0.3, 0.4]}, "shares"),
        ({"shares": []}, "shares"),
        ({"stage": 0}, "stage"),
        ({"stage": 4}, "stage"),
        ({"stage": -1}, "stage"),
    ],
    ids=str,
)
def test_refuses_by_name(changes, name):
    with pytest.raises(ValueError, match=rf"^{name} must .*got"):
        staged(**changes)


@st.composite
def runs(draw):
    """A curriculum, the interval of its run, and what every validation finds."""
    lowest = draw(st.integers(1, 5))
    bounds = sorted(draw(st.sets(st.integers(lowest, 30), min_size=1, max_size=5)))
    weights = draw(st.lists(st.integers(1, 9), min_size=len(bounds), max_size=len(bounds)))
    interval = draw(st.integers(1, 40))
    found = draw(st.lists(st.sampled_from([0.0, 0.05, 0.1, 2.0]), min_size=1, max_size=40))
    shares = [weight / sum(weights) for weight in weights]
    budget = interval * len(found)
    curriculum = Curriculum({"length": (lowest, bounds[-1])}, GOAL, budget, bounds, shares)
    return curriculum, shares, interval, found


@settings(deadline=None, max_examples=150)
@given(runs())
def test_stages_keep_their_order_and_their_budgets(run):
    curriculum, shares, interval, found = run
    budget = interval * len(found)
    stages, trained_on = [1], []
    began, solved = 0, False
    for k, wrong in enumerate(found, start=1):
        trained_on.append(curriculum.ranges)
        moved = curriculum.update(k * interval, wrong)
        assert curriculum.stage == stages[-1] + moved
        stages.append(curriculum.stage)
        spent = k * interval - began
        if curriculum.stage < len(shares):
            # A stage that goes on is neither solved nor out of budget.
            solved = wrong < 0.1
            assert moved or not solved
            assert moved or spent < shares[curriculum.stage - 1] * budget + 1e-6
        if moved:
            # One that ended was at most one validation over its share.
            assert spent < shares[stages[-2] - 1] * budget + interval + 1e-6
            assert wrong < 0.1 or spent >= shares[stages[-2] - 1] * budget - 1e-6
            began = k * interval
    report = curriculum.report(budget, found[-1])
    assert sum(part["sequences"] for part in report) == budget
    assert len(report) == len(set(stages[:-1]))  # one that begins at the end has not run
    for part in report:
        count = part["sequences"] // interval
        assert trained_on[:count] == [(tuple(part["ranges"]["length"]),)] * count
        trained_on = trained_on[count:]
    assert not trained_on


class TestTwoNumbers:
    NUMBERS = {"length": (1, 10), "repeats": (2, 8)}  # noqa: RUF012

    def test_a_number_that_is_not_named_has_its_whole_range(self):
        made = Curriculum(self.NUMBERS, GOAL, 100, {"length": [3, None]}, [0.5, 0.5])
        assert made.stages == [((1, 3), (2, 8)), ((1, 10), (2, 8))]

    def test_numbers_grow_together(self):
        upper = {"length": [3, 10], "repeats": [2, 8]}
        made = Curriculum(self.NUMBERS, GOAL, 100, upper, [0.5, 0.5])
        assert made.stages == [((1, 3), (2, 2)), ((1, 10), (2, 8))]

    @pytest.mark.parametrize(
        ("upper", "words"),
        [
            ([5, None], "upper must say which number it is of: .*length.*repeats"),
            ({"items": [5, None]}, "upper must name length, repeats, got 'items'"),
            ({"repeats": [1, None]}, "upper must grow within the task's range 2 to 8 of repeats"),
            ({"length": [5]}, "shares must be as many as the stages of length, 1, got"),
        ],
        ids=str,
    )
    def test_refuses_by_name(self, upper, words):
        with pytest.raises(ValueError, match=words):
            Curriculum(self.NUMBERS, GOAL, 100, upper, [0.5, 0.5])


class TestGrowth:
    def test_starts_below_the_range_and_ends_at_the_tasks_own(self):
        made = Curriculum(
            {"items": (20, 20)}, GOAL, 1000, grow={"start": {"items": 2}, "over": 0.6}
        )
        assert made.stages == [*(((2, high),) for high in range(2, 20)), ((20, 20),)]
        trained_on = []
        for sequences in range(0, 1001, 10):
            trained_on.append((sequences, made.ranges[0][1]))
            assert not made.update(sequences, SOLVED) or sequences <= 600
        highs = [high for _, high in trained_on]
        assert highs == sorted(highs)
        assert highs[0] == 2
        # By the budget alone, however well it goes: a nineteenth of the way every 600 / 18.
        for sequences, high in trained_on:
            assert abs(high - min(20, 2 + 18 * sequences / 600)) <= 1.5
        assert made.ranges == ((20, 20),)

    def test_several_stages_may_end_between_two_validations(self):
        made = Curriculum(
            {"items": (20, 20)}, GOAL, 1000, grow={"start": {"items": 2}, "over": 0.6}
        )
        assert made.update(500, WRONG)
        assert made.ranges == ((2, 17),)
        assert made.update(600, WRONG)
        assert made.ranges == ((20, 20),)
        assert sum(part["sequences"] for part in made.report(1000, WRONG)) == 1000

    def test_starts_at_the_lower_ends_unless_told(self):
        made = Curriculum({"length": (1, 9), "repeats": (3, 5)}, GOAL, 80, grow={"over": 0.8})
        assert made.stages[0] == ((1, 1), (3, 3))
        assert made.stages[4] == ((1, 5), (3, 4))
        assert made.stages[-1] == ((1, 9), (3, 5))

    def test_goes_on_from_its_state(self):
        def made() -> Curriculum:
            return Curriculum({"length": (1, 9)}, GOAL, 80, grow={"over": 0.8})

        one, other = made(), made()
        one.update(33, WRONG)
        other.load_state_dict(json.loads(json.dumps(one.state_dict())))
        for sequences in (40, 41, 80):
            assert one.update(sequences, WRONG) == other.update(sequences, WRONG)
            assert one.ranges == other.ranges

    @pytest.mark.parametrize(
        ("grow", "words"),
        [
            ({"over": 0}, "grow.over must be above 0"),
            ({"over": 1.5}, "grow.over must be above 0, at most 1"),
            ({"start": {"words": 1}}, "grow.start must name items, got 'words'"),
            ({"start": {"items": 21}}, "grow.start must be 1 to 20 for items, got 21"),
            ({"from": 3}, "grow must have start and over, got 'from'"),
        ],
        ids=str,
    )
    def test_refuses_by_name(self, grow, words):
        with pytest.raises(ValueError, match=words):
            Curriculum({"items": (20, 20)}, GOAL, 1000, grow=grow)
