"""Sums and maxima over segments of rows, as gathers of fixed width: what standard ONNX can do well.

Segments of similar length share a bucket: a table [segment, w] of row numbers, filled up with
``filler``, which one Gather and one reduction turn into results. Widths are powers of two, so
that at most half of a table is filler; one table more, of any width, takes the longest segments.
Nothing is added twice to one place, so that the result is the same on every run.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .threads import compiled

Array = NDArray

WIDTHS = tuple(2**i for i in range(11))  # then one bucket for what is longer


class Segments(NamedTuple):
    """S segments in buckets. Results are the buckets' one after another; ``place`` finds them."""

    buckets: tuple[Array, ...]  # (m, w) int32 row numbers; the first row of each is filler alone
    place: Array  # (S,) int32 where a segment's result is; 0, a row of filler, if it is empty


def bucket_segments(first: Array, rows: Array, filler: int | None) -> Segments:
    """Sort segments into buckets.

    Args:
        first: (S + 1,) int, segment s has the rows first[s] to first[s + 1].
        rows: (T,) int row numbers.
        filler: number of a row that changes no result (of zeros, for a sum); None repeats the
            first row of a segment, which changes no maximum.
    """
    count = np.diff(first)
    widths = np.array([*WIDTHS, max(int(count.max(initial=0)), 2 * WIDTHS[-1])], np.int64)
    bucket = np.searchsorted(widths, count)
    # Row 0 of every bucket is filler, so that none is empty.
    size = np.bincount(bucket[count > 0], minlength=len(widths)) + 1
    blank = 0 if filler is None else filler
    flat = np.full(int((size * widths).sum()), blank, np.int32)
    place = np.empty(len(count), np.int32)
    _fill(first, rows, bucket, widths, size, filler is None, flat, place)
    bounds = np.concatenate([[0], np.cumsum(size * widths)])
    parts = [flat[a:b].reshape(-1, w) for a, b, w in zip(bounds[:-1], bounds[1:], widths)]
    return Segments(tuple(parts), place)


@compiled
def _fill(first, rows, bucket, widths, size, repeat, flat, place):
    used = np.ones(len(widths), np.int64)
    start, offset = np.zeros(len(widths), np.int64), np.zeros(len(widths), np.int64)
    for b in range(1, len(widths)):
        start[b] = start[b - 1] + size[b - 1] * widths[b - 1]
        offset[b] = offset[b - 1] + size[b - 1]
    for s in range(len(place)):
        low, high = first[s], first[s + 1]
        if low == high:
            place[s] = 0
            continue
        b = bucket[s]
        place[s] = offset[b] + used[b]
        out = start[b] + used[b] * widths[b]
        used[b] += 1
        for i in range(high - low):
            flat[out + i] = rows[low + i]
        if repeat:
            for i in range(high - low, widths[b]):
                flat[out + i] = rows[low]


def group_rows(segment: Array, num_segments: int) -> tuple[Array, Array]:
    """``first`` and ``rows`` of :func:`bucket_segments` from the segment of every row, -1 for none.

    Rows of a segment stay in order.
    """
    first = np.zeros(num_segments + 1, np.int64)
    rows = np.empty(len(segment), np.int32)
    return first, rows[: _sort(segment, first, rows)]


@compiled
def _sort(segment, first, rows):
    for s in segment:
        if s >= 0:
            first[s + 1] += 1
    for s in range(len(first) - 1):
        first[s + 1] += first[s]
    place = first[:-1].copy()
    for p in range(len(segment)):
        if segment[p] >= 0:
            rows[place[segment[p]]] = p
            place[segment[p]] += 1
    return first[-1]


class ColumnRuns(NamedTuple):
    """A pooling plan for matrix products: the runs of every image column, then sums per cell.

    With R the most runs of a column, plus one that stays empty: weights [column, run, row] times
    features [column, row, channel] gives the runs' sums, of which a cell adds some.
    """

    bins: Array  # (N * W, R) int32 (n * W + w) * D + d, the line of image rows a run lies in
    mask: Array  # (N * W, R, H) float32, 1 for the rows of the run
    cells: Segments  # over the N * W * R sums, one segment per cell


def column_runs(cell: Array, num_cells: int, num_threads: int | None = None) -> ColumnRuns:
    """Make the plan from (N, D, H, W) cells of frustum points, -1 outside the grid."""
    from .numba_bev_pool import find_runs

    runs = find_runs(cell, num_cells, num_threads)
    N, D, H, W = cell.shape
    most = int(np.diff(runs.column_first).max(initial=0)) + 1
    bins = np.zeros((N * W, most), np.int32)
    mask = np.zeros((N * W, most, H), np.float32)
    rows = np.empty(len(runs.by_cell), np.int32)
    _fill_columns(runs.column_first, runs.by_column, D, W, bins, mask, rows)
    return ColumnRuns(bins, mask, bucket_segments(runs.cell_first, rows, filler=most - 1))


@compiled
def _fill_columns(column_first, by_column, D, W, bins, mask, rows):
    most, H = mask.shape[1:]
    for column in range(len(column_first) - 1):
        for run in range(column_first[column], column_first[column + 1]):
            i = run - column_first[column]
            point = by_column[run, 0]  # ((n * D + d) * H + h) * W + w
            top = point // W % H
            bins[column, i] = column * D + point // (W * H) % D
            mask[column, i, top : top + by_column[run, 1]] = 1
            rows[by_column[run, 3]] = column * most + i
