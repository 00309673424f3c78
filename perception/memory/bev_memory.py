"""Merge the fused map with those of earlier moments, and tell how things moved."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels.grid import BEVGrid
from ..layers import ConvBlock
from .moments import Past
from .motion_match import STRIDE, MotionMatch
from .warp import warp


class BEVMemory(nn.Module):
    """Earlier fused maps, warped by the vehicle's own motion, compared and merged.

    What stands still lies under itself after the warp (Huang and Huang, BEVDet4D, 2022); what
    moves lies beside itself by velocity times age, which :class:`MotionMatch` reads off the latest
    moment. The state is the maps before merging, not a recurrent one: a step depends on the last
    moments only, so that a short clip trains exactly what a long stream does, and all moments of a
    clip at once. What is merged begins at nothing: a trained model without memory can be given one.

    Args:
        channels: of the fused map.
        grid: of the fused map.
        moments: how many earlier moments are merged.
        max_age: seconds after which a moment is forgotten; bridges missing frames.
        width: channels between the convolutions.
        reach: metres by which something may have moved since the latest moment to be found again.
    """

    def __init__(
        self,
        channels: int,
        grid: BEVGrid,
        moments: int = 1,
        max_age: float = 1.6,
        width: int = 32,
        reach: float = 6.4,
    ):
        super().__init__()
        if moments < 1 or max_age <= 0:
            raise ValueError(
                f"memory.moments is {moments}, max_age {max_age}; give 1 or more, and seconds"
            )
        self.grid, self.moments, self.max_age = grid, moments, max_age
        self.match = MotionMatch(channels, grid, reach)
        self.moved = ConvBlock(self.match.out_channels + 3, width)
        last = nn.Conv2d(width, channels, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.get_parameter("bias"))
        self.merge = nn.Sequential(
            ConvBlock((1 + moments) * channels + 2 * moments + width, width), last
        )

    def forward(self, fused: Tensor, past: Past) -> tuple[Tensor, Tensor]:
        """Merge.

        Args:
            fused: (B, C, X, Y) the present.
            past: ``moments`` earlier moments of each sample.

        Returns:
            The map (B, C, X, Y), the present plus what the past adds to it, and the velocity that
            cells were seen to have, (B, 2, X, Y) m/s over ground, 0 where there is no past.
        """
        warped = [self._warped(fused, past, k) for k in range(self.moments)]
        valid = past.valid[:, :1, None, None].to(fused.dtype)
        velocity, weight = self.match(fused, warped[0][0], past.age[:, 0])
        velocity = velocity * valid
        known = valid.expand(-1, 1, *velocity.shape[2:])
        moved = self.moved(torch.cat([weight * valid, velocity, known], 1))
        merged = [fused, *(part for parts in warped for part in parts), _enlarged(moved)]
        return fused + self.merge(torch.cat(merged, 1)), _enlarged(velocity)

    def _warped(self, fused: Tensor, past: Past, k: int) -> tuple[Tensor, Tensor, Tensor]:
        """Map of the k-th moment in the present frame, what of it is seen, and that times age."""
        valid = past.valid[:, k, None, None, None].to(fused.dtype)
        moved, seen = warp(past.map[:, k], past.moment_from_bev[:, k], self.grid)
        seen = seen * valid
        # The same displacement is half the velocity where a frame is missing.
        age = past.age[:, k, None, None, None].to(fused.dtype)
        # Where nothing was seen the present stands in: no difference, hence no motion.
        return moved * valid + fused * (1 - seen), seen, seen * age


def _enlarged(bev: Tensor) -> Tensor:
    return F.interpolate(bev, scale_factor=float(STRIDE), mode="bilinear", align_corners=False)
