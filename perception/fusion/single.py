"""No fusion: a model with one sensor."""

from __future__ import annotations

from torch import Tensor, nn


class SingleSensor(nn.Module):
    """Hands the only sensor's map on, as published models with one sensor do.

    Args:
        camera_channels: channels of the camera map; 0 for a model without cameras.
        lidar_channels: channels of the LiDAR map; 0 for a model without LiDAR.
    """

    def __init__(self, camera_channels: int, lidar_channels: int):
        super().__init__()
        if (camera_channels > 0) == (lidar_channels > 0):
            raise ValueError("SingleSensor takes a camera or a LiDAR map; choose another fuser")
        self.out_channels = camera_channels + lidar_channels

    def forward(self, camera: Tensor | None, lidar: Tensor | None) -> Tensor:
        """(B, C, X, Y) of the one sensor, to the same."""
        given = camera if camera is not None else lidar
        if given is None:
            raise ValueError("the fuser got neither a camera nor a LiDAR map")
        return given
