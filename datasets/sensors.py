"""What the model gets of a frame's sensors, as numpy arrays, without torch.

Training, evaluation and a deployed runtime share this, so that they cannot see different things.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from ..kernels.inverse import inverse_3x3
from .camera_models import Pinhole
from .errors import DataError
from .frame import Camera, Frame
from .geometry import inverse
from .points import merge_sweeps

Range = tuple[float, float, float, float, float, float]


@dataclass(frozen=True)
class SensorInputs:
    """The sensors of one frame. Any number of images and points, none too."""

    images: NDArray[np.uint8]  # (N, 3, H, W) RGB
    bev_from_image: NDArray[np.float32]  # (N, 4, 4): (u * d, v * d, d, 1) -> BEV frame
    points: NDArray[np.float32]  # (P, 5): x, y, z in the BEV frame, intensity 0..255, time lag s
    global_from_bev: NDArray[np.float64]  # (4, 4) undoes augmentation too


@dataclass(frozen=True)
class SensorEncoder:
    """Turns a frame's sensors into arrays.

    Args:
        point_range: x0, y0, z0, x1, y1, z1 in the BEV frame, metres; points outside are dropped.
        image_size: width and height of the network's images; None for a model without cameras.
        num_sweeps: LiDAR sweeps to merge at most, the key sweep included.
        cameras: use the cameras; false is the same as a frame without any.
        lidar: use the LiDAR; false is the same as a frame without any sweep.
        clear_key_sweep: leave returns of the vehicle itself out of the key sweep too.
        half_points: round points to half precision, as published models saw them: beyond 32 m
            to multiples of 1/32 m.
    """

    point_range: Range
    image_size: tuple[int, int] | None = None
    num_sweeps: int = 10
    cameras: bool = True
    lidar: bool = True
    clear_key_sweep: bool = True
    half_points: bool = False

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

    def __call__(self, frame: Frame) -> SensorInputs:
        """Read one frame, which stays as it was.

        Raises:
            ValueError: if an image does not have ``image_size``.
            DataError: if sensor files or calibration cannot be used.
        """
        images, bev_from_image = self._images(frame)
        return SensorInputs(images, bev_from_image, self._points(frame), global_from_bev(frame))

    def _images(self, frame: Frame) -> tuple[NDArray, NDArray]:
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
        return images, bev_from_image

    def _points(self, frame: Frame) -> NDArray[np.float32]:
        if not (self.lidar and frame.sweeps):
            return np.zeros((0, 5), np.float32)
        points = merge_sweeps(
            *(frame, self.num_sweeps),
            target_from_ego=frame.bev_from_ego,
            clear_key_sweep=self.clear_key_sweep,
        )
        points = _within(points, np.array(self.point_range, np.float32))
        return points.astype(np.float16).astype(np.float32) if self.half_points else points


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
        camera_from_image[:3, :3] = inverse_3x3(camera.model.intrinsic)
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
