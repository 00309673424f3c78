"""The LiDAR branch: points, grouped into voxels, to a BEV map by sparse convolution."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ...datasets.batch import Batch
from ...kernels.grid import BEVGrid
from ...kernels.neighbors import Triple, output_shape
from ...kernels.voxelize import voxelize
from ..layers import absent_map, full_precision, zero_where_absent
from ..sparse import (
    Engine,
    FeatureNorm,
    SparseConv3d,
    SparseTensor,
    SubmanifoldConv3d,
    conv_norm_relu,
    height_into_channels,
)

POINT_FEATURES = 5  # x, y, z, intensity 0..255, time lag: as they are, as in the published models


class VoxelEncoder(nn.Module):
    """SECOND's sparse encoder (Yan et al., Sensors 2018) with residual blocks.

    The defaults are MIT BEVFusion's (Liu et al., ICRA 2023): voxels of 0.075 m, eight times finer
    than the BEV grid, four stages; names and order of the layers are theirs, so that its weights
    can be read in. A voxel's input is the mean of its points.

    Args:
        grid: the BEV grid to fill.
        voxel_size: edges of a voxel along x, y, z, metres; x and y are the grid's cell size
            divided by a power of two, one halving for each stage but the first.
        height_range: lowest and highest z of a point that counts, metres in the BEV frame.
        channels: width of every stage.
        blocks: residual blocks of a stage.
        max_points: points of a voxel that are used, the first by input order; null for all.
        max_voxels: voxels of a sample that are used, the first by input order; null for all.
        max_voxels_training: the same in training; null for ``max_voxels``.
        engine: what runs the convolutions; spconv and spconv_triton are packages of their own.
    """

    def __init__(
        self,
        grid: BEVGrid,
        voxel_size: tuple[float, float, float] = (0.075, 0.075, 0.2),
        height_range: tuple[float, float] = (-5.0, 3.0),
        channels: Sequence[int] = (16, 32, 64, 128),
        blocks: int = 2,
        max_points: int | None = 10,
        max_voxels: int | None = None,
        max_voxels_training: int | None = None,
        engine: Engine = "native",
    ):
        super().__init__()
        stages, last = len(channels), channels[-1]
        _check_sizes(grid, voxel_size, stages)
        self.grid, self.voxel_size, self.height_range = grid, voxel_size, height_range
        self.max_points, self.max_voxels = max_points, max_voxels
        self.max_voxels_training = max_voxels_training or max_voxels
        self.conv_input = _ConvNorm(SubmanifoldConv3d(POINT_FEATURES, channels[0], engine=engine))
        self.encoder_layers = nn.Sequential()
        down = []
        for s in range(stages):
            layers: list[nn.Module] = [ResidualBlock(channels[s], engine) for _ in range(blocks)]
            if s < stages - 1:
                # As published: the last of them has no padding along z.
                padding = (1 if s < stages - 2 else 0, 1, 1)
                down.append(
                    SparseConv3d(channels[s], channels[s + 1], 3, 2, padding, engine=engine)
                )
                layers.append(_ConvNorm(down[-1]))
            self.encoder_layers.add_module(f"encoder_layer{s + 1}", nn.Sequential(*layers))
        down.append(SparseConv3d(last, last, (3, 1, 1), (2, 1, 1), engine=engine))
        self.conv_out = _ConvNorm(down[-1])
        self.out_channels = last * self._heights(down)

    def forward(self, batch: Batch) -> Tensor:
        """Encode the points of a batch.

        Returns:
            (B, out_channels, *grid.shape), channel c * heights + z, zero for a sample without
            points in range.
        """
        voxels = self._voxels(batch)
        if len(voxels.features) == 0:
            return absent_map(self, batch.size, (self.out_channels, *self.grid.shape))
        bev = height_into_channels(self.encode(voxels))
        return zero_where_absent(bev, voxels.coordinates[:, 0])

    def encode(self, voxels: SparseTensor) -> SparseTensor:
        """All the convolutions: features (V, POINT_FEATURES) to (U, channels[-1])."""
        with full_precision(voxels.features):  # half precision would move points by decimetres
            voxels = self.conv_input(voxels)
        return self.conv_out(self.encoder_layers(voxels))

    def _voxels(self, batch: Batch) -> SparseTensor:
        (x0, x1), (y0, y1), (z0, z1) = self.grid.x_range, self.grid.y_range, self.height_range
        voxels = voxelize(
            *(batch.points[:, :POINT_FEATURES], batch.point_sample, batch.size),
            *((x0, y0, z0, x1, y1, z1), self.voxel_size),
            *(self.max_points, self.max_voxels_training if self.training else self.max_voxels),
        )
        coordinates = voxels.coordinates[:, [0, 3, 2, 1]].int()
        return SparseTensor(voxels.features, coordinates, self.grid_shape, batch.size)

    @property
    def grid_shape(self) -> Triple:
        """Cells of the voxel grid along z, y, x."""
        # One cell more than the range along z, as SECOND has it.
        z = round((self.height_range[1] - self.height_range[0]) / self.voxel_size[2]) + 1
        halvings = 2 ** (len(self.encoder_layers) - 1)
        return z, self.grid.shape[1] * halvings, self.grid.shape[0] * halvings

    def _heights(self, down: list[SparseConv3d]) -> int:
        shape = self.grid_shape
        for conv in down:
            shape = output_shape(shape, *conv.geometry[:4])
        assert shape[:0:-1] == tuple(self.grid.shape)
        return shape[0]


class ResidualBlock(nn.Module):
    """Two submanifold convolutions, with the input added before the last ReLU."""

    def __init__(self, channels: int, engine: Engine = "native"):
        super().__init__()
        self.conv1 = SubmanifoldConv3d(channels, channels, engine=engine)
        self.bn1 = _norm(channels)
        self.conv2 = SubmanifoldConv3d(channels, channels, engine=engine)
        self.bn2 = _norm(channels)

    def forward(self, voxels: SparseTensor) -> SparseTensor:
        middle = conv_norm_relu(self.conv1, self.bn1, voxels)
        return conv_norm_relu(self.conv2, self.bn2, middle, residual=voxels.features)


class _ConvNorm(nn.Sequential):
    """A convolution (key 0), batch normalisation (key 1) and ReLU."""

    def __init__(self, conv: SparseConv3d | SubmanifoldConv3d):
        super().__init__(conv, _norm(conv.weight.shape[-1]))

    def forward(self, input: SparseTensor) -> SparseTensor:
        conv, norm = self
        assert isinstance(conv, SparseConv3d | SubmanifoldConv3d)
        assert isinstance(norm, FeatureNorm)
        return conv_norm_relu(conv, norm, input)


def _norm(channels: int) -> FeatureNorm:
    return FeatureNorm(channels, eps=1e-3, momentum=0.01)  # as published


def _check_sizes(grid: BEVGrid, voxel_size: tuple[float, float, float], stages: int) -> None:
    if stages < 2:
        raise ValueError("the voxel encoder needs two stages at least; give more channels")
    edge = grid.cell_size / 2 ** (stages - 1)
    # A tolerance: 0.6 / 0.075 is 8.000000000000002.
    if any(abs(size / edge - 1) > 1e-6 for size in voxel_size[:2]):
        raise ValueError(
            f"lidar.voxel_size is {voxel_size}; with {stages} stages on cells of "
            f"{grid.cell_size:g} m it must be {edge:g} m along x and y"
        )
