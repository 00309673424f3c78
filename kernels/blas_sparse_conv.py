"""Sparse convolution on the CPU: gathered blocks of rows, multiplied by the BLAS.

Outputs are taken in groups that have the same neighbours (see ``numba_neighbors.group_rows``), a
plane of the kernel at a time, and offsets that no row of a block has are left out: on real clouds
a block holds little more than the pairs that exist. Threads take whole blocks, each with a BLAS
of one thread; threads within a product would wait for each other thousands of times.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .neighbors import GROUP_WIDTH
from .numba_sparse_conv import add_rows, finish_rows, gather_block, gather_rows
from .threads import in_parallel

# Bytes of a gathered block at most. Smaller ones hold fewer zeros, larger ones multiply faster;
# of 0.5, 2 and 8 MB, 2 was as good as any in all layers of BEVFusion's encoder.
BLOCK_BYTES = 2 << 20
# Sums of the weight gradient that are added up last. A fixed number: the result shall not depend
# on the number of threads.
NUM_PARTS = 8


@dataclass(frozen=True)
class _Block:
    order: NDArray  # (n,) output rows
    offsets: NDArray  # (M,) kernel offsets that occur among them


def convolve(
    features: Tensor,
    weight: Tensor,
    rows: Tensor,
    order: Tensor,
    mask: Tensor,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    relu: bool = False,
) -> Tensor:
    """Sum over the kernel, then bias, residual and ReLU.

    Args:
        features: (V, C_in) float32 or float64; all other floats are of the same dtype.
        weight: (K, C_in, C_out).
        rows: (U, K) int32.
        order: (S, U) int32, mask: (S, U) int32, from ``group_rows``.
        bias: (C_out,) or None.
        residual: (U, C_out) or None.
        relu: cut off what is below zero.

    Returns:
        (U, C_out).
    """
    source, table = features.numpy(), rows.numpy()
    # From numpy, not torch: a zeroed page of new memory costs nothing, nor do torch's own threads.
    target = np.zeros((len(rows), weight.shape[2]), source.dtype)
    for run in _blocks(rows, order, mask, features.shape[1] * features.element_size()):

        def multiply(low: int, high: int, run=run) -> None:
            gathered = _scratch(run[low:high], features)
            product = features.new_empty(len(gathered), weight.shape[2])
            for block in run[low:high]:
                column = _gather(block, source, table, gathered)
                part = product[: len(block.order)]
                torch.mm(column, _kernel(weight, block.offsets), out=part)
                add_rows(part.numpy(), block.order, target)

        _over_blocks(multiply, len(run))
    if bias is not None or residual is not None or relu:
        none = np.zeros((len(rows), 0), source.dtype)
        terms = (
            none[:0, 0] if bias is None else bias.numpy(),
            none if residual is None else residual.numpy(),
        )
        in_parallel(
            lambda a, b: finish_rows(target, *terms, relu, a, b),
            *(len(rows), torch.get_num_threads()),
            smallest=1024,
        )
    return torch.from_numpy(target)


def weight_gradient(
    grad: Tensor, features: Tensor, rows: Tensor, order: Tensor, mask: Tensor
) -> Tensor:
    """(K, C_in, C_out): sum over the outputs u of features[rows[u, k]] times grad[u].

    Args:
        grad: (U, C_out) of the dtype of ``features``, contiguous.
        features, rows, order, mask: as in :func:`convolve`.
    """
    shape = rows.shape[1], features.shape[1], grad.shape[1]
    source, table, upstream = features.numpy(), rows.numpy(), grad.numpy()
    total = features.new_zeros(shape)
    for run in _blocks(rows, order, mask, features.shape[1] * features.element_size()):
        parts = features.new_zeros(min(NUM_PARTS, len(run)), *shape)

        def multiply(low: int, high: int, run=run, parts=parts) -> None:
            for p in range(low, high):
                share = run[len(run) * p // len(parts) : len(run) * (p + 1) // len(parts)]
                gathered = _scratch(share, features)
                beside = features.new_empty(len(gathered), grad.shape[1])
                for block in share:
                    column = _gather(block, source, table, gathered)
                    own = beside[: len(block.order)]
                    gather_rows(upstream, block.order, own.numpy())
                    product = (column.T @ own).view(-1, *shape[1:])
                    parts[p].index_add_(0, torch.from_numpy(block.offsets), product)

        _over_blocks(multiply, len(parts))
        total += parts.sum(0)
    return total


def _blocks(rows: Tensor, order: Tensor, mask: Tensor, row_bytes: int) -> list[list[_Block]]:
    """For each run of offsets the blocks of outputs that have a neighbour in it."""
    num_outputs, width = len(rows), min(rows.shape[1], GROUP_WIDTH)
    if num_outputs == 0 or row_bytes == 0:
        return []
    size = max(BLOCK_BYTES // (width * row_bytes), 64)
    runs = []
    for s, (rows_in_order, masks) in enumerate(zip(order.numpy(), mask.numpy())):
        starts = np.arange(np.searchsorted(masks, 1), num_outputs, size)
        together = np.bitwise_or.reduceat(masks, starts) if len(starts) else starts
        occurs = (together[:, None] >> np.arange(width)) & 1
        runs.append(
            [
                _Block(rows_in_order[start : start + size], s * GROUP_WIDTH + np.flatnonzero(bits))
                for start, bits in zip(starts, occurs)
            ]
        )
    return runs


def _scratch(blocks: list[_Block], like: Tensor) -> Tensor:
    rows = max(len(block.order) for block in blocks)
    offsets = max(len(block.offsets) for block in blocks)
    return like.new_empty(rows, offsets * like.shape[1])


def _gather(block: _Block, source: NDArray, table: NDArray, gathered: Tensor) -> Tensor:
    shape = len(block.order), len(block.offsets) * source.shape[1]
    column = gathered.view(-1)[: shape[0] * shape[1]].view(shape)
    gather_block(source, table, block.order, block.offsets, column.numpy())
    return column


def _kernel(weight: Tensor, offsets: NDArray) -> Tensor:
    """The weights at some offsets (M,), one below the other: (M * C_in, C_out)."""
    first, last = int(offsets[0]), int(offsets[-1])
    if last - first + 1 == len(offsets):
        return weight[first : last + 1].flatten(0, 1)
    return weight.index_select(0, torch.from_numpy(offsets)).flatten(0, 1)


def _over_blocks(work: Callable[[int, int], None], num_blocks: int) -> None:
    """Call ``work`` for ranges of blocks on as many threads as torch may use."""
    num_threads = torch.get_num_threads()
    if num_threads == 1 or not torch.backends.openmp.is_available():
        work(0, num_blocks)
        return

    def alone(low: int, high: int) -> None:
        # The number counts for the calling thread and for those that start later.
        if torch.get_num_threads() > 1:
            torch.set_num_threads(1)
        work(low, high)

    try:
        in_parallel(alone, num_blocks, num_threads)
    finally:
        torch.set_num_threads(num_threads)
