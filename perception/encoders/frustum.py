"""What view transforms by lifting have in common: the frustum, and its sum over BEV cells."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels.bev_pool import BEVPoolPlan, bev_pool, plan_bev_pool
from ...kernels.grid import BEVGrid
from ...kernels.numba_frustum import FrustumShape, frustum_cells
from ..layers import full_precision
from ..losses import mean_over_processes
from .lidar_depth import depth_bins


@dataclass(frozen=True)
class DepthOutput:
    """Predicted depth distributions of N images, with the calibration of their pixels."""

    logits: Tensor  # (N, D, H, W)
    bev_from_image: Tensor  # (N, 4, 4) of these pixels
    image_sample: Tensor  # (N,)
    measured: Tensor | None  # (N, H, W) metres by LiDAR, if the prediction was given it


@dataclass(frozen=True)
class _Splat:
    """Where frustum points fall, and the calibration that says so."""

    bev_from_image: Tensor
    image_sample: Tensor
    size: tuple[int, int]
    batch_size: int
    cell: Tensor
    plan: BEVPoolPlan

    def is_for(
        self, bev_from_image: Tensor, image_sample: Tensor, size: tuple[int, int], batch_size: int
    ) -> bool:
        return (
            (self.size, self.batch_size) == (size, batch_size)
            and self.bev_from_image.device == bev_from_image.device
            and torch.equal(self.bev_from_image, bev_from_image)
            and torch.equal(self.image_sample, image_sample)
        )


class FrustumLift(nn.Module):
    """Base of view transforms that spread each pixel over the depth bins along its ray.

    Where each point falls follows from the calibration alone. Without gradients it is found once
    and kept for as long as the calibration stays as it was: a vehicle that drives.

    Args:
        grid: the BEV grid of the result.
        out_channels: channels of the BEV map.
        depth_range: nearest and farthest depth, metres along the optical axis.
        depth_step: width of a depth bin, metres.
        height_range: lowest and highest z that is pooled, metres in the BEV frame.
        downsample: how many times finer the cells are that points are pooled into.
        depth_in_bin: which depth stands for a bin, 0 its near end, 1 its far end.
        truncate_cells: find cells by truncation towards zero, as published models did: what lies
            up to a cell below the lower edges (in z: up to the whole height) is pooled too.
    """

    def __init__(
        self,
        grid: BEVGrid,
        out_channels: int,
        depth_range: tuple[float, float],
        depth_step: float,
        height_range: tuple[float, float],
        downsample: int,
        depth_in_bin: float = 0.5,
        truncate_cells: bool = False,
    ):
        super().__init__()
        if downsample < 1 or downsample & (downsample - 1):
            raise ValueError(f"lift.downsample is {downsample}; give a power of two")
        self.grid, self.out_channels = grid, out_channels
        self.pool_grid = BEVGrid(grid.x_range, grid.y_range, grid.cell_size / downsample)
        self.depth_range, self.depth_step = depth_range, depth_step
        self.height_range = height_range
        self.depth_in_bin, self.truncate_cells = depth_in_bin, truncate_cells
        self.num_bins = _num_bins(depth_range, depth_step)
        self._splat: _Splat | None = None

    def image_from_feature(self, stride: int, size: Sequence[int]) -> Tensor:
        """(4, 4) takes (u * d, v * d, d, 1) in feature pixels to the same in image pixels.

        Feature pixel i covers image pixels i * stride to (i + 1) * stride - 1, whose middle is
        (i + 0.5) * stride - 0.5: pixel 0 has its centre at 0, in both.

        Args:
            stride: image pixels per feature pixel.
            size: H, W of the feature map.
        """
        matrix = torch.eye(4)
        matrix[0, 0] = matrix[1, 1] = stride
        matrix[0, 2] = matrix[1, 2] = stride / 2 - 0.5
        return matrix

    def splat(
        self,
        logits: Tensor,
        context: Tensor,
        bev_from_image: Tensor,
        image_sample: Tensor,
        batch_size: int,
    ) -> Tensor:
        """Spread the features by the distribution of depth and sum them per cell.

        Args:
            logits: (N, D, H, W) of depth.
            context: (N, C, H, W) features.
            bev_from_image: (N, 4, 4), u and v in pixels of these maps.
            image_sample: (N,) which sample an image belongs to.
            batch_size: number of samples.

        Returns:
            (batch_size, C, *pool_grid.shape).
        """
        # float32: in bfloat16 a softmax over 60 bins loses the small ones. Not so its result.
        depth = logits.float().softmax(1).to(context.dtype)
        splat = self._splat_of(bev_from_image, image_sample, context.shape[-2:], batch_size)
        num_cells = self.pool_grid.num_cells * batch_size
        context = context.movedim(1, -1).contiguous()  # (N, H, W, C)
        pooled = bev_pool(depth.contiguous(), context, splat.cell, num_cells, splat.plan)
        return pooled.view(batch_size, *self.pool_grid.shape, -1).movedim(-1, 1)

    def _splat_of(
        self, bev_from_image: Tensor, image_sample: Tensor, size: Sequence[int], batch_size: int
    ) -> _Splat:
        # In training augmentation changes it at every step; a compiled graph cannot ask.
        keep = not torch.is_grad_enabled() and not torch.compiler.is_compiling()
        calibration = bev_from_image, image_sample, (size[0], size[1]), batch_size
        if keep and self._splat is not None and self._splat.is_for(*calibration):
            return self._splat
        cell = self.frustum_cells(bev_from_image, size, image_sample)
        plan = plan_bev_pool(cell, self.pool_grid.num_cells * batch_size)
        splat = _Splat(*calibration, cell, plan)
        # Copies: the caller may change his tensors in place.
        self._splat = (
            replace(splat, bev_from_image=bev_from_image.clone(), image_sample=image_sample.clone())
            if keep
            else None
        )
        return splat

    @torch.no_grad()
    def frustum_cells(
        self, bev_from_image: Tensor, size: Sequence[int], image_sample: Tensor
    ) -> Tensor:
        """Where every depth bin of every pixel falls.

        Returns:
            (N, D, H, W) int64: sample * cells + flat cell of the bin's point, -1 off the grid
            or outside the height range.
        """
        # A compiled graph keeps to tensor operations.
        if bev_from_image.device.type == "cpu" and not torch.compiler.is_compiling():
            cell = frustum_cells(
                *(bev_from_image.float().numpy(), image_sample.numpy(), (size[0], size[1])),
                *(self.frustum, self.pool_grid, torch.get_num_threads()),
            )
            return torch.from_numpy(cell)
        return self.frustum_cells_on_device(bev_from_image, size, image_sample)

    @property
    def frustum(self) -> FrustumShape:
        """Which points are lifted."""
        return FrustumShape(
            *(self.depth_range[0], self.depth_step, self.num_bins, self.depth_in_bin),
            *(self.height_range, self.truncate_cells),
        )

    def frustum_cells_on_device(
        self, bev_from_image: Tensor, size: Sequence[int], image_sample: Tensor
    ) -> Tensor:
        """:meth:`frustum_cells` in tensor operations, on any device."""
        device = bev_from_image.device
        v = torch.arange(size[0], device=device, dtype=torch.float)
        u = torch.arange(size[1], device=device, dtype=torch.float)
        v, u = torch.meshgrid(v, u, indexing="ij")
        pixel = torch.stack([u, v, torch.ones_like(u)])  # (3, H, W)
        with full_precision(pixel):
            ray = torch.einsum("nij,jhw->nihw", bev_from_image[:, :3, :3].float(), pixel)
        step = torch.arange(self.num_bins, device=device) + self.depth_in_bin
        depth = (self.depth_range[0] + step * self.depth_step).view(-1, 1, 1)
        x, y, z = (
            ray[:, None, axis] * depth + bev_from_image[:, axis, 3].float().view(-1, 1, 1, 1)
            for axis in range(3)
        )
        (low, high), size_xy = self.height_range, self.pool_grid.cell_size
        if self.truncate_cells:
            x = _truncated(x, self.pool_grid.x_range[0], size_xy)
            y = _truncated(y, self.pool_grid.y_range[0], size_xy)
            z = _truncated(z, low, high - low)
        cell = self.pool_grid.flat_cell(x, y)
        pooled = (cell >= 0) & (z >= low) & (z < high)
        return (cell + image_sample.view(-1, 1, 1, 1) * self.pool_grid.num_cells).where(pooled, -1)

    def depth_loss(self, output: DepthOutput, depth: Tensor) -> Tensor:
        """Cross-entropy of the predicted depth, mean over the pixels with a LiDAR point.

        Args:
            output: what the view transform gave.
            depth: (N, H, W) metres from ``nearest_depth``.
        """
        target = self.bins(depth)
        total = F.cross_entropy(output.logits.float(), target, ignore_index=-1, reduction="sum")
        return total / mean_over_processes((target >= 0).sum())

    def bins(self, depth: Tensor) -> Tensor:
        """Bin of every depth, int64; -1 outside all bins."""
        return depth_bins(depth, self.depth_range[0], self.depth_step, self.num_bins)


def _truncated(place: Tensor, low: float, size: float) -> Tensor:
    """Places less than one cell below the lower edge, moved onto it: truncation is floor there."""
    cells = (place - low) / size
    return place.where((cells <= -1) | (cells >= 0), low)


def _num_bins(depth_range: tuple[float, float], step: float) -> int:
    bins = (depth_range[1] - depth_range[0]) / step
    # round, not int: (0.3 - 0) / 0.1 is 2.9999999999999996.
    if not bins > 0.5 or abs(bins - round(bins)) > 1e-3:
        raise ValueError(
            f"lift.depth_range spans {depth_range[1] - depth_range[0]:g} m, which is {bins:.3f} "
            f"bins of {step:g} m; change the range or depth_step so that it is whole"
        )
    return round(bins)
