"""The cameras: one ray per pixel, all at one moment."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..camera_models import Pinhole
from .casting import Hits, Stage
from .rig import CameraMount
from .shading import shade


@dataclass(frozen=True)
class View:
    """An image and what its pixels show."""

    image: NDArray[np.uint8]  # (H, W, 3) RGB
    hits: Hits  # of the H * W pixels, row by row
    origin: NDArray[np.float64]  # (3,) of the camera, global


def pixel_rays(mount: CameraMount, image_size: tuple[int, int]) -> NDArray[np.float64]:
    """(H * W, 3) unit vectors through the pixel centres, in the camera's frame."""
    width, height = image_size
    v, u = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    pixels = np.stack([u, v, np.ones_like(u)], -1).reshape(-1, 3).astype(np.float64)
    rays = Pinhole(mount.intrinsic(image_size), width, height).unproject(pixels)
    return rays / np.linalg.norm(rays, axis=1, keepdims=True)


def take_picture(
    stage: Stage,
    mount: CameraMount,
    rays: NDArray,
    image_size: tuple[int, int],
    time: float,
    rng: np.random.Generator,
) -> View:
    """The picture of one camera at ``time``, seconds into the scene."""
    world = stage.world
    global_from_camera = world.global_from_ego(time) @ mount.ego_from_camera
    directions = rays @ global_from_camera[:3, :3].T
    origin = global_from_camera[:3, 3]
    snapshot = stage.at(time)
    hits = snapshot.cast(np.broadcast_to(origin, directions.shape), directions)
    pixels = shade(snapshot, hits, directions, world.light, rng)
    return View(pixels.reshape(image_size[1], image_size[0], 3), hits, origin)
