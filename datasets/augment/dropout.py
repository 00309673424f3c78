"""Take a whole sensor away, so that a fused model learns to live without it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..frame import Frame
from ..seeding import generator


@dataclass(frozen=True)
class SensorDropout:
    """Remove all cameras or all LiDAR sweeps of some frames, never both.

    A frame that has only one kind of sensor keeps it.

    Args:
        camera: probability that the cameras are removed.
        lidar: probability that the sweeps are removed.
    """

    camera: float = 0.0
    lidar: float = 0.0

    def __post_init__(self) -> None:
        if min(self.camera, self.lidar) < 0 or self.camera + self.lidar > 1:
            raise ValueError(
                f"camera={self.camera:g} and lidar={self.lidar:g} are probabilities of events "
                "that exclude each other; give values from 0 that add up to at most 1"
            )

    def __call__(self, frame: Frame, seed: int) -> Frame:
        """The frame, perhaps without one sensor; the same for the same frame and ``seed``."""
        draw = generator(seed, frame.token, "sensor_dropout").random()
        if not (frame.cameras and frame.sweeps):
            return frame
        if draw < self.camera:
            return replace(frame, cameras=())
        if draw < self.camera + self.lidar:
            return replace(frame, sweeps=())
        return frame
