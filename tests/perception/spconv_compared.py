"""Our sparse layers beside spconv on the CPU; run by test_sparse.py with OMP_NUM_THREADS=1.

spconv's submanifold convolution races with several threads, with errors up to 0.6.
"""

import os

import pytest
import torch
from sparse_parts import real_voxels

from bevstack.kernels.grid import BEVGrid
from bevstack.perception.encoders import VoxelEncoder
from bevstack.perception.sparse import SparseConv3d, SubmanifoldConv3d

pytest.importorskip("spconv.pytorch")
if os.environ.get("OMP_NUM_THREADS") != "1":
    pytest.fail("set OMP_NUM_THREADS=1: spconv reads it when it is loaded")

LAYERS = [  # every kind of layer of BEVFusion's encoder, from its input on
    SubmanifoldConv3d(5, 16),
    SubmanifoldConv3d(16, 16),
    SparseConv3d(16, 32, 3, 2, 1),
    SubmanifoldConv3d(32, 32),
    SparseConv3d(32, 64, 3, 2, 1),
    SubmanifoldConv3d(64, 64),
    SparseConv3d(64, 128, 3, 2, (0, 1, 1)),
    SubmanifoldConv3d(128, 128),
    SparseConv3d(128, 128, (3, 1, 1), (2, 1, 1)),
]


@torch.no_grad()
@pytest.mark.parametrize("name", ["bevfusion_nuscenes", "centerpoint_nuscenes"])
def test_every_layer_of_the_encoder_agrees_on_real_voxels(name):
    voxels = real_voxels(name)
    random = torch.Generator().manual_seed(0)
    for layer in LAYERS:
        width = layer.weight.shape[3]
        features = torch.randn(len(voxels.features), width, generator=random)
        voxels = voxels.with_features(features)
        layer.engine = "native"
        ours = layer(voxels)
        layer.engine = "spconv"
        theirs = layer(voxels)
        assert ours.shape == theirs.shape
        assert torch.equal(ours.coordinates, theirs.coordinates)
        # Sums of up to 27 * 128 terms; relative to their size, which is about 0.6.
        torch.testing.assert_close(ours.features, theirs.features, rtol=1e-5, atol=4e-6)
        voxels = ours


@torch.no_grad()
def test_the_whole_encoder_agrees_on_real_voxels():
    voxels = real_voxels("bevfusion_nuscenes")
    maps = []
    for engine in ("native", "spconv"):
        torch.manual_seed(0)
        grid = BEVGrid((-54.0, 54.0), (-54.0, 54.0), 0.6)
        maps.append(VoxelEncoder(grid, engine=engine).eval().encode(voxels))
    assert torch.equal(maps[0].coordinates, maps[1].coordinates)
    scale = maps[0].features.abs().max()
    assert scale > 0
    torch.testing.assert_close(
        maps[0].features / scale, maps[1].features / scale, rtol=1e-4, atol=1e-5
    )
