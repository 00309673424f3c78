"""One scene's world: street, agents, scenery, light, and the ego vehicle's drive through it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..geometry import transform
from .ground import Ground, paint_ground
from .meshes import Mesh, block, yaw_rotation
from .scenery import Thing, build_scenery, ground_plane
from .streets import Street, build_street
from .traffic import Agent, Path, fill_street

EXTENT = 360.0  # edge of the square that has a street, metres


@dataclass(frozen=True)
class Light:
    """Sun and sky."""

    sun: NDArray[np.float64]  # (3,) unit vector towards it
    strength: float  # of its light, 0 (dusk) to 1
    ambient: float
    sky: NDArray[np.float64]  # (3,) RGB near the horizon
    zenith: NDArray[np.float64]  # (3,) RGB above
    noise: float  # standard deviation of the cameras' noise, 0..255


@dataclass(frozen=True)
class World:
    """Everything that is the case in a scene; time is seconds from its start."""

    middle: NDArray[np.float64]  # (2,) global
    street: Street
    ground: Ground
    scenery: list[Thing]
    agents: list[Agent]
    drive: Path  # of the ego vehicle
    light: Light

    def global_from_ego(self, time: float) -> NDArray[np.float64]:
        """(4, 4) pose of the vehicle."""
        xy, yaw = self.drive.pose(time)
        return transform(yaw_rotation(yaw), [*xy, 0.0])


def build_world(middle: NDArray, rng: np.random.Generator) -> World:
    """A world around the global point ``middle``."""
    street = build_street(rng, middle, length=EXTENT * 0.8)
    speed = rng.uniform(3.5, 9.0)
    lane = int(rng.integers(street.lanes_per_side))
    start = rng.uniform(60, 80)
    drive = Path(street.line, start, street.lane_center(lane, -1), speed)
    agents = fill_street(street, lane, start, speed, rng)
    scenery = build_scenery(street, rng)
    ground = paint_ground(street, middle, EXTENT)
    return World(middle, street, ground, scenery, agents, drive, _light(rng))


def _light(rng: np.random.Generator) -> Light:
    elevation, azimuth = rng.uniform(0.15, 1.3), rng.uniform(-np.pi, np.pi)
    sun = np.array(
        [
            np.cos(elevation) * np.cos(azimuth),
            np.cos(elevation) * np.sin(azimuth),
            np.sin(elevation),
        ]
    )
    dusk = rng.random() < 0.2
    overcast = rng.random() < 0.4
    strength = 0.25 if dusk else 0.45 if overcast else 0.9
    sky = np.array([0.55, 0.42, 0.4]) if dusk else np.array([0.8, 0.84, 0.9])
    zenith = np.array([0.12, 0.14, 0.28]) if dusk else np.array([0.35, 0.52, 0.82])
    if overcast:
        zenith = sky * 0.85
    return Light(sun, strength, 0.25 if dusk else 0.5, sky, zenith, 6.0 if dusk else 3.0)


def ego_body() -> Mesh:
    """What the LiDAR sees of its own vehicle: the roof rack around it, in the ego frame."""
    return Mesh.join(
        # Behind the side cameras (x = 1.0), which must not stand inside it and see nothing else.
        [block((0.5, 0.12, 0.06), (0.6, y, 1.58), (0.1, 0.1, 0.1), 0.3) for y in (-0.45, 0.45)]
    )


def fixed_mesh(world: World) -> tuple[Mesh, NDArray[np.int64], list[str]]:
    """Ground, scenery and standing agents.

    Returns:
        The mesh; the owner of each face, an agent's index or one of the constants below; and the
        category of each scenery thing.
    """
    meshes = [ground_plane(world.middle, 4 * EXTENT)]
    owners = [np.full(2, GROUND)]
    for index, thing in enumerate(world.scenery):
        meshes.append(thing.mesh)
        owners.append(np.full(len(thing.mesh.faces), SCENERY - index))
    for index, agent in enumerate(world.agents):
        if not agent.moves:
            meshes.append(agent.mesh(0.0))
            owners.append(np.full(len(meshes[-1].faces), index))
    categories = [thing.category for thing in world.scenery]
    return Mesh.join(meshes), np.concatenate(owners), categories


# Owners of a face or of a hit: an agent's index, or one of these.
NOTHING = -1
GROUND = -2
EGO = -3
SCENERY = -10  # minus the index of the thing
