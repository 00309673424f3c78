"""Encode a frame: the tensors that the model needs and the targets that the heads need."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..kernels.grid import BEVGrid
from ..kernels.voxel_grid import VoxelGrid
from .batch import Batch, BoxTargets, OccupancyTargets
from .boxes import Boxes3D
from .frame import Frame
from .nuscenes.classes import MAP_CLASSES
from .nuscenes.maps import MapRasterizer
from .sensors import Range, SensorEncoder, global_from_bev


@dataclass(frozen=True)
class Encoder:
    """Turns a frame into a :class:`Batch` of one.

    Training and evaluation share one encoder, so that they cannot disagree about the sensors.

    Args:
        point_range: x0, y0, z0, x1, y1, z1 in the BEV frame, metres; points outside are dropped,
            and so are boxes whose centre is outside in x or y.
        image_size: width and height of the network's images; None for a model without cameras.
        map_grid: the grid of the map masks; None for no map labels.
        num_sweeps: LiDAR sweeps to merge at most, the key sweep included.
        cameras: use the cameras; false is the same as a frame without any.
        lidar: use the LiDAR; false is the same as a frame without any sweep.
        min_points: boxes with fewer LiDAR points are no targets.
        rasterizer: draws the map masks; None for data without maps.
        clear_key_sweep: leave returns of the vehicle itself out of the key sweep too; published
            models had them left out of the sweeps before it alone.
        half_points: round points to half precision, as published models saw them.
        count_radar: let radar points count as LiDAR points do in ``min_points``, as in published
            training.
    """

    point_range: Range
    image_size: tuple[int, int] | None = None
    map_grid: BEVGrid | None = None
    num_sweeps: int = 10
    cameras: bool = True
    lidar: bool = True
    min_points: int = 1
    rasterizer: MapRasterizer | None = None
    clear_key_sweep: bool = True
    occupancy_grid: VoxelGrid | None = None
    half_points: bool = False
    count_radar: bool = False

    def __post_init__(self) -> None:
        self.sensors  # noqa: B018  checks its part

    @property
    def sensors(self) -> SensorEncoder:
        """The part that needs no torch, for a runtime too."""
        return SensorEncoder(
            *(self.point_range, self.image_size, self.num_sweeps),
            *(self.cameras, self.lidar, self.clear_key_sweep, self.half_points),
        )

    def __call__(self, frame: Frame) -> Batch:
        """Encode one frame, which stays as it was.

        Raises:
            ValueError: if an image does not have ``image_size``.
            DataError: if sensor files, calibration or map cannot be used.
        """
        sensors = self.sensors(frame)
        images, points = torch.from_numpy(sensors.images), torch.from_numpy(sensors.points)
        masks = self._map_masks(frame)
        return Batch(
            tokens=(frame.token,),
            images=images,
            image_sample=torch.zeros(len(images), dtype=torch.int64),
            bev_from_image=torch.from_numpy(sensors.bev_from_image),
            points=points,
            point_sample=torch.zeros(len(points), dtype=torch.int64),
            global_from_bev=torch.from_numpy(sensors.global_from_bev)[None],
            boxes=self._boxes(frame),
            box_valid=torch.tensor([frame.annotations is not None]),
            map_masks=None if masks is None else torch.from_numpy(masks)[None],
            map_valid=torch.tensor([masks is not None]),
            occupancy=self._occupancy(frame),
            scene=torch.tensor([hashed(frame.scene)]),
            timestamp_us=torch.tensor([frame.timestamp_us]),
        )

    def _boxes(self, frame: Frame) -> BoxTargets:
        boxes, attribute = Boxes3D.empty(), np.zeros(0, np.int64)
        instance = np.zeros(0, np.int64)
        if (truth := frame.annotations) is not None:
            seen = truth.num_lidar_points + self.count_radar * truth.num_radar_points
            known = (truth.boxes.label >= 0) & (seen >= self.min_points)
            instance = np.array([hashed(name) for name in truth.instance], np.int64)
            boxes, attribute = truth.boxes[known], truth.attribute[known]
            boxes = boxes.transformed(frame.bev_from_ego)
            low, high = np.array(self.point_range).reshape(2, 3)[:, :2]
            inside = ((boxes.center[:, :2] >= low) & (boxes.center[:, :2] < high)).all(1)
            boxes, attribute = boxes[inside], attribute[inside]
            instance = instance[known][inside]
        return BoxTargets(
            center=_float(boxes.center),
            size=_float(boxes.size),
            yaw=_float(boxes.yaw),
            velocity=_float(boxes.velocity),
            label=torch.from_numpy(boxes.label.astype(np.int64)),
            attribute=torch.from_numpy(attribute.astype(np.int64)),
            sample=torch.zeros(len(boxes), dtype=torch.int64),
            instance=torch.from_numpy(instance),
        )

    def _map_masks(self, frame: Frame) -> NDArray[np.bool_] | None:
        if self.map_grid is None or self.rasterizer is None:
            return None
        masks = self.rasterizer.masks(frame.location, global_from_bev(frame), self.map_grid)
        assert masks.shape == (len(MAP_CLASSES), *self.map_grid.shape)
        return masks

    def _occupancy(self, frame: Frame) -> OccupancyTargets | None:
        if self.occupancy_grid is None or frame.occupancy is None:
            return None
        labels = frame.occupancy().on_grid(self.occupancy_grid, frame.bev_from_ego)
        return OccupancyTargets(
            semantics=torch.from_numpy(labels.semantics)[None],
            mask_lidar=torch.from_numpy(labels.mask_lidar != 0)[None],
            mask_camera=torch.from_numpy(labels.mask_camera != 0)[None],
            valid=torch.ones(1, dtype=torch.bool),
        )


def hashed(name: str) -> int:
    """A number that tells scenes or objects apart: the first 63 bits of a hash of the name."""
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def _float(array: NDArray) -> Tensor:
    return torch.from_numpy(array.astype(np.float32))
