"""The spinning LiDAR: one sweep of 32 beams that takes 50 ms.

A sweep is stored as nuScenes stores it: in the sensor's frame at the sweep's timestamp, the motion
of the vehicle during the sweep undone. What moves by itself stays smeared.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..geometry import apply, inverse
from .casting import Hits, Snapshot, Stage
from .ground import REFLECTIVITY
from .rig import ELEVATIONS, LIDAR_PERIOD_US, NUM_AZIMUTHS, NUM_RINGS, ego_from_lidar
from .world import GROUND

MAX_RANGE = 100.0
RANGE_NOISE = 0.02  # metres, standard deviation
PARTS = 4  # moments at which the world is frozen during a sweep


@dataclass(frozen=True)
class Sweep:
    """The returns of one revolution."""

    points: NDArray[np.float32]  # (P, 5) x, y, z in the sensor's frame, intensity, ring
    owner: NDArray[np.int64]  # (P,) see world.py
    ground: NDArray[np.uint8]  # (P,) ground surface below; only where the owner is the ground


def cast_sweep(stage: Stage, time: float, rng: np.random.Generator) -> Sweep:
    """The sweep that ends at ``time``, seconds into the scene."""
    azimuth = np.arange(NUM_AZIMUTHS) / NUM_AZIMUTHS * 2 * np.pi
    parts = []
    for part in range(PARTS):
        # Clockwise seen from above, beginning behind the vehicle.
        chosen = (
            -azimuth[part * NUM_AZIMUTHS // PARTS : (part + 1) * NUM_AZIMUTHS // PARTS] - np.pi / 2
        )
        moment = time - LIDAR_PERIOD_US * 1e-6 * (1 - (part + 0.5) / PARTS)
        parts.append(_cast_part(stage, stage.at(moment), time, moment, chosen, rng))
    return Sweep(
        np.concatenate([part.points for part in parts]),
        np.concatenate([part.owner for part in parts]),
        np.concatenate([part.ground for part in parts]),
    )


def _cast_part(
    stage: Stage, snapshot: Snapshot, time: float, moment: float, azimuth: NDArray,
    rng: np.random.Generator,
) -> Sweep:  # fmt: skip
    ring, angle = np.meshgrid(np.arange(NUM_RINGS), azimuth, indexing="ij")
    ring, angle = ring.ravel(), angle.ravel()
    elevation = ELEVATIONS[ring]
    flat = np.cos(elevation)
    local = np.stack([flat * np.cos(angle), flat * np.sin(angle), np.sin(elevation)], 1)
    then = stage.world.global_from_ego(moment) @ ego_from_lidar()
    directions = local @ then[:3, :3].T
    hits = snapshot.cast(np.broadcast_to(then[:3, 3], directions.shape), directions)
    surface = stage.world.ground.at(hits.point[:, :2])
    reflectivity = np.where(
        hits.owner == GROUND, REFLECTIVITY[surface], snapshot.reflectivity[hits.face]
    )
    returned, intensity = _returns(hits, directions, reflectivity, rng)
    noisy = hits.distance + rng.normal(0, RANGE_NOISE, len(angle))
    points = then[:3, 3] + directions[returned] * noisy[returned, None]
    now = stage.world.global_from_ego(time) @ ego_from_lidar()
    # The vehicle's own parts move with it: they are stored where the sensor saw them.
    own = hits.owner[returned] == -3
    seen = apply(inverse(now), points)
    seen[own] = apply(inverse(then), points[own])
    columns = [seen, intensity[returned, None], ring[returned, None]]
    return Sweep(
        np.concatenate(columns, 1).astype(np.float32), hits.owner[returned], surface[returned]
    )


def _returns(
    hits: Hits, directions: NDArray, reflectivity: NDArray, rng: np.random.Generator
) -> tuple[NDArray, NDArray]:
    """Which rays return something, and their intensity 0..255."""
    incidence = np.abs((hits.normal * directions).sum(1))
    with np.errstate(divide="ignore", invalid="ignore"):
        # Lambert's law and the inverse square, flattened near the sensor by its gain control.
        power = reflectivity * incidence / (1 + (hits.distance / 25.0) ** 2)
    found = np.isfinite(hits.distance) & (hits.distance < MAX_RANGE)
    chance = 1 - np.exp(-np.where(found, power, 0) * 220)
    returned = found & (rng.random(len(incidence)) < 0.98 * chance)
    intensity = 255 * reflectivity * (0.3 + 0.7 * incidence) * rng.normal(1, 0.12, len(incidence))
    return returned, np.clip(np.round(intensity), 0, 255)
