"""The exponential of float32 numbers as vector code."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .threads import compiled_in_order

_LOG2_E = np.float32(1.4426950408889634)
# ln 2 in two parts: whole multiples of the first, up to 128, are exact.
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440e-4)
# Beyond these the result would not be a normal number.
_LEAST, _MOST = np.float32(-87.3), np.float32(88.0)


@compiled_in_order
def exp32(x):
    """exp(x) of a float32, to 2e-7 of its value; of what is out of range that of the range's end.

    ``numpy.exp`` in a compiled loop is one call per number. Loops that call this function become
    vector code, those that call a function that calls it do not.
    """
    x = min(max(x, _LEAST), _MOST)
    n = np.floor(x * _LOG2_E + np.float32(0.5))
    r = (x - n * _LN2_HIGH) - n * _LN2_LOW
    # Taylor's series: |r| <= ln(2) / 2.
    s = np.float32(1 / 720) + r * np.float32(1 / 5040)
    s = np.float32(1 / 24) + r * (np.float32(1 / 120) + r * s)
    s = np.float32(0.5) + r * (np.float32(1 / 6) + r * s)
    s = np.float32(1) + r * (np.float32(1) + r * s)
    return s * np.int32((np.int32(n) + np.int32(127)) << np.int32(23)).view(np.float32)


def sigmoid(x: NDArray) -> NDArray[np.float32]:
    """1 / (1 + exp(-x)) of a float array, in float32."""
    x = np.ascontiguousarray(x, np.float32)
    result = np.empty(x.size, np.float32)
    _sigmoid(x.reshape(-1), result)
    return result.reshape(x.shape)


@compiled_in_order
def _sigmoid(x, result):
    for i in range(len(x)):
        result[i] = np.float32(1) / (np.float32(1) + exp32(-x[i]))
