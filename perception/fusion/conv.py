"""Fusion by concatenation and convolution."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..layers import ConvBlock


class ConvFuser(nn.Module):
    """Concatenate the sensors' maps and convolve once (Liu et al., BEVFusion, ICRA 2023).

    Args:
        camera_channels: channels of the camera map; 0 for a model without cameras.
        lidar_channels: channels of the LiDAR map; 0 for a model without LiDAR.
        out_channels: channels of the fused map.
    """

    def __init__(self, camera_channels: int, lidar_channels: int, out_channels: int = 64):
        super().__init__()
        if camera_channels + lidar_channels == 0:
            raise ValueError("the fuser has no sensor; configure model.camera or model.lidar")
        self.channels = (camera_channels, lidar_channels)
        self.out_channels = out_channels
        self.conv = ConvBlock(camera_channels + lidar_channels, out_channels)

    def forward(self, camera: Tensor | None, lidar: Tensor | None) -> Tensor:
        """Fuse the maps.

        Args:
            camera: (B, camera_channels, X, Y), or None: missing, which counts as zeros.
            lidar: (B, lidar_channels, X, Y), or None.

        Returns:
            (B, out_channels, X, Y).
        """
        given = camera if camera is not None else lidar
        if given is None:
            raise ValueError("the fuser got neither a camera nor a LiDAR map")
        maps = [
            bev if bev is not None else given.new_zeros(len(given), channels, *given.shape[2:])
            for bev, channels in zip((camera, lidar), self.channels)
            if channels
        ]
        return self.conv(torch.cat(maps, 1))
