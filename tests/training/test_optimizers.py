"""Graves' RMSProp against its formula in plain floats, and how learning rates fall."""

import copy
import io
import math

import pytest
import torch

from ntm.training.optimizers import DECAYS, GravesRMSprop

SETTINGS = {"lr": 0.01, "alpha": 0.95, "momentum": 0.9, "eps": 1e-4}


def plain(values, gradients, lr, alpha, momentum, eps):
    """n=.95n+.05g²; m=.95m+.05g; d=.9d−lr·g/√(n−m²+1e-4), one element at a time."""
    moved = []
    for i, value in enumerate(values):
        n = m = d = 0.0
        for gradient in gradients:
            g = gradient[i]
            n = alpha * n + (1 - alpha) * g * g
            m = alpha * m + (1 - alpha) * g
            d = momentum * d - lr * g / math.sqrt(n - m * m + eps)
            value += d
        moved.append(value)
    return moved


def run(values, gradients, **settings) -> list[float]:
    parameter = torch.nn.Parameter(torch.tensor(values, dtype=torch.float64))
    optimizer = GravesRMSprop([parameter], **settings)
    for gradient in gradients:
        parameter.grad = torch.tensor(gradient, dtype=torch.float64)
        optimizer.step()
    return parameter.tolist()


VALUES = [1.0, -2.0, 0.5]
GRADIENTS = [[0.3, -1.0, 0.0], [0.4, 2.0, 0.0], [0.35, -0.5, 5.0], [0.3, 0.1, -5.0], [0.31, 1, 0]]


@pytest.mark.parametrize(
    "settings",
    [
        SETTINGS,
        SETTINGS | {"alpha": 0.5},
        SETTINGS | {"alpha": 0.0},
        SETTINGS | {"momentum": 0.0},
        SETTINGS | {"eps": 0.1},
        SETTINGS | {"lr": 0.0},
    ],
    ids=["graves", "alpha-half", "no-average", "no-momentum", "large-eps", "no-rate"],
)
def test_follows_the_formula(settings):
    assert run(VALUES, GRADIENTS, **settings) == pytest.approx(plain(VALUES, GRADIENTS, **settings))


def test_defaults_are_the_published_ones():
    published = {"lr": 1e-4, "alpha": 0.95, "momentum": 0.9, "eps": 1e-4}
    assert run(VALUES, GRADIENTS) == pytest.approx(plain(VALUES, GRADIENTS, **published))


def test_the_square_of_the_mean_is_subtracted():
    """By hand, one step at g = 1: n = m = 0.05, so √(0.05 − 0.0025 + ε); with a plus it differs."""
    moved = run([0.0], [[1.0]], lr=1.0, alpha=0.95, momentum=0.0, eps=1e-4)
    assert moved == pytest.approx([-1 / math.sqrt(0.0476)])
    assert moved != pytest.approx([-1 / math.sqrt(0.0526)], rel=1e-2)


@pytest.mark.parametrize("gradient", [0.1, 1.0, 10.0, 300.0])
def test_a_steady_gradient_never_makes_a_number_that_is_none(gradient):
    """There n and m² are nearly equal: what rounding leaves under the root may not be negative."""
    parameter = torch.nn.Parameter(torch.zeros(64))
    optimizer = GravesRMSprop([parameter], lr=1e-4)
    spread = torch.linspace(0.9, 1.0, 64)
    for _ in range(400):
        parameter.grad = gradient * spread
        optimizer.step()
    assert torch.isfinite(parameter).all()


def test_goes_on_exactly_from_its_state():
    straight = run(VALUES, GRADIENTS, **SETTINGS)
    parameter = torch.nn.Parameter(torch.tensor(VALUES, dtype=torch.float64))
    optimizer = GravesRMSprop([parameter], **SETTINGS)
    for gradient in GRADIENTS[:2]:
        parameter.grad = torch.tensor(gradient, dtype=torch.float64)
        optimizer.step()
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    again = torch.nn.Parameter(parameter.detach().clone())
    # The state brings its settings along.
    other = GravesRMSprop([again], lr=1.0, alpha=0.1, momentum=0.1, eps=1.0)
    other.load_state_dict(torch.load(file, weights_only=True))
    for gradient in GRADIENTS[2:]:
        again.grad = torch.tensor(gradient, dtype=torch.float64)
        other.step()
    assert again.tolist() == straight


def test_groups_have_their_own_settings_and_no_gradient_means_no_move():
    first, second, still = (torch.nn.Parameter(torch.ones(1)) for _ in range(3))
    optimizer = GravesRMSprop([{"params": [first, still]}, {"params": [second], "lr": 0.0}], lr=0.1)
    first.grad, second.grad = torch.ones(1), torch.ones(1)
    optimizer.step()
    assert first.item() < 1
    assert second.item() == still.item() == 1
    assert still not in optimizer.state


def test_closure_is_called_with_gradients_and_its_loss_returned():
    parameter = torch.nn.Parameter(torch.tensor([2.0]))
    optimizer = GravesRMSprop([parameter], lr=0.1)

    def closure():
        optimizer.zero_grad()
        loss = (parameter**2).sum()
        loss.backward()
        return loss

    assert optimizer.step(closure).item() == 4
    assert parameter.item() < 2


def test_gradients_are_left_as_they_are():
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = GravesRMSprop([parameter], lr=0.1)
    gradient = torch.tensor([1.0, -2.0, 3.0])
    parameter.grad = copy.deepcopy(gradient)
    optimizer.step()
    assert torch.equal(parameter.grad, gradient)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lr", -1e-9),
        ("alpha", -0.1),
        ("alpha", 1.0),
        ("momentum", -0.1),
        ("momentum", 1.0),
        ("eps", 0.0),
        ("eps", -1.0),
    ],
)
def test_refuses_by_name(name, value):
    with pytest.raises(ValueError, match=rf"^{name} must .*got"):
        GravesRMSprop([torch.nn.Parameter(torch.zeros(1))], **{name: value})


@pytest.mark.parametrize(
    ("name", "factors"),
    [("none", (1, 1, 1)), ("linear", (1, 0.5, 0)), ("cosine", (1, 0.5, 0))],
)
def test_decays(name, factors):
    assert [DECAYS[name](progress) for progress in (0.0, 0.5, 1.0)] == pytest.approx(factors)


def test_cosine_falls_slowly_at_both_ends():
    assert DECAYS["cosine"](0.25) == pytest.approx((1 + math.sqrt(0.5)) / 2)
    assert DECAYS["cosine"](0.75) == pytest.approx((1 - math.sqrt(0.5)) / 2)
    assert DECAYS["linear"](0.25) == pytest.approx(0.75)
