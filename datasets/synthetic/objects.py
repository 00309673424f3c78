"""What stands and moves in the world: shapes of the detection classes and of what resembles them.

Sizes are about nuScenes' (means over its annotations). Some kinds share a shape and differ by
colour alone, on purpose: a LiDAR cannot tell them apart, a camera can. A city bus and a box
truck, a digger's carrier and a flatbed, a barrier and a block of concrete, a traffic cone and a
grey bollard.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .meshes import Mesh, Texture, block, column

Color = tuple[float, float, float]
GLASS: Color = (0.08, 0.1, 0.13)
TYRE: Color = (0.05, 0.05, 0.05)
SKIN: Color = (0.75, 0.55, 0.42)
PAINTS: tuple[Color, ...] = (
    (0.85, 0.85, 0.87), (0.1, 0.1, 0.12), (0.45, 0.46, 0.5), (0.55, 0.06, 0.07),
    (0.08, 0.16, 0.42), (0.62, 0.62, 0.58), (0.12, 0.28, 0.18), (0.35, 0.22, 0.14),
)  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """An object in its own frame: x forward, the middle of its floor at the origin."""

    category: str  # nuScenes' name
    size: NDArray[np.float64]  # length, width, height of the annotated box
    mesh: Mesh


def _size(rng: np.random.Generator, mean: tuple[float, float, float], spread: float) -> NDArray:
    common = rng.normal(1, spread)
    return np.array(mean) * np.clip(common * rng.normal(1, spread / 2, 3), 0.75, 1.3)


def _paint(rng: np.random.Generator) -> Color:
    base = np.array(PAINTS[rng.integers(len(PAINTS))]) * rng.uniform(0.8, 1.1)
    return tuple(np.clip(base, 0, 1))


def _wheels(size: NDArray, radius: float, axles: tuple[float, ...]) -> list[Mesh]:
    length, width = size[:2]
    return [
        block(
            (2 * radius, 0.25, 2 * radius),
            (length * axle, side * (width / 2 - 0.13), 0),
            TYRE,
            0.05,
        )
        for axle in axles
        for side in (-1, 1)
    ]


def car(rng: np.random.Generator) -> Shape:
    size = _size(rng, (4.6, 1.9, 1.6), 0.06)
    length, width, height = size
    paint = _paint(rng)
    # Dark paint swallows infrared: such cars return little.
    shine = 0.05 + 0.5 * float(np.mean(paint))
    body = block((length, width, height * 0.4), (0, 0, height * 0.2), paint, shine)
    shift = rng.uniform(-0.12, 0.0) * length
    cabin = block(
        (length * rng.uniform(0.5, 0.72), width * 0.9, height * 0.4), (shift, 0, height * 0.6),
        paint, shine, Texture.BAND, taper=0.8,
    )  # fmt: skip
    return Shape("vehicle.car", size, Mesh.join([body, cabin, *_wheels(size, 0.33, (-0.3, 0.3))]))


def _box_vehicle(size: NDArray, color: Color, cab: Color, band: Texture, gap: float) -> Mesh:
    """The common body of trucks and buses: a long box with or without a cab before it."""
    length, width, height = size
    front = 0.22 * length
    load = length - front - gap
    floor, whole = height * 0.15, gap == 0
    back, ahead = (-(length - load) / 2, 0, floor), ((length - front) / 2, 0, floor)
    cab_size = (front, width, height * (0.85 if whole else 0.7))
    parts = [
        block((load, width, height * 0.85), back, color, 0.4, band),
        block(cab_size, ahead, cab, 0.4, band if whole else Texture.BAND),
        *_wheels(size, 0.5, (-0.33, 0.36)),
    ]
    return Mesh.join(parts)


LIVERIES: tuple[Color, ...] = (
    (0.8, 0.12, 0.1),
    (0.9, 0.55, 0.1),
    (0.1, 0.5, 0.25),
    (0.2, 0.45, 0.8),
)


def bus(rng: np.random.Generator) -> Shape:
    size = _size(rng, (11.0, 2.9, 3.4), 0.08)
    livery = LIVERIES[rng.integers(len(LIVERIES))]
    mesh = _box_vehicle(size, livery, livery, Texture.BAND, 0.0)
    category = "vehicle.bus.bendy" if rng.random() < 0.1 else "vehicle.bus.rigid"
    return Shape(category, size, mesh)


def truck(rng: np.random.Generator) -> Shape:
    boxy = rng.random() < 0.3
    # A box truck has a bus's outline; only its plain pale sides tell.
    size = _size(rng, (10.0, 2.85, 3.4) if boxy else (6.9, 2.5, 2.8), 0.1)
    pale = tuple(np.array([0.8, 0.8, 0.78]) * rng.uniform(0.75, 1.1))
    cab = pale if boxy else _paint(rng)
    mesh = _box_vehicle(size, pale, cab, Texture.PLAIN, 0.0 if boxy else 0.3)
    return Shape("vehicle.truck", size, mesh)


def trailer(rng: np.random.Generator) -> Shape:
    size = _size(rng, (11.5, 2.9, 3.8), 0.1)
    length, width, height = size
    shade = tuple(np.array([0.55, 0.57, 0.6]) * rng.uniform(0.7, 1.2))
    box = block((length, width, height * 0.7), (0, 0, height * 0.3), shade, 0.35)
    legs = block((0.3, width * 0.7, height * 0.3), (length * 0.3, 0, 0), TYRE, 0.1)
    wheels = _wheels(size, 0.5, (-0.38, -0.26))
    return Shape("vehicle.trailer", size, Mesh.join([box, legs, *wheels]))


def construction_vehicle(rng: np.random.Generator) -> Shape:
    size = _size(rng, (6.4, 2.6, 3.0), 0.12)
    length, width, height = size
    yellow = tuple(np.array([0.9, 0.65, 0.05]) * rng.uniform(0.85, 1.1))
    if rng.random() < 0.5:  # a dumper: the outline of a truck
        mesh = _box_vehicle(size, yellow, yellow, Texture.PLAIN, 0.3)
        return Shape("vehicle.construction", size, mesh)
    parts = [
        block((length * 0.55, width, height * 0.4), (-length * 0.2, 0, 0), TYRE, 0.1),
        block(
            (length * 0.5, width * 0.8, height * 0.35),
            (-length * 0.2, 0, height * 0.4),
            yellow,
            0.45,
        ),
        block(
            (length * 0.2, width * 0.4, height * 0.25),
            (-length * 0.1, 0, height * 0.75),
            GLASS,
            0.1,
        ),
        block((length * 0.45, 0.4, 0.4), (length * 0.25, 0, height * 0.7), yellow, 0.45),
        block((0.5, width * 0.5, height * 0.6), (length * 0.42, 0, height * 0.1), yellow, 0.45),
    ]
    return Shape("vehicle.construction", size, Mesh.join(parts))


def _rider(height: float, color: Color) -> list[Mesh]:
    return [
        block((0.35, 0.45, 0.6), (-0.1, 0, height - 0.85), color, 0.4),
        block((0.25, 0.25, 0.25), (-0.1, 0, height - 0.25), color, 0.4),
    ]


def bicycle(rng: np.random.Generator, rider: bool = True) -> Shape:
    height = rng.uniform(1.6, 1.8) if rider else rng.uniform(1.0, 1.1)
    size = np.array([rng.uniform(1.65, 1.85), 0.6, height])
    frame = _paint(rng)
    parts = [
        block((0.6, 0.06, 0.6), (x, 0, 0), TYRE, 0.1)
        for x in (-size[0] / 2 + 0.3, size[0] / 2 - 0.3)
    ]
    parts.append(block((0.9, 0.06, 0.35), (0, 0, 0.45), frame, 0.4))
    parts.append(block((0.06, 0.5, 0.06), (size[0] / 2 - 0.4, 0, 0.98), TYRE, 0.2))
    if rider:
        parts += _rider(height, _paint(rng))
    return Shape("vehicle.bicycle", size, Mesh.join(parts))


def motorcycle(rng: np.random.Generator, rider: bool = True) -> Shape:
    height = rng.uniform(1.6, 1.8) if rider else rng.uniform(1.05, 1.2)
    size = np.array([rng.uniform(1.9, 2.2), 0.75, height])
    red = (0.7, 0.08, 0.06) if rng.random() < 0.6 else (0.08, 0.08, 0.1)
    parts = [
        block((0.6, 0.16, 0.6), (x, 0, 0), TYRE, 0.1)
        for x in (-size[0] / 2 + 0.3, size[0] / 2 - 0.3)
    ]
    parts.append(block((1.2, 0.35, 0.45), (0, 0, 0.45), red, 0.4))
    parts.append(block((0.08, 0.7, 0.08), (size[0] / 2 - 0.5, 0, 1.0), TYRE, 0.2))
    if rider:
        parts += _rider(height, (0.12, 0.12, 0.14))
    return Shape("vehicle.motorcycle", size, Mesh.join(parts))


def pedestrian(rng: np.random.Generator, sitting: bool = False) -> Shape:
    kinds = ("adult", "adult", "adult", "child", "construction_worker")
    kind = kinds[rng.integers(len(kinds))]
    height = rng.uniform(1.05, 1.35) if kind == "child" or sitting else rng.uniform(1.6, 1.9)
    coat = (0.95, 0.5, 0.05) if kind == "construction_worker" else _paint(rng)
    size = np.array([0.65, 0.65, height])
    legs = 0.35 * height if sitting else 0.48 * height
    stride = rng.uniform(0.0, 0.2)
    trousers = tuple(np.array([0.15, 0.17, 0.25]) * rng.uniform(0.6, 2.0))
    parts = [
        block((0.16, 0.16, legs), (side * stride, side * 0.1, 0), trousers, 0.3) for side in (-1, 1)
    ]
    parts.append(block((0.28, 0.5, 0.87 * height - legs), (0, 0, legs), coat, 0.4))
    parts.append(block((0.22, 0.2, 0.13 * height), (0, 0, 0.87 * height), SKIN, 0.5))
    return Shape(f"human.pedestrian.{kind}", size, Mesh.join(parts))


def barrier(rng: np.random.Generator) -> Shape:
    size = np.array([0.5, rng.uniform(2.0, 2.8), rng.uniform(0.9, 1.1)])
    orange = (0.92, 0.35, 0.05)
    board = block((0.5, size[1], size[2]), (0, 0, 0), orange, 0.6, Texture.STRIPES, taper=0.8)
    return Shape("movable_object.barrier", size, board)


def concrete_block(rng: np.random.Generator) -> Shape:
    """A barrier's shape without its paint; annotated as debris, which is no detection class."""
    size = np.array([0.5, rng.uniform(2.0, 2.8), rng.uniform(0.9, 1.1)])
    grey = tuple(np.array([0.5, 0.5, 0.48]) * rng.uniform(0.7, 1.1))
    mesh = block((0.5, size[1], size[2]), (0, 0, 0), grey, 0.6, taper=0.8)
    return Shape("movable_object.debris", size, mesh)


def traffic_cone(rng: np.random.Generator) -> Shape:
    height = rng.uniform(0.7, 1.1)
    size = np.array([0.42, 0.42, height])
    parts = [
        block((0.42, 0.42, 0.06), (0, 0, 0), (0.1, 0.1, 0.1), 0.2),
        column(0.17, height - 0.06, (0, 0, 0.06), (0.95, 0.33, 0.04), 0.6, Texture.STRIPES, 0.04),
    ]
    return Shape("movable_object.trafficcone", size, Mesh.join(parts))


def bollard(rng: np.random.Generator) -> Shape:
    """A traffic cone's shape in grey; part of the street, not annotated."""
    height = rng.uniform(0.7, 1.1)
    mesh = column(0.17, height, (0, 0, 0), (0.3, 0.32, 0.34), 0.6, top_radius=0.06)
    return Shape("static.manmade", np.array([0.34, 0.34, height]), mesh)


def bicycle_rack(rng: np.random.Generator) -> Shape:
    size = np.array([0.7, rng.uniform(2.5, 4.0), 0.8])
    count = int(size[1] / 0.6)
    bars = [
        block((0.7, 0.05, 0.8), (0, -size[1] / 2 + 0.6 * (i + 0.5), 0), (0.5, 0.5, 0.52), 0.4)
        for i in range(count)
    ]
    return Shape("static_object.bicycle_rack", size, Mesh.join(bars))
