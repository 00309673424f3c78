"""How things moved: the present map's cells looked for in an earlier map."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...kernels.grid import BEVGrid

STRIDE = 2  # cells of the map to one cell that is matched
NOT_ZERO = 1e-3  # patches whose energies' product is below this are empty
YOUNGEST = 0.05  # seconds; no moment is taken for younger


class MotionMatch(nn.Module):
    """Velocity by correlation of two maps, as optical flow has it (Dosovitskiy et al., FlowNet,
    ICCV 2015), and not by convolutions that would first have to learn what a displacement is.

    Both maps are embedded alike; the patch of 3x3 cells around every cell g is compared with those
    of the earlier map,

        w(g, d) = softmax over d of (s * ncc(now at g, past at g - d) + prior(g, d)),

    ncc the normalized cross-correlation; the velocity is the mean of d under w, over the age. The
    prior is told from the present: what is parked needs no proof.

    Args:
        channels: of both maps.
        grid: of both maps.
        reach: metres that are searched in every direction, at least.
        width: channels that are compared.
        sharpness: s at the start.
        still: the prior's advantage for what stands still, at the start.
    """

    displacement: Tensor  # (2, D) metres

    def __init__(
        self,
        channels: int,
        grid: BEVGrid,
        reach: float = 6.4,
        width: int = 16,
        sharpness: float = 20.0,
        still: float = 1.0,
    ):
        super().__init__()
        if reach <= 0 or any(cells % STRIDE for cells in grid.shape):
            raise ValueError(
                f"memory.reach is {reach:g} m and the grid {grid.shape[0]} x {grid.shape[1]} "
                f"cells; give more than 0 m, and cells in multiples of {STRIDE}"
            )
        cell = grid.cell_size * STRIDE
        self.radius = math.ceil(reach / cell - 1e-6)
        along = torch.arange(-self.radius, self.radius + 1) * cell
        pairs = torch.meshgrid(along, along, indexing="ij")
        self.register_buffer("displacement", torch.stack(pairs).flatten(1), persistent=False)
        self.out_channels = self.displacement.shape[1]
        # Most cells are empty: standardized, they are near 0 and count little in a patch.
        self.embed = nn.Sequential(
            nn.Conv2d(channels, width, 1, bias=False), nn.BatchNorm2d(width, affine=False)
        )
        self.sharpness = nn.Parameter(torch.tensor(math.log(sharpness)))
        self.prior = nn.Conv2d(width, self.out_channels, 1)
        nn.init.zeros_(self.prior.weight)
        bias = torch.zeros(self.out_channels)
        bias[self.out_channels // 2] = still
        self.prior.bias = nn.Parameter(bias)

    def forward(self, now: Tensor, past: Tensor, age: Tensor) -> tuple[Tensor, Tensor]:
        """Compare.

        Args:
            now: (B, C, X, Y) the present.
            past: (B, C, X, Y) an earlier map, warped into the present frame.
            age: (B,) seconds.

        Returns:
            Velocity (B, 2, X / 2, Y / 2), m/s in the present frame, and w (B, D, X / 2, Y / 2).
        """
        embedded = F.avg_pool2d(self.embed(torch.cat([now, past])), STRIDE)
        present, before = embedded.chunk(2)
        similar = patch_correlation(present, before, self.radius)
        weight = (self.sharpness.exp() * similar + self.prior(present)).softmax(1)
        moved = F.conv2d(weight, self.displacement[..., None, None].to(weight.dtype))
        return moved / age.clamp(min=YOUNGEST).view(-1, 1, 1, 1).to(moved.dtype), weight


def correlation(now: Tensor, past: Tensor, radius: int) -> Tensor:
    """Products of every cell of the present with the cells around it in the past.

    Args:
        now: (B, C, X, Y).
        past: (B, C, X, Y).
        radius: cells.

    Returns:
        (B, D, X, Y): channel (radius + di) * (2 radius + 1) + radius + dj has now at (i, j) times
        past at (i - di, j - dj), summed over C; outside the map is 0.
    """
    X, Y = now.shape[2:]
    padded = F.pad(past, (radius,) * 4)
    steps = range(2 * radius, -1, -1)  # the largest displacement comes from the lowest index
    columns = torch.stack([padded[..., j : j + Y] for j in steps], 2)  # (B, C, 2r + 1, X + 2r, Y)
    rows = [(now[:, :, None] * columns[..., i : i + X, :]).sum(1) for i in steps]
    return torch.cat(rows, 1)


def patch_correlation(now: Tensor, past: Tensor, radius: int) -> Tensor:
    """As :func:`correlation`, of patches of 3x3 cells, divided by their lengths: -1 to 1."""
    energy, before = (_patch_mean(bev.square().sum(1, keepdim=True)) for bev in (now, past))
    energies = energy * correlation(torch.ones_like(before), before, radius)
    return _patch_mean(correlation(now, past, radius)) / (energies + NOT_ZERO).sqrt()


def _patch_mean(bev: Tensor) -> Tensor:
    return F.avg_pool2d(bev, 3, 1, 1)
