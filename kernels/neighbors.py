"""Neighbour tables: which input voxel lies under every offset of a kernel at every output voxel.

    rows[u, k] = v where coordinates_in[v] = coordinates_out[u] * stride - padding + k * dilation

V input voxels, U outputs, K kernel offsets (z, y, x in C order). A table follows from coordinates
alone: layers at the same level share it, and whoever exports gives it as an input.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

Triple = tuple[int, int, int]


class RowGroups(NamedTuple):
    """Outputs in order of which neighbours they have, as ``triton_neighbors.group_rows`` has it."""

    slots: Tensor | None  # (1 + K, S) int32; both None on a CPU, which needs no groups
    masks: Tensor | None  # (S // block, words) int32


@dataclass(frozen=True)
class NeighborTable:
    """Input rows under every kernel offset at every output voxel."""

    coordinates: Tensor  # (U, 4) int32 batch, z, y, x of the outputs
    shape: Triple  # cells of the outputs' grid along z, y, x
    rows: Tensor  # (U, K) int32 input row under each offset, -1 where there is none
    num_inputs: int  # V
    submanifold: bool  # outputs are the inputs
    # What follows from the rows, made when first asked for. Not by cached_property: its lock, in
    # Python 3.11, keeps torch.compile out.
    _made: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def by_input(self) -> Tensor:
        """(V, K) int32: the output row that each input serves at each offset, -1 for none."""
        if "by_input" not in self._made:
            self._made["by_input"] = (
                self.rows.flip(1) if self.submanifold else _invert_rows(self.rows, self.num_inputs)
            )
        return self._made["by_input"]

    @property
    def groups(self) -> RowGroups:
        """Outputs grouped by their neighbours, so that a GPU can skip the empty offsets."""
        if "groups" not in self._made:
            self._made["groups"] = _groups(self.rows)
        return self._made["groups"]

    @property
    def groups_by_input(self) -> RowGroups:
        """The same for the inputs, of ``by_input``."""
        if "groups_by_input" not in self._made:
            self._made["groups_by_input"] = _groups(self.by_input)
        return self._made["groups_by_input"]


def _groups(rows: Tensor) -> RowGroups:
    return RowGroups(*_group_rows(rows)) if rows.is_cuda else RowGroups(None, None)


# --- Definitions ----------------------------------------------------------------------------------


def neighbors_reference(
    coordinates: Tensor,
    shape: Triple,
    batch_size: int,
    kernel: Triple = (3, 3, 3),
    stride: Triple = (1, 1, 1),
    padding: Triple = (1, 1, 1),
    dilation: Triple = (1, 1, 1),
    submanifold: bool = False,
) -> NeighborTable:
    """The definition, by a dense map of row numbers; for small grids."""
    number = torch.full((batch_size, *shape), -1)
    cells = coordinates.long()
    number[tuple(cells.unbind(1))] = torch.arange(len(cells))
    if submanifold:
        padding = _centred(kernel, dilation)
    out_shape = output_shape(shape, kernel, stride, padding, dilation)
    widened = torch.nn.functional.pad(
        number, [p for p in reversed(padding) for _ in "ab"], value=-1
    )
    planes = []
    for k in torch.cartesian_prod(*(torch.arange(edge) for edge in kernel)).tolist():
        cut = tuple(
            slice(i * d, i * d + (n - 1) * s + 1, s)
            for i, d, n, s in zip(k, dilation, out_shape, stride)
        )
        planes.append(widened[(slice(None), *cut)])
    rows = torch.stack(planes, -1)  # (B, Z, Y, X, K)
    out = cells if submanifold else (rows >= 0).any(-1).nonzero()
    return NeighborTable(
        out.int(), out_shape, rows[tuple(out.unbind(1))].int(), len(cells), submanifold
    )


def output_shape(
    shape: Triple, kernel: Triple, stride: Triple, padding: Triple, dilation: Triple
) -> Triple:
    """Cells of a convolution's output along z, y, x.

    Raises:
        ValueError: if the kernel does not fit into the grid.
    """
    cells = [
        (n + 2 * p - d * (k - 1) - 1) // s + 1
        for n, k, s, p, d in zip(shape, kernel, stride, padding, dilation, strict=True)
    ]
    if min(cells) < 1:
        raise ValueError(
            f"a kernel of {kernel} with padding {padding} and dilation {dilation} does not fit "
            f"into a grid of {shape} cells"
        )
    return cells[0], cells[1], cells[2]


def _centred(kernel: Triple, dilation: Triple) -> Triple:
    z, y, x = (k // 2 * d for k, d in zip(kernel, dilation))
    return z, y, x


# --- CPU and GPU paths, torch.library -------------------------------------------------------------

# Lists, as torch.library has no tuples of numbers.
Numbers = Sequence[int]


@torch.library.custom_op("bevstack::neighbor_rows", mutates_args=(), device_types="cpu")
def _neighbor_rows(
    coordinates: Tensor,
    shape: Numbers,
    out_shape: Numbers,
    batch_size: int,
    kernel: Numbers,
    stride: Numbers,
    padding: Numbers,
    dilation: Numbers,
    submanifold: bool,
) -> tuple[Tensor, Tensor]:
    """Coordinates (U, 4), of no row for a submanifold table, and rows (U, K)."""
    from . import numba_neighbors  # here: numba takes a second to import

    cells, threads = coordinates.contiguous().numpy(), torch.get_num_threads()
    if submanifold:
        rows = numba_neighbors.submanifold_rows(cells, shape, batch_size, kernel, dilation, threads)
        return coordinates.new_empty(0, 4), torch.from_numpy(rows)
    steps = kernel, stride, padding, dilation
    out, rows = numba_neighbors.strided_rows(cells, shape, out_shape, batch_size, *steps, threads)
    return torch.from_numpy(out), torch.from_numpy(rows)


@_neighbor_rows.register_kernel("cuda")
def _(
    coordinates, shape, out_shape, batch_size, kernel, stride, padding, dilation, submanifold
) -> tuple[Tensor, Tensor]:
    from .triton_neighbors import strided_rows, submanifold_rows

    if submanifold:
        return coordinates.new_empty(0, 4), submanifold_rows(coordinates, shape, kernel, dilation)
    return strided_rows(coordinates, out_shape, batch_size, kernel, stride, padding, dilation)


@_neighbor_rows.register_fake
def _(coordinates, shape, out_shape, batch_size, kernel, stride, padding, dilation, submanifold):
    num_offsets = kernel[0] * kernel[1] * kernel[2]
    if submanifold:
        return coordinates.new_empty(0, 4), coordinates.new_empty(len(coordinates), num_offsets)
    outputs = torch.library.get_ctx().new_dynamic_size()
    return coordinates.new_empty(outputs, 4), coordinates.new_empty(outputs, num_offsets)


@torch.library.custom_op("bevstack::invert_rows", mutates_args=(), device_types="cpu")
def _invert_rows(rows: Tensor, num_inputs: int) -> Tensor:
    from .numba_neighbors import invert_rows

    return torch.from_numpy(invert_rows(rows.contiguous().numpy(), num_inputs))


@_invert_rows.register_kernel("cuda")
def _(rows: Tensor, num_inputs: int) -> Tensor:
    from .triton_neighbors import invert_rows

    return invert_rows(rows, num_inputs)


@_invert_rows.register_fake
def _(rows: Tensor, num_inputs: int) -> Tensor:
    return rows.new_empty(num_inputs, rows.shape[1])


@torch.library.custom_op("bevstack::group_rows", mutates_args=(), device_types="cuda")
def _group_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    from .triton_neighbors import group_rows

    return group_rows(rows)


@_group_rows.register_fake
def _(rows: Tensor) -> tuple[Tensor, Tensor]:
    from .triton_neighbors import ROWS

    U, K = rows.shape
    blocks = -(-U // ROWS)
    return rows.new_empty(1 + K, blocks * ROWS), rows.new_empty(blocks, -(-K // 32))


# --- Public ---------------------------------------------------------------------------------------


def neighbors(
    coordinates: Tensor,
    shape: Triple,
    batch_size: int,
    kernel: Triple = (3, 3, 3),
    stride: Triple = (1, 1, 1),
    padding: Triple = (1, 1, 1),
    dilation: Triple = (1, 1, 1),
    submanifold: bool = False,
) -> NeighborTable:
    """Make the table of a sparse convolution.

    A submanifold convolution has its inputs' voxels as outputs, row by row, its kernel centred on
    each (Graham et al., CVPR 2018). Any other has an output wherever its kernel covers a voxel, in
    ascending order of (batch, z, y, x).

    Args:
        coordinates: (V, 4) int32 batch, z, y, x, within the grid and unique; V may be 0.
        shape: cells of the grid along z, y, x.
        batch_size: number of samples; any of them may hold no voxel.
        kernel: edges of the kernel along z, y, x; odd ones for a submanifold convolution.
        stride: input cells per output cell; 1 for a submanifold convolution.
        padding: cells that the grid is widened by on either side; not used by a submanifold
            convolution.
        dilation: cells between neighbouring offsets.
        submanifold: which of the two.

    Returns:
        The table, good for as long as the coordinates are.

    Raises:
        ValueError: if the numbers do not fit together, or (on the CPU, where looking costs little)
            a voxel is outside the grid.
    """
    if coordinates.ndim != 2 or coordinates.shape[1] != 4 or coordinates.dtype != torch.int32:
        raise ValueError(
            "coordinates must be (V, 4) int32: batch, z, y, x; not "
            f"{tuple(coordinates.shape)} {coordinates.dtype}"
        )
    if min(*shape, batch_size, *kernel, *stride, *dilation) < 1 or min(padding) < 0:
        raise ValueError("shape, batch size, kernel, stride and dilation are at least 1, padding 0")
    if submanifold:
        if any(k % 2 == 0 for k in kernel) or tuple(stride) != (1, 1, 1):
            raise ValueError(
                f"a submanifold convolution has odd edges and stride 1, not {kernel} and {stride}"
            )
        padding = _centred(kernel, dilation)
    out_shape = output_shape(shape, kernel, stride, padding, dilation)
    steps = list(kernel), list(stride), list(padding), list(dilation)
    out, rows = _neighbor_rows(
        coordinates, list(shape), list(out_shape), batch_size, *steps, submanifold
    )
    out = coordinates if submanifold else out
    return NeighborTable(out, out_shape, rows, len(coordinates), submanifold)
