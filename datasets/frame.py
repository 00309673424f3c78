"""A frame: everything the sensors saw at one moment, with calibration and annotations.

Reading, corrupting and augmenting all give this type. Sensor data is loaded when asked for, so a
step that changes it wraps the loader; the metadata is plain numpy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from .boxes import Boxes3D
from .camera_models import CameraModel

if TYPE_CHECKING:  # a frame itself is plain numpy; this brings numba
    from .occupancy import OccupancyLoader


class ImageLoader(Protocol):
    """Gives an image's pixels."""

    def __call__(self, reduction: int = 1) -> NDArray[np.uint8]:
        """(ceil(H / reduction), ceil(W / reduction), 3) RGB; reduction is 1, 2, 4 or 8.

        A reduced image is what a reader can decode faster; pixel (u, v) of it covers the
        ``reduction`` x ``reduction`` pixels from (u * reduction, v * reduction).
        """
        ...


class PointLoader(Protocol):
    """Gives the points of a sweep."""

    def __call__(self) -> NDArray[np.float32]:
        """(P, 5): x, y, z in the sensor's frame at the sweep's time, intensity 0..255, ring."""
        ...


@dataclass(frozen=True)
class Camera:
    """One image with its calibration and its own time."""

    name: str  # channel, CAM_FRONT for instance
    load: ImageLoader
    model: CameraModel
    ego_from_camera: NDArray[np.float64]  # (4, 4) mounting
    global_from_ego: NDArray[np.float64]  # (4, 4) vehicle pose when the image was taken
    timestamp_us: int


@dataclass(frozen=True)
class LidarSweep:
    """One LiDAR revolution with its calibration and its own time."""

    load: PointLoader
    ego_from_lidar: NDArray[np.float64]  # (4, 4) mounting
    global_from_ego: NDArray[np.float64]  # (4, 4) vehicle pose at the sweep's time
    timestamp_us: int


@dataclass(frozen=True)
class Annotations:
    """What annotators wrote down for one key frame; boxes are in the key ego frame."""

    boxes: Boxes3D  # label -1: a category outside the class list
    attribute: NDArray[np.int64]  # (M,) index into ATTRIBUTES, -1 for none
    instance: tuple[str, ...]  # (M,) the object's identity through the scene
    visibility: NDArray[np.int64]  # (M,) 1..4 as in nuScenes, 0 if unknown
    num_lidar_points: NDArray[np.int64]  # (M,)
    num_radar_points: NDArray[np.int64]  # (M,)
    category: tuple[str, ...]  # (M,) the full nuScenes name

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, keep: NDArray) -> Annotations:
        """The annotations selected by a boolean or index array."""
        order = np.arange(len(self))[keep]
        return Annotations(
            self.boxes[order],
            self.attribute[order],
            tuple(self.instance[i] for i in order),
            self.visibility[order],
            self.num_lidar_points[order],
            self.num_radar_points[order],
            tuple(self.category[i] for i in order),
        )


@dataclass(frozen=True)
class Frame:
    """One moment. Any number of cameras, any number of sweeps (both may be none)."""

    token: str
    scene: str  # scene name
    location: str  # map name
    timestamp_us: int  # of the key LiDAR sweep
    global_from_ego: NDArray[np.float64]  # (4, 4) at that time
    cameras: tuple[Camera, ...]
    sweeps: tuple[LidarSweep, ...]  # the key sweep first, then the previous ones, nearest first
    annotations: Annotations | None  # None where there are none to be had (test split)
    # (4, 4) ego at the key time -> the frame the model works in. Identity from the reader (or
    # LIDAR_TOP's, for published models); BEV augmentation multiplies from the left: it may turn,
    # move, scale and mirror the scene. Everything above stays in true, unaugmented coordinates.
    bev_from_ego: NDArray[np.float64] = field(default_factory=lambda: np.eye(4))
    occupancy: OccupancyLoader | None = None  # None where the frame has no occupancy labels
    # Gives the key frame before this one in its scene, as it was read, or None at the scene's
    # start; nothing is read before the call. None where the reader cannot tell.
    previous: Callable[[], Frame | None] | None = None
