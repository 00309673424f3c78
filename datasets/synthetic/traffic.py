"""Who is in the street, and how they move."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from . import objects
from .meshes import Mesh, yaw_rotation
from .objects import Shape
from .streets import CenterLine, Street


@dataclass(frozen=True)
class Path:
    """Motion at constant speed along a line, at a constant distance to its left."""

    line: CenterLine
    s: float  # at time 0
    t: float
    speed: float  # along s; negative runs against it; 0 stands
    turn: float = 0.0  # heading against the direction of travel, radians

    def pose(self, time: float) -> tuple[NDArray, float]:
        """Global (x, y) and yaw at ``time`` seconds into the scene."""
        x, y, direction = self.line.place(self.s + self.speed * time, self.t)
        return np.array([x, y]), direction + (math.pi if self.speed < 0 else 0.0) + self.turn


@dataclass(frozen=True)
class Agent:
    """An annotated object."""

    shape: Shape
    path: Path
    attribute: str  # nuScenes' name, "" for none

    @property
    def moves(self) -> bool:
        """Does it ever change place?"""
        return self.path.speed != 0

    def mesh(self, time: float) -> Mesh:
        """Its surface in the global frame."""
        xy, yaw = self.path.pose(time)
        return self.shape.mesh.moved(yaw_rotation(yaw), [*xy, 0.0])


class Crowd:
    """Collects agents and keeps standing ones from overlapping."""

    def __init__(self, street: Street, rng: np.random.Generator) -> None:
        self.street, self.rng = street, rng
        self.agents: list[Agent] = []
        self._taken: list[tuple[float, float, float]] = []  # x, y, radius

    def add(self, shape: Shape, path: Path, attribute: str = "") -> bool:
        """Add an agent unless it would stand in another one's place."""
        (x, y), _ = path.pose(0.0)
        if path.speed == 0:
            radius = float(np.max(shape.size[:2])) / 2
            for other_x, other_y, other in self._taken:
                if np.hypot(x - other_x, y - other_y) < 0.85 * (radius + other):
                    return False
            self._taken.append((x, y, radius))
        self.agents.append(Agent(shape, path, attribute))
        return True


VEHICLES = ("car", "truck", "bus", "motorcycle", "bicycle", "trailer", "construction_vehicle")
SHARES = np.array([0.55, 0.12, 0.11, 0.07, 0.06, 0.05, 0.04])


def fill_street(street: Street, ego_lane: int, ego_s: float, ego_speed: float,
                rng: np.random.Generator) -> list[Agent]:  # fmt: skip
    """All agents of a scene; the ego vehicle drives in the lane ``ego_lane`` of side -1."""
    crowd = Crowd(street, rng)
    for side in (-1, 1):
        for lane in range(street.lanes_per_side):
            own = side == -1 and lane == ego_lane
            speed = ego_speed if own else rng.uniform(3, 12) * (rng.random() > 0.25)
            _fill_lane(crowd, side, lane, speed, ego_s if own else None)
    _queue_at_crosses(crowd)
    _park_at_curbs(crowd)
    _fill_car_parks(crowd)
    _populate_walkways(crowd)
    _cross_the_road(crowd, ego_s, ego_speed)
    for _ in range(int(rng.integers(2, 5))):
        _road_works(crowd, ego_s)
    return crowd.agents


def _vehicle(name: str, rng: np.random.Generator) -> Shape:
    return getattr(objects, name)(rng)


def _driver_attribute(name: str, moving: bool, parked: bool) -> str:
    if name in ("bicycle", "motorcycle"):
        return "cycle.without_rider" if parked else "cycle.with_rider"
    return "vehicle.moving" if moving else "vehicle.parked" if parked else "vehicle.stopped"


def _fill_lane(crowd: Crowd, side: int, lane: int, speed: float, ego_s: float | None) -> None:
    street, rng = crowd.street, crowd.rng
    # The lane is filled well beyond the street's ends, from where traffic arrives.
    reach = 21.0 * speed + 10
    s, end = -reach, street.line.length + reach
    while s < end:
        name = VEHICLES[rng.choice(len(VEHICLES), p=SHARES)]
        shape = _vehicle(name, rng)
        length = float(shape.size[0])
        s += length / 2 + rng.uniform(3, 8) + rng.exponential(12 + 1.5 * speed)
        if ego_s is not None and abs(s - ego_s) < length / 2 + 7:
            continue
        sway = rng.uniform(-0.25, 0.25)
        path = Path(street.line, s, street.lane_center(lane, side) + sway, -side * speed,
                    np.pi if speed == 0 and side > 0 else 0.0)  # fmt: skip
        crowd.add(shape, path, _driver_attribute(name, speed > 0, False))
        s += length / 2


def _queue_at_crosses(crowd: Crowd) -> None:
    """Side streets: vehicles that wait before the junction, and some that drive away from it."""
    street, rng = crowd.street, crowd.rng
    for cross in street.crosses:
        clear = street.half_width + street.walkway_width + 2.0
        t = cross.half_width / 2
        for sign in (-1, 1):  # arms at lower and higher t of the main road
            s = cross.reach + sign * clear
            while abs(s - cross.reach) < cross.reach - 10 and rng.random() < 0.75:
                name = VEHICLES[rng.choice(len(VEHICLES), p=SHARES)]
                shape = _vehicle(name, rng)
                s += sign * (shape.size[0] / 2 + rng.uniform(0.5, 3))
                turn = 0.0 if sign < 0 else np.pi
                crowd.add(shape, Path(cross.line, s, sign * t, 0.0, turn),
                          _driver_attribute(name, False, False))  # fmt: skip
                s += sign * shape.size[0] / 2
            if rng.random() < 0.5:
                away = cross.reach + sign * (clear + 4)
                shape = objects.car(rng)
                path = Path(cross.line, away, -sign * t, sign * rng.uniform(2, 7))
                crowd.add(shape, path, "vehicle.moving")


def _park_at_curbs(crowd: Crowd) -> None:
    street, rng = crowd.street, crowd.rng
    if not street.parking:
        return
    for side in (-1, 1):
        s = rng.uniform(0, 10)
        while s < street.line.length:
            name = VEHICLES[rng.choice(len(VEHICLES), p=[0.6, 0.1, 0.03, 0.07, 0.05, 0.12, 0.03])]
            shape = (
                getattr(objects, name)(rng, False)
                if name in ("bicycle", "motorcycle")
                else _vehicle(name, rng)
            )
            s += shape.size[0] / 2
            crossed = any(
                abs(s - c.s) < c.half_width + 5 + shape.size[0] / 2 for c in street.crosses
            )
            crossed |= any(abs(s - c) < 4 + shape.size[0] / 2 for c in street.crossing_at)
            if not crossed:
                t = side * (street.half_width - street.parking / 2)
                turn = 0.0 if side < 0 else np.pi
                crowd.add(shape, Path(street.line, s, t, 0.0, turn + rng.normal(0, 0.02)),
                          _driver_attribute(name, False, True))  # fmt: skip
            s += shape.size[0] / 2 + rng.uniform(0.6, 2) + rng.exponential(6)


def _fill_car_parks(crowd: Crowd) -> None:
    street, rng = crowd.street, crowd.rng
    for park in street.car_parks:
        inward = 1 if park.t0 >= 0 else -1
        t = (park.t1 - 2.7) if inward > 0 else (park.t0 + 2.7)
        for s in np.arange(park.s0 + park.bay / 2, park.s1 - park.bay / 2, park.bay):
            if rng.random() < 0.65:
                turn = np.pi / 2 * (1 if rng.random() < 0.5 else -1)
                crowd.add(objects.car(rng), Path(street.line, s, t, 0.0, turn), "vehicle.parked")
        if rng.random() < 0.5:
            big = objects.trailer(rng) if rng.random() < 0.6 else objects.bus(rng)
            middle, near = (park.s0 + park.s1) / 2, park.t0 if inward > 0 else park.t1
            crowd.add(big, Path(street.line, middle, near + inward * 2.2, 0.0), "vehicle.parked")


def _populate_walkways(crowd: Crowd) -> None:
    street, rng = crowd.street, crowd.rng
    for side in (-1, 1):
        middle = side * (street.half_width + street.walkway_width / 2)
        for s in np.arange(0, street.line.length, 1.0):
            if rng.random() > 0.11:
                continue
            t = middle + rng.uniform(-0.4, 0.4) * street.walkway_width
            pick = rng.random()
            if pick < 0.5:
                speed = rng.uniform(0.7, 1.7) * rng.choice([-1, 1])
                crowd.add(
                    objects.pedestrian(rng), Path(street.line, s, t, speed), "pedestrian.moving"
                )
            elif pick < 0.68:
                path = Path(street.line, s, t, 0.0, rng.uniform(-np.pi, np.pi))
                crowd.add(objects.pedestrian(rng), path, "pedestrian.standing")
            elif pick < 0.74:
                path = Path(street.line, s, t, 0.0, rng.uniform(-np.pi, np.pi))
                crowd.add(objects.pedestrian(rng, True), path, "pedestrian.sitting_lying_down")
            elif pick < 0.86:
                kind = objects.bicycle if rng.random() < 0.55 else objects.motorcycle
                path = Path(street.line, s, t, 0.0, rng.uniform(-np.pi, np.pi))
                crowd.add(kind(rng, False), path, "cycle.without_rider")
            elif pick < 0.93:
                speed = rng.uniform(2, 5) * rng.choice([-1, 1])
                crowd.add(objects.bicycle(rng), Path(street.line, s, t, speed), "cycle.with_rider")
            elif pick < 0.95:
                turn = np.pi if side > 0 else 0.0
                crowd.add(objects.bicycle_rack(rng), Path(street.line, s, t, 0.0, turn))
            else:
                crowd.add(objects.traffic_cone(rng), Path(street.line, s, t, 0.0))


def _cross_the_road(crowd: Crowd, ego_s: float, ego_speed: float) -> None:
    """Pedestrians on the crossings of the main road, not where the ego vehicle will be."""
    street, rng = crowd.street, crowd.rng
    for s in street.crossing_at:
        if ego_s - 5 < s < ego_s + 22 * ego_speed + 8:
            continue
        heading = float(street.line.heading_at(s)) + np.pi / 2
        start = street.line.point(s, -street.half_width)
        across = CenterLine(start, heading, 0.0, 2 * street.half_width)
        for _ in range(int(rng.integers(0, 4))):
            speed = rng.uniform(0.8, 1.5) * rng.choice([-1, 1])
            at = rng.uniform(0, 2 * street.half_width)
            path = Path(across, at, rng.uniform(-1.2, 1.2), speed)
            crowd.add(objects.pedestrian(rng), path, "pedestrian.moving")


def _road_works(crowd: Crowd, ego_s: float) -> None:
    """Barriers, look-alike blocks, cones, workers and a machine beside the road."""
    street, rng = crowd.street, crowd.rng
    side = int(rng.choice([-1, 1]))
    s = ego_s + rng.uniform(-15, 90)
    t = side * (street.half_width + rng.uniform(0.3, 0.8))
    for kind, count in ((objects.barrier, 9), (objects.concrete_block, 4)):
        for _ in range(int(rng.integers(2, count))):
            s += rng.uniform(2.9, 3.6)
            turn = np.pi / 2 + rng.normal(0, 0.15)
            crowd.add(kind(rng), Path(street.line, s, t, 0.0, turn))
    for _ in range(int(rng.integers(5, 14))):
        s += rng.uniform(1.0, 3.0)
        crowd.add(objects.traffic_cone(rng), Path(street.line, s, t + rng.normal(0, 0.3), 0.0))
    beyond = side * (street.half_width + street.walkway_width + rng.uniform(2.5, 5))
    if rng.random() < 0.8:
        path = Path(street.line, s - rng.uniform(0, 15), beyond, 0.0, rng.uniform(-np.pi, np.pi))
        crowd.add(objects.construction_vehicle(rng), path, "vehicle.parked")
