"""The voxel encoder: published sizes and names, whatever may be missing, and that it learns."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from model_parts import GRID, make_batch

from bevstack.kernels.grid import BEVGrid
from bevstack.perception.encoders import VoxelEncoder
from bevstack.perception.fusion import ConvFuser
from bevstack.perception.heads import CenterHead
from bevstack.perception.model import FusionModel
from bevstack.perception.necks import SECOND

TINY = partial(
    VoxelEncoder,
    voxel_size=(0.4, 0.4, 0.25),
    height_range=(-3.0, 5.0),
    channels=(8, 16),
    blocks=1,
)
BEVFUSION_GRID = BEVGrid((-54.0, 54.0), (-54.0, 54.0), 0.6)


def encode(points, sample, size, train=False, **arguments):
    torch.manual_seed(0)
    encoder = TINY(GRID, **arguments).train(train)
    batch = replace(make_batch(size=1), points=points, point_sample=sample)
    return encoder(replace(batch, tokens=tuple("abcdef"[:size])))


def test_sizes_and_names_are_those_of_the_published_encoder():
    encoder = VoxelEncoder(BEVFUSION_GRID)
    assert encoder.grid_shape == (41, 1440, 1440)
    assert encoder.out_channels == 256
    assert sum(p.numel() for p in encoder.parameters()) == 2_694_352
    keys = {k.rpartition(".")[0] for k in encoder.state_dict()}
    published = {f"{name}.{i}" for name in ("conv_input", "conv_out") for i in (0, 1)}
    for stage in (1, 2, 3, 4):
        layer = f"encoder_layers.encoder_layer{stage}"
        parts = ("conv1", "bn1", "conv2", "bn2")
        published |= {f"{layer}.{block}.{part}" for block in (0, 1) for part in parts}
        published |= {f"{layer}.2.{i}" for i in (0, 1)} if stage < 4 else set()
    assert keys == published
    norms = [m for m in encoder.modules() if isinstance(m, torch.nn.BatchNorm1d)]
    assert {(m.eps, m.momentum) for m in norms} == {(1e-3, 0.01)}


def test_every_level_has_the_published_grid():
    encoder, shapes = VoxelEncoder(BEVFUSION_GRID, channels=(1, 1, 1, 1), blocks=0).eval(), []
    down = [encoder.conv_input, *(stage[0] for stage in encoder.encoder_layers if len(stage))]
    for module in (*down, encoder.conv_out):
        module.register_forward_hook(lambda _, __, out: shapes.append(out.shape))
    with torch.no_grad():
        bev = encoder(make_batch(size=1))
    assert shapes == [
        (41, 1440, 1440), (21, 720, 720), (11, 360, 360), (5, 180, 180), (2, 180, 180)
    ]  # fmt: skip
    assert bev.shape == (1, 2, 180, 180)


def test_a_point_ends_in_its_own_cell_of_the_map():
    points = torch.tensor([[7.3, -4.2, 0.5, 90.0, 0.1]])
    bev = encode(points, torch.tensor([1]), 3)
    x, y = (int((c - low) // 0.8) for c, low in zip((7.3, -4.2), (-12.8, -9.6)))
    assert (bev[[0, 2]] == 0).all()
    touched = bev[1].abs().sum(0).nonzero()
    # One stride of two spreads a voxel over at most two cells each way.
    assert len(touched) > 0
    assert ((touched - torch.tensor([x, y])).abs() <= 1).all()


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("num_points", [0, 1, 2])
def test_few_or_no_points_are_legal(num_points, train):
    points = torch.tensor([[1.0, 2, 0.5, 30, 0], [5, -3, 1, 99, 0.1]])[:num_points]
    bev = encode(points, torch.zeros(num_points, dtype=torch.long), 1, train)
    assert bev.shape == (1, 16 * 7, *GRID.shape)
    assert bev.isfinite().all()
    assert (bev == 0).all() or num_points
    if train:
        bev.sum().backward()


def test_inference_in_one_go_equals_the_layers_one_by_one():
    batch = make_batch()
    torch.manual_seed(0)
    encoder = TINY(GRID)
    for _ in range(3):
        encoder(batch)
    encoder.eval()
    layered = encoder(batch)
    with torch.no_grad():
        folded = encoder(batch)
    assert layered.requires_grad
    torch.testing.assert_close(folded, layered.detach(), rtol=1e-4, atol=1e-4)


def test_points_off_the_grid_and_their_order_change_nothing():
    batch = make_batch(size=1)
    outside = torch.tensor([[-12.9, 0, 0, 0, 0], [12.8, 0, 0, 0, 0], [0, 0, 9.0, 0, 0]])
    points = torch.cat([outside, batch.points.flip(0)])
    sample = torch.zeros(len(points), dtype=torch.long)
    got = encode(points, sample, 1, max_points=None)
    want = encode(batch.points, batch.point_sample, 1, max_points=None)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_with_it_learns(dtype):
    torch.manual_seed(0)
    model = FusionModel(
        GRID,
        fuser=partial(ConvFuser, out_channels=16),
        backbone=partial(SECOND, channels=(16, 16), layers=(0, 1), up_channels=(16, 16)),
        heads={"detection": partial(CenterHead, channels=16)},
        lidar=TINY,
    )
    batch, losses = make_batch(), []
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(12):
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            outputs = model(batch)
        loss = model.total_loss(model.loss(outputs, batch))
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None for p in model.lidar.parameters())
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


def test_sizes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"voxel_size .* must be 0\.4 m"):
        TINY(GRID, voxel_size=(0.3, 0.3, 0.25))
    with pytest.raises(ValueError, match="two stages"):
        TINY(GRID, channels=(8,))


def test_training_may_keep_fewer_voxels():
    batch = make_batch(points=400)
    both = VoxelEncoder(
        GRID, (0.4, 0.4, 0.2), channels=(4, 4), max_voxels=60, max_voxels_training=20
    )
    for train, limit in ((False, 60), (True, 20)):
        voxels = both.train(train)._voxels(batch)
        assert voxels.coordinates[:, 0].bincount().tolist() == [limit, limit]
    same = VoxelEncoder(GRID, (0.4, 0.4, 0.2), channels=(4, 4), max_voxels=60)
    assert len(same.train()._voxels(batch).coordinates) == 120
