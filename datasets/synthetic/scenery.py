"""What stands beside the street and is not annotated: buildings, trees, poles, street furniture."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .meshes import Mesh, Texture, block, column, yaw_rotation
from .objects import bollard
from .streets import Street


@dataclass(frozen=True)
class Thing:
    """A fixed thing with its lidarseg category."""

    category: str
    mesh: Mesh


FACADES = ((0.62, 0.55, 0.47), (0.55, 0.33, 0.26), (0.7, 0.7, 0.68), (0.45, 0.47, 0.5),
           (0.72, 0.64, 0.5))  # fmt: skip


def build_scenery(street: Street, rng: np.random.Generator) -> list[Thing]:
    """Everything fixed that rises above the ground."""
    things: list[Thing] = []
    for side in (-1, 1):
        _add_row_of_buildings(street, side, rng, things)
        _add_street_furniture(street, side, rng, things)
    return things


def _free(street: Street, s: float, margin: float, side: int | None = None) -> bool:
    """Is the place at s clear of cross streets, and of car parks on that side?"""
    if any(abs(s - c.s) < c.half_width + street.walkway_width + margin for c in street.crosses):
        return False
    for park in street.car_parks:
        same = side is None or (park.t0 >= 0) == (side > 0)
        if same and park.s0 - margin < s < park.s1 + margin:
            return False
    return True


def _place(street: Street, mesh: Mesh, s: float, t: float, turn: float = 0.0) -> Mesh:
    yaw = float(street.line.heading_at(s)) + turn
    return mesh.moved(yaw_rotation(yaw), [*street.line.point(s, t), 0.0])


def _add_row_of_buildings(
    street: Street, side: int, rng: np.random.Generator, things: list[Thing]
) -> None:
    s = rng.uniform(-10, 10)
    while s < street.line.length:
        length, depth, height = rng.uniform(9, 26), rng.uniform(8, 16), rng.uniform(4, 22)
        s += length / 2
        setback = street.half_width + street.walkway_width + rng.uniform(0.5, 9)
        if _free(street, s, length / 2 + 1, side) and rng.random() < 0.8:
            color = tuple(np.array(FACADES[rng.integers(len(FACADES))]) * rng.uniform(0.8, 1.15))
            mesh = block((length, depth, height), (0, 0, 0), color, 0.35, Texture.WINDOWS)
            place = _place(street, mesh, s, side * (setback + depth / 2))
            things.append(Thing("static.manmade", place))
        elif rng.random() < 0.6:
            hedge = block((length, 1.0, rng.uniform(0.8, 1.8)), (0, 0, 0), (0.16, 0.3, 0.1), 0.3,
                          Texture.LEAVES)  # fmt: skip
            if _free(street, s, length / 2 + 1, side):
                place = _place(street, hedge, s, side * (setback + 1))
                things.append(Thing("static.vegetation", place))
        s += length / 2 + rng.uniform(1, 14)


def _tree(rng: np.random.Generator) -> Mesh:
    height, radius = rng.uniform(2.2, 3.2), rng.uniform(1.0, 2.2)
    green = np.array([0.2, 0.36, 0.13]) * rng.uniform(0.7, 1.3)
    crown = column(radius, radius * 1.2, (0, 0, height), green, 0.35, Texture.LEAVES, radius * 0.6)
    low = column(radius * 0.6, 0.6, (0, 0, height - 0.6), green, 0.35, Texture.LEAVES, radius)
    return Mesh.join([column(0.16, height, (0, 0, 0), (0.28, 0.2, 0.13), 0.3), crown, low])


def _post(rng: np.random.Generator) -> Mesh:
    """A person's height and width, but a thing: letter box, ticket machine, distribution box."""
    color = ((0.7, 0.1, 0.08), (0.35, 0.37, 0.36), (0.15, 0.3, 0.2))[rng.integers(3)]
    return block((rng.uniform(0.35, 0.5), rng.uniform(0.4, 0.6), rng.uniform(1.3, 1.8)),
                 (0, 0, 0), color, 0.4)  # fmt: skip


def _add_street_furniture(
    street: Street, side: int, rng: np.random.Generator, things: list[Thing]
) -> None:
    edge = street.half_width
    back = edge + street.walkway_width
    for s in np.arange(0, street.line.length, 2.0):
        if not _free(street, s, 1.5):
            continue
        pick = rng.random()
        if pick < 0.08:
            t = back + rng.uniform(0.3, 2.0) if rng.random() < 0.6 else edge + 0.6
            things.append(Thing("static.vegetation", _place(street, _tree(rng), s, side * t)))
        elif pick < 0.12:
            pole = column(0.1, rng.uniform(4, 8), (0, 0, 0), (0.4, 0.4, 0.42), 0.4)
            things.append(Thing("static.manmade", _place(street, pole, s, side * (edge + 0.4))))
        elif pick < 0.17:
            for k in range(int(rng.integers(1, 5))):
                mesh = _place(street, bollard(rng).mesh, s + 1.3 * k, side * (edge + 0.35))
                things.append(Thing("static.manmade", mesh))
        elif pick < 0.21:
            t = side * (back - 0.4)
            things.append(
                Thing("static.manmade", _place(street, _post(rng), s, t, rng.uniform(0, 3)))
            )
        elif pick < 0.24:
            t = back + rng.uniform(0.5, 3)
            bush = column(rng.uniform(0.4, 0.9), rng.uniform(0.7, 1.3), (0, 0, 0),
                          (0.2, 0.34, 0.12), 0.3, Texture.LEAVES, 0.3)  # fmt: skip
            things.append(Thing("static.vegetation", _place(street, bush, s, side * t)))


def ground_plane(middle: NDArray, extent: float) -> Mesh:
    """A flat square at height 0; its colour comes from the ground's surfaces."""
    half = extent / 2
    corners = middle + half * np.array([[-1.0, -1], [1, -1], [1, 1], [-1, 1]])
    vertices = np.concatenate([corners, np.zeros((4, 1))], 1)
    faces = np.array([[0, 1, 2], [0, 2, 3]])
    return Mesh(vertices, faces, np.full((2, 3), 0.5), np.full(2, 0.2), np.zeros(2, np.int64))
