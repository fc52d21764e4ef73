"""exp, log, sigmoid, softplus and tanh that vectorise, for compiled functions.

The C library's are called one element at a time. In single precision these are polynomials (after
Cephes, S. Moshier) with an error of a few units in the last place, for softplus of the larger of
one and itself; in double precision they are the C library's. NaN stays NaN.
"""

from __future__ import annotations

import math
from types import FunctionType
from typing import Any

import numpy as np
from numba import types
from numba.extending import overload

f = np.float32
i = np.int32

LOG2E, LN2_HIGH, LN2_LOW = f(1.44269504), f(0.693359375), f(-2.12194440e-4)
E0, E1, E2 = f(1.9875691500e-4), f(1.3981999507e-3), f(8.3334519073e-3)
E3, E4, E5 = f(4.1665795894e-2), f(1.6666665459e-1), f(5.0000001201e-1)
L0, L1, L2 = f(7.0376836292e-2), f(-1.1514610310e-1), f(1.1676998740e-1)
L3, L4, L5 = f(-1.2420140846e-1), f(1.4249322787e-1), f(-1.6668057665e-1)
L6, L7, L8 = f(2.0000714765e-1), f(-2.4999993993e-1), f(3.3333331174e-1)
T0, T1, T2 = f(-5.70498872745e-3), f(2.06390887954e-2), f(-5.37397155531e-2)
T3, T4, T_NEAR = f(1.33314422036e-1), f(-3.33332819422e-1), f(0.625)
ROOT_HALF = f(0.707106781)
ZERO, HALF, ONE, TWO, INFINITY = f(0), f(0.5), f(1), f(2), f(np.inf)
LOWEST, HIGHEST = f(-87.3), f(88.0)


def _exp_single(x: Any) -> Any:
    held = LOWEST if x < LOWEST else (HIGHEST if x > HIGHEST else x)
    n = np.floor(held * LOG2E + HALF)
    r = held - n * LN2_HIGH - n * LN2_LOW
    tail = ((((E0 * r + E1) * r + E2) * r + E3) * r + E4) * r + E5
    power = (i(n) + i(127)) << i(23)
    return (tail * r * r + r + ONE) * i(power).view(np.float32)


def _log_single(x: Any) -> Any:
    bits = f(x).view(np.int32)
    exponent = f(i(bits >> i(23)) - i(126))
    mantissa = i((bits & i(0x007FFFFF)) | i(0x3F000000)).view(np.float32)
    low = mantissa < ROOT_HALF
    exponent = exponent - ONE if low else exponent
    m = mantissa + mantissa - ONE if low else mantissa - ONE
    tail = (((((((L0 * m + L1) * m + L2) * m + L3) * m + L4) * m + L5) * m + L6) * m + L7) * m + L8
    square = m * m
    y = tail * m * square + exponent * LN2_LOW - HALF * square
    # The bits of NaN make a number; x - x would not bring it back, being 0 to the compiler.
    return m + y + exponent * LN2_HIGH if x < INFINITY else x


def _tanh_single(x: Any) -> Any:
    square = x * x
    near = (((T0 * square + T1) * square + T2) * square + T3) * square + T4
    far = ONE - TWO / (exp(TWO * x) + ONE)
    return near * square * x + x if abs(x) < T_NEAR else far


def exp(x: Any) -> Any:
    """E to the x; in single precision x is held within what a float32 can hold."""
    return math.exp(x)


def log(x: Any) -> Any:
    """Natural logarithm of a positive normal number."""
    return math.log(x)


def sigmoid(x: Any) -> Any:
    """1 / (1 + e^−x)."""
    return 1.0 / (1.0 + math.exp(-x))


def softplus(x: Any) -> Any:
    """log(1 + e^x)."""
    return (0.0 if x < 0 else x) + math.log1p(math.exp(-abs(x)))


def tanh(x: Any) -> Any:
    """Hyperbolic tangent."""
    return math.tanh(x)


def ordered(x: Any) -> Any:
    """An integer that is the larger, the larger x is.

    A search for the largest of numbers goes one by one, for the sake of NaN; of integers it goes
    many at a time. NaN comes out beyond infinity, on the side of its sign.
    """
    bits = np.float64(x).view(np.int64)
    return bits ^ ((bits >> 63) & 0x7FFFFFFFFFFFFFFF)


def _ordered_single(x: Any) -> Any:
    bits = f(x).view(np.int32)
    return i(bits ^ i(i(bits >> i(31)) & i(0x7FFFFFFF)))


def in_order(x: Any) -> Any:
    """The number that an integer of `ordered` stands for."""
    return np.int64(x ^ ((x >> 63) & 0x7FFFFFFFFFFFFFFF)).view(np.float64)


def _in_order_single(x: Any) -> Any:
    return i(x ^ i(i(x >> i(31)) & i(0x7FFFFFFF))).view(np.float32)


def _bare(function: FunctionType) -> FunctionType:
    """The function without its annotations, which Numba would have agree with its own."""
    return FunctionType(function.__code__, function.__globals__)


def _in_single(function: Any, single: Any) -> None:
    """Let compiled functions take ``single`` for single precision, else the function itself."""
    single_precision = (types.float32, types.int32)
    chosen = _bare(single), _bare(function)
    implement = overload(function, jit_options={"forceinline": True})
    implement(lambda x: chosen[0] if x in single_precision else chosen[1])


_in_single(exp, _exp_single)
_in_single(log, _log_single)
_in_single(sigmoid, lambda x: ONE / (ONE + exp(-x)))
_in_single(softplus, lambda x: (ZERO if x < ZERO else x) + log(ONE + exp(-abs(x))))
_in_single(tanh, _tanh_single)
_in_single(ordered, _ordered_single)
_in_single(in_order, _in_order_single)
