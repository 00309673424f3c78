"""Turn, scale, move and mirror the whole scene: points, cameras, boxes and map together.

Only ``Frame.bev_from_ego`` changes. Everything that enters the model passes through that matrix,
so no sensor and no target can be forgotten.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..frame import Frame
from ..seeding import generator


@dataclass(frozen=True)
class BEVAugmentation:
    """Move the scene at random under the BEV frame.

    In this order: turn about +z, move, scale uniformly, mirror.

    Args:
        rotation: smallest and largest turn, radians, from +x towards +y.
        scale: smallest and largest factor.
        translation_std: standard deviation of the shift along x, y and z, metres.
        flip_x: let every other scene have its x axis negated (front and back swap).
        flip_y: the same for y (left and right swap).
    """

    rotation: tuple[float, float] = (0.0, 0.0)
    scale: tuple[float, float] = (1.0, 1.0)
    translation_std: tuple[float, float, float] = (0.0, 0.0, 0.0)
    flip_x: bool = False
    flip_y: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale is {self.scale}; give 0 < smallest <= largest")

    def __call__(self, frame: Frame, seed: int) -> Frame:
        """The frame with a moved BEV frame, the same for the same frame and ``seed``."""
        random = generator(seed, frame.token, "bev_augmentation")
        return replace(frame, bev_from_ego=self._draw(random) @ frame.bev_from_ego)

    def _draw(self, random: np.random.Generator) -> NDArray[np.float64]:
        angle, scale = random.uniform(*self.rotation), random.uniform(*self.scale)
        shift = random.normal(size=3) * self.translation_std
        flips = (random.random(2) < 0.5) & (self.flip_x, self.flip_y)
        cos, sin = np.cos(angle), np.sin(angle)
        matrix = np.eye(4)
        matrix[:3, :3] = [[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]]
        matrix[:3, 3] = shift
        signs = np.where(flips, -1.0, 1.0)
        return np.diag([scale * signs[0], scale * signs[1], scale, 1.0]) @ matrix
