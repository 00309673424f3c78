"""From what the camera rays met to pixels: light, texture, markings, sky, haze, noise."""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

from .casting import Hits, Snapshot
from .ground import Surface
from .world import GROUND, NOTHING, Light

SURFACE_COLOR = np.array(
    [
        [0.24, 0.33, 0.15],  # grass
        [0.25, 0.25, 0.27],  # asphalt
        [0.52, 0.5, 0.47],  # walkway
        [0.36, 0.31, 0.29],  # car park: reddish paving
        [0.86, 0.86, 0.84],  # white paint
        [0.82, 0.64, 0.16],  # yellow paint
    ]
)
assert len(SURFACE_COLOR) == len(Surface)


@numba.njit(cache=True)
def _hash(a: int, b: int, c: int) -> float:
    """Integers to a repeatable number in [0, 1)."""
    h = (a * 374761393 + b * 668265263 + c * 2147483647) & 0xFFFFFFFF
    h = ((h ^ (h >> 13)) * 1274126177) & 0xFFFFFFFF
    return ((h ^ (h >> 16)) & 0xFFFF) / 65536.0


@numba.njit(cache=True)
def _shade(
    point, normal, direction, distance, owner, face, surface, color, texture, surface_color,
    sun, strength, ambient, sky, zenith, nothing, ground, out,
):  # fmt: skip
    for i in range(len(distance)):
        if owner[i] == nothing:
            up = max(direction[i, 2], 0.0) ** 0.6
            glow = max(
                direction[i, 0] * sun[0] + direction[i, 1] * sun[1] + direction[i, 2] * sun[2], 0.0
            )
            for k in range(3):
                out[i, k] = sky[k] * (1 - up) + zenith[k] * up + 0.35 * strength * glow**64
            continue
        x, y, z = point[i, 0], point[i, 1], point[i, 2]
        far = distance[i]
        r, g, b = color[face[i], 0], color[face[i], 1], color[face[i], 2]
        grain = 1.0
        if owner[i] == ground:
            s = surface[i]
            r, g, b = surface_color[s, 0], surface_color[s, 1], surface_color[s, 2]
            fine = 0.12 if s == 0 else 0.05
            grain = 1 + fine * (_hash(int(np.floor(x * 8)), int(np.floor(y * 8)), s) - 0.5) * 2
            grain *= 1 + 0.06 * (_hash(int(np.floor(x / 3)), int(np.floor(y / 3)), 7) - 0.5) * 2
        else:
            kind = texture[face[i]]
            along = x * -normal[i, 1] + y * normal[i, 0]  # metres along the wall
            wall = abs(normal[i, 2]) < 0.5
            if kind == 1 and wall:
                level, across = z % 3.2, along % 2.6
                if 0.9 < level < 2.5 and 0.6 < across < 2.0 and z > 0.9:
                    lit = _hash(int(np.floor(z / 3.2)), int(np.floor(along / 2.6)), face[i]) * 0.25
                    r, g, b = 0.12 + lit, 0.15 + lit, 0.2 + lit
            elif kind == 2:
                if (z + along) % 0.4 < 0.2:
                    r, g, b = 0.9, 0.9, 0.88
            elif kind == 3 and wall:
                # Dark glass along the upper part; pillars every 1.4 m.
                if (1.45 < z < 2.35 or (z > 0.85 and z < 1.35)) and along % 1.4 > 0.12:
                    r, g, b = 0.07, 0.09, 0.12
            elif kind == 4:
                grain = 0.7 + 0.6 * _hash(
                    int(np.floor(x * 5)), int(np.floor(y * 5)), int(np.floor(z * 5))
                )
        facing = normal[i, 0] * sun[0] + normal[i, 1] * sun[1] + normal[i, 2] * sun[2]
        light = (
            ambient * (0.75 + 0.25 * normal[i, 2]) + strength * max(facing, 0.0) * 0.75
        ) * grain
        haze = 1 - np.exp(-far / 260.0)
        out[i, 0] = r * light * (1 - haze) + sky[0] * haze
        out[i, 1] = g * light * (1 - haze) + sky[1] * haze
        out[i, 2] = b * light * (1 - haze) + sky[2] * haze


def shade(
    snapshot: Snapshot, hits: Hits, directions: NDArray, light: Light, rng: np.random.Generator
) -> NDArray[np.uint8]:
    """(R, 3) RGB of R rays."""
    surface = snapshot.stage.world.ground.at(hits.point[:, :2])
    out = np.zeros((len(directions), 3))
    _shade(
        hits.point, hits.normal, directions, hits.distance, hits.owner, hits.face, surface,
        snapshot.color, snapshot.texture, SURFACE_COLOR, light.sun, light.strength, light.ambient,
        light.sky, light.zenith, NOTHING, GROUND, out,
    )  # fmt: skip
    # The display curve, then the sensor's noise, stronger on what is bright.
    value = 255 * np.clip(out, 0, 1) ** (1 / 1.6)
    noise = rng.standard_normal(out.shape, dtype=np.float32) * light.noise
    return np.clip(np.round(value + noise * (0.6 + value / 400)), 0, 255).astype(np.uint8)
