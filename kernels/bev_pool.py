"""Pool lifted camera features into BEV cells.

    pooled[g, c] = sum of depth[p] * features[pixel(p), c] over the points p with cell[p] = g

P = N * D * H * W frustum points, R vertical runs of points in the same cell, G cells in all. What
a run is, and why it pays, is told in ``numba_bev_pool.py`` (CPU); ``triton_bev_pool.py`` holds the
GPU kernels. They are files of their own because a deployed runtime has no torch and a CPU build of
torch may have no Triton.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


def bev_pool_reference(depth: Tensor, features: Tensor, cell: Tensor, num_cells: int) -> Tensor:
    """The definition: plain PyTorch, any device, any dtype; tests run it in float64."""
    lifted = depth.unsqueeze(-1) * features.unsqueeze(1)  # (N, D, H, W, C)
    inside = cell >= 0
    pooled = lifted.new_zeros(num_cells, features.shape[-1])
    return pooled.index_add(0, cell[inside], lifted[inside])


class BEVPoolPlan(NamedTuple):
    """The frustum points grouped into runs, by cell for forward and by image column for backward.

    It follows from calibration and augmentation alone. On a GPU R is the number of points, since
    the number of runs would have to be waited for, and rows past the last run are not used.
    """

    cell_first: Tensor  # (G + 1,) int32, runs of cell g: cell_first[g] to cell_first[g + 1]
    by_cell: Tensor  # (R, 2) int32: first point, number of points (one per image row)
    column_first: Tensor  # (N * W + 1,) int32, the same for image column n * W + w
    by_column: Tensor  # (R, 4) int32: first point, number of points, cell, its row in by_cell


# --- CPU ------------------------------------------------------------------------------------------


def plan_cpu(cell: Tensor, num_cells: int) -> list[Tensor]:
    """The plan of :func:`plan_bev_pool`, made by numba."""
    from .numba_bev_pool import find_runs  # here: numba takes a second to import, a GPU needs none

    runs = find_runs(cell.contiguous().numpy(), num_cells, torch.get_num_threads())
    return [torch.from_numpy(part) for part in runs]


def bev_pool_cpu(
    depth: Tensor,
    features: Tensor,
    cell_first: Tensor,
    by_cell: Tensor,
    column_first: Tensor,
    by_column: Tensor,
) -> Tensor:
    """The sum over a plan, made by numba."""
    from .numba_bev_pool import pool_runs

    plan = BEVPoolPlan(cell_first, by_cell, column_first, by_column)
    weights, pixels = map(_array, _common(depth, features))
    pooled = pool_runs(weights, pixels, _runs(plan), torch.get_num_threads())
    return _tensor(pooled).to(features.dtype)


def bev_pool_backward_cpu(
    grad: Tensor, depth: Tensor, features: Tensor, column_first: Tensor, by_column: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients to depth and features, made by numba."""
    from .numba_bev_pool import pool_runs_backward

    plan = BEVPoolPlan(column_first[:0], by_column[:0, :2], column_first, by_column)
    upstream, weights, pixels = map(_array, _common(grad, depth, features))
    threads = torch.get_num_threads()
    parts = pool_runs_backward(upstream, weights, pixels, _runs(plan), threads)
    grad_depth, grad_features = map(_tensor, parts)
    return grad_depth.to(depth.dtype), grad_features.to(features.dtype)


def _common(*tensors: Tensor) -> list[Tensor]:
    """Types that numba sums: float64 by itself; float32 and bfloat16; float16 it does not know."""
    if any(tensor.dtype == torch.float64 for tensor in tensors):
        return [tensor.double() for tensor in tensors]
    return [tensor.float() if tensor.dtype == torch.float16 else tensor for tensor in tensors]


def _array(tensor: Tensor):
    tensor = tensor.detach().contiguous()
    # numpy has no bfloat16: its bits.
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _tensor(array) -> Tensor:
    tensor = torch.from_numpy(array)
    return tensor.view(torch.bfloat16) if tensor.dtype == torch.uint16 else tensor


def _runs(plan: BEVPoolPlan):
    from .numba_bev_pool import RunArrays

    return RunArrays(*(part.contiguous().numpy() for part in plan))


# --- GPU ------------------------------------------------------------------------------------------


def plan_on_device(cell: Tensor, num_cells: int) -> list[Tensor]:
    """The plan in tensor operations of fixed shape: the host never waits for the device.

    An index of ``num_cells`` or above counts as outside, since to tell would be to wait.
    """
    N, D, H, W = cell.shape
    P = cell.numel()
    # (N * W * D, H): an image column at a time. 32 bits are half the digits to sort.
    line = cell.where(cell < num_cells, -1).int().permute(0, 3, 1, 2).reshape(N * W * D, H)
    border = torch.nn.functional.pad(line, (1, 1), value=-1)
    head = (line >= 0) & (line != border[:, :-2])
    tail = (line >= 0) & (line != border[:, 2:])
    run = head.flatten().cumsum(0) - 1

    def per_run(value: Tensor, where: Tensor, unused: int) -> Tensor:
        # What is not at `where` goes to one place too many, which is cut off.
        out = value.new_full((P + 1,), unused)
        return out.scatter_(0, run.where(where.flatten(), P), value.flatten())[:P]

    point = torch.arange(P, dtype=torch.int32, device=cell.device).view(N, D, H, W)
    point = point.permute(0, 3, 1, 2).reshape(line.shape)
    first = per_run(point, head, 0)
    length = (per_run(point, tail, -1) - first).div(W, rounding_mode="floor") + 1
    cells = per_run(line, head, num_cells)
    sorted_cells, order = cells.sort(stable=True)  # stable: the order of each sum is fixed
    place = torch.empty_like(cells).scatter_(
        0, order, torch.arange(P, dtype=torch.int32, device=cell.device)
    )
    bounds = torch.arange(num_cells + 1, dtype=torch.int32, device=cell.device)
    cell_first = torch.searchsorted(sorted_cells, bounds, out_int32=True)
    by_column = torch.stack([first, length, cells, place], dim=1)
    column_first = head.view(N * W, D * H).sum(1).cumsum(0)
    column_first = torch.nn.functional.pad(column_first, (1, 0)).int()
    return [cell_first, by_column[order, :2].contiguous(), column_first, by_column]


def bev_pool_triton(
    depth: Tensor,
    features: Tensor,
    cell_first: Tensor,
    by_cell: Tensor,
    column_first: Tensor,
    by_column: Tensor,
) -> Tensor:
    """The sum over a plan, made by Triton."""
    from .triton_bev_pool import pool_runs

    return pool_runs(depth, features, cell_first, by_cell, column_first, by_column)


def bev_pool_backward_triton(
    grad: Tensor, depth: Tensor, features: Tensor, column_first: Tensor, by_column: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradients to depth and features, made by Triton."""
    from .triton_bev_pool import pool_runs_backward

    return pool_runs_backward(grad, depth, features, column_first, by_column)


# --- torch.library --------------------------------------------------------------------------------


@torch.library.custom_op("bevstack::plan_bev_pool", mutates_args=(), device_types="cpu")
def _plan_bev_pool(cell: Tensor, num_cells: int) -> list[Tensor]:
    return plan_cpu(cell, num_cells)


_plan_bev_pool.register_kernel("cuda")(plan_on_device)


@_plan_bev_pool.register_fake
def _(cell: Tensor, num_cells: int) -> list[Tensor]:
    on_cpu = cell.device.type == "cpu"
    runs = torch.library.get_ctx().new_dynamic_size() if on_cpu else cell.numel()
    shapes = (num_cells + 1,), (runs, 2), (cell.shape[0] * cell.shape[3] + 1,), (runs, 4)
    return [cell.new_empty(shape, dtype=torch.int32) for shape in shapes]


@torch.library.custom_op("bevstack::bev_pool", mutates_args=(), device_types="cpu")
def _bev_pool(
    depth: Tensor,
    features: Tensor,
    cell_first: Tensor,
    by_cell: Tensor,
    column_first: Tensor,
    by_column: Tensor,
) -> Tensor:
    return bev_pool_cpu(depth, features, cell_first, by_cell, column_first, by_column)


_bev_pool.register_kernel("cuda")(bev_pool_triton)


@_bev_pool.register_fake
def _(depth, features, cell_first, by_cell, column_first, by_column):
    return features.new_empty(cell_first.shape[0] - 1, features.shape[-1])


@torch.library.custom_op("bevstack::bev_pool_backward", mutates_args=(), device_types="cpu")
def _bev_pool_backward(
    grad: Tensor, depth: Tensor, features: Tensor, column_first: Tensor, by_column: Tensor
) -> tuple[Tensor, Tensor]:
    return bev_pool_backward_cpu(grad, depth, features, column_first, by_column)


_bev_pool_backward.register_kernel("cuda")(bev_pool_backward_triton)


@_bev_pool_backward.register_fake
def _(grad, depth, features, column_first, by_column):
    return depth.new_empty(depth.shape), features.new_empty(features.shape)


def _save_inputs(ctx, inputs, output) -> None:
    depth, features, _, _, column_first, by_column = inputs
    ctx.save_for_backward(depth, features, column_first, by_column)


def _backward(ctx, grad: Tensor):
    grad_depth, grad_features = _bev_pool_backward(grad, *ctx.saved_tensors)
    return grad_depth, grad_features, None, None, None, None


_bev_pool.register_autograd(_backward, setup_context=_save_inputs)


# --- Public ---------------------------------------------------------------------------------------


def plan_bev_pool(cell: Tensor, num_cells: int) -> BEVPoolPlan:
    """Group frustum points by cell, for :func:`bev_pool`.

    Args:
        cell: (N, D, H, W) int64 from ``BEVGrid.flat_cell``; -1 marks a point outside the grid.
        num_cells: number of cells in the grid, times the batch size where ``cell`` has one.

    Returns:
        The plan, good for as long as ``cell`` is.

    Raises:
        ValueError: if ``cell`` is not (N, D, H, W) int64, or (on the CPU, where looking costs
            nothing; a GPU takes it for outside) holds an index not in -1 .. num_cells - 1.
    """
    if cell.ndim != 4 or cell.dtype != torch.int64:
        raise ValueError(
            f"cell must be (N, D, H, W) int64, not {tuple(cell.shape)} {cell.dtype}; "
            "see BEVGrid.flat_cell"
        )
    if max(cell.numel(), num_cells) >= 2**31 - 1:
        raise ValueError("a plan counts points and cells in 32 bits; split the batch")
    return BEVPoolPlan(*_plan_bev_pool(cell, num_cells))


def bev_pool(
    depth: Tensor,
    features: Tensor,
    cell: Tensor,
    num_cells: int,
    plan: BEVPoolPlan | None = None,
) -> Tensor:
    """Pool lifted camera features into BEV cells; differentiable in depth and features.

    Sums are in float32 (float64 for float64), in a fixed order: same input, same bits.

    Args:
        depth: (N, D, H, W) float, weight of every depth bin of every pixel.
        features: (N, H, W, C) float.
        cell: (N, D, H, W) int64 from ``BEVGrid.flat_cell``; -1 marks a point outside the grid.
            For a batch, add ``sample * grid.num_cells`` to the points inside.
        num_cells: number of cells in the grid, times the batch size.
        plan: ``plan_bev_pool(cell, num_cells)``, made once where the calibration is fixed; made
            here otherwise.

    Returns:
        (num_cells, C) in the dtype of ``features``; empty cells are zero.

    Raises:
        ValueError: if the shapes do not fit together.
    """
    N, _, H, W = depth.shape
    if features.ndim != 4 or features.shape[:3] != (N, H, W) or cell.shape != depth.shape:
        raise ValueError(
            "expected depth (N, D, H, W), features (N, H, W, C) and cell (N, D, H, W), not "
            f"{tuple(depth.shape)}, {tuple(features.shape)} and {tuple(cell.shape)}"
        )
    if plan is None:
        plan = plan_bev_pool(cell, num_cells)
    elif plan.cell_first.shape[0] != num_cells + 1 or plan.column_first.shape[0] != N * W + 1:
        raise ValueError(
            f"the plan is for {plan.cell_first.shape[0] - 1} cells and "
            f"{plan.column_first.shape[0] - 1} image columns, not {num_cells} and {N * W}; "
            "make a new one with plan_bev_pool"
        )
    return _bev_pool(depth, features, *plan)
