"""View transform: image features, lifted along their rays and splatted onto the BEV grid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels.bev_pool import BEVPoolPlan, bev_pool, plan_bev_pool
from ...kernels.grid import BEVGrid
from ..layers import ConvBlock, full_precision
from ..losses import mean_over_processes
from .lidar_depth import depth_bins, nearest_depth


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


class LiftSplat(nn.Module):
    """Lift image features along their rays and splat them onto the BEV grid.

    Each pixel spreads its feature over D depth bins by a predicted distribution; the weighted
    copies are then summed per cell (Philion and Fidler, ECCV 2020).

    Where each point falls follows from the calibration alone. Without gradients it is found once
    and kept for as long as the calibration stays as it was: a vehicle that drives.

    Args:
        in_channels: channels of the image features.
        grid: the BEV grid to fill.
        out_channels: channels of the BEV map.
        depth_range: nearest and farthest depth, metres along the optical axis.
        depth_step: width of a depth bin, metres.
        height_range: lowest and highest z that is pooled, metres in the BEV frame.
        downsample: pool into cells this many times finer than the grid's, then shrink the map
            by strided convolutions; 1 pools into the grid itself. A power of two.
        depth_layers: 3x3 convolutions before depth and context are predicted.
        bev_layers: 3x3 convolutions on the pooled map, besides those that shrink it.
        lidar_depth: also give the depth of the nearest LiDAR point to the depth prediction
            (BEVFusion's DepthLSS): "metric" as a share of the farthest depth, "one_hot" as a bin,
            which then starts with most of the weight: pixels that LiDAR sees are lifted to the
            right place from the first step on.
    """

    def __init__(
        self,
        in_channels: int,
        grid: BEVGrid,
        out_channels: int = 80,
        depth_range: tuple[float, float] = (1.0, 60.0),
        depth_step: float = 1.0,
        height_range: tuple[float, float] = (-10.0, 10.0),
        downsample: int = 1,
        depth_layers: int = 1,
        bev_layers: int = 1,
        lidar_depth: Literal["metric", "one_hot"] | None = None,
    ):
        super().__init__()
        if downsample < 1 or downsample & (downsample - 1):
            raise ValueError(f"lift.downsample is {downsample}; give a power of two")
        self.grid, self.out_channels = grid, out_channels
        self.pool_grid = BEVGrid(grid.x_range, grid.y_range, grid.cell_size / downsample)
        self.depth_range, self.depth_step = depth_range, depth_step
        self.height_range = height_range
        self.num_bins = _num_bins(depth_range, depth_step)
        self._splat: _Splat | None = None
        self.lidar_depth = lidar_depth
        hint = 0 if lidar_depth is None else 32
        if hint:
            given = 2 if lidar_depth == "metric" else self.num_bins
            self.hint_net = nn.Sequential(ConvBlock(given, hint), ConvBlock(hint, hint))
        if lidar_depth == "one_hot":
            # Logit of the measured bin above the others: 0.73 of the weight among 56 bins.
            self.trust = nn.Parameter(torch.tensor(5.0))
        layers = [
            ConvBlock(in_channels + (hint if i == 0 else 0), in_channels)
            for i in range(depth_layers)
        ]
        width = in_channels if depth_layers else in_channels + hint
        self.depth_net = nn.Sequential(*layers, nn.Conv2d(width, self.num_bins + out_channels, 1))
        strides = [2] * (downsample.bit_length() - 1) + [1] * bev_layers
        self.bev_net = nn.Sequential(
            *(ConvBlock(out_channels, out_channels, 3, s) for s in strides)
        )

    def forward(
        self,
        features: Tensor,
        bev_from_image: Tensor,
        image_sample: Tensor,
        batch_size: int,
        points: Tensor,
        point_sample: Tensor,
    ) -> tuple[Tensor, DepthOutput]:
        """Lift and pool one batch.

        Args:
            features: (N, C_in, H, W), all images of all samples.
            bev_from_image: (N, 4, 4) takes (u * d, v * d, d, 1) to the BEV frame; u, v are in
                feature pixels, the centre of pixel (row i, column j) is u = j, v = i.
            image_sample: (N,) which sample an image belongs to.
            batch_size: number of samples, some of which may have no image.
            points: (P, 3 or more) x, y, z in the BEV frame, for ``lidar_depth``; P may be 0.
            point_sample: (P,) which sample a point belongs to.

        Returns:
            The map (batch_size, C_out, *grid.shape) and the predicted depth.
        """
        measured = hint = None
        if self.lidar_depth is not None:
            measured = nearest_depth(
                points, point_sample, bev_from_image, image_sample, features.shape[-2:]
            )
            hint = self._encode(measured)
            features = torch.cat([self.hint_net(hint), features], 1)
        split = [self.num_bins, self.out_channels]
        logits, context = self.depth_net(features).split(split, dim=1)
        if self.lidar_depth == "one_hot":
            logits = logits + self.trust * hint
        # float32: in bfloat16 a softmax over 60 bins loses the small ones. Not so its result.
        depth = logits.float().softmax(1).to(context.dtype)
        splat = self._splat_of(bev_from_image, image_sample, features.shape[-2:], batch_size)
        num_cells = self.pool_grid.num_cells * batch_size
        context = context.movedim(1, -1).contiguous()  # (N, H, W, C)
        pooled = bev_pool(depth.contiguous(), context, splat.cell, num_cells, splat.plan)
        pooled = pooled.view(batch_size, *self.pool_grid.shape, -1).movedim(-1, 1)
        return self.bev_net(pooled), DepthOutput(logits, bev_from_image, image_sample, measured)

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
            (N, D, H, W) int64: sample * cells + flat cell of the bin's centre, -1 off the grid
            or outside the height range.
        """
        device = bev_from_image.device
        v = torch.arange(size[0], device=device, dtype=torch.float)
        u = torch.arange(size[1], device=device, dtype=torch.float)
        v, u = torch.meshgrid(v, u, indexing="ij")
        pixel = torch.stack([u, v, torch.ones_like(u)])  # (3, H, W)
        with full_precision(pixel):
            ray = torch.einsum("nij,jhw->nihw", bev_from_image[:, :3, :3].float(), pixel)
        step = torch.arange(self.num_bins, device=device) + 0.5
        depth = (self.depth_range[0] + step * self.depth_step).view(-1, 1, 1)
        x, y, z = (
            ray[:, None, axis] * depth + bev_from_image[:, axis, 3].float().view(-1, 1, 1, 1)
            for axis in range(3)
        )
        cell = self.pool_grid.flat_cell(x, y)
        pooled = (cell >= 0) & (z >= self.height_range[0]) & (z < self.height_range[1])
        return (cell + image_sample.view(-1, 1, 1, 1) * self.pool_grid.num_cells).where(pooled, -1)

    def depth_loss(self, output: DepthOutput, depth: Tensor) -> Tensor:
        """Cross-entropy of the predicted depth, mean over the pixels with a LiDAR point.

        Args:
            output: what :meth:`forward` gave.
            depth: (N, H, W) metres from ``nearest_depth``.
        """
        target = self._bins(depth)
        total = F.cross_entropy(output.logits.float(), target, ignore_index=-1, reduction="sum")
        return total / mean_over_processes((target >= 0).sum())

    def _bins(self, depth: Tensor) -> Tensor:
        return depth_bins(depth, self.depth_range[0], self.depth_step, self.num_bins)

    def _encode(self, depth: Tensor) -> Tensor:
        """(N, H, W) metres, infinite where unknown -> (N, hint channels, H, W)."""
        if self.lidar_depth == "one_hot":
            return (
                F.one_hot(self._bins(depth) + 1, self.num_bins + 1)[..., 1:].movedim(-1, 1).float()
            )
        known = depth < self.depth_range[1]
        share = (depth / self.depth_range[1]).where(known, 0)
        return torch.stack([share, known.float()], 1)


def _num_bins(depth_range: tuple[float, float], step: float) -> int:
    bins = (depth_range[1] - depth_range[0]) / step
    # round, not int: (0.3 - 0) / 0.1 is 2.9999999999999996.
    if not bins > 0.5 or abs(bins - round(bins)) > 1e-3:
        raise ValueError(
            f"lift.depth_range spans {depth_range[1] - depth_range[0]:g} m, which is {bins:.3f} "
            f"bins of {step:g} m; change the range or depth_step so that it is whole"
        )
    return round(bins)
