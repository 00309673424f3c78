"""Sparse convolution on the CPU, on numpy arrays, without torch.

Outputs are taken in blocks. For every kernel offset the pairs of input and output that exist are
listed, and multiplied where they lie by the register tiles of ``numba_tiles.py``: no zero is
multiplied, no row is gathered or scattered. A block's sums stay in the cache until they are done.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .numba_tiles import MIDDLE, NARROW, WIDE, outer_tile, product_tile
from .threads import compiled, in_parallel

Array = NDArray

BLOCK = 256  # outputs; at 128 channels their sums take 128 KB
# Sums of the weight gradient that are added up last. A fixed number: the result shall not depend
# on the number of threads.
NUM_PARTS = 8
OUTER_ROWS = 4  # input channels of a tile of the weight gradient

_WIDE, _WIDE_ROWS = WIDE
_MIDDLE, _MIDDLE_ROWS = MIDDLE
_NARROW, _NARROW_ROWS = NARROW
_wide, _wide_one = product_tile(_WIDE_ROWS, _WIDE), product_tile(1, _WIDE)
_middle, _middle_one = product_tile(_MIDDLE_ROWS, _MIDDLE), product_tile(1, _MIDDLE)
_narrow, _narrow_one = product_tile(_NARROW_ROWS, _NARROW), product_tile(1, _NARROW)
_single = product_tile(1, 1)
_outer_wide, _outer_wide_one = outer_tile(OUTER_ROWS, _WIDE), outer_tile(1, _WIDE)
_outer_middle, _outer_middle_one = outer_tile(OUTER_ROWS, _MIDDLE), outer_tile(1, _MIDDLE)
_outer_narrow, _outer_narrow_one = outer_tile(OUTER_ROWS, _NARROW), outer_tile(1, _NARROW)
_outer_single = outer_tile(1, 1)


def convolve(
    features: Array,
    weight: Array,
    rows: Array,
    bias: Array | None = None,
    residual: Array | None = None,
    relu: bool = False,
    num_threads: int | None = None,
) -> Array:
    """Sum over the kernel, then bias, residual and ReLU.

    Args:
        features: (V, C_in) float32 or float64; all of it C-contiguous and of the same dtype.
        weight: (K, C_in, C_out).
        rows: (U, K) int32 input row under each offset, below V; -1 where there is none.
        bias: (C_out,) or None.
        residual: (U, C_out) or None.
        relu: cut off what is below zero.
        num_threads: threads to use, by default all cores of this process.

    Returns:
        (U, C_out).
    """
    _check(features, weight, rows, residual)
    out = np.empty((len(rows), weight.shape[2]), features.dtype)
    if bias is None:
        bias = np.zeros(0, features.dtype)
    if residual is None:
        residual = np.zeros((len(rows), 0), features.dtype)
    strips = np.empty_like(weight)
    _cut_into_strips(weight, strips.reshape(-1))
    args = features.dtype.type(0), features, strips, rows, bias, residual, relu, out
    in_parallel(lambda a, b: _convolve(*args, a, b), len(rows), num_threads, smallest=BLOCK)
    return out


def weight_gradient(
    grad: Array, features: Array, rows: Array, num_threads: int | None = None
) -> Array:
    """(K, C_in, C_out): sum over the outputs u of features[rows[u, k]] times grad[u].

    Args:
        grad: (U, C_out), C-contiguous, of the dtype of ``features``.
        features, rows: as in :func:`convolve`.
        num_threads: threads to use, by default all cores of this process.
    """
    _check(features, grad, rows)
    num_parts = min(NUM_PARTS, -(-len(rows) // BLOCK))
    shape = num_parts, rows.shape[1], features.shape[1], grad.shape[1]
    parts = np.zeros(shape, features.dtype)
    args = features.dtype.type(0), features, grad, rows, parts
    in_parallel(lambda a, b: _weight_gradient(*args, a, b), num_parts, num_threads)
    return parts.sum(0)


def _check(features: Array, other: Array, rows: Array, residual: Array | None = None) -> None:
    # The tiles work on addresses.
    for array in (features, other, rows, *(() if residual is None else (residual,))):
        assert array.flags.c_contiguous
    assert features.dtype == other.dtype
    assert features.dtype in (np.float32, np.float64)
    assert rows.dtype == np.int32


@compiled
def _strip_width(columns):
    """Columns of the next tile, where so many are left."""
    if columns >= _WIDE:
        return _WIDE
    if columns >= _MIDDLE:
        return _MIDDLE
    return _NARROW if columns >= _NARROW else 1


@compiled
def _cut_into_strips(weight, strips):
    # The rows of a strip lie one after the other: at a distance of 512 bytes they would fall into
    # half of the first cache's sets and push each other out.
    num_offsets, channels, columns = weight.shape
    place = 0
    for k in range(num_offsets):
        column = 0
        while column < columns:
            width = _strip_width(columns - column)
            for c in range(channels):
                for j in range(width):
                    strips[place] = weight[k, c, column + j]
                    place += 1
            column += width


@compiled
def _list_pairs(rows, low, high, sources, targets, counts):
    counts[:] = 0
    for u in range(low, high):
        for k in range(rows.shape[1]):
            v = rows[u, k]
            if v >= 0:
                sources[k, counts[k]] = v
                targets[k, counts[k]] = u
                counts[k] += 1


@compiled
def _convolve(zero, features, strips, rows, bias, residual, relu, out, low, high):
    num_offsets, channels, columns = strips.shape
    sources = np.empty((num_offsets, BLOCK), np.int64)
    targets = np.empty((num_offsets, BLOCK), np.int64)
    counts = np.empty(num_offsets, np.int64)
    for start in range(low, high, BLOCK):
        stop = min(start + BLOCK, high)
        out[start:stop] = 0
        _list_pairs(rows, start, stop, sources, targets, counts)
        for k in range(num_offsets):
            _product(
                zero, features, strips[k], out, sources[k].ctypes.data, targets[k].ctypes.data,
                counts[k], channels, columns,
            )  # fmt: skip
        _finish(out, bias, residual, relu, start, stop)


@compiled
def _product(zero, features, strips, out, sources, targets, count, channels, columns):
    """``out[targets[i]] += features[sources[i]] @ weight`` in strips of columns."""
    a, size, column = features.ctypes.data, features.itemsize, 0
    while column < columns:
        w, o = strips.ctypes.data + column * channels * size, out.ctypes.data + column * size
        width, i = _strip_width(columns - column), 0
        if width == _WIDE:
            while i + _WIDE_ROWS <= count:
                _wide(zero, a, w, o, sources, targets, i, channels, columns)
                i += _WIDE_ROWS
            while i < count:
                _wide_one(zero, a, w, o, sources, targets, i, channels, columns)
                i += 1
        elif width == _MIDDLE:
            while i + _MIDDLE_ROWS <= count:
                _middle(zero, a, w, o, sources, targets, i, channels, columns)
                i += _MIDDLE_ROWS
            while i < count:
                _middle_one(zero, a, w, o, sources, targets, i, channels, columns)
                i += 1
        elif width == _NARROW:
            while i + _NARROW_ROWS <= count:
                _narrow(zero, a, w, o, sources, targets, i, channels, columns)
                i += _NARROW_ROWS
            while i < count:
                _narrow_one(zero, a, w, o, sources, targets, i, channels, columns)
                i += 1
        else:
            for p in range(count):
                _single(zero, a, w, o, sources, targets, p, channels, columns)
        column += width


@compiled
def _finish(out, bias, residual, relu, low, high):
    for u in range(low, high):
        for c in range(len(bias)):
            out[u, c] += bias[c]
        for c in range(residual.shape[1]):
            out[u, c] += residual[u, c]
        if relu:
            for c in range(out.shape[1]):
                value = out[u, c]
                out[u, c] = 0 if value < 0 else value  # NaN stays


@compiled
def _weight_gradient(zero, features, grad, rows, parts, low, high):
    num_parts, num_offsets, channels, columns = parts.shape
    sources = np.empty((num_offsets, BLOCK), np.int64)
    targets = np.empty((num_offsets, BLOCK), np.int64)
    counts = np.empty(num_offsets, np.int64)
    for p in range(low, high):
        first, last = len(rows) * p // num_parts, len(rows) * (p + 1) // num_parts
        for start in range(first, last, BLOCK):
            _list_pairs(rows, start, min(start + BLOCK, last), sources, targets, counts)
            for k in range(num_offsets):
                if counts[k]:
                    _outer(
                        zero, features, grad, parts[p, k], sources[k].ctypes.data,
                        targets[k].ctypes.data, counts[k], channels, columns,
                    )  # fmt: skip


@compiled
def _outer(zero, features, grad, out, sources, targets, count, channels, columns):
    """``out += features[sources].T @ grad[targets]`` in strips of columns."""
    size, column = features.itemsize, 0
    while column < columns:
        width, c = _strip_width(columns - column), 0
        g = grad.ctypes.data + column * size
        while c < channels:
            a, o = features.ctypes.data + c * size, out.ctypes.data + (c * columns + column) * size
            many = c + OUTER_ROWS <= channels and width > 1
            if many and width == _WIDE:
                _outer_wide(zero, a, g, o, sources, targets, count, channels, columns)
            elif many and width == _MIDDLE:
                _outer_middle(zero, a, g, o, sources, targets, count, channels, columns)
            elif many:
                _outer_narrow(zero, a, g, o, sources, targets, count, channels, columns)
            elif width == _WIDE:
                _outer_wide_one(zero, a, g, o, sources, targets, count, channels, columns)
            elif width == _MIDDLE:
                _outer_middle_one(zero, a, g, o, sources, targets, count, channels, columns)
            elif width == _NARROW:
                _outer_narrow_one(zero, a, g, o, sources, targets, count, channels, columns)
            else:
                _outer_single(zero, a, g, o, sources, targets, count, channels, columns)
            c += OUTER_ROWS if many else 1
        column += width
