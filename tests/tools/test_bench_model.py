"""Operations are counted as the layers define them."""

import sys
from functools import partial
from pathlib import Path

import pytest
import torch

from bevstack.kernels.grid import BEVGrid
from bevstack.perception.encoders import VoxelEncoder
from bevstack.perception.fusion import SingleSensor
from bevstack.perception.heads import TransFusionHead
from bevstack.perception.model import FusionModel
from bevstack.perception.necks import SECOND
from bevstack.perception.sparse.conv import _Conv3d

ROOT = Path(__file__).resolve().parents[2]
sys.path += [str(ROOT / "tools"), str(ROOT / "tests" / "perception")]

from bench_model import count_flops, stages_of  # noqa: E402
from model_parts import make_batch  # noqa: E402


def test_counts_are_those_of_the_layers_written_out():
    grid = BEVGrid((-12.8, 12.8), (-9.6, 9.6), 0.8)  # 32 x 24 cells
    model = FusionModel(
        grid,
        fuser=SingleSensor,
        backbone=partial(SECOND, channels=(8, 8), layers=(0, 0), up_channels=(4, 4)),
        heads={
            "detection": partial(
                TransFusionHead, channels=16, num_queries=10, num_heads=2, ffn_channels=32,
                branch_channels=8,
            )
        },
        lidar=partial(VoxelEncoder, voxel_size=(0.4, 0.4, 0.8), channels=(4, 8), blocks=1),
    ).eval()  # fmt: skip
    batch = make_batch(size=1, cameras=0, points=300)
    pairs: list[float] = []

    def forward():
        with torch.inference_mode():
            return model(batch)

    convolve = _Conv3d.convolve
    flops = count_flops(model, forward)
    assert _Conv3d.convolve is convolve
    channels, cells = model.lidar.out_channels, 32 * 24
    second = cells * channels * 8 * 9 + cells // 4 * 8 * 8 * 9  # stages
    second += cells * 8 * 4 + cells // 4 * 8 * 4 * 4  # up: a 1x1 and a transposed 2x2 convolution
    assert flops["backbone"] * 1e9 == pytest.approx(2 * second)
    dense = cells * 9 * (8 * 16 + 16 * 16 + 16 * 10)  # shared map, heat-map
    position = (cells + 10) * (2 * 16 + 16 * 16)
    attention = 4 * 10 * 16 * 16 + 2 * 10 * 10 * 16  # queries among themselves
    attention += 2 * 10 * 16 * 16 + 2 * cells * 16 * 16 + 2 * 10 * cells * 16  # and at the map
    rest = 10 * 10 * 16 + 2 * 10 * 16 * 32  # class embedding, feed-forward net
    branches = 10 * (6 * 16 * 8 + 8 * (2 + 1 + 3 + 2 + 2 + 10))
    expected = 2 * (dense + position + attention + rest + branches)
    assert flops["head detection"] * 1e9 == pytest.approx(expected)
    voxels = model.lidar._voxels(batch)
    for conv in (m for m in model.lidar.modules() if isinstance(m, _Conv3d)):
        first = conv.geometry.submanifold and conv.weight.shape[-2] == 5
        if first:  # every voxel meets those within one cell, itself included
            where = voxels.coordinates[:, 1:].int()
            near = ((where[:, None] - where).abs().amax(-1) <= 1).sum().item()
            pairs.append(2.0 * near * 5 * 4)
    assert flops["lidar"] * 1e9 > sum(pairs) > 0
    parts = {name: count for name, count in flops.items() if name in stages_of(model)}
    assert flops["all"] == pytest.approx(sum(parts.values()))
