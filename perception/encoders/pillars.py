"""The LiDAR branch: points, grouped into pillars, to a BEV map."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...datasets.batch import Batch
from ...kernels.grid import BEVGrid
from ...kernels.voxelize import Voxels, pillar_max, scatter_to_bev, voxelize
from ..layers import ConvBlock, absent_map, zero_where_absent

# x, y, z to the pillar's centre (z: to the middle height), x, y, z to the mean of its points,
# intensity, time lag
POINT_FEATURES = 8


class PillarEncoder(nn.Module):
    """Points to pillars to a BEV map (Lang et al., CVPR 2019), all points kept.

    Besides the maximum over learned point features, a pillar has the histogram of its points'
    heights, which tells at once what stands there. No batch normalisation over points: their
    features are scaled by hand to order one, and an empty cloud has no statistics.

    Args:
        grid: the BEV grid to fill.
        pillar_size: edge of a pillar, metres; the grid's cell size divided by a power of two.
            Strided convolutions lead from one to the other.
        height_range: lowest and highest z of a point that counts, metres in the BEV frame.
        height_bins: bins of the height histogram.
        channels: width of the pillar features.
        out_channels: channels of the BEV map.
        bev_layers: 3x3 convolutions on the map, besides those that shrink it.
    """

    def __init__(
        self,
        grid: BEVGrid,
        pillar_size: float = 0.4,
        height_range: tuple[float, float] = (-3.0, 5.0),
        height_bins: int = 16,
        channels: int = 32,
        out_channels: int = 64,
        bev_layers: int = 1,
    ):
        super().__init__()
        self.grid, self.out_channels = grid, out_channels
        self.pillar_size, self.height_range = pillar_size, height_range
        self.height_bins = height_bins
        self.point_net = nn.Sequential(nn.Linear(POINT_FEATURES, channels), nn.ReLU(inplace=True))
        self.pillar_net = nn.Sequential(
            nn.Linear(channels + height_bins + 1, channels), nn.ReLU(inplace=True)
        )
        strides = [2] * _halvings(grid.cell_size, pillar_size) + [1] * bev_layers
        widths = [channels] + [out_channels] * len(strides)
        if not strides:
            raise ValueError("pillar_size is the cell size and bev_layers is 0; give one layer")
        self.bev_net = nn.Sequential(
            *(ConvBlock(widths[i], widths[i + 1], 3, s) for i, s in enumerate(strides))
        )

    def forward(self, batch: Batch) -> Tensor:
        """Encode the points of a batch.

        Returns:
            (B, out_channels, *grid.shape), zero for a sample without points in range.
        """
        pillars, points = self._pillars(batch)
        if len(pillars.num_points) == 0:
            return absent_map(self, batch.size, (self.out_channels, *self.grid.shape))
        features = pillar_max(
            self.point_net(self._point_features(points, pillars)),
            pillars.point_voxel,
            len(pillars.num_points),
        )
        counts = self._height_histogram(points, pillars)
        features = self.pillar_net(torch.cat([features, counts.to(features.dtype)], 1))
        bev = scatter_to_bev(features, pillars.coordinates, pillars.batch_size, pillars.shape[:2])
        return zero_where_absent(self.bev_net(bev), pillars.coordinates[:, 0])

    def _pillars(self, batch: Batch) -> tuple[Voxels, Tensor]:
        (x0, x1), (y0, y1), (z0, z1) = self.grid.x_range, self.grid.y_range, self.height_range
        pillars = voxelize(
            batch.points,
            batch.point_sample,
            batch.size,
            (x0, y0, z0, x1, y1, z1),
            (self.pillar_size, self.pillar_size, z1 - z0),
        )
        return pillars, batch.points

    def _point_features(self, points: Tensor, pillars: Voxels) -> Tensor:
        """(P, POINT_FEATURES) of order one; rows of points in no pillar mean nothing."""
        low = points.new_tensor([self.grid.x_range[0], self.grid.y_range[0]])
        centre = low + (pillars.coordinates[:, 1:3] + 0.5) * self.pillar_size  # (V, 2)
        middle = sum(self.height_range) / 2
        voxel = pillars.point_voxel.clamp(min=0)
        to_centre = (points[:, :2] - centre[voxel]) / self.pillar_size
        height = (points[:, 2:3] - middle) / 2
        to_mean = points[:, :3] - pillars.features[voxel, :3]
        return torch.cat([to_centre, height, to_mean, points[:, 3:4] / 255, points[:, 4:5]], 1)

    def _height_histogram(self, points: Tensor, pillars: Voxels) -> Tensor:
        """(V, height_bins + 1) logarithms of the number of points per height, and of all."""
        low, high = self.height_range
        inside = pillars.point_voxel >= 0
        height = (points[inside, 2] - low) / (high - low) * self.height_bins
        height = height.floor().long().clamp(0, self.height_bins - 1)
        num_bins = len(pillars.num_points) * self.height_bins
        counts = (pillars.point_voxel[inside] * self.height_bins + height).bincount(
            minlength=num_bins
        )
        counts = F.pad(counts.view(-1, self.height_bins), (0, 1))
        counts[:, -1] = pillars.num_points
        return counts.float().log1p()


def _halvings(cell_size: float, pillar_size: float) -> int:
    ratio = cell_size / pillar_size
    halvings = max(round(ratio), 1).bit_length() - 1
    # A ratio with tolerance: 0.6 / 0.075 is 8.000000000000002.
    if abs(ratio - 2**halvings) > 1e-3:
        raise ValueError(
            f"lidar.pillar_size {pillar_size:g} m goes {ratio:.3f} times into the grid's cells of "
            f"{cell_size:g} m; choose {cell_size:g}, {cell_size / 2:g} or {cell_size / 4:g}"
        )
    return halvings
