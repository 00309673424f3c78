"""Boxes of a whole data set in nuScenes' own terms, as flat arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray

from ...datasets.boxes import Boxes3D
from ...datasets.geometry import angle_of, apply, inverse, quaternion_from_yaw
from ...kernels.inverse import inverse_3x3


@dataclass(frozen=True)
class GlobalBoxes:
    """M boxes of F samples in the global frame: ground truth or predictions.

    The order of the boxes matters where scores are equal (see ``matching.score_order``).
    """

    sample: NDArray[np.int64]  # (M,) which sample, 0..F-1
    translation: NDArray[np.float64]  # (M, 3) the middle of the box
    size: NDArray[np.float64]  # (M, 3) width, length, height, as nuScenes writes them
    rotation: NDArray[np.float64]  # (M, 4) quaternion w, x, y, z of any length
    velocity: NDArray[np.float64]  # (M, 2) NaN where unknown
    label: NDArray[np.int64]  # (M,) index into DETECTION_CLASSES, -1 outside it
    score: NDArray[np.float64]  # (M,) -1 for ground truth
    attribute: NDArray[np.int64]  # (M,) index into ATTRIBUTES, -1 for none
    num_points: NDArray[np.int64]  # (M,) LiDAR and radar points inside, -1 if not counted

    def __len__(self) -> int:
        return len(self.sample)

    def __getitem__(self, keep: NDArray) -> GlobalBoxes:
        """The boxes selected by an index or boolean array."""
        return GlobalBoxes(**{f.name: getattr(self, f.name)[keep] for f in fields(self)})

    @property
    def yaw(self) -> NDArray[np.float64]:
        """(M,) heading of the length axis from global +x towards +y, radians."""
        w, x, y, z = self.rotation.T
        # The first column of the rotation matrix, times the squared length: atan2 does not mind.
        return np.arctan2(2 * (x * y + w * z), w * w + x * x - y * y - z * z)

    @staticmethod
    def of_upright(
        boxes: Boxes3D,
        sample: int,
        score: NDArray,
        attribute: NDArray,
        num_points: NDArray,
    ) -> GlobalBoxes:
        """Boxes of one sample that stand upright in the global frame."""
        return GlobalBoxes(
            sample=np.full(len(boxes), sample, np.int64),
            translation=boxes.center,
            size=boxes.size[:, [1, 0, 2]],
            rotation=quaternion_from_yaw(boxes.yaw),
            velocity=boxes.velocity,
            label=boxes.label,
            score=score,
            attribute=attribute,
            num_points=num_points,
        )

    @staticmethod
    def concatenate(parts: Sequence[GlobalBoxes]) -> GlobalBoxes:
        """All boxes, in order; none where there are no parts."""
        parts = [GlobalBoxes.empty(), *parts]
        return GlobalBoxes(
            **{
                f.name: np.concatenate([getattr(part, f.name) for part in parts])
                for f in fields(GlobalBoxes)
            }
        )

    @staticmethod
    def empty() -> GlobalBoxes:
        """No box."""
        none, whole = np.zeros(0), np.zeros(0, np.int64)
        return GlobalBoxes(
            sample=whole,
            translation=np.zeros((0, 3)),
            size=np.zeros((0, 3)),
            rotation=np.zeros((0, 4)),
            velocity=np.zeros((0, 2)),
            label=whole,
            score=none,
            attribute=whole,
            num_points=whole,
        )


def upright_in_global(boxes: Boxes3D, global_from_source: NDArray) -> Boxes3D:
    """Boxes of a possibly tilted source frame as boxes that stand upright in the global frame.

    nuScenes' boxes are upright in the global frame, and ``Boxes3D.transformed`` moves them into a
    vehicle's frame by projecting heading and velocity onto its ground plane. This undoes that
    exactly: turning the projected heading back in three dimensions and projecting a second time
    would be off by the square of the tilt.

    Args:
        boxes: boxes in the source frame.
        global_from_source: (4, 4), may turn, move, tilt, mirror and scale uniformly.
    """
    linear = global_from_source[:3, :3]
    ground = np.eye(3)
    ground[:2, :2] = inverse(global_from_source)[:2, :2]
    back = inverse_3x3(ground)[:2, :2]
    heading = np.stack([np.cos(boxes.yaw), np.sin(boxes.yaw)], -1) @ back.T
    return replace(
        boxes,
        center=apply(global_from_source, np.asarray(boxes.center, np.float64)),
        size=boxes.size * np.cbrt(abs(np.linalg.det(linear))),
        yaw=angle_of(heading[:, 1], heading[:, 0]),
        velocity=boxes.velocity @ back.T,
    )
