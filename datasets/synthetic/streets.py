"""Procedural streets: one main road, straight or bent, with cross streets, in ground polygons.

Positions along the main road are (s, t): s metres along its centre line, t to the left of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Polygon = NDArray[np.float64]  # (N, 2) global metres


@dataclass(frozen=True)
class CenterLine:
    """A line of constant curvature."""

    origin: NDArray[np.float64]  # (2,) where s = 0
    heading: float  # there, radians
    curvature: float  # 1/m, positive bends left
    length: float

    def heading_at(self, s: NDArray | float) -> NDArray:
        """Direction at s, radians."""
        return self.heading + self.curvature * np.asarray(s, np.float64)

    def point(self, s: NDArray | float, t: NDArray | float = 0.0) -> NDArray:
        """(..., 2) global position of (s, t)."""
        s, t = np.broadcast_arrays(np.asarray(s, np.float64), np.asarray(t, np.float64))
        half = self.curvature * s / 2
        # The chord of an arc; sinc keeps it exact for a straight line.
        chord = s * np.sinc(half / np.pi)
        angle = self.heading + half
        base = self.origin + chord[..., None] * np.stack([np.cos(angle), np.sin(angle)], -1)
        normal = self.heading_at(s) + np.pi / 2
        return base + t[..., None] * np.stack([np.cos(normal), np.sin(normal)], -1)

    def place(self, s: float, t: float) -> tuple[float, float, float]:
        """x, y and direction at one (s, t): :meth:`point` without numpy, for moving agents."""
        half = self.curvature * s / 2
        chord = s * math.sin(half) / half if abs(half) > 1e-9 else s
        angle, direction = self.heading + half, self.heading + self.curvature * s
        x = self.origin[0] + chord * math.cos(angle) - t * math.sin(direction)
        y = self.origin[1] + chord * math.sin(angle) + t * math.cos(direction)
        return float(x), float(y), direction

    def strip(self, s0: float, s1: float, t0: float, t1: float) -> Polygon:
        """The area between two values of s and of t, counter-clockwise."""
        steps = max(int(np.ceil((s1 - s0) / 5)), 1) if self.curvature else 1
        s = np.linspace(s0, s1, steps + 1)
        return np.concatenate([self.point(s, t0), self.point(s[::-1], t1)])

    def line(self, s0: float, s1: float, t: float) -> Polygon:
        """The polyline at a constant t."""
        steps = max(int(np.ceil((s1 - s0) / 5)), 1) if self.curvature else 1
        return self.point(np.linspace(s0, s1, steps + 1), t)


@dataclass(frozen=True)
class CrossStreet:
    """A straight street across the main road."""

    s: float  # where it crosses
    half_width: float
    line: CenterLine  # its own centre line; its s = reach lies on the main road
    reach: float  # metres to either side of the main road's centre line


@dataclass(frozen=True)
class CarPark:
    """A rectangle of parking bays beside the main road."""

    s0: float
    s1: float
    t0: float
    t1: float
    bay: float  # width of a bay along s


@dataclass
class Street:
    """Everything on the ground of one scene."""

    line: CenterLine
    lane_width: float
    lanes_per_side: int
    parking: float  # width of the parking strip at each curb, 0 for none
    walkway_width: float
    crosses: list[CrossStreet] = field(default_factory=list)
    car_parks: list[CarPark] = field(default_factory=list)
    # Map layers, by nuScenes' names.
    roads: list[Polygon] = field(default_factory=list)
    intersections: list[Polygon] = field(default_factory=list)
    lanes: list[Polygon] = field(default_factory=list)
    crossings: list[Polygon] = field(default_factory=list)
    crossing_at: list[float] = field(default_factory=list)  # s of those on the main road
    walkways: list[Polygon] = field(default_factory=list)
    stop_lines: list[Polygon] = field(default_factory=list)
    park_areas: list[Polygon] = field(default_factory=list)
    road_dividers: list[Polygon] = field(default_factory=list)
    lane_dividers: list[Polygon] = field(default_factory=list)
    bay_lines: list[Polygon] = field(default_factory=list)

    @property
    def half_width(self) -> float:
        """Centre line to curb."""
        return self.lane_width * self.lanes_per_side + self.parking

    def lane_center(self, index: int, side: int) -> float:
        """t of a lane's middle; traffic keeps right, so side -1 runs with s, +1 against it."""
        return side * (index + 0.5) * self.lane_width


def build_street(rng: np.random.Generator, middle: NDArray, length: float) -> Street:
    """A street whose main road has its middle at the global point ``middle``."""
    heading = rng.uniform(-np.pi, np.pi)
    bend = rng.uniform(-1, 1) / rng.uniform(120, 400) if rng.random() < 0.5 else 0.0
    trial = CenterLine(np.zeros(2), heading, bend, length)
    line = CenterLine(middle - trial.point(length / 2), heading, bend, length)
    street = Street(
        line,
        lane_width=rng.uniform(3.2, 3.8),
        lanes_per_side=int(rng.integers(1, 4)),
        parking=rng.uniform(2.2, 2.6) if rng.random() < 0.7 else 0.0,
        walkway_width=rng.uniform(2.2, 4.5),
    )
    _add_crosses(street, rng)
    _pave_main_road(street, rng)
    for cross in street.crosses:
        _pave_cross(street, cross)
    _add_car_parks(street, rng)
    return street


def _add_crosses(street: Street, rng: np.random.Generator) -> None:
    s = rng.uniform(20, 70)
    while s < street.line.length - 20:
        half_width, reach = rng.uniform(3.4, 7.2), rng.uniform(60, 90)
        heading = float(street.line.heading_at(s)) + np.pi / 2
        start = street.line.point(s, -reach)
        line = CenterLine(start, heading, 0.0, 2 * reach)
        street.crosses.append(CrossStreet(s, half_width, line, reach))
        s += rng.uniform(60, 130)


def _gaps(street: Street, margin: float) -> list[tuple[float, float]]:
    """Stretches of s between the cross streets, ``margin`` metres off them."""
    edges = [0.0]
    for cross in street.crosses:
        edges += [cross.s - cross.half_width - margin, cross.s + cross.half_width + margin]
    edges.append(street.line.length)
    return [(a, b) for a, b in zip(edges[::2], edges[1::2]) if b - a > 4]


def _pave_main_road(street: Street, rng: np.random.Generator) -> None:
    line, width, walk = street.line, street.half_width, street.walkway_width
    street.roads.append(line.strip(0, line.length, -width, width))
    for a, b in _gaps(street, 0.0):
        for side in (-1, 1):
            t0, t1 = sorted((side * width, side * (width + walk)))
            street.walkways.append(line.strip(a, b, t0, t1))
    for a, b in _gaps(street, 6.0):
        street.road_dividers.append(line.line(a, b, 0.0))
        for side in (-1, 1):
            for i in range(street.lanes_per_side):
                t0, t1 = sorted((side * i * street.lane_width, side * (i + 1) * street.lane_width))
                street.lanes.append(line.strip(a, b, t0, t1))
                if i + 1 < street.lanes_per_side:
                    street.lane_dividers.append(line.line(a, b, side * (i + 1) * street.lane_width))
    for cross in street.crosses:
        edge = cross.half_width
        street.intersections.append(line.strip(cross.s - edge, cross.s + edge, -width, width))
        for direction in (-1, 1):
            if rng.random() < 0.85:
                _add_crossing(street, cross.s + direction * (edge + 2.8), direction)
    if rng.random() < 0.5:  # one in the middle of a block
        a, b = max(_gaps(street, 15.0), key=lambda gap: gap[1] - gap[0], default=(0, 0))
        if b - a > 10:
            _add_crossing(street, rng.uniform(a, b), 1)


def _add_crossing(street: Street, s: float, direction: int) -> None:
    """A crossing of the main road with its stop lines before it."""
    line, width = street.line, street.half_width
    if not 6 < s < line.length - 6:
        return
    street.crossings.append(line.strip(s - 1.6, s + 1.6, -width, width))
    street.crossing_at.append(s)
    # Who drives towards the crossing stops 1 m before it.
    edge = s + direction * 2.6
    a, b = sorted((edge, edge + direction * 1.4))
    side = 1 if direction > 0 else -1
    t0, t1 = sorted((0.0, side * width))
    street.stop_lines.append(line.strip(a, b, t0, t1))


def _pave_cross(street: Street, cross: CrossStreet) -> None:
    clear = street.half_width + street.walkway_width
    half, walk = cross.half_width, street.walkway_width
    line, reach = cross.line, cross.reach
    street.roads.append(line.strip(0, 2 * reach, -half, half))
    for a, b, sign in ((0.0, reach - clear, -1), (reach + clear, 2 * reach, 1)):
        for side in (-1, 1):
            t0, t1 = sorted((side * half, side * (half + walk)))
            street.walkways.append(line.strip(a, b, t0, t1))
            street.lanes.append(line.strip(a, b, *sorted((0.0, side * half))))
        # Crossing of the side street, in line with the main road's walkways.
        edge = reach + sign * street.half_width
        c0, c1 = sorted((edge, edge + sign * min(walk, 3.2)))
        street.crossings.append(line.strip(c0, c1, -half, half))
        stop = reach + sign * (clear + 0.5)
        s0, s1 = sorted((stop, stop + sign * 1.4))
        # Towards the junction one drives on the right: t < 0 where s grows.
        t0, t1 = (-half, 0.0) if sign < 0 else (0.0, half)
        street.stop_lines.append(line.strip(s0, s1, t0, t1))
        d0, d1 = (a, b - 4) if sign < 0 else (a + 4, b)
        street.road_dividers.append(line.line(d0, d1, 0.0))


def _add_car_parks(street: Street, rng: np.random.Generator) -> None:
    for a, b in _gaps(street, 14.0):
        for side in (-1, 1):
            if b - a < 22 or rng.random() > 0.6:
                continue
            length = min(rng.uniform(18, 40), b - a)
            s0 = rng.uniform(a, b - length)
            near = street.half_width + street.walkway_width
            t0, t1 = sorted((side * near, side * (near + rng.uniform(11, 16))))
            bay = rng.uniform(2.5, 2.9)
            park = CarPark(s0, s0 + length, t0, t1, bay)
            street.car_parks.append(park)
            street.park_areas.append(street.line.strip(s0, s0 + length, t0, t1))
            far, deep = (t1, t1 - 5.2) if side > 0 else (t0, t0 + 5.2)
            for s in np.arange(s0, s0 + length, bay):
                street.bay_lines.append(street.line.point(np.array([s, s]), np.array([far, deep])))
