"""View transform: image features, lifted along their rays and splatted onto the BEV grid."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels.grid import BEVGrid
from ..layers import ConvBlock
from .frustum import DepthOutput, FrustumLift
from .lidar_depth import nearest_depth

# Of a cell, in pixels: cells that only the tails of depth distributions reach stay faint.
LEAST_WEIGHT = 0.5


class LiftSplat(FrustumLift):
    """Lift image features along their rays and splat them onto the BEV grid.

    Each pixel spreads its feature over D depth bins by a predicted distribution; the weighted
    copies are then summed per cell (Philion and Fidler, ECCV 2020).

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
        mean: give the weighted mean of what falls into a cell, not its sum. Near cells gather
            hundreds of pixels and far ones a few, so in a sum what far pixels say is faint.
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
        mean: bool = False,
    ):
        super().__init__(grid, out_channels, depth_range, depth_step, height_range, downsample)
        self.lidar_depth, self.mean = lidar_depth, mean
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
        painted: Tensor | None = None,
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
            painted: (N, E, H, W) to be lifted as it is, past all layers.

        Returns:
            The map (batch_size, C_out, *grid.shape), or C_out + E with what was painted last, and
            the predicted depth.
        """
        size = features.shape[-2:]
        measured = self.measured_depth(points, point_sample, bev_from_image, image_sample, size)
        bev, logits = self.lift(
            *(features, measured, painted),
            pool=lambda logits, context: self.splat(
                logits, context, bev_from_image, image_sample, batch_size
            ),
        )
        return bev, DepthOutput(logits, bev_from_image, image_sample, measured)

    def measured_depth(
        self,
        points: Tensor,
        point_sample: Tensor,
        bev_from_image: Tensor,
        image_sample: Tensor,
        size: Sequence[int],
    ) -> Tensor | None:
        """(N, H, W) what LiDAR says of the depth, where the prediction is given it."""
        if self.lidar_depth is None:
            return None
        return nearest_depth(points, point_sample, bev_from_image, image_sample, size)

    def lift(
        self,
        features: Tensor,
        measured: Tensor | None,
        painted: Tensor | None,
        pool: Callable[[Tensor, Tensor], Tensor],
    ) -> tuple[Tensor, Tensor]:
        """All but the geometry.

        Args:
            features: (N, C_in, H, W).
            measured: of :meth:`measured_depth`.
            painted: (N, E, H, W) to be lifted as it is, or None.
            pool: takes logits of depth (N, D, H, W) and features (N, C, H, W) to
                (B, C, *pool_grid.shape).

        Returns:
            The map (B, C_out + E, *grid.shape) and the logits of depth.
        """
        hint = None
        if measured is not None:
            hint = self._encode(measured)
            features = torch.cat([self.hint_net(hint), features], 1)
        split = [self.num_bins, self.out_channels]
        logits, context = self.depth_net(features).split(split, dim=1)
        if hint is not None and self.lidar_depth == "one_hot":
            logits = logits + self.trust * hint
        if painted is not None:
            context = torch.cat([context, painted.to(context.dtype)], 1)
        if self.mean:
            context = F.pad(context, (0, 0, 0, 0, 0, 1), value=1.0)
        pooled = pool(logits, context)
        if self.mean:
            pooled, weight = pooled[:, :-1], pooled[:, -1:]
            pooled = pooled / (weight + LEAST_WEIGHT)
        bev = self.bev_net(pooled[:, : self.out_channels])
        if painted is not None:
            finer = self.pool_grid.shape[0] // self.grid.shape[0]
            bev = torch.cat([bev, F.avg_pool2d(pooled[:, self.out_channels :], finer)], 1)
        return bev, logits

    def _encode(self, depth: Tensor) -> Tensor:
        """(N, H, W) metres, infinite where unknown -> (N, hint channels, H, W)."""
        if self.lidar_depth == "one_hot":
            bin_numbers = torch.arange(self.num_bins, device=depth.device).view(-1, 1, 1)
            return (self.bins(depth)[:, None] == bin_numbers).float()
        known = depth < self.depth_range[1]
        share = (depth / self.depth_range[1]).where(known, 0)
        return torch.stack([share, known.float()], 1)
