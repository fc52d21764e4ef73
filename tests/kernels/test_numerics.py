"""The functions the kernels are made of, against arithmetic of 40 digits."""

from __future__ import annotations

import functools
from collections.abc import Callable

import mpmath
import numba
import numpy as np
import pytest

from ntm.kernels import numerics
from ntm.kernels.cpu import SAFE

SINGLE, DOUBLE = np.float32, np.float64
PRECISIONS = pytest.mark.parametrize("dtype", [SINGLE, DOUBLE], ids=["float32", "float64"])
TRUTH: dict[str, Callable] = {
    "exp": mpmath.exp,
    "log": mpmath.log,
    "sigmoid": lambda x: 1 / (1 + mpmath.exp(-x)),
    "softplus": lambda x: mpmath.log1p(mpmath.exp(x)),
    "tanh": mpmath.tanh,
}
NAMES = pytest.mark.parametrize("name", TRUTH)


@functools.cache
def loop_of(name: str) -> Callable[[np.ndarray, np.ndarray], None]:
    """A function over an array, compiled as the kernels are."""
    function = getattr(numerics, name)

    @numba.njit(fastmath=SAFE, error_model="numpy")
    def run(values, out):
        for j in range(values.size):
            out[j] = function(values[j])

    return run


def of(name: str, values: np.ndarray, result: type | None = None) -> np.ndarray:
    """A function of every value."""
    out = np.empty(values.shape, result or values.dtype)
    loop_of(name)(values, out)
    return out


def spread(low: float, high: float, dtype: type) -> np.ndarray:
    """Numbers over a range: even, crowded about 0, and of either sign where it has both."""
    even = np.linspace(low, high, 1001)
    small = np.geomspace(1e-30, max(-low, high), 500)
    both = np.concatenate([even, small, -small])
    return both[(both >= low) & (both <= high)].astype(dtype)


def errors(name: str, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Absolute, and in units in the last place of the truth."""
    with mpmath.workdps(40):
        truth = [TRUTH[name](mpmath.mpf(float(x))) for x in values]
        got = [mpmath.mpf(float(y)) for y in of(name, values)]
        absolute = [float(abs(y - t)) for y, t in zip(got, truth, strict=True)]
        unit = [np.spacing(values.dtype.type(abs(float(t)))) for t in truth]
    return np.array(absolute), np.array(absolute) / np.array(unit, np.float64)


@pytest.mark.parametrize(
    ("name", "low", "high", "dtype", "units"),
    [
        # Beyond these the result is no normal float32, or would not fit.
        ("exp", -87.0, 87.9, SINGLE, 4.5),
        ("log", 1.2e-38, 3.4e38, SINGLE, 1.5),
        ("sigmoid", -87.0, 1e4, SINGLE, 3.5),
        ("tanh", -1e4, 1e4, SINGLE, 3.5),
        ("exp", -708.0, 709.0, DOUBLE, 1.0),
        ("log", 2.3e-308, 1.7e308, DOUBLE, 1.0),
        ("sigmoid", -708.0, 1e4, DOUBLE, 2.5),
        ("softplus", -708.0, 1e4, DOUBLE, 2.0),
        ("tanh", -1e4, 1e4, DOUBLE, 2.0),
    ],
)
def test_error_in_units_in_the_last_place(name, low, high, dtype, units):
    if name == "log":
        values = np.geomspace(low, high, 3000).astype(dtype)
        values = np.concatenate([values, np.linspace(0.4, 2.5, 2001).astype(dtype)])
    else:
        values = spread(low, high, dtype)
    assert errors(name, values)[1].max() <= units


def test_softplus_in_single_precision_is_exact_to_a_unit_of_the_larger_of_one_and_itself():
    absolute, in_units = errors("softplus", spread(-87.0, 1e4, SINGLE))
    assert np.minimum(absolute / np.spacing(SINGLE(1)), in_units).max() <= 1.5


@NAMES
@PRECISIONS
def test_nan_stays_nan_of_either_sign(name, dtype):
    nan = np.copysign(np.full(40, np.nan, dtype), np.resize([1, -1], 40).astype(dtype))
    assert np.isnan(of(name, nan)).all()


@PRECISIONS
def test_infinity(dtype):
    ends = np.array([-np.inf, np.inf], dtype)
    tiny = 2e-38 if dtype == SINGLE else 0
    low, high = of("exp", ends)
    assert 0 <= low <= tiny
    assert high == np.inf if dtype == DOUBLE else high > 1e38
    low, high = of("sigmoid", ends)
    assert 0 <= low <= tiny
    assert high == 1
    assert of("tanh", ends).tolist() == [-1, 1]
    low, high = of("softplus", ends)
    assert 0 <= low <= tiny
    assert high == np.inf


@PRECISIONS
@pytest.mark.parametrize("name", ["exp", "sigmoid", "softplus", "tanh"])
def test_denormal_numbers_are_as_good_as_zero(name, dtype):
    smallest = np.finfo(dtype).smallest_subnormal
    values = np.array([0, smallest, -smallest, 3 * smallest], dtype)
    at_zero = {"exp": 1, "sigmoid": 0.5, "softplus": np.log(2), "tanh": 0}[name]
    assert np.abs(of(name, values) - at_zero).max() <= np.finfo(dtype).eps


def in_sequence(dtype: type) -> np.ndarray:
    """Numbers from least to largest, with every kind there is."""
    limits = np.finfo(dtype)
    above = [limits.smallest_subnormal, limits.tiny, 1e-5, 1, 1 + limits.eps, 88, limits.max]
    above = [*above, np.inf]
    return np.array([*(-x for x in reversed(above)), 0, *above], dtype)


@PRECISIONS
def test_integers_stand_in_the_order_of_the_numbers_and_give_them_back(dtype):
    whole = np.int32 if dtype == SINGLE else np.int64
    values = in_sequence(dtype)
    order = of("ordered", values, whole)
    assert (np.diff(order.astype(object)) > 0).all()
    back = of("in_order", order, dtype)
    assert back.tobytes() == values.tobytes()
    random = np.random.default_rng(0).integers(-(2**31), 2**31, 10_000).astype(np.int32)
    random = random.view(np.float32)
    values = random[~np.isnan(random)].astype(dtype)
    order = of("ordered", values, whole)
    assert (np.sort(values) == values[np.argsort(order)]).all()
    assert (of("in_order", order, dtype) == values).all()


@PRECISIONS
def test_nan_lies_beyond_infinity_on_the_side_of_its_sign(dtype):
    whole = np.int32 if dtype == SINGLE else np.int64
    below, low, high, above = of(
        "ordered", np.array([-np.nan, -np.inf, np.inf, np.nan], dtype), whole
    )
    assert below < low < high < above
    assert np.isnan(of("in_order", np.array([below, above], whole), dtype)).all()


@PRECISIONS
def test_negative_zero_is_no_larger_than_zero(dtype):
    whole = np.int32 if dtype == SINGLE else np.int64
    negative, zero = of("ordered", np.array([-0.0, 0.0], dtype), whole)
    assert negative <= zero
