"""The branches of a centre head: what is regressed at a cell, from the map that they share."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from ..layers import ConvBlock, output_conv, start_as_mmcv


def joint_branch(channels: int, out_channels: int, bias: float = 0.0) -> nn.Sequential:
    """One 3x3 convolution, then all quantities at once."""
    return nn.Sequential(ConvBlock(channels, channels), output_conv(channels, out_channels, bias))


def separate_branch(
    channels: int, out_channels: int, bias: float | None = None, hidden: int = 64
) -> nn.Sequential:
    """One quantity from two 3x3 convolutions, as CenterPoint has them (``SeparateHead``)."""
    last = nn.Conv2d(hidden, out_channels, 3, padding=1)
    branch = nn.Sequential(ConvBlock(channels, hidden), last)
    start_as_mmcv(branch)
    if bias is not None:
        assert last.bias is not None
        nn.init.constant_(last.bias, bias)
    return branch


class SeparateRegression(nn.ModuleDict):
    """A branch of its own for each quantity; their channels side by side.

    Args:
        channels: of the shared map.
        widths: channels of every quantity, in the order of the result.
    """

    def __init__(self, channels: int, widths: Mapping[str, int]):
        super().__init__({name: separate_branch(channels, n) for name, n in widths.items()})

    def forward(self, shared: Tensor) -> Tensor:
        """(B, C, X, Y) to (B, sum of widths, X, Y)."""
        return torch.cat([branch(shared) for branch in self.values()], 1)
