"""The sensors on the vehicle: nuScenes' set, with its usual calibration."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..geometry import transform
from .meshes import yaw_rotation

LIDAR_PERIOD_US = 50_000  # 20 Hz
KEY_PERIOD_US = 500_000  # 2 Hz
CAMERA_PERIOD_US = 83_333  # 12 Hz
NUM_RINGS = 32
NUM_AZIMUTHS = 1084
# HDL-32E: 32 beams from -30.67 to 10.67 degrees in equal steps.
ELEVATIONS = np.radians(np.linspace(-30.67, 10.67, NUM_RINGS))


@dataclass(frozen=True)
class CameraMount:
    """One camera: where it sits, what it sees, when it fires."""

    channel: str
    yaw: float  # of the optical axis in the ego frame, degrees
    position: tuple[float, float, float]  # in the ego frame, metres
    focal: float  # pixels at a width of 1600
    delay_us: int  # after the key LiDAR timestamp; the sweep passes the cameras one by one

    def intrinsic(self, image_size: tuple[int, int]) -> NDArray[np.float64]:
        """(3, 3) for images of this width and height."""
        width, height = image_size
        scale = width / 1600
        return np.array(
            [
                [self.focal * scale, 0, (width - 1) / 2 + 8 * scale],
                [0, self.focal * scale, (height - 1) / 2 + 32 * scale],
                [0, 0, 1],
            ]
        )

    @property
    def ego_from_camera(self) -> NDArray[np.float64]:
        """(4, 4) mounting; camera frame z forward, x right, y down."""
        forward = np.array([[0, 0, 1], [-1, 0, 0], [0, -1, 0]], np.float64)
        return transform(yaw_rotation(np.radians(self.yaw)) @ forward, self.position)


# Mean calibration of nuScenes' vehicles, rounded.
CAMERAS = (
    CameraMount("CAM_FRONT", 0.3, (1.70, 0.02, 1.51), 1266.0, -35_000),
    CameraMount("CAM_FRONT_RIGHT", -56.0, (1.55, -0.49, 1.50), 1260.0, -27_000),
    CameraMount("CAM_BACK_RIGHT", -110.0, (1.01, -0.48, 1.56), 1259.0, -20_000),
    CameraMount("CAM_BACK", 180.0, (0.03, 0.0, 1.57), 809.0, -10_000),
    CameraMount("CAM_BACK_LEFT", 109.0, (1.04, 0.48, 1.59), 1257.0, -1_000),
    CameraMount("CAM_FRONT_LEFT", 55.5, (1.52, 0.49, 1.51), 1272.0, -43_000),
)


def ego_from_lidar() -> NDArray[np.float64]:
    """(4, 4) mounting of LIDAR_TOP: x to the right, y forward, slightly tilted."""
    pitch, roll = np.radians(0.4), np.radians(-0.3)
    turn = yaw_rotation(-np.pi / 2)
    about_x = np.array(
        [[1, 0, 0], [0, np.cos(pitch), -np.sin(pitch)], [0, np.sin(pitch), np.cos(pitch)]]
    )
    about_y = np.array(
        [[np.cos(roll), 0, np.sin(roll)], [0, 1, 0], [-np.sin(roll), 0, np.cos(roll)]]
    )
    return transform(turn @ about_x @ about_y, (0.94, 0.0, 1.84))
