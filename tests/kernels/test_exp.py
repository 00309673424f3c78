"""The exponential in vector code against numpy's in float64."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bevstack.kernels.numba_exp import exp32, sigmoid


@given(st.floats(-87.0, 88.0, width=32))
def test_exp_is_right_to_the_last_bits(x):
    assert abs(exp32(np.float32(x)) / np.exp(float(np.float32(x))) - 1) < 2e-7


def test_sigmoid_of_all_sizes_and_of_what_is_no_number():
    x = np.concatenate([np.linspace(-200, 200, 40_001), [np.inf, -np.inf, np.nan]])
    x = x.astype(np.float32).reshape(4, -1)
    with np.errstate(over="ignore"):
        expected = 1 / (1 + np.exp(-x.astype(np.float64)))
    found = sigmoid(x)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, rtol=3e-7, atol=1e-37)
    # Not every value takes the vector code: columns of a slice do not lie side by side.
    np.testing.assert_array_equal(sigmoid(x[:, ::3]), found[:, ::3])
