"""Ray casting: what a ray of the LiDAR, a camera pixel or a line of sight meets."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .meshes import Mesh, yaw_rotation
from .world import EGO, NOTHING, World, ego_body, fixed_mesh

REACH = 120.0  # metres; agents farther than this from the ego vehicle are left out


@dataclass(frozen=True)
class Hits:
    """What R rays met first."""

    distance: NDArray[np.float64]  # (R,) metres, inf for nothing
    point: NDArray[np.float64]  # (R, 3) global
    normal: NDArray[np.float64]  # (R, 3) unit, towards the ray
    owner: NDArray[np.int64]  # (R,) see world.py
    face: NDArray[np.int64]  # (R,) index into the surfaces of :class:`Snapshot`


def _tensor(array: NDArray) -> Any:
    import open3d as o3d

    return o3d.core.Tensor.from_numpy(np.ascontiguousarray(array))


class _Scene:
    """One Open3D scene of one mesh, with the owner of each face."""

    def __init__(self, mesh: Mesh, owner: NDArray) -> None:
        import open3d as o3d

        self.mesh, self.owner = mesh, owner
        # One thread: the result does not depend on it, and scenes run in processes of their own.
        self.scene = o3d.t.geometry.RaycastingScene(nthreads=1)
        vertices = _tensor(mesh.vertices.astype(np.float32))
        self.scene.add_triangles(vertices, _tensor(mesh.faces.astype(np.uint32)))

    def cast(self, rays: NDArray[np.float32]) -> tuple[NDArray, NDArray, NDArray]:
        """Distance, face and normal of (R, 6) rays."""
        result = self.scene.cast_rays(_tensor(rays), nthreads=1)
        face = result["primitive_ids"].numpy().astype(np.int64)
        return result["t_hit"].numpy(), face, result["primitive_normals"].numpy()


class Stage:
    """A scene's world, ready to be looked at: all that stands still is prepared once."""

    def __init__(self, world: World) -> None:
        self.world = world
        mesh, owner, self.scenery_categories = fixed_mesh(world)
        # Rays are cast in a local frame: float32 has no room for metres in a city.
        self.origin = np.array([*world.middle, 0.0])
        self.movers = [(i, agent) for i, agent in enumerate(world.agents) if agent.moves]
        self.fixed = _Scene(mesh.moved(np.eye(3), -self.origin), owner)

    def at(self, time: float) -> Snapshot:
        """The world at a moment."""
        world = self.world
        global_from_ego = world.global_from_ego(time)
        meshes = [ego_body().moved(global_from_ego[:3, :3], global_from_ego[:3, 3])]
        owners = [np.full(len(meshes[0].faces), EGO)]
        ego_x, ego_y = global_from_ego[:2, 3]
        for index, agent in self.movers:
            (x, y), yaw = agent.path.pose(time)
            if math.hypot(x - ego_x, y - ego_y) < REACH:
                meshes.append(agent.shape.mesh.moved(yaw_rotation(yaw), [x, y, 0.0]))
                owners.append(np.full(len(meshes[-1].faces), index))
        moving = Mesh.join(meshes).moved(np.eye(3), -self.origin)
        return Snapshot(self, _Scene(moving, np.concatenate(owners)))


class Snapshot:
    """The world at one moment."""

    def __init__(self, stage: Stage, moving: _Scene) -> None:
        self.stage, self.moving = stage, moving
        meshes = (stage.fixed.mesh, moving.mesh)
        self.color = np.concatenate([mesh.color for mesh in meshes])
        self.reflectivity = np.concatenate([mesh.reflectivity for mesh in meshes])
        self.texture = np.concatenate([mesh.texture for mesh in meshes])

    def cast(self, origins: NDArray, directions: NDArray) -> Hits:
        """First hits of R rays.

        Args:
            origins: (R, 3) global metres.
            directions: (R, 3) unit vectors.
        """
        rays = np.concatenate([origins - self.stage.origin, directions], 1).astype(np.float32)
        distance, face, normal = self.stage.fixed.cast(rays)
        near, near_face, near_normal = self.moving.cast(rays)
        closer = near < distance
        owner = np.full(len(rays), NOTHING)
        hit = np.isfinite(distance) & ~closer
        owner[hit] = self.stage.fixed.owner[face[hit]]
        owner[closer] = self.moving.owner[near_face[closer]]
        distance = np.where(closer, near, distance).astype(np.float64)
        face = np.where(closer, near_face + len(self.stage.fixed.mesh.faces), face)
        normal = np.where(closer[:, None], near_normal, normal).astype(np.float64)
        normal *= -np.sign((normal * directions).sum(1, keepdims=True) + 1e-12)
        reach = np.where(np.isfinite(distance), distance, 0.0)
        face = np.where(owner == NOTHING, 0, face)
        point = np.asarray(origins + directions * reach[:, None], np.float64)
        return Hits(distance, point, normal, owner, face)
