"""Swin transformer (Liu et al., ICCV 2021): attention within windows, every other block shifted.

Our own rather than ``transformers``': the names of its tensors change between releases of that
package while our checkpoints stay; and its feed-forward branch is not dropped in training.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .image_backbone import ImageBackbone, check_stages, stage_strides

# Added to the attention between tokens that only the cyclic shift made neighbours.
UNRELATED = -100.0


class Swin(ImageBackbone):
    """Swin transformer (Liu et al., ICCV 2021), from a random start or a local folder.

    The defaults are Swin-T. Each given stage has its own output norm, before its down-sampling.

    Args:
        embed_dim: channels of the first stage; each following stage doubles them.
        depths: blocks per stage; stage i (from 1) has stride 2 ** (i + 1).
        num_heads: attention heads per stage.
        window_size: edge of the attention window, tokens.
        drop_path_rate: stochastic depth of the last block; the others have less.
        out_stages: which stages to give, counted from 1, ascending.
        weights: folder with ``model.safetensors`` of a ``transformers`` Swin, or null.
    """

    def __init__(
        self,
        embed_dim: int = 96,
        depths: tuple[int, ...] = (2, 2, 6, 2),
        num_heads: tuple[int, ...] = (3, 6, 12, 24),
        window_size: int = 7,
        drop_path_rate: float = 0.2,
        out_stages: tuple[int, ...] = (2, 3, 4),
        weights: Path | None = None,
    ):
        check_stages(out_stages, len(depths))
        network = SwinNetwork(embed_dim, depths, num_heads, window_size, drop_path_rate, out_stages)
        if weights is not None:
            from .swin_weights import load_transformers_swin

            load_transformers_swin(network, weights)
        super().__init__(network, stage_strides(out_stages))

    def forward(self, images: Tensor) -> list[Tensor]:
        """See :class:`ImageBackbone`."""
        return self.network(images.contiguous(memory_format=torch.channels_last))


class SwinNetwork(nn.Module):
    """The layers of :class:`Swin`; arguments as there."""

    def __init__(
        self,
        embed_dim: int,
        depths: Sequence[int],
        num_heads: Sequence[int],
        window_size: int,
        drop_path_rate: float,
        out_stages: Sequence[int],
    ):
        super().__init__()
        last = max(out_stages)  # nothing reads the stages behind it
        widths = [embed_dim * 2**s for s in range(last)]
        # The rate grows linearly over all blocks, from 0.
        rates = iter(torch.linspace(0, drop_path_rate, sum(depths)).tolist())
        self.patch = nn.Conv2d(3, embed_dim, 4, 4)
        self.patch_norm = nn.LayerNorm(embed_dim)
        self.stages, self.merges = nn.ModuleList(), nn.ModuleList()
        for s, width in enumerate(widths):
            blocks = [
                SwinBlock(width, num_heads[s], window_size, i % 2 == 1, next(rates))
                for i in range(depths[s])
            ]
            self.stages.append(nn.Sequential(*blocks))
            if s + 1 < last:
                self.merges.append(PatchMerging(width))
        self.norms = nn.ModuleDict({f"stage{s}": nn.LayerNorm(widths[s - 1]) for s in out_stages})
        self.channels = [widths[s - 1] for s in out_stages]
        self.apply(_initialize)

    def forward(self, images: Tensor) -> list[Tensor]:
        """(N, 3, H, W) to one (N, channels, H', W') per given stage."""
        images = F.pad(images, (0, -images.shape[-1] % 4, 0, -images.shape[-2] % 4))
        tokens = self.patch_norm(self.patch(images).permute(0, 2, 3, 1))  # (N, H, W, C)
        maps = []
        for s, stage in enumerate(self.stages):
            tokens = stage(tokens)
            if f"stage{s + 1}" in self.norms:
                maps.append(self.norms[f"stage{s + 1}"](tokens).permute(0, 3, 1, 2))
            if s < len(self.merges):
                tokens = self.merges[s](tokens)
        return maps


class SwinBlock(nn.Module):
    """Window attention and a feed-forward net, each normalised before and added.

    Args:
        channels: width C.
        num_heads: attention heads.
        window_size: edge of the window, tokens.
        shifted: move the windows by half their size.
        drop_path: chance that a branch is left out for an image, in training.
    """

    def __init__(
        self, channels: int, num_heads: int, window_size: int, shifted: bool, drop_path: float
    ):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(channels), nn.LayerNorm(channels)
        shift = window_size // 2 if shifted else 0
        self.attention = WindowAttention(channels, num_heads, window_size, shift)
        self.linear1 = nn.Linear(channels, 4 * channels)
        self.linear2 = nn.Linear(4 * channels, channels)
        self.drop_path = drop_path

    def forward(self, tokens: Tensor) -> Tensor:
        """(N, H, W, C) to the same."""
        tokens = tokens + self._kept(self.attention(self.norm1(tokens)))
        hidden = F.gelu(self.linear1(self.norm2(tokens)))
        return tokens + self._kept(self.linear2(hidden))

    def _kept(self, branch: Tensor) -> Tensor:
        if not self.training or self.drop_path == 0:
            return branch
        keep = 1 - self.drop_path
        kept = torch.rand(len(branch), 1, 1, 1, device=branch.device) < keep
        return branch * (kept / keep).to(branch.dtype)


class WindowAttention(nn.Module):
    """Self-attention within windows, with a learned bias by relative position.

    The map is padded with zeros on the right and below to whole windows; padding is attended to
    like any other token, and the window is never made smaller.

    Args:
        channels: width C.
        num_heads: attention heads.
        window_size: edge of the window, tokens.
        shift: tokens by which windows are moved right and down, the map wrapping around.
    """

    bias_index: Tensor  # (window ** 4,)

    def __init__(self, channels: int, num_heads: int, window_size: int, shift: int):
        super().__init__()
        self.num_heads, self.window_size, self.shift = num_heads, window_size, shift
        self.qkv = nn.Linear(channels, 3 * channels)
        self.out = nn.Linear(channels, channels)
        self.bias_table = nn.Parameter(torch.zeros((2 * window_size - 1) ** 2, num_heads))
        nn.init.trunc_normal_(self.bias_table, std=0.02)
        index = relative_position_index(window_size).flatten()
        self.register_buffer("bias_index", index, persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """(N, H, W, C) to the same."""
        N, H, W, C = tokens.shape
        size, shift = self.window_size, self.shift
        tokens = F.pad(tokens, (0, 0, 0, -W % size, 0, -H % size))
        shape = tokens.shape[1], tokens.shape[2]
        if shift:
            tokens = tokens.roll((-shift, -shift), (1, 2))
        windows = _windows(tokens, size)  # (N * windows, size ** 2, C)
        qkv = self.qkv(windows).unflatten(-1, (3, self.num_heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (N * windows, heads, size ** 2, C / heads)
        bias = self._bias(shape, q).expand(N, -1, -1, -1, -1).flatten(0, 1)
        attended = F.scaled_dot_product_attention(q, k, v, bias)
        windows = self.out(attended.transpose(1, 2).flatten(2))
        grid = (N, shape[0] // size, shape[1] // size, size, size, C)
        tokens = windows.view(grid).transpose(2, 3).reshape(N, *shape, C)
        if shift:
            tokens = tokens.roll((shift, shift), (1, 2))
        return tokens[:, :H, :W]

    def _bias(self, shape: tuple[int, int], like: Tensor) -> Tensor:
        """(1, windows or 1, heads, size ** 2, size ** 2) what is added to the attention."""
        area = self.window_size**2
        bias = self.bias_table[self.bias_index].view(1, 1, area, area, -1).permute(0, 1, 4, 2, 3)
        if self.shift:
            region = _windows(
                _regions(shape, self.window_size, self.shift, like.device), self.window_size
            )
            unrelated = region.transpose(-1, -2) != region  # (windows, size ** 2, size ** 2)
            bias = bias + UNRELATED * unrelated[None, :, None].to(bias.dtype)
        else:
            bias = bias.expand(1, shape[0] * shape[1] // area, -1, -1, -1)
        return bias.to(like.dtype)


class PatchMerging(nn.Module):
    """Half the edge, twice the channels: each 2 x 2 patch becomes one token.

    The input of the norm is ordered by patch first: rows 0, 1 of column 0, then of column 1.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.LayerNorm(4 * channels)
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """(N, H, W, C) to (N, ceil(H / 2), ceil(W / 2), 2 C)."""
        tokens = F.pad(tokens, (0, 0, 0, tokens.shape[2] % 2, 0, tokens.shape[1] % 2))
        N, H, W, C = tokens.shape
        patches = tokens.view(N, H // 2, 2, W // 2, 2, C).permute(0, 1, 3, 4, 2, 5)
        return self.reduction(self.norm(patches.reshape(N, H // 2, W // 2, 4 * C)))


def relative_position_index(size: int) -> Tensor:
    """(size ** 2, size ** 2) row of the bias table for every pair of tokens of a window."""
    row, column = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    row, column = row.flatten(), column.flatten()
    rows = row[:, None] - row + size - 1
    return rows * (2 * size - 1) + column[:, None] - column + size - 1


def _windows(tokens: Tensor, size: int) -> Tensor:
    """(N, H, W, C) to (N * windows, size ** 2, C)."""
    N, H, W, C = tokens.shape
    windows = tokens.view(N, H // size, size, W // size, size, C).transpose(2, 3)
    return windows.reshape(-1, size**2, C)


def _regions(shape: tuple[int, int], size: int, shift: int, device: torch.device) -> Tensor:
    """(1, H, W, 1) int: tokens of a shifted map that were neighbours before have one number."""
    row, column = (
        (place >= edge - size).int() + (place >= edge - shift).int()
        for edge in shape
        for place in [torch.arange(edge, device=device)]
    )
    return (3 * row[:, None] + column).view(1, *shape, 1)


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        nn.init.trunc_normal_(module.weight, std=1 / math.sqrt(module.weight[0].numel()))
        assert module.bias is not None
        nn.init.zeros_(module.bias)
