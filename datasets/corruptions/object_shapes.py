"""Objects of a wrong shape or heading, the same for the LiDAR and for cameras; boxes stay."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ..boxes import Boxes3D
from ..frame import Frame
from ..seeding import generator
from .object_images import ObjectWarp
from .regions import boxes_at, key_ego_from_lidar, object_of_points
from .sensors import (
    CameraContext,
    ChangedImage,
    ChangedPoints,
    SweepContext,
    SweepStep,
)


class Deformation(Protocol):
    """Draws how objects are deformed."""

    def draw(self, boxes: Boxes3D, random: np.random.Generator) -> NDArray[np.float64]:
        """(M, 3, 4) affine maps in the axes of each box, about its middle."""
        ...


@dataclass(frozen=True)
class Scale:
    """Grow or shrink by 1 + size or 1 - size; the object stays on the ground.

    nuScenes-C: one axis by 0.04, 0.08, 0.12, 0.16, 0.20 in the LiDAR; all axes by 0.1 to 0.5 in
    images.

    Args:
        size: relative change.
        all_axes: change all axes; else one at random.
    """

    size: float
    all_axes: bool = False

    def draw(self, boxes: Boxes3D, random: np.random.Generator) -> NDArray[np.float64]:
        """See :class:`Deformation`."""
        count = len(boxes)
        change = self.size * random.choice([-1.0, 1.0], count)[:, None]
        axis = random.integers(0, 3, count)[:, None]
        factor = 1 + np.where(self.all_axes | (axis == np.arange(3)), change, 0)
        maps = _linear(factor[:, :, None] * np.eye(3))
        maps[:, 2, 3] = (factor[:, 2] - 1) * boxes.size[:, 2] / 2
        return maps


@dataclass(frozen=True)
class Turn:
    """Turn about the vertical by U(degrees - spread, degrees + spread), either way.

    nuScenes-C: 1, 3, 5, 7, 9 with spread 1 in the LiDAR; 4, 8, 12, 16, 20 with spread 2 in images.

    Args:
        degrees: mean.
        spread: to both sides, degrees.
    """

    degrees: float
    spread: float = 1.0

    def draw(self, boxes: Boxes3D, random: np.random.Generator) -> NDArray[np.float64]:
        """See :class:`Deformation`."""
        low, high = self.degrees - self.spread, self.degrees + self.spread
        angle = np.deg2rad(random.uniform(low, high, len(boxes)))
        angle *= random.choice([-1.0, 1.0], len(boxes))
        maps = _linear(np.tile(np.eye(3), (len(boxes), 1, 1)))
        cos, sin = np.cos(angle), np.sin(angle)
        maps[:, 0, 0], maps[:, 0, 1], maps[:, 1, 0], maps[:, 1, 1] = cos, -sin, sin, cos
        return maps


@dataclass(frozen=True)
class Shear:
    """Shear, then squeeze every axis back into the box.

    A row of coordinates is multiplied by [[1, 0, b], [d, 1, e], [f, 0, 1]]; b, d, e, f are
    U(size - spread, size + spread), either way. nuScenes-C: 0.05, 0.10, 0.15, 0.20, 0.25 with
    spread 0.05.

    Args:
        size: mean.
        spread: to both sides.
        shared: one draw for all boxes of the frame (nuScenes-C in images).
    """

    size: float
    spread: float = 0.05
    shared: bool = False

    def draw(self, boxes: Boxes3D, random: np.random.Generator) -> NDArray[np.float64]:
        """See :class:`Deformation`."""
        count = (1 if self.shared else len(boxes), 4)
        size = random.uniform(self.size - self.spread, self.size + self.spread, count)
        size *= random.choice([-1.0, 1.0], count)
        linear = np.tile(np.eye(3), (len(boxes), 1, 1))
        b, d, e, f = np.broadcast_to(size, (len(boxes), 4)).T
        linear[:, 2, 0], linear[:, 0, 1], linear[:, 2, 1], linear[:, 0, 2] = b, d, e, f
        half = boxes.size / 2
        reach = np.einsum("mij,mj->mi", np.abs(linear), half)
        return _linear(linear * (half / np.maximum(reach, 1e-9))[:, :, None])


def _linear(matrices: NDArray) -> NDArray[np.float64]:
    return np.concatenate([matrices, np.zeros((*matrices.shape[:2], 1))], 2)


@dataclass(frozen=True)
class DeformObjects:
    """Deform every annotated object, once for all sensors, so that they agree.

    In images the visible faces are moved as planes and pasted where they belong, far objects
    first; what a shrunken object used to cover shows its old picture.

    Args:
        deformation: of each object.
        lidar: change the points.
        cameras: change the images.
    """

    deformation: Scale | Turn | Shear
    lidar: bool = True
    cameras: bool = True

    def __call__(self, frame: Frame, seed: int) -> Frame:
        """The frame with deformed objects, the same for the same frame and ``seed``."""
        if frame.annotations is None or not len(frame.annotations):
            return frame
        name = f"deform_objects/{type(self.deformation).__name__}"
        random = generator(seed, frame.token, name)
        maps = self.deformation.draw(frame.annotations.boxes, random)
        cameras, sweeps = frame.cameras, frame.sweeps
        if self.cameras:
            warp = ObjectWarp(maps)
            cameras = tuple(
                replace(c, load=ChangedImage(warp, CameraContext(frame, c, seed, name)))
                for c in cameras
            )
        if self.lidar:
            deform = _DeformPoints(maps)
            sweeps = tuple(
                replace(s, load=ChangedPoints(deform, SweepContext(frame, s, seed, name)))
                for s in sweeps
            )
        return replace(frame, cameras=cameras, sweeps=sweeps)


@dataclass(frozen=True, eq=False)
class _DeformPoints(SweepStep):
    maps: NDArray[np.float64]  # (M, 3, 4)

    def corrupt(self, points: NDArray[np.float32], context: SweepContext) -> NDArray[np.float32]:
        boxes = boxes_at(context.frame, context.sweep)
        owner = object_of_points(points, context.frame, context.sweep, boxes)
        inside = np.flatnonzero(owner >= 0)
        owner = owner[inside]
        ego_from_lidar = key_ego_from_lidar(context.frame, context.sweep)
        turn, offset = ego_from_lidar[:3, :3], ego_from_lidar[:3, 3]
        local = (points[inside, :3].astype(np.float64) @ turn.T + offset) - boxes.center[owner]
        axes = box_axes(boxes)[owner]
        local = np.einsum("pij,pi->pj", axes, local)
        maps = self.maps[owner]
        local = np.einsum("pij,pj->pi", maps[:, :, :3], local) + maps[:, :, 3]
        deformed = points.copy()
        xyz = np.einsum("pij,pj->pi", axes, local) + boxes.center[owner]
        deformed[inside, :3] = (xyz - offset) @ np.linalg.inv(turn).T
        return deformed


def box_axes(boxes: Boxes3D) -> NDArray[np.float64]:
    """(M, 3, 3) frame_from_box: the columns are the axes of length, width and height."""
    axes = np.zeros((len(boxes), 3, 3))
    cos, sin = np.cos(boxes.yaw), np.sin(boxes.yaw)
    axes[:, 0, 0], axes[:, 0, 1], axes[:, 1, 0], axes[:, 1, 1] = cos, -sin, sin, cos
    axes[:, 2, 2] = 1
    return axes
