"""Frustum points with the structure of a camera lift, small, for the kernel tests."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

# Sums of up to some hundred products of a uniform and a normal number.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.float16: 2e-2, torch.bfloat16: 1e-1}


@dataclass(frozen=True)
class Lift:
    """Arguments of ``bev_pool``."""

    depth: Tensor  # (N, D, H, W)
    features: Tensor  # (N, H, W, C)
    cell: Tensor  # (N, D, H, W)
    num_cells: int

    @property
    def args(self) -> tuple[Tensor, Tensor, Tensor, int]:
        return self.depth, self.features, self.cell, self.num_cells

    def to(self, dtype: torch.dtype) -> Lift:
        return Lift(self.depth.to(dtype), self.features.to(dtype), self.cell, self.num_cells)


def make_lift(N=2, D=3, H=5, W=4, C=8, num_cells=12, seed=0, dtype=torch.float32) -> Lift:
    """Random weights and features; cells change along a column as often as not."""
    random = torch.Generator().manual_seed(seed)
    cell = torch.randint(-1, num_cells, (N, D, H, W), generator=random)
    for h in range(1, H):
        stay = torch.rand(N, D, W, generator=random) < 0.7
        cell[:, :, h] = cell[:, :, h - 1].where(stay, cell[:, :, h])
    depth = torch.rand(N, D, H, W, generator=random).to(dtype)
    features = torch.randn(N, H, W, C, generator=random).to(dtype)
    return Lift(depth, features, cell, num_cells)


# One column; one of everything; odd channels; more channels than a block; more rows than a block.
SHAPES = {
    "one column": {"N": 1, "D": 6, "H": 7, "W": 1, "C": 16, "num_cells": 5},
    "one of everything": {"N": 1, "D": 1, "H": 1, "W": 1, "C": 1, "num_cells": 1},
    "one channel": {"C": 1},
    "one cell": {"C": 3, "num_cells": 1},
    "odd sizes": {"N": 3, "D": 5, "H": 7, "W": 11, "C": 13, "num_cells": 29},
    "many channels": {"N": 1, "D": 2, "H": 3, "W": 2, "C": 200},
    "many rows": {"N": 1, "D": 20, "H": 37, "W": 2, "C": 5},
    "empty cells": {"num_cells": 500},
    "no camera": {"N": 0},
    "no channel": {"C": 0},
}


def load_tool(name: str) -> ModuleType:
    """A script of tools/, which is no package."""
    tools = str(Path(__file__).parents[2] / "tools")
    if tools not in sys.path:
        sys.path.append(tools)
    return import_module(name)
