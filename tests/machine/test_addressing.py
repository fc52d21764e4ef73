import itertools

import plain
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from ntm.machine.addressing import (
    address,
    content_weighting,
    cosine_similarity,
    interpolate,
    sharpen,
    shift,
)

QUICK = settings(max_examples=25, deadline=None, derandomize=True)
B, K, N, M = 2, 3, 7, 4


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def randn(*shape, dtype=torch.float64):
    return torch.randn(shape, dtype=dtype)


def weighting(*shape, dtype=torch.float64):
    """Random distributions over the last axis."""
    return torch.softmax(torch.randn(shape, dtype=dtype), dim=-1)


def parts(reach=1, dtype=torch.float64):
    """Random arguments of `address`, by name, each in its range."""
    return {
        "memory": randn(B, N, M, dtype=dtype),
        "previous": weighting(B, K, N, dtype=dtype),
        "key": randn(B, K, M, dtype=dtype),
        "strength": 5 * torch.rand(B, K, 1, dtype=dtype),
        "gate": torch.rand(B, K, 1, dtype=dtype),
        "shift_weighting": weighting(B, K, 2 * reach + 1, dtype=dtype),
        "sharpening": 1 + 5 * torch.rand(B, K, 1, dtype=dtype),
    }


def by_head(function, *tensors):
    """Apply a function of lists to every head of every sequence."""
    heads = [[function(*(t[b, k].tolist() for t in tensors)) for k in range(K)] for b in range(B)]
    return torch.tensor(heads, dtype=torch.float64)


def assert_same(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-10)


# Against loops


def test_similarity():
    key, memory = randn(B, K, M), randn(B, N, M)
    expected = [
        [[plain.cosine(key[b, k].tolist(), row) for row in memory[b].tolist()] for k in range(K)]
        for b in range(B)
    ]
    assert_same(cosine_similarity(key, memory), torch.tensor(expected, dtype=torch.float64))


def test_what_is_shorter_than_a_hundredth_counts_as_that_long():
    key, memory = randn(B, K, M), randn(B, N, M)
    similarity = cosine_similarity(key, memory)
    for length in (0.02, 0.005, 1e-4):
        short = length * memory / memory.norm(dim=-1, keepdim=True)
        assert_same(cosine_similarity(key, short), min(1, length / 0.01) * similarity)
        short = length * key / key.norm(dim=-1, keepdim=True)
        assert_same(cosine_similarity(short, memory), min(1, length / 0.01) * similarity)


def test_content():
    key, memory, strength = randn(B, K, M), randn(B, N, M), 5 * torch.rand(B, K, 1).double()
    expected = [
        [
            plain.content(memory[b].tolist(), key[b, k].tolist(), strength[b, k].item())
            for k in range(K)
        ]
        for b in range(B)
    ]
    actual = content_weighting(cosine_similarity(key, memory), strength)
    assert_same(actual, torch.tensor(expected, dtype=torch.float64))


def test_interpolate():
    content, previous, gate = weighting(B, K, N), weighting(B, K, N), torch.rand(B, K, 1).double()
    expected = by_head(lambda c, p, g: plain.interpolate(c, p, g[0]), content, previous, gate)
    assert_same(interpolate(content, previous, gate), expected)


@pytest.mark.parametrize("reach", [0, 1, 2, 3])
def test_shift(reach):
    # At reach 3 the window is as wide as the ring of 7.
    focus, shifts = weighting(B, K, N), weighting(B, K, 2 * reach + 1)
    assert_same(shift(focus, shifts), by_head(plain.shift, focus, shifts))


def test_sharpen():
    blurred, sharpening = weighting(B, K, N), 1 + 5 * torch.rand(B, K, 1).double()
    expected = by_head(lambda w, y: plain.sharpen(w, y[0]), blurred, sharpening)
    assert_same(sharpen(blurred, sharpening), expected)


@pytest.mark.parametrize("reach", [0, 1, 2, 3])
def test_address(reach):
    given_parts = parts(reach)
    memory, *rest = given_parts.values()
    expected = [
        [
            plain.address(
                memory[b].tolist(),
                *(p[b, k].tolist() if p.shape[-1] > 1 else p[b, k].item() for p in rest[:-2]),
                rest[-2][b, k].tolist(),
                rest[-1][b, k].item(),
            )
            for k in range(K)
        ]
        for b in range(B)
    ]
    assert_same(address(**given_parts), torch.tensor(expected, dtype=torch.float64))


# Meaning


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("offset", [-2, -1, 0, 1, 2])
def test_one_hot_shift_moves_focus_forward(offset, dtype):
    shifts = torch.zeros(1, 1, 5, dtype=dtype)
    shifts[..., 2 + offset] = 1
    for i in range(N):
        focus = torch.zeros(1, 1, N, dtype=dtype)
        focus[..., i] = 1
        moved = torch.zeros(1, 1, N, dtype=dtype)
        moved[..., (i + offset) % N] = 1
        assert torch.equal(shift(focus, shifts), moved)


def test_zero_strength_is_even():
    content = content_weighting(randn(B, K, N), torch.zeros(B, K, 1).double())
    assert_same(content, torch.full((B, K, N), 1 / N, dtype=torch.float64))


def test_high_strength_finds_the_key():
    memory = randn(B, N, M)
    found = content_weighting(cosine_similarity(memory, memory), torch.full((B, N, 1), 1e4))
    assert_same(found, torch.eye(N).double().expand(B, N, N))


def test_similarity_ignores_length():
    key, memory = randn(B, K, M), randn(B, N, M)
    assert_same(cosine_similarity(7 * key, memory / 3), cosine_similarity(key, memory))


def test_zero_vectors_have_no_similarity():
    key, memory = randn(B, K, M), randn(B, N, M)
    memory[:, 2] = 0
    key[:, 1] = 0
    similarity = cosine_similarity(key, memory)
    assert (similarity[:, 1] == 0).all()
    assert (similarity[:, :, 2] == 0).all()


def test_gate_chooses():
    content, previous = weighting(B, K, N), weighting(B, K, N)
    assert torch.equal(interpolate(content, previous, torch.ones(B, K, 1).double()), content)
    assert torch.equal(interpolate(content, previous, torch.zeros(B, K, 1).double()), previous)


def test_sharpening_of_one_changes_nothing():
    blurred = weighting(B, K, N)
    assert_same(sharpen(blurred, torch.ones(B, K, 1).double()), blurred)


def test_high_sharpening_picks_the_largest():
    blurred = weighting(B, K, N)
    picked = sharpen(blurred, torch.full((B, K, 1), 1e4).double())
    assert_same(picked, torch.nn.functional.one_hot(blurred.argmax(-1), N).double())


# Properties


@st.composite
def emitted(draw):
    """Random arguments of `address` with sizes, scales and seed drawn."""
    locations = draw(st.integers(3, 40))
    reach = draw(st.integers(0, min(3, (locations - 1) // 2)))
    scale = draw(st.sampled_from([0.1, 1.0, 10.0, 100.0]))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    gen = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))

    def normal(*shape):
        return scale * torch.randn(shape, generator=gen, dtype=dtype)

    return {
        "memory": normal(2, locations, M),
        "previous": torch.softmax(normal(2, K, locations), -1),
        "key": normal(2, K, M),
        "strength": normal(2, K, 1).abs(),
        "gate": torch.sigmoid(normal(2, K, 1)),
        "shift_weighting": torch.softmax(normal(2, K, 2 * reach + 1), -1),
        "sharpening": 1 + normal(2, K, 1).abs(),
    }


@QUICK
@given(emitted())
def test_weightings_are_distributions(emission):
    weights = address(**emission)
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))


@QUICK
@given(emitted())
def test_every_stage_keeps_the_sum(emission):
    content = content_weighting(
        cosine_similarity(emission["key"], emission["memory"]), emission["strength"]
    )
    gated = interpolate(content, emission["previous"], emission["gate"])
    shifted = shift(gated, emission["shift_weighting"])
    for stage in (content, gated, shifted):
        assert (stage >= 0).all()
        torch.testing.assert_close(stage.sum(-1), torch.ones_like(stage[..., 0]))


@QUICK
@given(st.integers(1, 40), st.integers(0, 3), st.integers(-3, 3), st.integers(0, 10**6))
def test_one_hot_shift_is_a_rotation(locations, reach, offset, seed):
    reach = min(reach, (locations - 1) // 2)
    offset = max(-reach, min(reach, offset))
    focus = torch.rand(2, K, locations, generator=torch.Generator().manual_seed(seed))
    shifts = torch.zeros(2, K, 2 * reach + 1)
    shifts[..., reach + offset] = 1
    assert torch.equal(shift(focus, shifts), torch.roll(focus, offset, dims=-1))


@QUICK
@given(emitted())
def test_sequences_do_not_mix(emission):
    alone = {name: part[:1] for name, part in emission.items()}
    torch.testing.assert_close(address(**alone), address(**emission)[:1])


# Gradients


def leaves(*tensors):
    return [t.detach().requires_grad_() for t in tensors]


def test_gradient_of_similarity():
    assert gradcheck(cosine_similarity, leaves(randn(B, K, M), randn(B, N, M)))


def test_gradient_of_content():
    strength = 5 * torch.rand(B, K, 1).double()
    assert gradcheck(content_weighting, leaves(randn(B, K, N), strength))


def test_gradient_of_interpolate():
    gate = torch.rand(B, K, 1).double()
    assert gradcheck(interpolate, leaves(weighting(B, K, N), weighting(B, K, N), gate))


@pytest.mark.parametrize("reach", [0, 1, 2, 3])
def test_gradient_of_shift(reach):
    assert gradcheck(shift, leaves(weighting(B, K, N), weighting(B, K, 2 * reach + 1)))


def test_gradient_of_sharpen():
    sharpening = 1.1 + 3 * torch.rand(B, K, 1).double()
    assert gradcheck(sharpen, leaves(weighting(B, K, N), sharpening))


def test_gradient_of_address():
    assert gradcheck(address, leaves(*parts().values()))


# Extremes


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("memory", [0.0, 1e-6, 1.0], ids=["zero_memory", "tiny_memory", "memory"])
@pytest.mark.parametrize("key", [0.0, 1.0, 1e6], ids=["zero_key", "key", "long_key"])
@pytest.mark.parametrize("one_hot", [False, True], ids=["soft", "one_hot"])
def test_extremes_stay_finite(one_hot, key, memory, dtype):
    for strength, gate, sharpening in itertools.product((0.0, 1e4, 1e6), (0.0, 1.0), (1.0, 1e3)):
        args = parts(dtype=dtype)
        args["key"] *= key
        args["memory"] *= memory
        args["strength"] = torch.full((B, K, 1), strength, dtype=dtype)
        args["gate"] = torch.full((B, K, 1), gate, dtype=dtype)
        args["sharpening"] = torch.full((B, K, 1), sharpening, dtype=dtype)
        if one_hot:
            args["previous"] = torch.eye(N, dtype=dtype)[:K].expand(B, K, N)
            args["shift_weighting"] = torch.eye(3, dtype=dtype).expand(B, K, 3)
        assert_finite(args, f"strength {strength}, gate {gate}, sharpening {sharpening}")


def assert_finite(args, case):
    args = {name: value.detach().clone().requires_grad_() for name, value in args.items()}
    weights = address(**args)
    assert weights.isfinite().all(), case
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))
    (weights * torch.randn_like(weights)).sum().backward()
    for name, value in args.items():
        assert value.grad.isfinite().all(), f"gradient of {name} at {case}"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("gamma", [1.0, 50.0, 1e3])
def test_flat_weighting_over_many_locations(gamma, dtype):
    # (1/4096)^50 is 0 in either precision.
    flat = torch.full((1, 1, 4096), 1 / 4096, dtype=dtype, requires_grad=True)
    sharpening = torch.full((1, 1, 1), gamma, dtype=dtype, requires_grad=True)
    sharp = sharpen(flat, sharpening)
    torch.testing.assert_close(sharp, flat)
    (sharp * torch.randn_like(sharp)).sum().backward()
    assert flat.grad.isfinite().all()
    assert sharpening.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_sharpening_spares_nothing_to_nothing(dtype):
    # Entries that are 0 or denormal beside one that is not.
    blurred = torch.tensor([[[1.0, 0.0, 1e-40, 1e-20]]], dtype=dtype, requires_grad=True)
    for gamma in (1.0, 1.5, 2.0, 1e3):
        sharpening = torch.full((1, 1, 1), gamma, dtype=dtype, requires_grad=True)
        sharp = sharpen(blurred, sharpening)
        (sharp * torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=dtype)).sum().backward()
        assert sharp.isfinite().all()
        assert blurred.grad.isfinite().all()
        assert sharpening.grad.isfinite().all()
