import math

import plain
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from ntm.machine.memory import (
    ConstantMemory,
    FirstLocation,
    LearnedMemory,
    LearnedWeighting,
    RandomMemory,
    Uniform,
    read,
    write,
)

B, N, M = 2, 5, 3
HEADS = [1, 2, 3]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def parts(heads):
    """Memory, weighting, erase and add, each in its range."""
    return (
        torch.randn(B, N, M).double(),
        torch.softmax(torch.randn(B, heads, N).double(), -1),
        torch.rand(B, heads, M).double(),
        torch.randn(B, heads, M).double(),
    )


# Against loops


@pytest.mark.parametrize("heads", HEADS)
def test_read(heads):
    memory, weighting, _, _ = parts(heads)
    expected = [
        [plain.read(memory[b].tolist(), w) for w in weighting[b].tolist()] for b in range(B)
    ]
    torch.testing.assert_close(
        read(memory, weighting), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("heads", HEADS)
def test_write(heads):
    tensors = parts(heads)
    expected = [plain.write(*(t[b].tolist() for t in tensors)) for b in range(B)]
    torch.testing.assert_close(
        write(*tensors), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12
    )


# Meaning


def test_erase_comes_before_add():
    # Two heads on the same location, both erasing all: only the two adds remain.
    memory = torch.ones(1, N, M)
    weighting = torch.zeros(1, 2, N)
    weighting[..., 1] = 1
    add = torch.stack([torch.full((M,), 2.0), torch.full((M,), 3.0)]).unsqueeze(0)
    written = write(memory, weighting, torch.ones(1, 2, M), add)
    assert torch.equal(written[0, 1], torch.full((M,), 5.0))
    assert torch.equal(written[0, [0, 2, 3, 4]], memory[0, [0, 2, 3, 4]])


def test_order_of_heads_does_not_matter():
    memory, *orders = parts(3)
    turned = [part.flip(1) for part in orders]
    torch.testing.assert_close(write(memory, *orders), write(memory, *turned))


def test_write_leaves_its_arguments():
    tensors = parts(2)
    before = [t.clone() for t in tensors]
    write(*tensors)
    assert all(map(torch.equal, tensors, before))


def test_what_is_written_is_read():
    memory, _, _, add = parts(1)
    focus = torch.eye(N).double()[2].expand(B, 1, N)
    written = write(memory, focus, torch.ones(B, 1, M).double(), add)
    torch.testing.assert_close(read(written, focus), add)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(st.integers(1, 4), st.integers(1, 20), st.integers(0, 10**6))
def test_sequences_do_not_mix(heads, locations, seed):
    gen = torch.Generator().manual_seed(seed)
    memory = torch.randn(3, locations, M, generator=gen)
    weighting = torch.softmax(torch.randn(3, heads, locations, generator=gen), -1)
    erase, add = torch.rand(2, 3, heads, M, generator=gen)
    written, seen = write(memory, weighting, erase, add), read(memory, weighting)
    for b in range(3):
        own = slice(b, b + 1)
        torch.testing.assert_close(
            write(memory[own], weighting[own], erase[own], add[own]), written[own]
        )
        torch.testing.assert_close(read(memory[own], weighting[own]), seen[own])


# Gradients


def test_gradient_of_read():
    memory, weighting, _, _ = parts(2)
    assert gradcheck(read, (memory.requires_grad_(), weighting.requires_grad_()))


@pytest.mark.parametrize("heads", HEADS)
def test_gradient_of_write(heads):
    assert gradcheck(write, [t.requires_grad_() for t in parts(heads)])


# Initial memory

LIKE = torch.empty(0, dtype=torch.float64)
"""Of the precision that is wanted."""


def test_constant_memory():
    initial = ConstantMemory(N, M)
    assert torch.equal(initial(N, LIKE), torch.full((N, M), 1e-6, dtype=torch.float64))
    assert torch.equal(initial(2 * N, LIKE), torch.full((2 * N, M), 1e-6, dtype=torch.float64))
    assert not list(initial.parameters())


def test_random_memory_is_within_bounds_and_fixed():
    initial = RandomMemory(50, 16)
    first = initial(50, LIKE)
    assert first.shape == (50, 16)
    assert first.abs().max() <= 1 / math.sqrt(16)
    assert first.abs().max() > 0.9 / math.sqrt(16)
    assert abs(first.mean()) < 0.03
    assert len(first.unique()) == first.numel()
    assert torch.equal(initial(50, LIKE), first)
    assert not list(initial.parameters())


def test_random_memory_keeps_its_first_rows():
    initial = RandomMemory(N, M)
    small = initial(N, LIKE).clone()
    assert torch.equal(initial(1000, LIKE)[:N], small)
    assert torch.equal(initial(2, LIKE), small[:2])
    assert torch.equal(initial(N, LIKE), small)


def test_random_memory_differs_between_networks():
    drawn = {str(RandomMemory(N, M)(N, LIKE).tolist()) for _ in range(60)}
    assert len(drawn) == 60


def test_random_memory_follows_the_seed():
    torch.manual_seed(7)
    first = RandomMemory(N, M)(N, LIKE)
    torch.manual_seed(7)
    assert torch.equal(RandomMemory(N, M)(N, LIKE), first)


def test_random_memory_comes_from_its_state_dict():
    source, target = RandomMemory(N, M), RandomMemory(N, M)
    target(N, LIKE)  # a draw made before the load must not survive it
    target.load_state_dict(source.state_dict())
    assert torch.equal(target(N, LIKE), source(N, LIKE))


def test_learned_memory():
    initial = LearnedMemory(N, M)
    assert [p.shape for p in initial.parameters()] == [(N, M)]
    wide = LearnedMemory(500, 16).value
    assert 0.249 < wide.max() <= 0.25
    assert -0.25 <= wide.min() < -0.249
    initial(N, LIKE).sum().backward()
    assert torch.equal(initial.value.grad, torch.ones(N, M))


# Initial weightings


def test_first_location():
    assert torch.equal(FirstLocation(2, 4)(4, LIKE), LIKE.new_tensor([[1.0, 0, 0, 0]] * 2))
    assert torch.equal(FirstLocation(1, 4)(6, LIKE), LIKE.new_tensor([[1.0, 0, 0, 0, 0, 0]]))


def test_uniform():
    assert torch.equal(Uniform(2, 4)(4, LIKE), LIKE.new_full((2, 4), 0.25))
    assert torch.equal(Uniform(1, 4)(8, LIKE), LIKE.new_full((1, 8), 0.125))


@pytest.mark.parametrize("locations", [1, 2, 128, 2000])
def test_learned_weighting_starts_on_the_first_location(locations):
    initial = LearnedWeighting(3, locations).double()
    weighting = initial(locations, LIKE)
    assert weighting.shape == (3, locations)
    assert [p.shape for p in initial.parameters()] == [(3, locations)]
    torch.testing.assert_close(weighting.sum(-1), LIKE.new_ones(3))
    if locations > 1:  # e² times as much there as at all others together
        elsewhere = weighting[:, 1:].sum(-1)
        expected = LIKE.new_full((3,), math.e**2)
        torch.testing.assert_close(weighting[:, 0] / elsewhere, expected, rtol=1e-5, atol=0)
    assert (weighting[:, 0] > 0.5).all()
    torch.testing.assert_close(weighting, torch.softmax(initial.value.detach(), -1))
