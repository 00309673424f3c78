"""The published parts of MIT BEVFusion, each against a plain restatement of the facts."""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from model_parts import GRID, IMAGE_SIZE, MAP_GRID, bev_from_image, make_batch

from bevstack.kernels.grid import BEVGrid
from bevstack.perception.encoders import LSS, LSSFPN, CameraEncoder, DepthLSS, Swin
from bevstack.perception.encoders.lidar_depth import last_depth
from bevstack.perception.fusion import ConvFuser, SingleSensor
from bevstack.perception.heads import MapHead
from bevstack.perception.necks import SECOND


def randomized(module):
    """Every weight and statistic at random, in evaluation mode."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point():
                noise = torch.rand(tensor.shape, generator=generator)
                tensor.copy_(0.5 + noise if "running_var" in name else (noise - 0.5) / 2)
    return module.eval()


def conv_norm_relu(block, x, eps=1e-5):
    """A block's convolution, normalisation and ReLU, written out."""
    conv, norm = block[0], block[1]
    transposed = isinstance(conv, torch.nn.ConvTranspose2d)
    run = F.conv_transpose2d if transposed else F.conv2d
    x = run(x, conv.weight, conv.bias, conv.stride, conv.padding)
    x = x - norm.running_mean.view(-1, 1, 1)
    x = x / (norm.running_var.view(-1, 1, 1) + eps).sqrt()
    return (x * norm.weight.view(-1, 1, 1) + norm.bias.view(-1, 1, 1)).clamp(min=0)


def bilinear(image, height, width):
    """Resize (N, C, H, W) with align_corners False, a pixel at a time."""
    N, C, H, W = image.shape
    out = image.new_zeros(N, C, height, width)
    for i in range(height):
        for j in range(width):
            y = max((i + 0.5) * H / height - 0.5, 0)
            x = max((j + 0.5) * W / width - 0.5, 0)
            for r, c in ((0, 0), (0, 1), (1, 0), (1, 1)):
                row, column = min(int(y) + r, H - 1), min(int(x) + c, W - 1)
                weight = abs(1 - r - y % 1) * abs(1 - c - x % 1)
                out[:, :, i, j] += weight * image[:, :, row, column]
    return out


# --- camera -----------------------------------------------------------------------------------


def test_pyramid_concatenates_its_own_level_before_the_one_above():
    fpn = randomized(LSSFPN((3, 4, 5), 6))
    maps = [torch.randn(2, 3, 8, 22), torch.randn(2, 4, 4, 11), torch.randn(2, 5, 2, 6)]
    x = torch.cat([maps[1], bilinear(maps[2], 4, 11)], 1)
    x = conv_norm_relu(fpn.smooth[1], conv_norm_relu(fpn.lateral[1], x))
    x = torch.cat([maps[0], bilinear(x, 8, 22)], 1)
    want = conv_norm_relu(fpn.smooth[0], conv_norm_relu(fpn.lateral[0], x))
    torch.testing.assert_close(fpn(maps), want, rtol=1e-4, atol=1e-5)


def published_cells(matrix, grid, size, stride, bins, height_range, downsample):
    """(D, H, W) flat cells: frustum from edge to edge, geometry in float64, truncation."""
    H, W = size
    us, vs = np.linspace(0, stride * W - 1, W), np.linspace(0, stride * H - 1, H)
    cell_size = grid.cell_size / downsample
    counts = [n * downsample for n in grid.shape]
    low = np.array([grid.x_range[0], grid.y_range[0], height_range[0]])
    step = np.array([cell_size, cell_size, height_range[1] - height_range[0]])
    cells = np.full((len(bins), H, W), -1)
    margin = np.zeros(cells.shape)  # how near a point is to a cell's edge: there rounding decides
    for d, depth in enumerate(bins):
        for i, v in enumerate(vs):
            for j, u in enumerate(us):
                place = (matrix @ [u * depth, v * depth, depth, 1])[:3]
                exact = (place - low) / step
                margin[d, i, j] = np.abs(exact - np.round(exact)).min()
                x, y, z = (int(value) for value in exact)  # int() truncates towards zero
                if 0 <= x < counts[0] and 0 <= y < counts[1] and z == 0:
                    cells[d, i, j] = x * counts[1] + y
    return cells, margin


@pytest.mark.parametrize("kind", [LSS, DepthLSS])
def test_frustum_is_inclusive_and_cells_are_truncated(kind):
    grid = BEVGrid((-9.6, 9.6), (-6.4, 6.4), 0.8)
    lift = kind(4, grid, 4, (1.0, 16.0), 0.5, height_range=(-1.0, 1.0), truncate_cells=True)
    size, matrices = (5, 7), bev_from_image(3, 40, 56)
    matrices[:, :3, 3] += torch.tensor([0.123, 0.237, 0.05])  # off the edges of the cells
    feature = matrices @ lift.image_from_feature(8, size)
    got = lift.frustum_cells(feature, size, torch.tensor([0, 1, 1])).numpy()
    bins = 1 + 0.5 * np.arange(30)
    for n in range(3):
        want, margin = published_cells(
            matrices[n].double().numpy(), grid, size, 8, bins, (-1.0, 1.0), 2
        )
        want = np.where(want < 0, -1, want + (n > 0) * lift.pool_grid.num_cells)
        clear = margin > 1e-4
        assert (got[n] == want)[clear].all()
        assert (want >= 0).any()
        assert clear.mean() > 0.9


@settings(max_examples=50, deadline=None)
@given(x=st.floats(-15, -12), z=st.floats(-4, 2))
def test_truncation_pools_what_lies_a_cell_below_the_edges(x, z):
    """One point at (x, 0, z): cells of 0.4 m from -12.8, heights -1 to 1."""
    matrix = torch.zeros(1, 4, 4)
    matrix[0, :3, 3], matrix[0, 3, 3] = torch.tensor([x, 0.1, z]), 1
    for truncate in (False, True):
        lift = LSS(1, GRID, 1, (1.0, 2.0), 1.0, (-1.0, 1.0), truncate_cells=truncate)
        cell = lift.frustum_cells(matrix, (1, 1), torch.tensor([0])).item()
        i, k = (float(np.float32(x)) + 12.8) / 0.4, (float(np.float32(z)) + 1) / 2
        if min(abs(i - round(i)), abs(k - round(k))) < 1e-4:
            continue
        i, k = (int(i), int(k)) if truncate else (math.floor(i), math.floor(k))
        row = lift.pool_grid.shape[1]
        assert cell == (i * row + row // 2 if i >= 0 and k == 0 else -1)


def naive_depth_image(points, sample, matrices, image_sample, size):
    image = torch.zeros(len(matrices), *size)
    for n, matrix in enumerate(matrices):
        inverse = np.linalg.inv(matrix.double().numpy())
        for point, s in zip(points.double().numpy(), sample.tolist()):
            u, v, depth, _ = inverse @ [*point[:3], 1]
            if s == image_sample[n] and depth > 0:
                u, v = u / depth, v / depth
                if 0 <= u < size[1] and 0 <= v < size[0]:
                    image[n, int(v), int(u)] = depth
    return image


def test_depth_image_keeps_the_last_point_of_a_pixel():
    batch = make_batch(size=2, cameras=2, points=800)
    size = (6, 12)  # coarse, so that points collide
    matrices = bev_from_image(2, *size).repeat(2, 1, 1)
    arguments = batch.points, batch.point_sample, matrices, batch.image_sample, size
    want = naive_depth_image(*arguments)
    got = last_depth(*arguments)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    assert (got > 0).float().mean() > 0.2
    # With the order turned round, another point wins somewhere.
    flipped = last_depth(batch.points.flip(0), batch.point_sample.flip(0), *arguments[2:])
    assert not torch.equal(flipped, got)


def test_depth_image_without_points_is_empty():
    empty = torch.zeros(0, 5), torch.zeros(0, dtype=torch.long)
    assert (last_depth(*empty, bev_from_image(2), torch.tensor([0, 0]), (4, 6)) == 0).all()


def naive_lift(lift, logits, context, cells, batch_size):
    """Outer product and sum, a frustum point at a time."""
    pooled = torch.zeros(batch_size * lift.pool_grid.num_cells, context.shape[1])
    depth = logits.exp() / logits.exp().sum(1, keepdim=True)
    for n, d, i, j in (cells >= 0).nonzero().tolist():
        pooled[cells[n, d, i, j]] += depth[n, d, i, j] * context[n, :, i, j]
    return pooled.view(batch_size, *lift.pool_grid.shape, -1).permute(0, 3, 1, 2)


@pytest.mark.parametrize("kind", [LSS, DepthLSS])
def test_view_transform_is_the_written_out_one(kind):
    lift = randomized(kind(4, GRID, 5, (1.0, 9.0), 1.0, (-2.0, 4.0), truncate_cells=True))
    batch, size = make_batch(size=2, cameras=2), (6, 12)
    features = torch.randn(4, 4, *size)
    matrices = batch.bev_from_image @ lift.image_from_feature(8, size)
    got, output = lift(features, matrices, batch.image_sample, 2, batch.points, batch.point_sample)
    x = features
    if kind is DepthLSS:
        depth = naive_depth_image(
            batch.points, batch.point_sample, batch.bev_from_image, batch.image_sample, (48, 96)
        )[:, None]
        for block in lift.depth_image_net:
            depth = conv_norm_relu(block, depth)
        x = torch.cat([depth, features], 1)  # depth first
        x = conv_norm_relu(lift.depth_net[1], conv_norm_relu(lift.depth_net[0], x))
    last = lift.depth_net[-1] if kind is DepthLSS else lift.depth_net
    x = F.conv2d(x, last.weight, last.bias)
    torch.testing.assert_close(output.logits, x[:, :8], rtol=1e-3, atol=1e-4)
    cells = lift.frustum_cells(matrices, size, batch.image_sample)
    bev = naive_lift(lift, x[:, :8], x[:, 8:], cells, 2)
    for block in lift.bev_net:
        bev = conv_norm_relu(block, bev)
    assert got.shape == (2, 5, *GRID.shape)
    torch.testing.assert_close(got, bev, rtol=1e-3, atol=1e-4)


def test_depth_lss_refuses_features_of_another_stride():
    with pytest.raises(ValueError, match="stride 8"):
        DepthLSS(4, GRID).image_from_feature(16, (4, 6))
    with pytest.raises(ValueError, match="1 or 2"):
        LSS(4, GRID, downsample=4)


def camera_branch():
    torch.manual_seed(0)
    return CameraEncoder(
        GRID,
        Swin(8, (1, 1, 1, 1), (1, 1, 2, 2), 3),
        partial(LSSFPN, out_channels=8),
        partial(DepthLSS, out_channels=4, depth_range=(1.0, 9.0), truncate_cells=True),
    )


def test_camera_branch_trains_and_needs_no_points():
    camera, batch = camera_branch(), make_batch()
    assert tuple(batch.images.shape[2:]) == IMAGE_SIZE
    bev, output = camera(batch)
    bev.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in camera.parameters())
    assert camera.loss(output, batch) == {}
    without = replace(batch, points=batch.points[:0], point_sample=batch.point_sample[:0])
    assert not torch.equal(camera.eval()(without)[0], camera(batch)[0])


# --- fuser, backbone, map head ----------------------------------------------------------------


def test_fuser_puts_the_camera_first():
    fuser = randomized(ConvFuser(2, 3, 4))
    camera, lidar = torch.randn(1, 2, 6, 5), torch.randn(1, 3, 6, 5)
    want = conv_norm_relu(fuser.conv, torch.cat([camera, lidar], 1))
    torch.testing.assert_close(fuser(camera, lidar), want, rtol=1e-4, atol=1e-5)


def test_single_sensor_is_handed_on():
    bev = torch.randn(1, 3, 6, 5)
    assert SingleSensor(0, 3)(None, bev) is bev
    assert SingleSensor(3, 0).out_channels == 3
    with pytest.raises(ValueError, match="choose another fuser"):
        SingleSensor(3, 3)


def test_published_backbone_normalises_with_its_own_eps():
    second = SECOND(3, GRID, (4, 6), (1, 2), (2, 2), (5, 5), norm_eps=1e-3, norm_momentum=0.01)
    norms = [m for m in second.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert {(m.eps, m.momentum) for m in norms} == {(1e-3, 0.01)}
    randomized(second)
    bev, levels = torch.randn(1, 3, *GRID.shape), []
    x = bev
    for stage, up in zip(second.stages, second.ups):
        for block in stage:
            x = conv_norm_relu(block, x, eps=1e-3)
        levels.append(conv_norm_relu(up, x, eps=1e-3))
    assert second.ups[0][0].kernel_size == (1, 1)
    torch.testing.assert_close(second(bev), torch.cat(levels, 1), rtol=1e-4, atol=1e-5)


def naive_resample(bev, grid, map_grid):
    """Bilinear at the map cells' centres, zero outside: x along rows, a cell at a time."""
    _, C, X, Y = bev.shape
    out = bev.new_zeros(1, C, *map_grid.shape)
    for a in range(map_grid.shape[0]):
        for b in range(map_grid.shape[1]):
            x = map_grid.x_range[0] + (a + 0.5) * map_grid.cell_size
            y = map_grid.y_range[0] + (b + 0.5) * map_grid.cell_size
            i = (x - grid.x_range[0]) / grid.cell_size - 0.5
            j = (y - grid.y_range[0]) / grid.cell_size - 0.5
            for r in (math.floor(i), math.floor(i) + 1):
                for c in (math.floor(j), math.floor(j) + 1):
                    if 0 <= r < X and 0 <= c < Y:
                        weight = (1 - abs(i - r)) * (1 - abs(j - c))
                        out[:, :, a, b] += weight * bev[:, :, r, c]
    return out


@pytest.mark.parametrize("map_grid", [MAP_GRID, BEVGrid((-13.6, 13.6), (-8.0, 8.0), 0.8)])
def test_published_map_head_resamples_first(map_grid):
    head = randomized(MapHead(3, GRID, map_grid, channels=4, reduce=False, layers=2))
    bev = torch.randn(1, 3, *GRID.shape)
    x = naive_resample(bev, GRID, map_grid)
    for block in head.classifier[:2]:
        x = conv_norm_relu(block, x)
    x = F.conv2d(x, head.classifier[2].weight, head.classifier[2].bias)
    torch.testing.assert_close(head(bev).logits, x, rtol=1e-3, atol=1e-4)
