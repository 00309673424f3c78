"""Voxels for the tests of sparse layers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from bevstack.perception.sparse import SparseTensor

VOXELS = Path(__file__).resolve().parents[3] / "shared" / "data" / "voxels"


def real_voxels(name: str) -> SparseTensor:
    """A real LiDAR frame in voxels of 0.075 m, with the features BEVFusion takes."""
    file = VOXELS / f"{name}.npz"
    if not file.exists():
        pytest.skip(f"needs real voxels in {file}")
    data = np.load(file)
    return SparseTensor(
        torch.from_numpy(data["features"].astype(np.float32)),
        torch.from_numpy(data["coords"].astype(np.int32)),
        (41, 1440, 1440),
        batch_size=1,
    )


def made_up_voxels(channels=4, shape=(6, 10, 8), batch_size=2, density=0.2, seed=0) -> SparseTensor:
    """Random voxels; the last sample has none."""
    random = torch.Generator().manual_seed(seed)
    filled = torch.rand(batch_size, *shape, generator=random) < density
    filled[-1] = False
    cells = filled.nonzero().int()
    features = torch.randn(len(cells), channels, generator=random)
    return SparseTensor(features, cells, shape, batch_size)
