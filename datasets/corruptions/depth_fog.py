"""Fog in images that grows with distance, which the LiDAR measures."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numba import njit
from numpy.typing import NDArray

from ..camera_models import CameraModel
from ..frame import Camera, Frame
from ..geometry import apply, inverse
from .sensors import CameraContext, CameraStep

_CELL = 16  # pixels; the LiDAR's returns lie about that far apart in a nuScenes image
_HOLE = 5  # cells; smaller gaps between returns are filled


@dataclass(frozen=True)
class DepthFog(CameraStep):
    """Light is lost to the air and air light takes its place (Koschmieder 1924).

    x' = x t + air (1 - t), t = exp(-alpha r), r the distance of what a pixel shows. Distance comes
    from the key sweep as it is before this step: apply it before corruptions of the LiDAR. Where
    the LiDAR looks and nothing returns it is infinite. A frame without LiDAR has the fog of a flat
    ground.

    Args:
        alpha: extinction, 1/m; one sees about 3 / alpha far.
        air: brightness of the air, 0..1.
    """

    alpha: float
    air: float = 0.75

    def __post_init__(self) -> None:
        if self.alpha < 0 or not 0 <= self.air <= 1:
            raise ValueError(
                f"alpha is {self.alpha:g}, air {self.air:g}; give alpha >= 0 and 0 <= air <= 1"
            )

    def is_identity(self) -> bool:
        """See :class:`CameraStep`."""
        return self.alpha == 0

    def corrupt(self, image: NDArray[np.uint8], context: CameraContext) -> NDArray[np.uint8]:
        """See :class:`CameraStep`."""
        distance = distance_map(context.frame, context.camera)
        cells = np.exp(-self.alpha * distance).astype(np.float32)
        # Cell (0, 0) covers the first pixels of the image; the last ones may reach beyond it.
        size = (cells.shape[1] * _CELL, cells.shape[0] * _CELL)
        seen = cv2.resize(cells, size, interpolation=cv2.INTER_LINEAR)
        return _veiled(np.ascontiguousarray(image), seen, np.float32(self.air * 255))


@njit(cache=True, nogil=True)
def _veiled(image, seen, air):
    veiled, half = np.empty_like(image), np.float32(0.5)
    for i in range(image.shape[0]):
        for j in range(image.shape[1]):
            for c in range(3):
                veiled[i, j, c] = np.uint8(
                    air + (np.float32(image[i, j, c]) - air) * seen[i, j] + half
                )
    return veiled


def distance_map(frame: Frame, camera: Camera) -> NDArray[np.float64]:
    """(h, w) metres from the camera to what cells of 16 x 16 pixels show; inf for the sky."""
    rays = _cell_rays(camera.model)
    ego_from_camera = inverse(frame.global_from_ego) @ camera.global_from_ego
    ego_from_camera = ego_from_camera @ camera.ego_from_camera
    if not frame.sweeps or not len(points := frame.sweeps[0].load()):
        return _to_ground(rays, ego_from_camera)
    sweep = frame.sweeps[0]
    ego_from_lidar = inverse(frame.global_from_ego) @ sweep.global_from_ego @ sweep.ego_from_lidar
    camera_from_lidar = inverse(ego_from_camera) @ ego_from_lidar
    xyz = points[:, :3].astype(np.float64)
    depth = _filled(
        _nearest(camera.model, apply(camera_from_lidar, xyz), (len(rays), rays.shape[1]))
    )
    # Above and below its beams the LiDAR knows nothing: what is seen at their edge goes on.
    elevation = _elevation(rays @ camera_from_lidar[:3, :3])
    lowest, highest = np.quantile(_elevation(xyz), (0.001, 0.999))
    _extend(depth, (elevation >= lowest) & (elevation <= highest))
    # The median takes out lone cells that see past the edge of an object, or only that edge.
    closeness = cv2.medianBlur(np.nan_to_num(1 / depth).astype(np.float32), 3).astype(np.float64)
    with np.errstate(divide="ignore"):
        distance = np.linalg.norm(rays, axis=-1) / closeness
    # Near the vehicle no beam meets the ground.
    return np.where(np.isinf(distance), _to_ground(rays, ego_from_camera), distance)


def _cell_rays(model: CameraModel) -> NDArray[np.float64]:
    """(h, w, 3) points at depth 1 behind the middles of cells."""
    h, w = -(-model.height // _CELL), -(-model.width // _CELL)
    middle = (_CELL - 1) / 2
    v, u = np.meshgrid(np.arange(h) * _CELL + middle, np.arange(w) * _CELL + middle, indexing="ij")
    return model.unproject(np.stack([u, v, np.ones_like(u)], -1))


def _elevation(xyz: NDArray) -> NDArray[np.float64]:
    return np.arctan2(xyz[..., 2], np.hypot(xyz[..., 0], xyz[..., 1]))


def _nearest(model: CameraModel, points: NDArray, shape: tuple[int, int]) -> NDArray[np.float64]:
    """(h, w) depth of the nearest return in each cell, NaN where there is none."""
    uvz = model.project(points[points[:, 2] > 0.5])
    cell = np.floor((uvz[:, 1::-1] + 0.5) / _CELL)
    inside = ((cell >= 0) & (cell < shape)).all(1)
    row, column = cell[inside].astype(np.int64).T
    depth = np.full(shape, np.inf)
    np.minimum.at(depth, (row, column), uvz[inside, 2])
    return np.where(np.isinf(depth), np.nan, depth)


def _filled(depth: NDArray) -> NDArray[np.float64]:
    """Gaps between returns take the harmonic mean of the returns around them."""
    known = ~np.isnan(depth)
    closeness, window = np.where(known, 1 / np.where(known, depth, 1), 0), (_HOLE, _HOLE)
    total = cv2.blur(closeness, window, borderType=cv2.BORDER_CONSTANT)
    weight = cv2.blur(known.astype(np.float64), window, borderType=cv2.BORDER_CONSTANT)
    around = np.where(weight > 1e-9, weight / np.maximum(total, 1e-12), np.nan)
    return np.where(known, depth, around)


def _extend(depth: NDArray, covered: NDArray[np.bool_]) -> None:
    """Cells that are not covered take the value of the nearest covered row, in place."""
    rows = np.arange(len(depth))[:, None]
    first = np.where(covered.any(0), covered.argmax(0), 0)
    last = np.where(covered.any(0), len(depth) - 1 - covered[::-1].argmax(0), len(depth) - 1)
    depth[:] = np.take_along_axis(depth, np.clip(rows, first, last), 0)


def _to_ground(rays: NDArray, ego_from_camera: NDArray) -> NDArray[np.float64]:
    """Distance to the ground that the vehicle stands on; infinite above the horizon."""
    down = np.asarray(rays @ -ego_from_camera[2, :3], np.float64)
    with np.errstate(divide="ignore"):
        steps = np.where(down > 0, ego_from_camera[2, 3] / np.maximum(down, 0), np.inf)
    return np.linalg.norm(rays, axis=-1) * steps
