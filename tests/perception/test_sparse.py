"""Sparse layers: the same as dense ones, alike in every engine, folded at inference."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from sparse_parts import made_up_voxels
from torch import nn

from bevstack.perception.sparse import (
    FeatureNorm,
    SparseConv3d,
    SparseSequential,
    SubmanifoldConv3d,
    conv_norm_relu,
    height_into_channels,
    to_dense,
    weights,
)


def test_layers_agree_with_spconv_on_real_voxels(shared_data):
    pytest.importorskip("spconv")
    if not (shared_data / "voxels").is_dir():
        pytest.skip(f"needs real voxels in {shared_data}")
    file = Path(__file__).with_name("spconv_compared.py")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", file],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "..." in done.stdout  # all of them ran


def test_a_network_equals_its_dense_form():
    torch.manual_seed(0)
    voxels = made_up_voxels(shape=(10, 10, 8))
    first = SparseConv3d(4, 6, 3, 2, (0, 1, 1), bias=True)
    second = SparseConv3d(6, 5, (3, 1, 1), (2, 1, 1), bias=True)
    network = SparseSequential(first, nn.ReLU(), SparseSequential(second))
    grid, sites = to_dense(voxels), first(voxels)
    for layer in (first, second):
        weight, steps = layer.weight.permute(4, 3, 0, 1, 2), layer.geometry[1:4]
        sites = sites if layer is first else second(sites)
        occupied = to_dense(sites.with_features(torch.ones(len(sites.features), 1)))
        grid = F.conv3d(grid, weight, layer.bias, *steps) * occupied
        grid = grid.relu() if layer is first else grid
    out = network(voxels)
    assert out.batch_size == 2
    assert len(out.features) > 10
    torch.testing.assert_close(to_dense(out), grid, rtol=1e-5, atol=1e-5)


def test_tables_are_made_once_for_all_layers_on_the_same_voxels():
    voxels = made_up_voxels()
    first, second = SubmanifoldConv3d(4, 4), SubmanifoldConv3d(4, 4)
    out = second(first(voxels))
    assert out.tables is voxels.tables
    assert len(voxels.tables) == 1
    SubmanifoldConv3d(4, 4, (3, 1, 1))(out)
    SparseConv3d(4, 4, 3, 2, 1)(out)
    assert len(voxels.tables) == 3


def test_normalisation_is_folded_at_inference():
    torch.manual_seed(0)
    voxels = made_up_voxels()
    for bias in (False, True):
        conv, norm = SubmanifoldConv3d(4, 4, bias=bias), FeatureNorm(4, eps=1e-3)
        for _ in range(3):  # running statistics that are not the first ones
            conv_norm_relu(conv, norm, voxels)
        nn.init.uniform_(norm.weight, 0.5, 2.0)
        nn.init.uniform_(norm.bias, -1.0, 1.0)
        norm.eval()
        plain = conv_norm_relu(conv, norm, voxels, voxels.features).features
        with torch.no_grad():
            folded = conv_norm_relu(conv, norm, voxels, voxels.features).features
        expected = (norm(conv(voxels).features) + voxels.features).relu()
        torch.testing.assert_close(plain, expected)
        torch.testing.assert_close(folded, expected.detach(), rtol=1e-5, atol=1e-5)


def test_autocast_runs_convolutions_in_its_dtype():
    voxels, conv = made_up_voxels(), SubmanifoldConv3d(4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        half = conv(voxels).features
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), conv(voxels).features, rtol=2e-2, atol=2e-2)
    half.float().sum().backward()
    assert conv.weight.grad.dtype == torch.float32


def test_height_goes_into_channels_as_published():
    """Channel c * Z + z, and x before y: (B, C, Z, Y, X) to (B, C * Z, X, Y)."""
    voxels = made_up_voxels()
    dense = to_dense(voxels)
    expected = dense.permute(0, 1, 2, 4, 3).flatten(1, 2)
    ours = height_into_channels(voxels)
    assert torch.equal(ours, expected)
    assert ours[0, 1 * 6 + 2].shape == (8, 10)
    assert torch.equal(ours[0, 1 * 6 + 2], dense[0, 1, 2].T)


def test_features_get_gradients_from_the_dense_forms():
    voxels = made_up_voxels()
    for form in (to_dense, height_into_channels):
        features = voxels.features.clone().requires_grad_()
        (form(voxels.with_features(features)) ** 2).sum().backward()
        torch.testing.assert_close(features.grad, 2 * features.detach())


@pytest.mark.parametrize("count", [0, 1])
def test_norm_of_fewer_than_two_voxels_uses_what_it_knows(count):
    norm = FeatureNorm(3).train()
    out = norm(torch.ones(count, 3))
    assert out.shape == (count, 3)
    assert out.isfinite().all()
    assert (norm.running_mean == 0).all()


def test_layouts_of_published_weights():
    """One number marks one place of the kernel: z 0, y 1, x 2, from channel 3 to channel 4."""
    sizes = {"kz": 2, "ky": 3, "kx": 4, "in": 5, "out": 6}
    places = {"kz": 0, "ky": 1, "kx": 2, "in": 3, "out": 4}
    layouts = {
        weights.from_bevfusion: ("kx", "ky", "kz", "in", "out"),
        weights.from_spconv1: ("kz", "ky", "kx", "in", "out"),
        weights.from_spconv2: ("out", "kz", "ky", "kx", "in"),
        weights.from_mmdetection3d_bevfusion: ("out", "kx", "ky", "kz", "in"),
    }
    for convert, axes in layouts.items():
        theirs = torch.zeros([sizes[a] for a in axes])
        theirs[tuple(places[a] for a in axes)] = 1
        ours = convert(theirs)
        assert ours.shape == (2, 3, 4, 5, 6)
        assert ours.nonzero().tolist() == [[0, 1, 2, 3, 4]]
    kernel = torch.randn(2, 3, 4, 5, 6)
    assert torch.equal(weights.from_bevfusion(weights.to_bevfusion(kernel)), kernel)
    assert torch.equal(weights.from_spconv2(weights.to_spconv2(kernel)), kernel)
    with pytest.raises(ValueError, match="5 axes"):
        weights.from_spconv2(torch.zeros(3, 3, 3))
