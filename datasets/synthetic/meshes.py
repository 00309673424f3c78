"""Triangle meshes with a surface per face, and the few solids that everything is built of."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import IntEnum

import numpy as np
from numpy.typing import ArrayLike, NDArray


class Texture(IntEnum):
    """How a face is painted; see ``shading.py``."""

    PLAIN = 0
    WINDOWS = 1  # a building's front
    STRIPES = 2  # diagonal warning stripes, white on the face's colour
    BAND = 3  # a band of dark glass along the upper half, as on buses and cars
    LEAVES = 4


@dataclass(frozen=True)
class Mesh:
    """F triangles; all arrays are per face but ``vertices``."""

    vertices: NDArray[np.float64]  # (V, 3) metres
    faces: NDArray[np.int64]  # (F, 3) counter-clockwise seen from outside
    color: NDArray[np.float64]  # (F, 3) RGB, 0..1
    reflectivity: NDArray[np.float64]  # (F,) of the LiDAR's infrared light, 0..1
    texture: NDArray[np.int64]  # (F,) of Texture

    @staticmethod
    def join(meshes: list[Mesh]) -> Mesh:
        """One mesh of many."""
        if not meshes:
            empty = np.zeros((0, 3))
            index = np.zeros(0, np.int64)
            return Mesh(empty, empty.astype(np.int64), empty, np.zeros(0), index)
        offsets = np.cumsum([0] + [len(mesh.vertices) for mesh in meshes[:-1]])
        faces = np.concatenate([mesh.faces + offset for mesh, offset in zip(meshes, offsets)])
        others = [f.name for f in fields(Mesh) if f.name != "faces"]
        joined = {name: np.concatenate([getattr(m, name) for m in meshes]) for name in others}
        return Mesh(faces=faces, **joined)

    def part(self, faces: NDArray) -> Mesh:
        """Only the faces selected by an index array."""
        chosen = self.faces[faces], self.color[faces], self.reflectivity[faces], self.texture[faces]
        return Mesh(self.vertices, *chosen)

    def moved(self, rotation: NDArray, translation: ArrayLike) -> Mesh:
        """The mesh turned by (3, 3) and moved by (3,)."""
        vertices = self.vertices @ np.asarray(rotation).T + np.asarray(translation)
        return Mesh(vertices, self.faces, self.color, self.reflectivity, self.texture)


def yaw_rotation(yaw: float) -> NDArray[np.float64]:
    """(3, 3) turn about +z."""
    c, s = np.cos(yaw), np.sin(yaw)
    return np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])


def _surface(
    vertices: NDArray, faces: NDArray, color: ArrayLike, reflectivity: float, texture: Texture
) -> Mesh:
    count = len(faces)
    return Mesh(
        np.asarray(vertices, np.float64),
        np.asarray(faces, np.int64),
        np.tile(np.asarray(color, np.float64), (count, 1)),
        np.full(count, float(reflectivity)),
        np.full(count, int(texture)),
    )


_CUBE = np.array([[x, y, z] for z in (0, 1) for y in (-0.5, 0.5) for x in (-0.5, 0.5)])
_CUBE_FACES = np.array(
    [[0, 2, 3], [0, 3, 1], [4, 5, 7], [4, 7, 6], [0, 1, 5], [0, 5, 4],
     [2, 6, 7], [2, 7, 3], [0, 4, 6], [0, 6, 2], [1, 3, 7], [1, 7, 5]]
)  # fmt: skip


def block(
    size: ArrayLike,
    at: ArrayLike = (0, 0, 0),
    color: ArrayLike = (0.5, 0.5, 0.5),
    reflectivity: float = 0.3,
    texture: Texture = Texture.PLAIN,
    taper: float = 1.0,
) -> Mesh:
    """A cuboid that stands on ``at``.

    Args:
        size: length (x), width (y), height (z), metres.
        at: the middle of its floor.
        color: RGB, 0..1.
        reflectivity: see :class:`Mesh`.
        texture: how it is painted.
        taper: length and width of the top against those of the floor.
    """
    corners = _CUBE.copy()
    corners[4:, :2] *= taper
    vertices = corners * np.asarray(size, np.float64) + np.asarray(at, np.float64)
    return _surface(vertices, _CUBE_FACES, color, reflectivity, texture)


def column(
    radius: float,
    height: float,
    at: ArrayLike = (0, 0, 0),
    color: ArrayLike = (0.5, 0.5, 0.5),
    reflectivity: float = 0.3,
    texture: Texture = Texture.PLAIN,
    top_radius: float | None = None,
    sides: int = 6,
) -> Mesh:
    """An upright prism with ``sides`` sides, or a cone if ``top_radius`` is near 0."""
    angle = np.arange(sides) * 2 * np.pi / sides
    ring = np.stack([np.cos(angle), np.sin(angle)], 1)
    top = radius if top_radius is None else top_radius
    low = np.concatenate([ring * radius, np.zeros((sides, 1))], 1)
    high = np.concatenate([ring * top, np.full((sides, 1), height)], 1)
    vertices = np.concatenate([low, high, [[0, 0, 0], [0, 0, height]]])
    i = np.arange(sides)
    j = (i + 1) % sides
    faces = np.concatenate(
        [
            np.stack([i, j, j + sides], 1),
            np.stack([i, j + sides, i + sides], 1),
            np.stack([j, i, np.full(sides, 2 * sides)], 1),
            np.stack([i + sides, j + sides, np.full(sides, 2 * sides + 1)], 1),
        ]
    )
    return _surface(vertices + np.asarray(at, np.float64), faces, color, reflectivity, texture)


def sample_surface(mesh: Mesh, spacing: float) -> tuple[NDArray, NDArray]:
    """Points that cover a mesh, at most about ``spacing`` apart.

    Returns:
        points (N, 3) and the face of each, (N,).
    """
    a, b, c = (mesh.vertices[mesh.faces[:, i]] for i in range(3))
    longest = np.max([np.linalg.norm(b - a, axis=1), np.linalg.norm(c - a, axis=1)], 0)
    steps = np.maximum(np.ceil(longest / spacing).astype(int), 1)
    points, owner = [], []
    for count in np.unique(steps):
        which = np.flatnonzero(steps == count)
        u, v = np.meshgrid(np.arange(count + 1), np.arange(count + 1), indexing="ij")
        inside = u + v <= count
        u, v = u[inside] / count, v[inside] / count
        grid = (
            a[which, None]
            + (b - a)[which, None] * u[None, :, None]
            + (c - a)[which, None] * v[None, :, None]
        )
        points.append(grid.reshape(-1, 3))
        owner.append(np.repeat(which, len(u)))
    if not points:
        return np.zeros((0, 3)), np.zeros(0, np.int64)
    return np.concatenate(points), np.concatenate(owner)
