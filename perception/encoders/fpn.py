"""Feature pyramid: image features of several strides joined at the finest one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers import ConvBlock, start_as_mmcv


class FPN(nn.Module):
    """Top-down feature pyramid (Lin et al., CVPR 2017) that gives its finest level.

    Args:
        in_channels: channels of the maps, finest first.
        out_channels: channels of the result.
    """

    def __init__(self, in_channels: Sequence[int], out_channels: int = 128):
        super().__init__()
        self.out_channels = out_channels
        self.lateral = nn.ModuleList(ConvBlock(c, out_channels, 1) for c in in_channels)
        self.smooth = ConvBlock(out_channels, out_channels)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Join the maps.

        Args:
            maps: (N, in_channels[i], H_i, W_i), finest first.

        Returns:
            (N, out_channels, H_0, W_0).
        """
        joined = None
        for lateral, features in zip(reversed(self.lateral), reversed(maps)):
            level = lateral(features)
            if joined is not None:
                size = level.shape[-2:]
                level = level + F.interpolate(joined, size, mode="bilinear", align_corners=False)
            joined = level
        return self.smooth(joined)


class LSSFPN(nn.Module):
    """The camera pyramid of MIT BEVFusion (Liu et al., ICRA 2023): concatenation, not addition.

    From the coarsest level on, each level is joined with the result above it by a 1x1 and a 3x3
    convolution.

    Args:
        in_channels: channels of the maps, finest first; two maps at least.
        out_channels: channels of the result.
    """

    def __init__(self, in_channels: Sequence[int], out_channels: int = 256):
        super().__init__()
        if len(in_channels) < 2:
            raise ValueError("LSSFPN joins two maps at least; add to the backbone's out_stages")
        self.out_channels = out_channels
        above = [out_channels] * (len(in_channels) - 2) + [in_channels[-1]]
        self.lateral = nn.ModuleList(
            ConvBlock(own + up, out_channels, 1) for own, up in zip(in_channels, above)
        )
        self.smooth = nn.ModuleList(ConvBlock(out_channels, out_channels) for _ in above)
        start_as_mmcv(self)

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Join the maps.

        Args:
            maps: (N, in_channels[i], H_i, W_i), finest first.

        Returns:
            (N, out_channels, H_0, W_0).
        """
        *finer, joined = maps
        for own, lateral, smooth in zip(finer[::-1], self.lateral[::-1], self.smooth[::-1]):
            size = own.shape[-2:]
            up = F.interpolate(joined, size, mode="bilinear", align_corners=False)
            joined = smooth(lateral(torch.cat([own, up], 1)))
        return joined
