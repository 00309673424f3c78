"""Merge the fused map with those of earlier moments."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ...kernels.grid import BEVGrid
from ..layers import ConvBlock
from .moments import Past
from .warp import warp


class BEVMemory(nn.Module):
    """Earlier fused maps, warped by the vehicle's own motion and merged by convolution.

    What stands still lies under itself after the warp (Huang and Huang, BEVDet4D, 2022); what
    moves lies beside itself by velocity times age, which the convolutions read off. The state is
    the maps before merging, not a recurrent one: a step depends on the last moments only, so that
    a short clip trains exactly what a long stream does, and all moments of a clip at once.

    Args:
        channels: of the fused map.
        grid: of the fused map.
        moments: how many earlier moments are merged.
        max_age: seconds after which a moment is forgotten; bridges missing frames.
        width: channels between the two convolutions.
        kernel_size: of the first one; it meets what has moved by up to half of it.
    """

    def __init__(
        self,
        channels: int,
        grid: BEVGrid,
        moments: int = 1,
        max_age: float = 1.6,
        width: int = 48,
        kernel_size: int = 5,
    ):
        super().__init__()
        if moments < 1 or max_age <= 0:
            raise ValueError(
                f"memory.moments is {moments}, max_age {max_age}; give 1 or more, and seconds"
            )
        self.grid, self.moments, self.max_age = grid, moments, max_age
        self.motion = nn.Sequential(
            ConvBlock((1 + moments) * channels + 2 * moments, width, kernel_size),
            ConvBlock(width, channels),
        )

    def forward(self, fused: Tensor, past: Past) -> Tensor:
        """Merge.

        Args:
            fused: (B, C, X, Y) the present.
            past: ``moments`` earlier moments of each sample.

        Returns:
            (B, C, X, Y), the present map plus what the past adds to it.
        """
        parts = [fused]
        for k in range(self.moments):
            valid = past.valid[:, k, None, None, None].to(fused.dtype)
            moved, seen = warp(past.map[:, k], past.moment_from_bev[:, k], self.grid)
            seen = seen * valid
            # The same displacement is half the velocity where a frame is missing.
            age = past.age[:, k, None, None, None].to(fused.dtype)
            # Where nothing was seen the present stands in: no difference, hence no motion.
            parts += [moved * valid + fused * (1 - seen), seen, seen * age]
        return fused + self.motion(torch.cat(parts, 1))
