"""Encode a frame: the tensors that the model needs and the targets that the heads need."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from ..kernels.grid import BEVGrid
from .batch import Batch, BoxTargets
from .boxes import Boxes3D
from .camera_models import Pinhole
from .errors import DataError
from .frame import Camera, Frame
from .geometry import inverse
from .nuscenes.classes import MAP_CLASSES
from .nuscenes.maps import MapRasterizer
from .points import merge_sweeps

Range = tuple[float, float, float, float, float, float]


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

    def __post_init__(self) -> None:
        low, high = self.point_range[:3], self.point_range[3:]
        if len(high) != 3 or not all(a < b for a, b in zip(low, high)):
            raise ValueError(
                f"point_range is {self.point_range}; give x0, y0, z0, x1, y1, z1 with every lower "
                "edge below its upper edge"
            )
        if self.num_sweeps < 1:
            raise ValueError(
                f"num_sweeps is {self.num_sweeps}; the key sweep alone is 1, and lidar: false "
                "leaves the LiDAR out"
            )

    def __call__(self, frame: Frame) -> Batch:
        """Encode one frame, which stays as it was.

        Raises:
            ValueError: if an image does not have ``image_size``.
            DataError: if sensor files, calibration or map cannot be used.
        """
        images, bev_from_image = self._images(frame)
        points = torch.from_numpy(self._points(frame))
        masks = self._map_masks(frame)
        return Batch(
            tokens=(frame.token,),
            images=images,
            image_sample=torch.zeros(len(images), dtype=torch.int64),
            bev_from_image=bev_from_image,
            points=points,
            point_sample=torch.zeros(len(points), dtype=torch.int64),
            global_from_bev=torch.from_numpy(global_from_bev(frame))[None],
            boxes=self._boxes(frame),
            box_valid=torch.tensor([frame.annotations is not None]),
            map_masks=None if masks is None else torch.from_numpy(masks)[None],
            map_valid=torch.tensor([masks is not None]),
        )

    def _images(self, frame: Frame) -> tuple[Tensor, Tensor]:
        cameras = frame.cameras if self.cameras and self.image_size else ()
        width, height = self.image_size or (0, 0)
        images = np.empty((len(cameras), 3, height, width), np.uint8)
        bev_from_image = np.empty((len(cameras), 4, 4), np.float32)
        for n, camera in enumerate(cameras):
            _check_size(camera, (camera.model.width, camera.model.height), (width, height))
            pixels = camera.load()
            _check_size(camera, (pixels.shape[1], pixels.shape[0]), (width, height))
            images[n] = pixels.transpose(2, 0, 1)
            bev_from_image[n] = bev_from_camera_image(frame, camera)
        return torch.from_numpy(images), torch.from_numpy(bev_from_image)

    def _points(self, frame: Frame) -> NDArray[np.float32]:
        if not (self.lidar and frame.sweeps):
            return np.zeros((0, 5), np.float32)
        points = merge_sweeps(
            *(frame, self.num_sweeps),
            target_from_ego=frame.bev_from_ego,
            clear_key_sweep=self.clear_key_sweep,
        )
        return _within(points, np.array(self.point_range, np.float32))

    def _boxes(self, frame: Frame) -> BoxTargets:
        boxes, attribute = Boxes3D.empty(), np.zeros(0, np.int64)
        if (truth := frame.annotations) is not None:
            known = (truth.boxes.label >= 0) & (truth.num_lidar_points >= self.min_points)
            boxes, attribute = truth.boxes[known], truth.attribute[known]
            boxes = boxes.transformed(frame.bev_from_ego)
            low, high = np.array(self.point_range).reshape(2, 3)[:, :2]
            inside = ((boxes.center[:, :2] >= low) & (boxes.center[:, :2] < high)).all(1)
            boxes, attribute = boxes[inside], attribute[inside]
        return BoxTargets(
            center=_float(boxes.center),
            size=_float(boxes.size),
            yaw=_float(boxes.yaw),
            velocity=_float(boxes.velocity),
            label=torch.from_numpy(boxes.label.astype(np.int64)),
            attribute=torch.from_numpy(attribute.astype(np.int64)),
            sample=torch.zeros(len(boxes), dtype=torch.int64),
        )

    def _map_masks(self, frame: Frame) -> NDArray[np.bool_] | None:
        if self.map_grid is None or self.rasterizer is None:
            return None
        masks = self.rasterizer.masks(frame.location, global_from_bev(frame), self.map_grid)
        assert masks.shape == (len(MAP_CLASSES), *self.map_grid.shape)
        return masks


@njit(cache=True, nogil=True)
def _within(points, point_range):
    """The points (P, 5) inside the range, with a finite intensity and time lag."""
    kept = np.empty_like(points)
    count = 0
    for p in range(len(points)):
        inside = np.isfinite(points[p, 3] + points[p, 4])
        for axis in range(3):
            inside &= point_range[axis] <= points[p, axis] < point_range[3 + axis]
        if inside:
            kept[count] = points[p]
            count += 1
    return kept[:count].copy()


def global_from_bev(frame: Frame) -> NDArray[np.float64]:
    """(4, 4) from the frame the model works in back to the world; undoes augmentation too."""
    return frame.global_from_ego @ inverse(frame.bev_from_ego)


def bev_from_camera_image(frame: Frame, camera: Camera) -> NDArray[np.float64]:
    """(4, 4): (u * d, v * d, d, 1), u and v in pixels, d in metres, to the BEV frame.

    The camera looked at another moment than the LiDAR, so the way goes through the world.

    Raises:
        ValueError: if the camera is not a pinhole.
        DataError: if the calibration is not finite.
    """
    if not isinstance(camera.model, Pinhole):
        raise ValueError(
            f"{camera.name} is a {type(camera.model).__name__}; only Pinhole images can be "
            "encoded, so undistort it while reading"
        )
    camera_from_image = np.eye(4)
    try:
        camera_from_image[:3, :3] = np.linalg.inv(camera.model.intrinsic)
        bev_from_global = inverse(global_from_bev(frame))
    except np.linalg.LinAlgError as error:
        raise _bad_calibration(frame, camera) from error
    bev_from_camera = bev_from_global @ camera.global_from_ego @ camera.ego_from_camera
    bev_from_image = bev_from_camera @ camera_from_image
    if not np.isfinite(bev_from_image).all():
        raise _bad_calibration(frame, camera)
    return bev_from_image


def _bad_calibration(frame: Frame, camera: Camera) -> DataError:
    return DataError(
        f"frame {frame.token}: the calibration or a pose of {camera.name} is singular or not "
        "finite; correct its calibrated_sensor and ego_pose records and index the data again"
    )


def _check_size(camera: Camera, found: tuple[int, int], expected: tuple[int, int]) -> None:
    if found != tuple(expected):
        raise ValueError(
            f"{camera.name} gives images of {found[0]}x{found[1]}, but the encoder expects "
            f"{expected[0]}x{expected[1]}; add ImageResize or ImageAugmentation of that size "
            "before it"
        )


def _float(array: NDArray) -> Tensor:
    return torch.from_numpy(array.astype(np.float32))
