"""The BEV backbone: more context for the fused map."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...kernels.grid import BEVGrid
from ..layers import ConvBlock


class SECOND(nn.Module):
    """Convolution stages of growing stride, brought back to the grid and concatenated.

    The 2D part of SECOND (Yan et al., Sensors 2018) with its feature pyramid.

    Args:
        in_channels: channels of the map.
        grid: the grid of the map; the result has the same.
        channels: channels of each stage.
        strides: stride of each stage against the one before it, 1 or 2; the first is usually 1.
        layers: 3x3 convolutions per stage after the first, strided one.
        up_channels: channels of each stage's contribution to the result.
        norm_eps: of the batch normalisation; published SECOND has 1e-3.
        norm_momentum: of its running statistics; published SECOND has 0.01.
    """

    def __init__(
        self,
        in_channels: int,
        grid: BEVGrid,
        channels: tuple[int, ...] = (64, 128),
        strides: tuple[int, ...] = (1, 2),
        layers: tuple[int, ...] = (2, 2),
        up_channels: tuple[int, ...] = (64, 64),
        norm_eps: float = 1e-5,
        norm_momentum: float = 0.1,
    ):
        super().__init__()
        if not len(channels) == len(strides) == len(layers) == len(up_channels) > 0:
            raise ValueError(
                "backbone.channels, strides, layers and up_channels must have one entry per stage; "
                f"they have {len(channels)}, {len(strides)}, {len(layers)}, {len(up_channels)}"
            )
        norm: dict[str, Any] = {"eps": norm_eps, "momentum": norm_momentum}
        self.stages, self.ups = nn.ModuleList(), nn.ModuleList()
        width, total = in_channels, 1
        for out, stride, depth, up in zip(channels, strides, layers, up_channels):
            total *= stride
            if stride not in (1, 2) or any(cells % total for cells in grid.shape):
                raise ValueError(
                    f"backbone.strides {tuple(strides)} must be 1 or 2 and their product divide "
                    f"the grid's {grid.shape[0]} x {grid.shape[1]} cells"
                )
            blocks = [ConvBlock(width, out, 3, stride, **norm)]
            blocks += [ConvBlock(out, out, **norm) for _ in range(depth)]
            self.stages.append(nn.Sequential(*blocks))
            self.ups.append(_upsample(out, up, total, norm))
            width = out
        self.out_channels = sum(up_channels)

    def forward(self, bev: Tensor) -> Tensor:
        """(B, in_channels, X, Y) -> (B, out_channels, X, Y)."""
        levels = []
        for stage, up in zip(self.stages, self.ups):
            bev = stage(bev)
            levels.append(up(bev))
        return torch.cat(levels, 1)


def _upsample(in_channels: int, out_channels: int, stride: int, norm: dict[str, Any]) -> nn.Module:
    if stride == 1:
        return ConvBlock(in_channels, out_channels, 1, **norm)
    return nn.Sequential(
        nn.ConvTranspose2d(in_channels, out_channels, stride, stride, bias=False),
        nn.BatchNorm2d(out_channels, **norm),
        nn.ReLU(inplace=True),
    )
