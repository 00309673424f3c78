"""Which row goes with which column, at least cost, on numpy arrays, without torch or scipy.

A pair whose cost is infinite or NaN may not be made. As many pairs as possible are made, and among
all such choices one of least total cost. One row after the other is added along the cheapest
augmenting path, found with dual prices u and v that keep every reduced cost c - u - v at zero or
above (Jonker and Volgenant, Computing 1987, in the form of Crouse, IEEE TAES 2016).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .threads import compiled_in_order


def assign(cost: NDArray[np.float64]) -> NDArray[np.int64]:
    """Assign rows to columns.

    Args:
        cost: (R, C), any sizes; not finite where a pair may not be made.

    Returns:
        (R,) the column of each row, -1 for none.
    """
    return assign_dense(np.ascontiguousarray(cost, np.float64))


@compiled_in_order
def assign_dense(cost):
    """:func:`assign` for compiled callers: a contiguous float64 (R, C)."""
    rows, columns = cost.shape
    column_of = np.full(rows, -1, np.int64)
    if rows <= columns:
        dense = _forbid_by_price(cost)
        _assign_rows(dense, column_of)
    else:
        dense = _forbid_by_price(np.ascontiguousarray(cost.T))
        row_of = np.full(columns, -1, np.int64)
        _assign_rows(dense, row_of)
        for column in range(columns):
            column_of[row_of[column]] = column
    for row in range(rows):
        if column_of[row] >= 0 and not np.isfinite(cost[row, column_of[row]]):
            column_of[row] = -1
    return column_of


@compiled_in_order
def _forbid_by_price(cost):
    """A copy in which a forbidden pair costs more than any set of allowed pairs may save."""
    largest = 0.0
    for value in cost.flat:
        if np.isfinite(value):
            largest = max(largest, abs(value))
    price = 2.0 * min(cost.shape) * (largest + 1.0) + 1.0
    dense = cost.copy()
    for i in range(cost.shape[0]):
        for j in range(cost.shape[1]):
            if not np.isfinite(cost[i, j]):
                dense[i, j] = price
    return dense


@compiled_in_order
def _assign_rows(cost, column_of):
    """Give every row of a finite (R, C), R <= C, a column."""
    rows, columns = cost.shape
    u, v = np.zeros(rows), np.zeros(columns)
    row_of, before = np.full(columns, -1, np.int64), np.empty(columns, np.int64)
    distance, waiting = np.empty(columns), np.empty(columns, np.int64)
    row_seen, column_seen = np.empty(rows, np.bool_), np.empty(columns, np.bool_)
    for start in range(rows):
        row_seen[:], column_seen[:], distance[:] = False, False, np.inf
        # Taken from the end: with equal costs, the columns in front are preferred.
        for k in range(columns):
            waiting[k] = columns - 1 - k
        left, row, least, end = columns, start, 0.0, -1
        while end < 0:
            row_seen[row] = True
            best, lowest = -1, np.inf
            for k in range(left):
                column = waiting[k]
                through = least + cost[row, column] - u[row] - v[column]
                if through < distance[column]:
                    distance[column], before[column] = through, row
                near = distance[column]
                if near < lowest or (near == lowest and row_of[column] < 0):
                    best, lowest = k, near
            least, column = lowest, waiting[best]
            column_seen[column] = True
            left -= 1
            waiting[best] = waiting[left]
            if row_of[column] < 0:
                end = column
            else:
                row = row_of[column]
        for i in range(rows):
            if row_seen[i]:
                u[i] += least if i == start else least - distance[column_of[i]]
        for j in range(columns):
            if column_seen[j]:
                v[j] -= least - distance[j]
        column = end
        while True:  # every row on the path moves one column on
            row = before[column]
            row_of[column] = row
            column, column_of[row] = column_of[row], column
            if row == start:
                break
