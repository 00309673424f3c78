"""The one box layout of the project."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .geometry import angle_of, apply, wrap_angle


@dataclass(frozen=True)
class Boxes3D:
    """M upright boxes in a named frame (the BEV frame unless the owner says otherwise)."""

    center: NDArray[np.float64]  # (M, 3) the middle of the box, not its floor
    size: NDArray[np.float64]  # (M, 3) length, width, height
    yaw: NDArray[np.float64]  # (M,) of the length axis, from +x towards +y, in [-pi, pi)
    velocity: NDArray[np.float64]  # (M, 2) over ground; NaN where the annotation has none
    label: NDArray[np.int64]  # (M,) index into the class list

    def __post_init__(self) -> None:
        count = len(self.center)
        shapes = {"center": (count, 3), "size": (count, 3), "yaw": (count,)}
        shapes |= {"velocity": (count, 2), "label": (count,)}
        for name, shape in shapes.items():
            if getattr(self, name).shape != shape:
                raise ValueError(f"boxes.{name} is {getattr(self, name).shape}, expected {shape}")

    def __len__(self) -> int:
        return len(self.center)

    def __getitem__(self, keep: NDArray) -> Boxes3D:
        """The boxes selected by an index or boolean array."""
        return Boxes3D(
            self.center[keep],
            self.size[keep],
            self.yaw[keep],
            self.velocity[keep],
            self.label[keep],
        )

    @staticmethod
    def empty() -> Boxes3D:
        """No box."""
        return Boxes3D(
            np.zeros((0, 3)), np.zeros((0, 3)), np.zeros(0), np.zeros((0, 2)), np.zeros(0, np.int64)
        )

    def transformed(self, target_from_source: NDArray) -> Boxes3D:
        """The boxes in another frame.

        The transform may turn, move, scale uniformly and mirror; tilt is projected onto the
        ground plane, since boxes are upright by definition.
        """
        linear = target_from_source[:3, :3]
        scale = np.cbrt(abs(np.linalg.det(linear)))
        heading = np.stack([np.cos(self.yaw), np.sin(self.yaw)], -1) @ linear[:2, :2].T
        return replace(
            self,
            center=apply(target_from_source, self.center),
            size=self.size * scale,
            yaw=wrap_angle(angle_of(heading[:, 1], heading[:, 0])),
            velocity=self.velocity @ linear[:2, :2].T,
        )

    def corners(self) -> NDArray[np.float64]:
        """(M, 8, 3): the four floor corners counter-clockwise from front left, then the roof."""
        signs = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]]) / 2
        flat = signs[None] * self.size[:, None, :2]  # (M, 4, 2)
        cos, sin = np.cos(self.yaw)[:, None], np.sin(self.yaw)[:, None]
        x = flat[..., 0] * cos - flat[..., 1] * sin
        y = flat[..., 0] * sin + flat[..., 1] * cos
        half = np.broadcast_to(self.size[:, None, 2] / 2, x.shape)
        low, high = np.stack([x, y, -half], -1), np.stack([x, y, half], -1)
        return np.concatenate([low, high], 1) + self.center[:, None]


@dataclass(frozen=True)
class Detections:
    """M detected boxes of one sample with their confidence, best first."""

    boxes: Boxes3D
    score: NDArray[np.float64]  # (M,) in [0, 1]
    attribute: NDArray[np.int64]  # (M,) index into ATTRIBUTES; -1 for none

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, keep: NDArray) -> Detections:
        """The detections selected by an index or boolean array."""
        return Detections(self.boxes[keep], self.score[keep], self.attribute[keep])
