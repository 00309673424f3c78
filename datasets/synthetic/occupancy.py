"""Occupancy labels in Occ3D's layout: voxels of ``OCC3D_GRID`` in the key ego frame."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...kernels.numba_rays import mark_crossed
from ...kernels.voxel_grid import OCC3D_GRID
from ..geometry import apply, inverse
from ..nuscenes.classes import FREE, occupancy_class
from .casting import Snapshot, Stage
from .ground import SURFACE_CATEGORY, Surface
from .meshes import sample_surface
from .world import GROUND, SCENERY

SHAPE, LOW, VOXEL = OCC3D_GRID.shape, OCC3D_GRID.low, OCC3D_GRID.voxel_size


@dataclass(frozen=True)
class Occupancy:
    """One frame's labels, each uint8 of ``SHAPE``."""

    semantics: NDArray[np.uint8]
    mask_lidar: NDArray[np.uint8]
    mask_camera: NDArray[np.uint8]


class OccupancyMaker:
    """Prepares the surfaces of all that stands still, once per scene."""

    def __init__(self, stage: Stage, spacing: float = 0.25) -> None:
        self.stage, self.spacing = stage, spacing
        self.agent_class = [occupancy_class(a.shape.category) for a in stage.world.agents]
        scenery = [occupancy_class(c) for c in stage.scenery_categories]
        mesh, owner = stage.fixed.mesh, stage.fixed.owner
        solid = np.flatnonzero(owner != GROUND)
        points, face = sample_surface(mesh.part(solid), spacing)
        low = points[:, 2] < LOW[2] + SHAPE[2] * VOXEL
        self.points, self.owner = points[low] + stage.origin, owner[solid][face[low]]
        self.label = self._labels(self.owner, scenery)

    def _labels(self, owner: NDArray, scenery: list[int]) -> NDArray[np.uint8]:
        # Agents count up from 0, scenery down from SCENERY; the vehicle itself is "others".
        table = np.array([*self.agent_class, 0], np.uint8)
        things = np.array([*scenery, 0], np.uint8)
        thing = np.clip(SCENERY - owner, 0, len(things) - 1)
        return np.where(owner >= 0, table[np.clip(owner, 0, len(table) - 1)], things[thing])

    def make(
        self, snapshot: Snapshot, time: float, lidar_rays: list[tuple[NDArray, NDArray]],
        camera_rays: list[tuple[NDArray, NDArray]],
    ) -> Occupancy:  # fmt: skip
        """Labels of a moment.

        Args:
            snapshot: the world then.
            time: seconds into the scene.
            lidar_rays: origin (3,) and ends (R, 3), global, of the rays that make mask_lidar.
            camera_rays: the same for mask_camera.
        """
        ego_from_global = inverse(self.stage.world.global_from_ego(time))
        semantics = np.full(SHAPE, FREE, np.uint8)
        self._fill_ground(semantics, ego_from_global)
        _mark(semantics, apply(ego_from_global, self.points), self.label)
        moving = snapshot.moving
        agents = np.flatnonzero(moving.owner >= 0)
        points, face = sample_surface(moving.mesh.part(agents), self.spacing)
        label = np.array([*self.agent_class, 0], np.uint8)[moving.owner[agents][face]]
        _mark(semantics, apply(ego_from_global, points + self.stage.origin), label)
        lidar = self._observed(lidar_rays, ego_from_global)
        # As in Occ3D: what no LiDAR ray has ever crossed has no trusted label for a camera either.
        camera = np.minimum(self._observed(camera_rays, ego_from_global), lidar)
        return Occupancy(semantics, lidar, camera)

    def _fill_ground(self, semantics: NDArray, ego_from_global: NDArray) -> None:
        # The ego frame stands on the ground, which is flat: one layer of voxels.
        layer = int(np.floor((0.0 - LOW[2]) / VOXEL))
        cells = np.stack(np.meshgrid(np.arange(200), np.arange(200), indexing="ij"), -1) + 0.5
        xy = cells * VOXEL + LOW[:2]
        there = np.concatenate([xy, np.zeros((200, 200, 1))], -1)
        surface = self.stage.world.ground.at(apply(inverse(ego_from_global), there)[..., :2])
        table = np.array([occupancy_class(SURFACE_CATEGORY[s]) for s in Surface], np.uint8)
        semantics[:, :, layer] = table[surface]

    @staticmethod
    def _observed(rays: list[tuple[NDArray, NDArray]], ego_from_global: NDArray) -> NDArray:
        seen = np.zeros(SHAPE, np.uint8)
        for origin, ends in rays:
            start, stop = (OCC3D_GRID.to_voxels(apply(ego_from_global, p)) for p in (origin, ends))
            mark_crossed(seen, start, stop)
        return seen


def _mark(semantics: NDArray, points: NDArray, label: NDArray) -> None:
    cell = np.floor((points - LOW) / VOXEL).astype(np.int64)
    inside = ((cell >= 0) & (cell < SHAPE)).all(1)
    x, y, z = cell[inside].T
    semantics[x, y, z] = label[inside]
