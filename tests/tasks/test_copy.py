"""The copy task against its own picture, and its draws against what was asked for."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ntm.tasks import Batch, Copy


def draw(task: Copy, batch_size: int, lengths: tuple[int, int], seed: int = 0) -> Batch:
    return task.sample(np.random.default_rng(seed), batch_size, (lengths,))


def episode(vectors: list[list[int]], steps: int) -> tuple[list, list, list]:
    """Inputs, targets and mask of one sequence, as the docstring draws them, then silence."""
    bits, length = len(vectors[0]), len(vectors)
    silence = [0] * bits
    inputs = [[*vector, 0] for vector in vectors] + [[*silence, 1]] + [[*silence, 0]] * length
    targets = [silence] * (length + 1) + vectors
    mask = [0] * (length + 1) + [1] * length
    rest = steps - len(mask)
    return inputs + [[*silence, 0]] * rest, targets + [silence] * rest, mask + [0] * rest


def check_row(batch: Batch, row: int) -> int:
    """Hold one sequence against the picture of what it says it is; give its length."""
    inputs, targets, mask = (part[:, row].tolist() for part in batch)
    length = int(sum(mask))
    vectors = [[int(bit) for bit in step[:-1]] for step in inputs[:length]]
    assert all(bit in (0, 1) for vector in vectors for bit in vector)
    assert (inputs, targets, mask) == episode(vectors, len(mask))
    return length


def test_the_picture_in_the_docstring():
    """The drawn example, symbol by symbol: what the reference draws is what users read."""
    inputs, targets, mask = episode([[1, 0], [0, 0], [1, 1]], 7)
    drawn = {}
    for line in (Copy.__doc__ or "").splitlines():
        name, _, symbols = line.strip().partition("  ")
        drawn[name] = [0 if symbol == "." else int(symbol) for symbol in symbols.split()]
        if name == "mask":
            break
    columns = [list(column) for column in zip(*inputs, strict=True)]
    answers = [list(column) for column in zip(*targets, strict=True)]
    assert [drawn["input bit 0"], drawn["input bit 1"], drawn["delimiter"]] == columns
    assert [drawn["target bit 0"], drawn["target bit 1"]] == answers
    assert drawn["mask"] == mask


@settings(deadline=None, max_examples=60)
@given(
    bits=st.integers(1, 9),
    shortest=st.integers(1, 7),
    wider=st.integers(0, 6),
    batch_size=st.integers(1, 6),
    mixed=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_every_sequence_is_the_drawn_episode(bits, shortest, wider, batch_size, mixed, seed):
    longest = shortest + wider
    task = Copy(bits, shortest, longest, mixed_lengths=mixed)
    batch = draw(task, batch_size, (shortest, longest), seed)
    lengths = [check_row(batch, row) for row in range(batch_size)]
    steps = 2 * max(lengths) + 1
    assert (
        batch.inputs.shape == (steps, batch_size, task.input_size) == (steps, batch_size, bits + 1)
    )
    assert batch.targets.shape == (steps, batch_size, task.output_size) == (steps, batch_size, bits)
    assert batch.mask.shape == (steps, batch_size)
    assert all(str(part.dtype) == "torch.float32" for part in batch)
    assert all(shortest <= length <= longest for length in lengths)
    assert mixed or len(set(lengths)) == 1


@pytest.mark.parametrize("mixed", [False, True], ids=["one length", "mixed lengths"])
def test_a_start_flag_is_one_more_step_and_channel_before_the_same_sequence(mixed):
    plain = draw(Copy(3, 1, 6, mixed_lengths=mixed), 5, (1, 6))
    flagged = draw(Copy(3, 1, 6, mixed_lengths=mixed, start_flag=True), 5, (1, 6))
    assert Copy(3, start_flag=True).input_size == 5
    assert flagged.inputs[0].tolist() == [[0, 0, 0, 0, 1]] * 5
    assert flagged.inputs[1:, :, -1].sum() == 0
    assert flagged.inputs[1:, :, :-1].equal(plain.inputs)
    for part, same in ((flagged.targets, plain.targets), (flagged.mask, plain.mask)):
        assert part[0].sum() == 0
        assert part[1:].equal(same)


def test_the_range_asked_for_is_the_range_drawn():
    """A curriculum or an evaluation asks for lengths outside or inside the task's own."""
    task = Copy(2, 1, 3)
    assert check_row(draw(task, 2, (9, 9)), 1) == 9


def chi_square(values: list[int], classes: range) -> float:
    expected = len(values) / len(classes)
    return sum((values.count(c) - expected) ** 2 / expected for c in classes)


# The 0.1 % bound of chi-square with 19 degrees of freedom.
BOUND = 43.8


def test_lengths_are_uniform_over_batches():
    task = Copy(1, 1, 20)
    rng = np.random.default_rng(0)
    lengths = [int(task.sample(rng, 1, ((1, 20),)).mask.sum()) for _ in range(3000)]
    assert set(lengths) == set(range(1, 21))
    assert chi_square(lengths, range(1, 21)) < BOUND


def test_mixed_lengths_are_uniform_within_one_batch():
    task = Copy(1, 1, 20, mixed_lengths=True)
    lengths = draw(task, 3000, (1, 20)).mask.sum(0).int().tolist()
    assert set(lengths) == set(range(1, 21))
    assert chi_square(lengths, range(1, 21)) < BOUND


def test_the_bits_of_mixed_lengths_are_fair_at_every_length():
    batch = draw(Copy(4, 1, 4, mixed_lengths=True), 4000, (1, 4))
    for length in range(1, 5):
        rows = batch.mask.sum(0) == length
        bits = batch.inputs[:length, rows, :4]
        assert abs(bits.mean().item() - 0.5) < 4 * 0.5 / bits.numel() ** 0.5


def test_bits_are_fair_and_independent():
    bits = draw(Copy(8, 20, 20), 1000, (20, 20)).inputs[:20, :, :8]
    assert abs(bits.mean().item() - 0.5) < 4 * 0.5 / bits.numel() ** 0.5
    # Of each place in the sequence, 8 × 20 of them: five standard deviations.
    assert (bits.mean(1) - 0.5).abs().max().item() < 5 * 0.5 / 1000**0.5
    # Neighbours in time, in the vector and in the batch tell nothing of each other.
    for one, other in (
        (bits[1:], bits[:-1]),
        (bits[..., 1:], bits[..., :-1]),
        (bits[:, 1:], bits[:, :-1]),
    ):
        together = ((one - 0.5) * (other - 0.5)).mean().item()
        assert abs(together) < 4 * 0.25 / one.numel() ** 0.5


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({"bits": 0}, "bits"),
        ({"min_length": 0}, "min_length"),
        ({"min_length": 5, "max_length": 4}, "max_length"),
        ({"max_length": 0}, "max_length"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else value,
)
def test_refuses_by_name(arguments, name):
    with pytest.raises(ValueError, match=rf"^{name} "):
        Copy(**arguments)


def test_chance_is_a_bit_for_each_bit():
    assert Copy(bits=3).chance((5,)) == 15
