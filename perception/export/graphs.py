"""The model in parts that hold no geometry: what follows from it comes in as tables.

Each part is a module of standard tensor operations alone, for one sample, so that it can be traced
to ONNX or exported with ``torch.export``. The tables are those of ``perception/runtime``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from ...kernels.numba_segments import WIDTHS
from ..decoding.affinity import AffinityInputs
from ..encoders import CameraEncoder, PillarEncoder, VoxelEncoder
from ..heads import AffinityHead
from ..memory import Past
from ..model import FusionModel
from ..runtime.affinity import MAP_BEFORE, MAP_NOW, SCORES
from ..runtime.memory import FUSED
from ..sparse import FeatureNorm, SparseConv3d, SubmanifoldConv3d
from ..sparse.layers import fold_norm
from ..sparse.tensor import ConvGeometry

NUM_BUCKETS = len(WIDTHS) + 1


@dataclass(frozen=True)
class Port:
    """An input or output of a part: its name, and names of the axes whose length changes."""

    name: str
    dynamic: dict[int, str]


def bucket_ports(name: str) -> list[Port]:
    """The tables of ``Segments``; the last one may have any width."""
    ports = [Port(f"{name}_{i}", {0: f"{name}_{i}_count"}) for i in range(NUM_BUCKETS)]
    ports[-1].dynamic[1] = f"{name}_width"
    return ports


class CameraGraph(nn.Module):
    """Images to the camera's BEV map.

    Pooling is a matrix product per image column, whose rows are the depth weights of a run of
    pixels that fall into one cell, and then sums of such runs by gathers of fixed width: no
    scattered addition, which ONNX Runtime does in one thread, or in an order that changes.
    """

    def __init__(self, camera: CameraEncoder, image_size: tuple[int, int]):
        super().__init__()
        self.camera = camera
        H, W = (-(-n // camera.backbone.strides[0]) for n in image_size)
        self.feature_size = H, W
        depth = camera.lift.measured_depth
        # Which depth, and of which size, is what the lift does with an empty cloud.
        empty = torch.zeros(0, 5), torch.zeros(0, dtype=torch.int64)
        one = torch.eye(4)[None], torch.zeros(1, dtype=torch.int64)
        measured = depth(*empty, *one, self.feature_size)
        self.depth_size = None if measured is None else (measured.shape[1], measured.shape[2])
        self.inputs = [Port("images", {0: "cameras"})]
        if measured is not None:
            self.inputs.append(Port("depth", {0: "cameras"}))
        self.plan = [
            Port("pool_bins", {0: "columns", 1: "runs"}),
            Port("pool_mask", {0: "columns", 1: "runs"}),
            *bucket_ports("pool_rows"),
            Port("pool_place", {}),
        ]
        self.inputs += self.plan
        self.outputs = [Port("camera_bev", {})]

    def forward(self, images: Tensor, *given: Tensor) -> Tensor:
        """Inputs as ``self.inputs`` lists them."""
        depth, plan = (None, given) if self.depth_size is None else (given[0], given[1:])
        camera = self.camera
        features = camera.fpn(camera.backbone((images.float() - camera.mean) / camera.std))
        painted = None
        if camera.paints and camera.semantics is not None:
            painted = camera.semantics(features).sigmoid()
        bev, _ = camera.lift.lift(
            features, depth, painted, pool=lambda *maps: self._pool(*maps, *plan)
        )
        return bev

    def _pool(
        self, logits: Tensor, context: Tensor, bins: Tensor, mask: Tensor, *cells: Tensor
    ) -> Tensor:
        H, channels, grid = self.feature_size[0], context.shape[1], self.camera.lift.pool_grid
        # Columns first, by a transpose of matrices: ONNX Runtime does that eight times faster than
        # a softmax and a transpose of four axes.
        lines = columns_first(logits.float()).softmax(1).to(context.dtype)  # (N * W, D, H)
        columns = columns_first(context).transpose(1, 2)  # (N * W, H, C)
        runs = (lines.reshape(-1, H)[bins] * mask) @ columns  # (N * W, R, C)
        *rows, place = cells
        pooled = reduce_segments(runs.reshape(-1, int(channels)), rows, place, torch.sum)
        return pooled.view(1, *grid.shape, -1).permute(0, 3, 1, 2)


def columns_first(maps: Tensor) -> Tensor:
    """(N, C, H, W) to (N * W, C, H)."""
    channels, height = maps.shape[1:3]
    return maps.flatten(1, 2).transpose(1, 2).reshape(-1, int(channels), int(height))


def reduce_segments(rows: Tensor, buckets: Sequence[Tensor], place: Tensor, reduce) -> Tensor:
    """Sums or maxima of segments of rows (P, C), (S, C); see ``Segments``."""
    parts = [reduce(rows[bucket], dim=1) for bucket in buckets]
    return torch.cat(parts)[place]


class PillarGraph(nn.Module):
    """Points and their pillars to the LiDAR's BEV map."""

    def __init__(self, lidar: PillarEncoder):
        super().__init__()
        self.lidar = lidar
        self.inputs = [
            Port("point_features", {0: "points"}),
            *bucket_ports("pillar_points"),
            Port("pillar_place", {0: "pillars"}),
            Port("pillar_heights", {0: "pillars"}),
            Port("pillar_cells", {}),
        ]
        self.outputs = [Port("lidar_bev", {})]

    def forward(self, points: Tensor, *given: Tensor) -> Tensor:
        """Inputs as ``self.inputs`` lists them."""
        *buckets, place, heights, cells = given
        lidar, finer = self.lidar, round(self.lidar.grid.cell_size / self.lidar.pillar_size)
        features = reduce_segments(lidar.point_net(points), buckets, place, torch.amax)
        features = lidar.pillar_net(torch.cat([features, heights], 1))
        nx, ny = (n * finer for n in lidar.grid.shape)
        return lidar.bev_net(rows_or_zero(features, cells).view(1, nx, ny, -1).permute(0, 3, 1, 2))


def rows_or_zero(rows: Tensor, index: Tensor) -> Tensor:
    """Rows by number; -1 counts from the end, where a row of zeros is added."""
    return torch.cat([rows, rows.new_zeros(1, rows.shape[1])])[index]


class VoxelGraph(nn.Module):
    """Voxels and their neighbours to the LiDAR's BEV map.

    A sparse convolution is a gather over a neighbour table and one matrix product.
    """

    def __init__(self, lidar: VoxelEncoder):
        super().__init__()
        self.channels, self.shape = lidar.out_channels, lidar.grid.shape
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        self.geometries: dict[str, tuple[int, ConvGeometry]] = {}  # by input: level, geometry
        self.steps: list[tuple[str, bool]] = []  # table of a convolution; is it a block's second?
        level = 0
        for conv, norm, ends_block in convolutions(lidar):
            kind = "same" if conv.geometry.submanifold else "down"
            name = f"voxel_rows_{kind}_{level}"
            assert self.geometries.setdefault(name, (level, conv.geometry))[1] == conv.geometry
            with torch.no_grad():
                weight, bias = fold_norm(conv, norm)
            self.weights.append(nn.Parameter(weight.flatten(0, -2)))
            self.biases.append(nn.Parameter(bias))
            self.steps.append((name, ends_block))
            level += not conv.geometry.submanifold
        self.inputs = [Port("voxel_features", {0: "voxels_0"})]
        for name, (at, geometry) in self.geometries.items():
            outputs = at if geometry.submanifold else at + 1
            self.inputs.append(Port(name, {0: f"voxels_{outputs}"}))
        self.inputs.append(Port("voxel_place", {}))
        self.outputs = [Port("lidar_bev", {})]

    def forward(self, features: Tensor, *given: Tensor) -> Tensor:
        """Inputs as ``self.inputs`` lists them."""
        *tables, place = given
        rows, block_input = dict(zip(self.geometries, tables)), features
        for i, (name, ends_block) in enumerate(self.steps):
            gathered = rows_or_zero(features, rows[name]).flatten(1)
            out = gathered @ self.weights[i] + self.biases[i]
            if ends_block:
                out = out + block_input
            starts_block = i + 1 < len(self.steps) and self.steps[i + 1][1]
            if not starts_block:
                block_input = out.relu()
            features = out.relu()
        X, Y = self.shape
        dense = rows_or_zero(features, place).view(1, X, Y, -1, features.shape[1])
        return dense.permute(0, 4, 3, 1, 2).reshape(1, self.channels, X, Y)


def convolutions(
    lidar: VoxelEncoder,
) -> list[tuple[SparseConv3d | SubmanifoldConv3d, FeatureNorm, bool]]:
    """All convolutions in order, with their norms; is it the second of a residual block?"""
    found = []
    for module in lidar.modules():
        children = dict(module.named_children())
        if "conv1" in children:
            found.append((children["conv1"], children["bn1"], False))
            found.append((children["conv2"], children["bn2"], True))
        elif isinstance(children.get("0"), SparseConv3d | SubmanifoldConv3d):
            found.append((children["0"], children["1"], False))
    return found


class HeadsGraph(nn.Module):
    """The sensors' BEV maps to the raw outputs of all heads.

    Of a model with memory also maps of earlier moments, and the map of this one to be remembered;
    see ``runtime/memory.py``.
    """

    def __init__(self, model: FusionModel):
        super().__init__()
        self.model = model
        self.has_camera, self.has_lidar = model.camera is not None, model.lidar is not None
        sensors = ["camera"] * self.has_camera + ["lidar"] * self.has_lidar
        self.inputs = [Port(f"{sensor}_bev", {}) for sensor in sensors]
        self.past: list[Port] = []
        if model.memory is not None:
            maps = (f"past_map_{k}" for k in range(model.memory.moments))
            names = (*maps, "past_transform", "past_age", "past_valid")
            self.past = [Port(name, {}) for name in names]
        self.inputs += self.past
        self.outputs: list[Port] = []  # known after the first pass

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        """Inputs as ``self.inputs`` lists them; outputs "task.field" of the heads' dataclasses."""
        maps = given[: len(given) - len(self.past)]
        camera = maps[0] if self.has_camera else None
        lidar = maps[-1] if self.has_lidar else None
        fused, past = self.model.fuser(camera, lidar), None
        if self.past:
            *earlier, transform, age, valid = given[len(maps) :]
            past = Past(torch.stack(earlier, 1), transform, age, valid)
        outputs = {
            f"{task}.{field.name}": getattr(output, field.name)
            for task, output in self.model.from_fused(fused, camera, past=past).items()
            for field in fields(output)
            if getattr(output, field.name) is not None
        }
        if self.past:
            outputs[FUSED] = fused
        self.outputs = [Port(name, {}) for name in outputs]
        return tuple(outputs.values())


class AffinityGraph(nn.Module):
    """Two frames' maps and what is told of their detections to scores; see ``AffinityDecoder``."""

    def __init__(self, head: AffinityHead):
        super().__init__()
        self.head = head
        axes = {"before": "earlier", "ahead": "earlier", "now": "later", "behind": "later"}
        self.inputs = [Port(MAP_BEFORE, {}), Port(MAP_NOW, {})]
        for name in AffinityInputs._fields:
            axis = axes.get(name.partition("_")[2], "pairs")
            self.inputs.append(Port(name, {0: axis}))
        self.outputs = [
            Port(name, {0: axis}) for name, axis in zip(SCORES, ("pairs", "earlier", "later"))
        ]

    def forward(self, before: Tensor, now: Tensor, *given: Tensor) -> tuple[Tensor, ...]:
        """Inputs as ``self.inputs`` lists them."""
        return self.head.scores(before[0], now[0], *given)


class WholeGraph(nn.Module):
    """Everything in one: parts for the sensors, which can be switched off, and the heads."""

    def __init__(self, sensors: dict[str, nn.Module], heads: HeadsGraph):
        super().__init__()
        self.sensors, self.heads = nn.ModuleDict(sensors), heads
        self.inputs: list[Port] = []
        for name, part in sensors.items():
            self.inputs += [*part.inputs, Port(f"{name}_present", {})]  # pyright: ignore
        self.inputs += heads.past

    @property
    def outputs(self) -> list[Port]:
        """Those of the heads."""
        return self.heads.outputs

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        """Inputs as ``self.inputs`` lists them; ``*_present`` is (1,) float, 1 or 0."""
        maps = []
        for part in self.sensors.values():
            count = len(part.inputs)  # pyright: ignore
            maps.append(part(*given[:count]) * given[count])
            given = given[count + 1 :]
        return self.heads(*maps, *given)
