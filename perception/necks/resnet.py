"""A residual BEV backbone with two levels joined: the decoder of published camera-only models."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels.grid import BEVGrid
from ..layers import ConvBlock


class BEVResNet(nn.Module):
    """Residual stages; the first and the last are joined and brought back to the grid.

    The decoder of BEVDet (Huang et al., 2021) and of MIT BEVFusion's camera-only detector. Levels
    are resized with their corner cells on each other (``align_corners``), as published.

    Args:
        in_channels: channels of the map.
        grid: the grid of the map; the result has the same.
        channels: channels of each stage.
        strides: stride of each stage against the one before it, 1 or 2.
        blocks: residual blocks of each stage.
        out_channels: channels of the result.
    """

    def __init__(
        self,
        in_channels: int,
        grid: BEVGrid,
        channels: tuple[int, ...] = (128, 256, 512),
        strides: tuple[int, ...] = (2, 2, 1),
        blocks: tuple[int, ...] = (2, 2, 2),
        out_channels: int = 256,
    ):
        super().__init__()
        if not len(channels) == len(strides) == len(blocks) > 1:
            raise ValueError(
                "backbone.channels, strides and blocks must have one entry per stage, and two "
                f"stages at least; they have {len(channels)}, {len(strides)}, {len(blocks)}"
            )
        if any(stride not in (1, 2) for stride in strides):
            raise ValueError(f"backbone.strides is {tuple(strides)}; each is 1 or 2")
        if any(cells % strides[0] for cells in grid.shape):
            raise ValueError(
                f"backbone.strides begins with {strides[0]}, which does not divide the grid's "
                f"{grid.shape[0]} x {grid.shape[1]} cells"
            )
        self.out_channels = out_channels
        self.stages = nn.ModuleList()
        width = in_channels
        for out, stride, count in zip(channels, strides, blocks, strict=True):
            first = BasicBlock(width, out, stride)
            self.stages.append(
                nn.Sequential(first, *(BasicBlock(out, out) for _ in range(count - 1)))
            )
            width = out
        self.fuse = nn.Sequential(
            ConvBlock(channels[-1] + channels[0], out_channels, 1),
            ConvBlock(out_channels, out_channels),
        )
        self.up = ConvBlock(out_channels, out_channels) if strides[0] > 1 else nn.Identity()

    def forward(self, bev: Tensor) -> Tensor:
        """(B, in_channels, X, Y) -> (B, out_channels, X, Y)."""
        size = bev.shape[-2:]
        levels = []
        for stage in self.stages:
            bev = stage(bev)
            levels.append(bev)
        last = _resized(levels[-1], levels[0].shape[-2:])
        return self.up(_resized(self.fuse(torch.cat([last, levels[0]], 1)), size))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al., CVPR 2016), projected where shapes change."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            conv = nn.Conv2d(in_channels, out_channels, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(out_channels))

    def forward(self, bev: Tensor) -> Tensor:
        """(B, C_in, X, Y) -> (B, C_out, X / stride, Y / stride)."""
        hidden = F.relu(self.bn1(self.conv1(bev)))
        return F.relu(self.bn2(self.conv2(hidden)) + self.shortcut(bev))


def _resized(bev: Tensor, size: torch.Size) -> Tensor:
    if bev.shape[-2:] == size:
        return bev
    return F.interpolate(bev, size, mode="bilinear", align_corners=True)
