"""Numbers and arrays of a trained network, against networks whose answers are known."""

import math
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from ntm import LSTM, NTM, FeedforwardController
from ntm.commands.configuration import ConfigurationError
from ntm.tasks import AssociativeRecall, Batch, Copy
from ntm.tasks.sampling import EVALUATION, sample
from ntm.views import probing
from ntm.views.probing import answer, evaluate, inside, point_inside

torch.set_num_threads(1)
BITS = 3
TASK = Copy(BITS, 1, 6)
SURE = 5.0
"""The oracle's logits are plus or minus this."""


class Oracle(nn.Module):
    """Remembers what it heard and says it again; vector ``forgotten`` comes out as zeros.

    Its state is all it knows, so that it can be run a stretch of time at a time.
    """

    def __init__(self, forgotten: int | None = None) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(SURE))
        self.forgotten = forgotten
        self.modes: list[bool] = []
        self.shapes: list[tuple[int, int]] = []

    def forward(self, inputs, state=None):
        self.modes.append(self.training)
        self.shapes.append((inputs.shape[0], inputs.shape[1]))
        heard, said = ([], None) if state is None else (list(state[0]), state[1])
        logits = []
        for step in inputs:
            bits = torch.zeros_like(step[:, :-1])
            if said is not None and said < len(heard):
                if said != self.forgotten:
                    bits = heard[said]
                said += 1
            elif step[0, -1] == 1:
                said = 0
            elif said is None:
                heard.append(step[:, :-1])
            logits.append(self.scale * (2 * bits - 1))
        return torch.stack(logits), (heard, said)


def plain_rows(difficulty: int, sequences: int, forgotten: int | None) -> dict[str, float]:
    """What the table says of an oracle, by loops over the sequences as lists."""
    batch = sample(TASK, EVALUATION, 0, sequences, ((difficulty, difficulty),))
    heard = batch.inputs[:difficulty].tolist()
    right, wrong = (-math.log(1 / (1 + math.exp(-side * SURE))) for side in (1, -1))
    nats, wrongs = [], []
    for row in range(sequences):
        missed = sum(
            heard[step][row][bit] == 1
            for step in range(difficulty)
            for bit in range(BITS)
            if step == forgotten
        )
        wrongs.append(missed)
        nats.append(missed * wrong + (difficulty * BITS - missed) * right)
    mean = sum(wrongs) / sequences
    return {
        "length": difficulty,
        "kind": "drawn",
        "memory_size": "",
        "sequences": sequences,
        "wrong_bits_per_sequence": mean,
        "wrong_bits_sd": math.sqrt(sum((w - mean) ** 2 for w in wrongs) / sequences),
        "bits_per_sequence": sum(nats) / math.log(2) / sequences,
        "bits_above_optimum": "",
        "accuracy": 1 - sum(wrongs) / (sequences * difficulty * BITS),
        "exact": sum(w == 0 for w in wrongs) / sequences,
    }


def check_same(row: dict, expected: dict, rel: float) -> None:
    """The same columns in the same order, numbers nearly so and words exactly."""
    assert list(row) == list(expected)
    words = ("kind", "memory_size")
    assert [row[name] for name in words] == [expected[name] for name in words]
    numbers, others = (
        {k: v for k, v in r.items() if v != "" and k not in words} for r in (row, expected)
    )
    assert numbers == pytest.approx(others, rel=rel)


class TestEvaluate:
    @pytest.mark.parametrize("forgotten", [None, 0, 2])
    def test_rows_are_those_of_a_plain_loop(self, forgotten):
        rows, answers = evaluate(Oracle(forgotten), TASK, [(1,), (4,), (9,)], 20)
        assert list(answers) == [(1,), (4,), (9,)]
        for row, difficulty in zip(rows, (1, 4, 9), strict=True):
            check_same(row, plain_rows(difficulty, 20, forgotten), rel=1e-4)
        if forgotten is None:
            assert all(row["exact"] == 1 and row["accuracy"] == 1 for row in rows)
        else:
            assert 0 < rows[1]["exact"] < 1

    def test_each_kind_is_what_such_a_network_makes_of_it(self):
        """Who forgets the third vector errs on its set bits: on none of zeros, on all of ones."""
        found = {kind: evaluate(Oracle(2), TASK, [(6,)], 40, kind)[0][0] for kind in TASK.kinds}
        assert {kind: row["kind"] for kind, row in found.items()} == {k: k for k in TASK.kinds}
        wrong = {kind: row["wrong_bits_per_sequence"] for kind, row in found.items()}
        assert (wrong["zeros"], wrong["ones"], wrong["one_hot"]) == (0, BITS, 1)
        assert 0 < wrong["sparse"] < wrong["silent_pair"] < wrong["dense"] < BITS
        exact = {kind: row["exact"] for kind, row in found.items()}
        assert (exact["zeros"], exact["ones"]) == (1, 0)
        assert 0 < exact["same"] == exact["alternating"] < exact["sparse"] < 1

    def test_the_answer_is_that_of_the_first_sequence(self):
        _, answers = evaluate(Oracle(forgotten=1), TASK, [(4,)], 5)
        target = sample(TASK, EVALUATION, 0, 5, ((4, 4),)).inputs[:4, 0, :BITS].numpy()
        said = target.copy()
        said[1] = 0
        seen = answers[(4,)]
        assert np.array_equal(seen.target, target)
        np.testing.assert_allclose(seen.output, 1 / (1 + np.exp(-SURE * (2 * said - 1))), 1e-5)
        assert np.array_equal(seen.wrong, said != target)

    @pytest.mark.parametrize(
        ("steps", "elements", "shapes"),
        [
            (256, 4_000_000, {(9, 7)}),
            (4, 4_000_000, {(4, 7), (1, 7)}),
            (256, 3, {(9, 3), (9, 1)}),
            (2, 2, {(2, 2), (1, 2), (2, 1), (1, 1)}),
            (1, 0, {(1, 1)}),
        ],
        ids=["whole", "time", "sequences", "both", "single"],
    )
    def test_stretches_change_nothing(self, steps, elements, shapes, monkeypatch):
        monkeypatch.setattr(probing, "STEPS_AT_ONCE", steps)
        monkeypatch.setattr(probing, "ELEMENTS_AT_ONCE", elements)
        oracle = Oracle(forgotten=2)
        rows, _ = evaluate(oracle, TASK, [(4,)], 7)
        check_same(rows[0], plain_rows(4, 7, 2), rel=1e-4)
        assert set(oracle.shapes) == shapes

    @pytest.mark.parametrize("name", ["ntm", "lstm"])
    def test_stretches_change_nothing_of_a_real_network(self, name, monkeypatch):
        network = machine() if name == "ntm" else LSTM(BITS + 1, BITS, 5, 2)
        whole, answers = evaluate(network, TASK, [(3,), (5,)], 5)
        monkeypatch.setattr(probing, "STEPS_AT_ONCE", 3)
        # Two sequences at a time: N · M elements each.
        monkeypatch.setattr(probing, "ELEMENTS_AT_ONCE", 2 * 8 * 4 if name == "ntm" else 2)
        parts, others = evaluate(network, TASK, [(3,), (5,)], 5)
        for row, part in zip(whole, parts, strict=True):
            check_same(row, part, rel=1e-5)
        for length in (3, 5):
            np.testing.assert_allclose(
                answers[(length,)].output, others[(length,)].output, atol=1e-6
            )

    @pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
    def test_mode_is_left_as_it_was(self, training):
        oracle = Oracle().train(training)
        evaluate(oracle, TASK, [(2,), (3,)], 2)
        assert oracle.training is training
        assert set(oracle.modes) == {False}

    def test_makes_no_graph(self):
        oracle = Oracle()
        evaluate(oracle, TASK, [(2,)], 2)
        assert oracle.scale.grad is None
        assert torch.is_grad_enabled()

    def test_is_the_same_every_time_and_for_every_network(self):
        first = evaluate(Oracle(), TASK, [(5,)], 4)[1][(5,)]
        torch.manual_seed(99)
        again = evaluate(machine(), TASK, [(5,)], 4)[1][(5,)]
        assert np.array_equal(first.target, again.target)

    def test_names_the_memory_size(self):
        network = machine()
        network.resize_memory(11)
        assert evaluate(network, TASK, [(2,)], 2)[0][0]["memory_size"] == 11


class TestAnswer:
    def test_takes_the_steps_where_an_answer_is_due(self):
        logits = torch.tensor([[9.0], [-2.0], [3.0], [9.0]])
        targets = torch.tensor([[[1.0]], [[1.0]], [[1.0]], [[0.0]]])
        mask = torch.tensor([[0.0], [1.0], [1.0], [0.0]])
        seen = answer(logits, Batch(torch.zeros(4, 1, 2), targets, mask))
        assert seen.target.tolist() == [[1], [1]]
        assert seen.output.ravel().tolist() == pytest.approx(
            [1 / (1 + math.exp(2)), 1 / (1 + math.exp(-3))]
        )
        assert seen.wrong.tolist() == [[True], [False]]

    @pytest.mark.parametrize("logit", [0.0, 1e-9, -1e-9, 1e-3])
    @pytest.mark.parametrize("target", [0.0, 1.0])
    def test_agrees_with_the_metric_where_it_is_close(self, logit, target):
        """A picture and its row in the table speak of the same bits."""
        from ntm.metrics import wrong_bits

        logits = torch.full((1, 1, 1), logit)
        batch = Batch(torch.zeros(1, 1, 2), torch.full((1, 1, 1), target), torch.ones(1, 1))
        seen = answer(logits[:, 0], batch)
        assert int(seen.wrong.sum()) == int(wrong_bits(logits, batch))

    def test_changes_neither_logits_nor_targets(self):
        logits = torch.tensor([[0.3], [-0.3]])
        batch = Batch(torch.zeros(2, 1, 2), torch.ones(2, 1, 1), torch.ones(2, 1))
        answer(logits, batch)
        assert logits.ravel().tolist() == pytest.approx([0.3, -0.3])
        assert batch.targets.min() == 1


def machine(**changes) -> NTM:
    torch.manual_seed(0)
    sizes = {"memory_size": 8, "word_size": 4, "num_read_heads": 2, "num_write_heads": 1}
    return NTM(
        BITS + 1,
        BITS,
        **sizes | changes,
        controller=lambda input_size: FeedforwardController(input_size, hidden_size=6),
    )


class TestInside:
    @pytest.mark.parametrize(
        "changes", [{}, {"num_write_heads": 2}, {"num_read_heads": 1}], ids=str
    )
    def test_is_what_the_network_does_step_by_step(self, changes):
        network = machine(**changes)
        R, W = network.layout.num_read_heads, network.layout.num_write_heads
        seen = inside(network, TASK, (4,))
        assert seen is not None
        batch = sample(TASK, EVALUATION, 0, 1, ((4, 4),))
        assert np.array_equal(seen.inputs, batch.inputs[:, 0].numpy())
        state = None
        for t, step in enumerate(batch.inputs):
            with torch.no_grad():
                logits, state = network(step[None], state)
            for name, array, value in (
                ("outputs", seen.outputs, torch.sigmoid(logits[0])),
                ("memory", seen.memory, state.memory),
                ("read", seen.read_weightings, state.weightings[:, :R]),
                ("write", seen.write_weightings, state.weightings[:, R:]),
                ("reads", seen.reads, state.reads),
            ):
                np.testing.assert_allclose(array[t], value[0], atol=1e-6, err_msg=f"{name} at {t}")
        assert seen.adds.shape == (9, W, 4)
        assert np.abs(seen.adds).max() <= 1

    def test_adds_are_what_is_written(self):
        """Memory starts near nothing, so the first write alone makes what it holds after it."""
        seen = inside(machine(), TASK, (2,))
        assert seen is not None
        written = np.outer(seen.write_weightings[0, 0], seen.adds[0, 0])
        np.testing.assert_allclose(seen.memory[0], written, atol=1e-5)

    def test_there_is_nothing_to_see_in_an_lstm(self):
        assert inside(LSTM(BITS + 1, BITS, 4, 1), TASK, (3,)) is None

    @pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
    def test_mode_is_left_as_it_was(self, training):
        network = machine().train(training)
        inside(network, TASK, (2,))
        assert network.training is training

    def test_dropout_is_off(self):
        network = machine()
        network.controller.dropout.p = 0.9
        network.train()
        one, other = (inside(network, TASK, (3,)) for _ in range(2))
        assert one is not None
        assert np.array_equal(one.memory, other.memory)

    def test_far_logits_are_no_warning(self):
        network = machine()
        with torch.no_grad():
            network.output.bias.fill_(-200.0)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            seen = inside(network, TASK, (2,))
        assert seen is not None
        assert seen.outputs.max() < 1e-6


@pytest.mark.parametrize(
    ("lengths", "chosen"),
    [([10, 20, 30], 20), ([3], 3), ([30, 25, 50], 20), ([20, 1], 20), ([21, 120], 20)],
    ids=str,
)
def test_looks_inside_at_the_longest_that_was_trained_on(lengths, chosen):
    assert point_inside(Copy(8, 1, 20), [(length,) for length in lengths]) == (chosen,)


def test_sequences_that_cannot_be_are_told_by_kind_and_point():
    task = AssociativeRecall(bits=2, vectors=1)
    with pytest.raises(ConfigurationError, match=r"one_hot at .*60.*: items must be few enough"):
        evaluate(Oracle(), task, [(60,)], 4, "one_hot")
