import math

import plain
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.autograd import gradcheck

from ntm.machine.heads import HeadLayout, decode

QUICK = settings(max_examples=25, deadline=None, derandomize=True)
MAPS = {
    "identity": plain.identity,
    "tanh": math.tanh,
    "sigmoid": plain.sigmoid,
    "relu": plain.relu,
}


def layout(word=3, reads=1, writes=1, reach=1, key="tanh", add="tanh"):
    return HeadLayout(word, reads, writes, reach, key, add, read_first=True)


def random_raw(order, scale=3.0, seed=0):
    gen = torch.Generator().manual_seed(seed)
    return scale * torch.randn(2, order.size, generator=gen, dtype=torch.float64)


@pytest.mark.parametrize(
    ("word", "reads", "writes", "reach", "size"),
    [
        pytest.param(20, 1, 1, 1, 2 * (20 + 1 + 1 + 3 + 1) + 2 * 20, id="paper"),
        pytest.param(3, 2, 3, 2, 5 * (3 + 1 + 1 + 5 + 1) + 3 * 2 * 3, id="many"),
        pytest.param(1, 1, 1, 0, 2 * (1 + 1 + 1 + 1 + 1) + 2 * 1, id="least"),
    ],
)
def test_size(word, reads, writes, reach, size):
    assert layout(word, reads, writes, reach).size == size


@pytest.mark.parametrize(
    ("word", "reads", "writes", "reach"),
    [(3, 1, 1, 1), (4, 2, 3, 2), (1, 3, 1, 0), (2, 1, 2, 3)],
    ids=["one_each", "two_three", "word_of_one", "wide"],
)
def test_decode(word, reads, writes, reach):
    order = layout(word, reads, writes, reach)
    raw = random_raw(order)
    emitted = decode(raw, order)
    for b in range(2):
        orders, erases, adds = plain.emissions(raw[b].tolist(), word, reads, writes, reach)
        expected = {
            "key": [o["key"] for o in orders],
            "strength": [[o["strength"]] for o in orders],
            "gate": [[o["gate"]] for o in orders],
            "shift": [o["shifts"] for o in orders],
            "sharpening": [[o["sharpening"]] for o in orders],
            "erase": erases,
            "add": adds,
        }
        for name, value in expected.items():
            torch.testing.assert_close(
                getattr(emitted, name)[b],
                torch.tensor(value, dtype=torch.float64),
                msg=lambda text, name=name: f"{name}: {text}",
            )


@pytest.mark.parametrize("key", MAPS)
@pytest.mark.parametrize("add", MAPS)
def test_activations_take_effect(key, add):
    order = layout(key=key, add=add)
    raw = random_raw(order)
    emitted = decode(raw, order)
    orders, _, adds = plain.emissions(
        raw[0].tolist(), 3, 1, 1, 1, key_map=MAPS[key], add_map=MAPS[add]
    )
    torch.testing.assert_close(
        emitted.key[0], torch.tensor([o["key"] for o in orders], dtype=torch.float64)
    )
    torch.testing.assert_close(emitted.add[0], torch.tensor(adds, dtype=torch.float64))


@QUICK
@given(
    st.sampled_from([0.0, 1.0, 30.0, 1e4]),
    st.integers(0, 10**6),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_ranges(scale, seed, dtype):
    order = layout(4, 2, 2, 2)
    emitted = decode(random_raw(order, scale, seed).to(dtype), order)
    for name, value in emitted._asdict().items():
        assert value.isfinite().all(), name
    assert (emitted.strength >= 0).all()
    assert (emitted.sharpening >= 1).all()
    for part in (emitted.gate, emitted.erase, emitted.shift):
        assert ((part >= 0) & (part <= 1)).all()
    torch.testing.assert_close(emitted.shift.sum(-1), torch.ones_like(emitted.shift[..., 0]))


def test_neutral_emissions():
    # log(2) is softplus of 0.
    order = layout()
    emitted = decode(torch.zeros(1, order.size), order)
    assert (emitted.key == 0).all()
    torch.testing.assert_close(emitted.strength, torch.full((1, 2, 1), math.log(2)))
    assert (emitted.gate == 0.5).all()
    torch.testing.assert_close(emitted.shift, torch.full((1, 2, 3), 1 / 3))
    torch.testing.assert_close(emitted.sharpening, torch.full((1, 2, 1), 1 + math.log(2)))
    assert (emitted.erase == 0.5).all()
    assert (emitted.add == 0).all()


def test_gradient_of_decode():
    order = layout(2, 1, 2, 1)
    assert gradcheck(lambda raw: tuple(decode(raw, order)), random_raw(order).requires_grad_())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("scale", [0.0, 1e2, 1e4])
def test_saturated_gradients_are_finite(scale, dtype):
    order = layout(3, 1, 2, 1)
    raw = random_raw(order, scale).to(dtype).requires_grad_()
    sum(part.sum() for part in decode(raw, order)).backward()
    assert raw.grad.isfinite().all()
