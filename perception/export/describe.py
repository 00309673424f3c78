"""What the manifest says about a model: taken from its parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Literal

from ...datasets import augment
from ...datasets.encode import Encoder
from ...datasets.nuscenes.classes import OCCUPANCY_CLASSES
from ..encoders import CameraEncoder, DepthLSS, PillarEncoder, VoxelEncoder
from ..heads import CenterHead, MapHead, OccupancyHead, TransFusionHead
from ..runtime import manifest as m
from ..tracking import GreedyTracker, KalmanTracker
from .graphs import CameraGraph, VoxelGraph

IMAGE_STEPS = (augment.ImageResize, augment.PublishedResize)


def sensor_spec(
    encoder: Encoder, steps: Sequence[Any], frame: Literal["ego", "lidar"]
) -> m.SensorSpec:
    """What evaluation does to a frame.

    Raises:
        ValueError: if a step is one that a runtime does not do.
    """
    for step in steps:
        if not isinstance(step, IMAGE_STEPS):
            raise ValueError(
                f"data.val_steps has a {type(step).__name__}; an exported model can take "
                f"{' or '.join(kind.__name__ for kind in IMAGE_STEPS)}"
            )
    return m.SensorSpec(
        frame,
        tuple(map(float, encoder.point_range)),  # pyright: ignore[reportArgumentType]
        None if encoder.image_size is None else (encoder.image_size[0], encoder.image_size[1]),
        tuple(m.ImageStep(type(step).__name__, asdict(step)) for step in steps),  # pyright: ignore
        *(encoder.num_sweeps, encoder.cameras, encoder.lidar, encoder.clear_key_sweep),
        half_points=encoder.half_points,
    )


def camera_spec(camera: CameraEncoder, graph: CameraGraph, name: str) -> m.CameraSpec:
    """How the camera graph's inputs are made."""
    lift, frustum = camera.lift, camera.lift.frustum
    stride = camera.backbone.strides[0]
    matrix = lift.image_from_feature(stride, graph.feature_size)
    depth = "last" if isinstance(lift, DepthLSS) else "nearest"
    mean, std = camera.mean.flatten().tolist(), camera.std.flatten().tolist()
    return m.CameraSpec(
        graph=name,
        channels=camera.out_channels,
        feature_size=graph.feature_size,
        image_from_feature=tuple(tuple(row) for row in matrix.tolist()),
        **frustum._asdict(),
        pool_grid=lift.pool_grid,
        depth=None if graph.depth_size is None else depth,
        depth_size=graph.depth_size,
        mean=(mean[0], mean[1], mean[2]),
        std=(std[0], std[1], std[2]),
        inputs_by_calibration=tuple(port.name for port in graph.plan),
    )


def lidar_spec(
    lidar: PillarEncoder | VoxelEncoder, graph: Any, name: str
) -> m.PillarSpec | m.VoxelSpec:
    """How the LiDAR graph's inputs are made."""
    low, high = lidar.height_range
    if isinstance(lidar, PillarEncoder):
        return m.PillarSpec(
            name, lidar.out_channels, lidar.pillar_size, (low, high), lidar.height_bins
        )
    assert isinstance(graph, VoxelGraph)
    tables = [
        m.TableSpec(name, level, *geometry) for name, (level, geometry) in graph.geometries.items()
    ]
    x, y, z = lidar.voxel_size
    return m.VoxelSpec(
        graph=name,
        channels=lidar.out_channels,
        voxel_size=(x, y, z),
        height_range=(low, high),
        max_points=lidar.max_points,
        max_voxels=lidar.max_voxels,
        shape=lidar.grid_shape,
        tables=tuple(tables),
    )


def tracker_spec(
    tracker: KalmanTracker | GreedyTracker, heads: dict[str, m.HeadSpec]
) -> m.TrackerSpec | None:
    """How the boxes are tracked; None without a head that gives them."""
    detection = heads.get("detection")
    if not isinstance(detection, m.CenterSpec | m.QuerySpec):
        return None
    kind = m.KalmanSpec if isinstance(tracker, KalmanTracker) else m.GreedySpec
    return kind(**vars(tracker) | {"class_names": detection.classes})  # pyright: ignore


def head_spec(head: Any) -> m.HeadSpec:
    """How the head's outputs are decoded."""
    if isinstance(head, CenterHead):
        return m.CenterSpec(**vars(head.box_decoder))
    if isinstance(head, TransFusionHead):
        return m.QuerySpec(**vars(head.box_decoder))
    if isinstance(head, MapHead):
        return m.MapSpec(head.map_grid, head.classes)
    if isinstance(head, OccupancyHead):
        return m.OccupancySpec(head.occupancy_grid, tuple(OCCUPANCY_CLASSES), head.threshold)
    raise ValueError(f"a {type(head).__name__} cannot be exported yet; see perception/export")
