"""Assignment beside scipy's solver."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bevstack.kernels.numba_assignment import assign


def pairs_and_total(cost: np.ndarray, column_of: np.ndarray) -> tuple[int, float]:
    rows = np.flatnonzero(column_of >= 0)
    assert len(set(column_of[rows].tolist())) == len(rows)  # no column twice
    return len(rows), float(cost[rows, column_of[rows]].sum())


def by_scipy(cost: np.ndarray) -> tuple[int, float]:
    optimize = pytest.importorskip("scipy.optimize")
    finite = np.isfinite(cost)
    most = np.abs(cost[finite]).max() if finite.any() else 0.0
    filled = np.where(finite, cost, 1e4 * (most + 1))
    rows, columns = optimize.linear_sum_assignment(filled)
    made = finite[rows, columns]
    return int(made.sum()), float(cost[rows[made], columns[made]].sum())


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(0, 9), st.integers(0, 9), st.floats(0, 1))
def test_as_many_pairs_at_as_low_a_cost_as_scipy(seed, rows, columns, forbidden):
    rng = np.random.default_rng(seed)
    cost = rng.normal(size=(rows, columns))
    if seed % 3 == 0:
        cost = cost.round()  # ties
    cost[rng.random(cost.shape) < forbidden] = np.inf if seed % 2 else np.nan
    before = cost.copy()
    ours = pairs_and_total(cost, assign(cost))
    np.testing.assert_array_equal(cost, before)
    assert ours == pytest.approx(by_scipy(cost))


def test_a_pair_more_is_worth_any_cost():
    assert assign(np.array([[0.0, 9.0], [1.0, np.inf]])).tolist() == [1, 0]


def test_nothing_allowed_and_nothing_there():
    assert assign(np.full((2, 3), np.inf)).tolist() == [-1, -1]
    assert assign(np.zeros((0, 4))).tolist() == []
    assert assign(np.zeros((2, 0))).tolist() == [-1, -1]
