"""Encoders: geometry against numpy, and whatever may be missing."""

import math
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_parts import GRID, MAP_GRID, bev_from_image, make_batch, make_model

from bevstack.datasets.batch import BoxTargets
from bevstack.kernels.grid import BEVGrid
from bevstack.perception.encoders import (
    FPN,
    LSS,
    CameraEncoder,
    LiftSplat,
    PillarEncoder,
    ResNet,
    Swin,
)
from bevstack.perception.encoders.image_semantics import (
    ImageSemantics,
    labels_of_boxes,
    labels_of_map,
    seen_positions,
)
from bevstack.perception.encoders.lidar_depth import depth_bins, nearest_depth


@pytest.mark.parametrize(
    "backbone",
    [
        partial(ResNet, 8, (8, 16, 24), (1, 1, 1), "basic", (2, 3)),
        partial(ResNet, 8, (16, 32), (1, 1), "bottleneck", (1, 2)),
        partial(Swin, 8, (1, 1, 1), (2, 2, 2), 4, 0.0, (2, 3)),
    ],
)
def test_backbone_has_the_strides_and_channels_it_says(backbone):
    network = backbone()
    maps = network(torch.randn(2, 3, 64, 96))
    assert len(maps) == len(network.strides) == len(network.out_channels)
    for features, stride, channels in zip(maps, network.strides, network.out_channels):
        assert features.shape == (2, channels, 64 // stride, 96 // stride)


def test_backbone_weights_come_from_a_local_folder(tmp_path):
    build = partial(ResNet, 8, (8, 16), (1, 1), "basic", (2,))
    saved = build()
    saved.network.save_pretrained(tmp_path)
    loaded = build(weights=tmp_path)
    image = torch.randn(1, 3, 32, 32)
    assert torch.equal(saved.eval()(image)[0], loaded.eval()(image)[0])
    with pytest.raises(ValueError, match="do not fit"):
        ResNet(8, (8, 32), (1, 1), "basic", (2,), weights=tmp_path)
    with pytest.raises(ValueError, match=r"no model\.safetensors"):
        build(weights=tmp_path / "nowhere")


@pytest.mark.parametrize("stages", [(), (0, 1), (2, 1), (3,)])
def test_backbone_refuses_stages_it_does_not_have(stages):
    with pytest.raises(ValueError, match="out_stages"):
        ResNet(8, (8, 16), (1, 1), "basic", stages)


def test_pyramid_joins_maps_of_odd_sizes():
    maps = [torch.randn(1, 4, 15, 23), torch.randn(1, 6, 8, 12), torch.randn(1, 8, 4, 6)]
    assert FPN((4, 6, 8), 5)(maps).shape == (1, 5, 15, 23)


# --- view transform -------------------------------------------------------------------------------


def test_frustum_cell_is_where_the_camera_geometry_says():
    lift = LiftSplat(4, GRID, 4, (1.0, 21.0), 0.5, height_range=(-1.0, 4.0))
    matrices = bev_from_image(3)
    cells = lift.frustum_cells(matrices, (6, 12), torch.tensor([0, 1, 1])).numpy()
    assert cells.shape == (3, 40, 6, 12)
    rng = np.random.default_rng(0)
    for n, k, i, j in rng.integers(0, (3, 40, 6, 12), (500, 4)):
        depth = 1.0 + (k + 0.5) * 0.5
        x, y, z, _ = matrices[n].double().numpy() @ [j * depth, i * depth, depth, 1]
        cell = GRID.flat_cell(np.array(x), np.array(y))
        expected = -1 if cell < 0 or not -1 <= z < 4 else cell + (n > 0) * GRID.num_cells
        assert cells[n, k, i, j] == expected


def test_feature_pixels_are_centred_on_the_image_pixels_they_cover():
    camera = make_model().camera
    stride = camera.backbone.strides[0]
    matrix = camera.lift.image_from_feature(stride, (4, 5))
    for feature in (0, 3):
        u = (matrix @ torch.tensor([feature * 7.0, 0, 7.0, 1]))[0] / 7
        covered = torch.arange(feature * stride, (feature + 1) * stride).float()
        assert u == covered.mean()


@settings(max_examples=30, deadline=None)
@given(x=st.floats(-14.5, -12.9), fraction=st.floats(0.01, 0.99))
def test_peer_bug_5_what_lies_below_the_border_is_not_pooled(x, fraction):
    """Truncation towards zero puts what lies up to a cell below the edge into cell 0."""
    lift = LiftSplat(1, GRID, 1, (1.0, 2.0), 1.0)
    matrix = torch.eye(4)[None].clone()
    matrix[:, :3, :3] = 0
    matrix[:, :3, 3] = torch.tensor([x, -9.6 + fraction * 19.2, 0])
    assert (lift.frustum_cells(matrix, (1, 1), torch.tensor([0])) == -1).all()


def test_peer_bug_6_number_of_depth_bins_is_rounded_not_truncated():
    assert LiftSplat(1, GRID, 1, (0.0, 0.3), 0.1).num_bins == 3
    with pytest.raises(ValueError, match="depth_step"):
        LiftSplat(1, GRID, 1, (0.0, 1.0), 0.3)


def test_peer_bug_8_no_frustum_point_on_the_grid_gives_an_empty_map():
    lift = LiftSplat(4, GRID, 4, (1.0, 5.0), 1.0, bev_layers=0)
    away = torch.eye(4)[None].clone()
    away[:, 0, 3] = 1000.0
    batch = make_batch(size=1)
    bev, _ = lift(
        torch.randn(1, 4, 3, 5), away, torch.tensor([0]), 1, batch.points, batch.point_sample
    )
    assert bev.shape == (1, 4, *GRID.shape)
    assert (bev == 0).all()


def test_plan_is_kept_while_the_calibration_stays(monkeypatch):
    lift = LiftSplat(4, GRID, 3, (1.0, 11.0), 1.0).eval()
    features, points, sample = torch.randn(2, 4, 3, 5), torch.zeros(0, 5), torch.tensor([0, 1])
    made = []
    find = lift.frustum_cells
    monkeypatch.setattr(lift, "frustum_cells", lambda *args: made.append(1) or find(*args))

    def bev(matrices, sample=sample, batch_size=2):
        return lift(features, matrices, sample, batch_size, points, sample[:0])[0]

    matrices = bev_from_image(2)
    with torch.no_grad():
        first = bev(matrices)
        assert torch.equal(bev(matrices.clone()), first)
        assert len(made) == 1
        matrices[0, 0, 3] += 2  # in place: what is kept must not change with it
        moved = bev(matrices)
        assert len(made) == 2
        assert not torch.equal(moved, first)
        assert torch.equal(bev(matrices, sample.flip(0))[0], moved[1])
        assert bev(matrices, batch_size=3).shape[0] == 3
        assert len(made) == 4
    # With gradients nothing is kept: what inference mode made could not be saved for them.
    bev(matrices).sum().backward()
    bev(matrices)
    assert len(made) == 6


def test_features_in_half_precision_are_pooled_as_they_are():
    lift = LiftSplat(4, GRID, 3, (1.0, 11.0), 1.0, bev_layers=0)
    features, points, sample = torch.randn(2, 4, 3, 5), torch.zeros(0, 5), torch.tensor([0, 1])
    args = bev_from_image(2), sample, 2, points, sample[:0]
    full = lift(features, *args)[0]
    with torch.autocast("cpu", torch.bfloat16):
        half = lift(features, *args)[0]
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), full, rtol=0.05, atol=0.05)


def test_lifted_feature_arrives_undiminished():
    """Over all cells, a pixel's weights sum to one if its whole ray is on the grid."""
    grid = BEVGrid((-50, 50), (-50, 50), 1.0)
    lift = LiftSplat(4, grid, 3, (1.0, 11.0), 1.0, depth_layers=0, bev_layers=0)
    features, points = torch.randn(2, 4, 3, 5), torch.zeros(0, 5)
    sample = torch.tensor([0, 1])
    bev, depth = lift(features, bev_from_image(2, 3, 5), sample, 2, points, sample[:0])
    context = lift.depth_net(features)[:, lift.num_bins :]
    assert depth.logits.shape == (2, 10, 3, 5)
    torch.testing.assert_close(bev.sum((2, 3)), context.sum((2, 3)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("downsample", [1, 2, 4])
def test_finer_pooling_ends_on_the_grid(downsample):
    lift = LiftSplat(4, GRID, 3, (1.0, 11.0), 1.0, downsample=downsample)
    sample = torch.tensor([0, 1])
    bev, _ = lift(
        torch.randn(2, 4, 3, 5), bev_from_image(2), sample, 3, torch.zeros(0, 5), sample[:0]
    )
    assert bev.shape == (3, 3, *GRID.shape)


def test_downsample_that_is_no_power_of_two_is_refused():
    with pytest.raises(ValueError, match="power of two"):
        LiftSplat(4, GRID, 3, downsample=3)


# --- depth from LiDAR -----------------------------------------------------------------------------


def reference_depth(points, point_sample, matrices, image_sample, size):
    """Point by point in float64."""
    depth = np.full((len(matrices), *size), np.inf)
    for n, matrix in enumerate(matrices.double().numpy()):
        image_from_bev = np.linalg.inv(matrix)
        for point in points[point_sample == image_sample[n]].double().numpy():
            u, v, d, _ = image_from_bev @ [*point[:3], 1]
            i, j = (np.floor(np.array([v, u]) / d + 0.5)).astype(int)
            if d > 0 and 0 <= i < size[0] and 0 <= j < size[1]:
                depth[n, i, j] = min(depth[n, i, j], d)
    return torch.tensor(depth, dtype=torch.float32)


def test_depth_map_is_what_projection_point_by_point_gives():
    batch = make_batch(points=300)
    arguments = (batch.points, batch.point_sample, batch.bev_from_image, batch.image_sample)
    depth = nearest_depth(*arguments, (48, 96))
    assert depth.isfinite().sum() > 50
    torch.testing.assert_close(depth, reference_depth(*arguments, (48, 96)), rtol=1e-5, atol=1e-4)


def test_peer_bug_9_the_nearest_point_wins_whatever_the_order():
    batch = make_batch(points=3000)
    order = torch.randperm(len(batch.points), generator=torch.Generator().manual_seed(1))
    arguments = (batch.bev_from_image, batch.image_sample, (6, 12))
    depth = nearest_depth(batch.points, batch.point_sample, *arguments)
    shuffled = nearest_depth(batch.points[order], batch.point_sample[order], *arguments)
    assert torch.equal(depth, shuffled)
    reference = reference_depth(batch.points, batch.point_sample, *arguments)
    torch.testing.assert_close(depth, reference, rtol=1e-5, atol=1e-4)


def test_depth_is_the_same_after_the_scene_is_turned_scaled_and_mirrored():
    batch = make_batch(points=500)
    augmentation = torch.eye(4)
    turn = torch.tensor([[0.6, -0.8, 0], [0.8, 0.6, 0], [0, 0, 1]])
    augmentation[:3, :3] = 1.1 * turn @ torch.diag(torch.tensor([1.0, -1, 1]))
    augmentation[:3, 3] = torch.tensor([0.4, 0.3, 0.2])
    moved = batch.points[:, :3] @ augmentation[:3, :3].T + augmentation[:3, 3]
    size, sample = (6, 12), (batch.image_sample,)
    before = nearest_depth(batch.points, batch.point_sample, batch.bev_from_image, *sample, size)
    after = nearest_depth(
        moved, batch.point_sample, augmentation @ batch.bev_from_image, *sample, size
    )
    assert torch.equal(before.isfinite(), after.isfinite())
    torch.testing.assert_close(before, after, rtol=1e-4, atol=1e-3)


def test_peer_bug_10_depth_bin_is_counted_from_the_first_depth_in_steps():
    depth = torch.tensor([0.9, 1.0, 1.49, 1.5, 20.9, 21.0, torch.inf])
    assert depth_bins(depth, 1.0, 0.5, 40).tolist() == [-1, 0, 0, 1, 39, -1, -1]


@pytest.mark.parametrize("encoding", ["metric", "one_hot"])
def test_lidar_depth_reaches_the_camera_map_and_may_be_missing(encoding):
    model = make_model(lidar=False, lidar_depth=encoding).eval()
    batch = make_batch()
    with torch.no_grad():
        seen, unseen = model.camera(batch)[0], model.camera(replace(batch, points=batch.points[:0],
            point_sample=batch.point_sample[:0]))[0]  # fmt: skip
    assert seen.shape == unseen.shape
    assert not torch.equal(seen, unseen)
    assert unseen.isfinite().all()


def test_depth_loss_is_the_cross_entropy_of_seen_pixels():
    model = make_model(lidar=False)
    batch = make_batch()
    perspective = model(batch)["camera"]
    loss, output = model.camera.loss(perspective, batch)["depth"], perspective.depth
    depth = reference_depth(
        batch.points, batch.point_sample, output.bev_from_image, output.image_sample, (6, 12)
    )
    log_p = output.logits.log_softmax(1)
    terms = [
        -log_p[n, int(depth[n, i, j] - 1), i, j]
        for n, i, j in depth.isfinite().nonzero().tolist()
        if 1 <= depth[n, i, j] < 21
    ]
    torch.testing.assert_close(loss, torch.stack(terms).mean(), rtol=1e-4, atol=1e-5)


def test_a_mean_cell_says_the_same_however_many_pixels_see_it():
    torch.manual_seed(0)
    sums, means = (LiftSplat(4, GRID, 3, (1.0, 21.0), bev_layers=0, mean=m) for m in (False, True))
    means.load_state_dict(sums.state_dict())
    batch, features = make_batch(), torch.randn(4, 4, 6, 12)
    arguments = batch.image_sample, 2, batch.points, batch.point_sample
    once = [lift.eval()(features, batch.bev_from_image, *arguments)[0] for lift in (sums, means)]
    again = [features.repeat(50, 1, 1, 1), batch.bev_from_image.repeat(50, 1, 1)]
    again += [batch.image_sample.repeat(50), *arguments[1:]]
    many = [lift(*again)[0] for lift in (sums, means)]
    torch.testing.assert_close(many[0], 50 * once[0], rtol=1e-4, atol=1e-4)
    # The constant term of the denominator matters less the more there is to see.
    ratio = (many[1].abs() / once[1].abs().clamp(min=1e-9))[once[1].abs() > 1e-3]
    assert ratio.min() > 0.99
    assert ratio.median() < 10
    assert many[1].abs().max() <= (features.abs().max() * 20)


def test_semantics_label_pixels_by_the_box_and_the_map_at_their_depth():
    boxes = BoxTargets(
        center=torch.tensor([[10.0, 0.0, 1.0]]),
        size=torch.tensor([[4.0, 2.0, 2.0]]),
        yaw=torch.tensor([math.pi / 2]),
        velocity=torch.zeros(1, 2),
        label=torch.tensor([3]),
        attribute=torch.tensor([-1]),
        sample=torch.tensor([0]),
        instance=torch.tensor([0]),
    )
    # Turned by 90 degrees it spans 9..11 m in x and -2..2 m in y.
    position = torch.tensor([[9.1, 1.9, 1.0], [10.0, 2.5, 1.0], [11.9, 0.0, 1.0], [10.0, 0.0, 2.5]])
    in_box = labels_of_boxes(position, torch.zeros(4, dtype=torch.long), boxes)
    assert in_box.nonzero().tolist() == [[0, 3]]
    other_sample = labels_of_boxes(position, torch.ones(4, dtype=torch.long), boxes)
    assert not other_sample.any()

    masks = torch.zeros(1, 6, *MAP_GRID.shape, dtype=torch.bool)
    masks[0, 2, 30, 18] = True  # 5.0..5.5 m, 1.0..1.5 m
    position = torch.tensor([[5.1, 1.1, 0.0], [5.1, 1.1, 0.0], [50.0, 1.0, 0.0], [-5.0, 1.0, 0.0]])
    ground = torch.tensor([True, False, True, True])
    layers = labels_of_map(position, torch.zeros(4, dtype=torch.long), masks, MAP_GRID, ground)
    assert layers.nonzero().tolist() == [[0, 2]]


def test_seen_positions_invert_the_projection():
    batch = make_batch(size=2)
    depth = torch.full((len(batch.bev_from_image), 4, 5), torch.inf)
    depth[1, 2, 3], depth[-1, 0, 0] = 7.0, 11.0
    position, sample, known = seen_positions(depth, batch.bev_from_image, batch.image_sample)
    assert known.sum() == 2
    assert sample.tolist() == [0, 1]
    for p, image, pixel in ((position[0], 1, (3, 2, 7.0)), (position[1], -1, (0, 0, 11.0))):
        u, v, d = pixel
        want = batch.bev_from_image[image] @ torch.tensor([u * d, v * d, d, 1.0])
        torch.testing.assert_close(p, want[:3], rtol=1e-5, atol=1e-5)


def test_semantics_teach_in_training_only():
    batch = make_batch()
    model = make_model(lidar=False, semantics=partial(ImageSemantics, map_grid=MAP_GRID))
    assert model.camera.eval()(batch)[1].semantics is None
    model.train()
    terms = model.loss(model(batch), batch)
    terms["camera/semantics"].backward()
    assert model.camera.semantics.classify.weight.grad.abs().sum() > 0
    assert next(model.camera.backbone.parameters()).grad.abs().sum() > 0
    blind = replace(batch, points=batch.points[:0], point_sample=batch.point_sample[:0])
    assert model.loss(model(blind), blind)["camera/semantics"] == 0


@pytest.mark.parametrize("downsample", [1, 2])
def test_painted_probabilities_lie_behind_the_map(downsample):
    batch = make_batch()
    semantics = partial(ImageSemantics, map_grid=MAP_GRID, paint=True)
    model = make_model(semantics=semantics, downsample=downsample, mean=True).eval()
    camera = model.camera
    bev, perspective = camera(batch)
    assert bev.shape[1] == camera.out_channels == camera.lift.out_channels + 16
    again, _ = camera.lift(
        camera.fpn(camera.backbone((batch.images.float() - camera.mean) / camera.std)),
        perspective.depth.bev_from_image,
        batch.image_sample,
        batch.size,
        batch.points,
        batch.point_sample,
    )
    torch.testing.assert_close(bev[:, : again.shape[1]], again, rtol=1e-4, atol=1e-5)
    painted = bev[:, again.shape[1] :]
    assert painted.min() >= 0
    assert 0 < painted.max() < 1  # means of probabilities
    blind = replace(batch, images=batch.images[:0], image_sample=batch.image_sample[:0],
        bev_from_image=batch.bev_from_image[:0])  # fmt: skip
    assert camera(blind)[0].shape == bev.shape
    model.train()
    model.total_loss(model.loss(model(batch), batch)).backward()
    assert camera.semantics.classify.weight.grad.abs().sum() > 0


def test_only_lift_splat_paints():
    camera = make_model().camera
    with pytest.raises(ValueError, match="LSS cannot lift"):
        CameraEncoder(
            GRID, camera.backbone, lambda channels: camera.fpn, LSS,
            semantics=partial(ImageSemantics, paint=True),
        )  # fmt: skip


# --- pillars --------------------------------------------------------------------------------------


def encode(points, sample, size, train=False, **arguments):
    torch.manual_seed(0)
    encoder = PillarEncoder(GRID, 0.4, out_channels=8, channels=8, **arguments).train(train)
    batch = replace(make_batch(size=1), points=points, point_sample=sample)
    return encoder(replace(batch, tokens=tuple("abcdef"[:size])))


def test_pillars_do_not_depend_on_the_order_of_points():
    batch = make_batch(size=1)
    order = torch.randperm(len(batch.points), generator=torch.Generator().manual_seed(1))
    first = encode(batch.points, batch.point_sample, 1)
    second = encode(batch.points[order], batch.point_sample, 1)
    torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-5)


def test_height_histogram_counts_the_points_of_every_pillar():
    batch = make_batch(points=2000)
    encoder = PillarEncoder(GRID, 0.8, height_range=(-1.0, 3.0), height_bins=4)
    pillars, points = encoder._pillars(batch)
    histogram = encoder._height_histogram(points, pillars).expm1().round().long()
    for v in range(0, len(histogram), 97):
        z = points[pillars.point_voxel == v, 2]
        expected = [((z >= low) & (z < low + 1)).sum().item() for low in (-1, 0, 1, 2)]
        assert histogram[v].tolist() == [*expected, len(z)]


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("num_points", [0, 1, 2])
def test_few_or_no_points_are_legal(num_points, train):
    points = torch.tensor([[1.0, 2, 0.5, 30, 0], [5, -3, 1, 99, 0.1]])[:num_points]
    bev = encode(points, torch.zeros(num_points, dtype=torch.long), 1, train)
    assert bev.shape == (1, 8, *GRID.shape)
    assert bev.isfinite().all()
    assert (bev == 0).all() or num_points


def test_peer_bug_7_batch_size_is_not_taken_from_the_points():
    batch = make_batch(size=1)
    bev = encode(batch.points, batch.point_sample + 1, 3)  # the first and the last are empty
    assert bev.shape[0] == 3
    assert (bev[[0, 2]] == 0).all()
    assert bev[1].abs().sum() > 0


def test_points_off_the_grid_change_nothing():
    batch = make_batch(size=1)
    outside = torch.tensor([[-12.9, 0, 0, 0, 0], [12.8, 0, 0, 0, 0], [0, 0, 9.0, 0, 0]])
    points = torch.cat([outside, batch.points])
    sample = torch.zeros(len(points), dtype=torch.long)
    torch.testing.assert_close(
        encode(points, sample, 1), encode(batch.points, batch.point_sample, 1)
    )


def test_pillar_size_must_divide_the_cell_by_a_power_of_two():
    with pytest.raises(ValueError, match="pillar_size"):
        PillarEncoder(GRID, 0.3)
