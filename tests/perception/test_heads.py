"""Heads: targets against a plain loop, losses by hand, decoding back to the boxes."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_parts import GRID, MAP_GRID, make_batch, make_boxes

from bevstack.datasets.nuscenes.classes import ATTRIBUTES, DETECTION_CLASSES
from bevstack.kernels.grid import BEVGrid
from bevstack.perception.heads import CenterHead, CenterOutput, MapHead, MapOutput
from bevstack.perception.heads.center_targets import PeakShape, draw_targets, gaussian_radius


@settings(max_examples=200, deadline=None)
@given(
    length=st.floats(0.2, 40), width=st.floats(0.2, 40), overlap=st.sampled_from([0.1, 0.5, 0.7])
)
def test_radius_is_the_tightest_of_the_three_ways_to_miss_a_box(length, width, overlap):
    """Moved that far, a box keeps the overlap in each way, and has exactly it in one."""
    args = (torch.tensor([x], dtype=torch.float64) for x in (length, width))
    r = gaussian_radius(*args, overlap).item()
    area = length * width
    both = max(length - r, 0) * max(width - r, 0)
    shrunk = max(length - 2 * r, 0) * max(width - 2 * r, 0) / area
    ious = [
        both / (2 * area - both),
        shrunk,
        area / ((length + 2 * r) * (width + 2 * r)),
    ]
    assert min(ious) == pytest.approx(overlap, abs=1e-6)


def looped_heatmap(boxes, grid, min_overlap, min_radius, batch_size):
    heatmap = np.zeros((batch_size, 10, *grid.shape))
    for m in range(len(boxes.label)):
        i, j = (int(np.floor(v)) for v in grid.to_cells(*boxes.center[m, :2].double().tolist()))
        if not (0 <= i < grid.shape[0] and 0 <= j < grid.shape[1]):
            continue
        length, width = (boxes.size[m, :2] / grid.cell_size).double()
        radius = int(gaussian_radius(length[None], width[None], min_overlap).item())
        radius = max(radius, min_radius)
        for x in range(max(i - radius, 0), min(i + radius + 1, grid.shape[0])):
            for y in range(max(j - radius, 0), min(j + radius + 1, grid.shape[1])):
                sigma = (2 * radius + 1) / 6
                value = math.exp(-((x - i) ** 2 + (y - j) ** 2) / (2 * sigma**2))
                at = (int(boxes.sample[m]), int(boxes.label[m]), x, y)
                heatmap[at] = max(heatmap[at], value)
    return torch.tensor(heatmap, dtype=torch.float32)


def crowded_batch():
    g = torch.Generator().manual_seed(0)
    count = 40
    boxes = make_boxes(
        ((torch.rand(count, 3, generator=g) - 0.5) * 30).tolist(),  # some are off the grid
        torch.randint(0, 10, (count,), generator=g).tolist(),
        size=torch.rand(count, 3, generator=g) * 10 + 0.3,
    )
    sample = torch.randint(0, 2, (count,), generator=g)
    return make_batch(boxes=replace(boxes, sample=sample))


def test_heatmap_is_what_a_loop_over_boxes_draws():
    batch = crowded_batch()
    targets = draw_targets(batch, GRID, 10, PeakShape())
    expected = looped_heatmap(batch.boxes, GRID, 0.1, 2, 2)
    torch.testing.assert_close(targets.heatmap, expected, rtol=1e-5, atol=1e-6)
    assert 0 < targets.num_boxes < 40


def looped_ellipses(boxes, grid, share, batch_size):
    """The Gaussian of every box in its own axes, written out cell by cell."""
    heatmap = np.zeros((batch_size, 10, *grid.shape))
    for m in range(len(boxes.label)):
        i, j = (int(np.floor(v)) for v in grid.to_cells(*boxes.center[m, :2].double().tolist()))
        if not (0 <= i < grid.shape[0] and 0 <= j < grid.shape[1]):
            continue
        length, width = (boxes.size[m, :2] / grid.cell_size).double().tolist()
        deviation = np.maximum(share * np.array([length, width]), 5 / 6)
        yaw = float(boxes.yaw[m])
        for x in range(grid.shape[0]):
            for y in range(grid.shape[1]):
                turned = np.array([[np.cos(yaw), np.sin(yaw)], [-np.sin(yaw), np.cos(yaw)]])
                value = np.exp(-0.5 * ((turned @ [x - i, y - j] / deviation) ** 2).sum())
                at = (int(boxes.sample[m]), int(boxes.label[m]), x, y)
                heatmap[at] = max(heatmap[at], value)
    return torch.tensor(heatmap, dtype=torch.float32)


def test_long_boxes_are_drawn_as_ellipses_along_them():
    batch = crowded_batch()
    yaw = torch.linspace(-3, 3, len(batch.boxes.label))
    batch = replace(batch, boxes=replace(batch.boxes, yaw=yaw))
    targets = draw_targets(batch, GRID, 10, PeakShape(elongation=0.15, regression_value=0.3))
    expected = looped_ellipses(batch.boxes, GRID, 0.15, 2)
    # Only what is below the last drawn contour may differ.
    torch.testing.assert_close(targets.heatmap, expected, rtol=1e-4, atol=0.045)
    drawn = targets.heatmap > 0.045
    torch.testing.assert_close(targets.heatmap[drawn], expected[drawn], rtol=1e-4, atol=1e-6)
    assert (targets.weight >= 0.3).all()
    # A box is regressed from more cells the longer it is.
    count = torch.bincount(targets.box, minlength=len(yaw))[targets.box.unique()]
    size = batch.boxes.size[targets.box.unique(), :2].prod(1)
    assert torch.corrcoef(torch.stack([count.float(), size]))[0, 1] > 0.6


@pytest.mark.parametrize(
    "shape", [PeakShape(), PeakShape(elongation=0.15)], ids=["circle", "ellipse"]
)
def test_regressed_cells_lead_back_to_their_box(shape):
    batch = crowded_batch()
    targets = draw_targets(batch, GRID, 10, shape)
    ny = GRID.shape[1]
    cells = torch.stack([targets.cell // ny, targets.cell % ny], 1)
    x, y = GRID.to_metres(*(cells + targets.offset).T)
    torch.testing.assert_close(torch.stack([x, y], 1), batch.boxes.center[targets.box, :2])
    own = targets.weight == 1
    assert own.sum() == targets.num_boxes
    assert ((targets.offset[own] >= 0) & (targets.offset[own] < 1)).all()


def test_sample_without_annotations_is_not_taught_that_it_is_empty():
    head = CenterHead(4, GRID, channels=8)
    batch = replace(make_batch(), box_valid=torch.tensor([True, False]))
    bev = torch.randn(2, 4, *GRID.shape)
    terms = head.loss(head(bev), batch)
    bev.requires_grad_()
    output = head.eval()(bev)
    sum(head.loss(output, batch).values()).backward()
    assert (bev.grad[1] == 0).all()
    assert bev.grad[0].abs().sum() > 0
    assert all(term.isfinite() for term in terms.values())


def test_no_box_at_all_gives_a_finite_loss():
    head = CenterHead(4, GRID, channels=8)
    batch = make_batch(boxes=make_boxes([], []))
    terms = head.loss(head(torch.randn(2, 4, *GRID.shape)), batch)
    assert terms["heatmap"] > 0
    assert all(value == 0 for name, value in terms.items() if name != "heatmap")


def test_nan_velocity_and_unknown_attribute_are_not_learned():
    head = CenterHead(4, GRID, channels=8)
    boxes = make_boxes([[1, 2, 0], [4, -3, 0]], [0, 8], velocity=torch.full((2, 2), math.nan))
    bev = torch.randn(1, 4, *GRID.shape, requires_grad=True)
    terms = head.loss(head(bev), make_batch(size=1, boxes=boxes))
    assert terms["velocity"] == 0
    assert terms["attribute"] == 0
    sum(terms.values()).backward()
    assert bev.grad.isfinite().all()


def ideal_output(boxes, batch_size=1, groups=1, group_of=None) -> CenterOutput:
    """What a perfect head would say."""
    heatmap = torch.full((batch_size, 10, *GRID.shape), -9.0)
    regression = torch.zeros(batch_size, groups, 18, *GRID.shape)
    for m in range(len(boxes.label)):
        u, v = GRID.to_cells(*boxes.center[m, :2])
        i, j, label = int(u.floor()), int(v.floor()), int(boxes.label[m])
        heatmap[boxes.sample[m], label, i, j] = 3.0 - 0.1 * m
        attribute = torch.zeros(8)
        if boxes.attribute[m] >= 0:
            attribute[boxes.attribute[m]] = 5
        values = [u - i, v - j, boxes.center[m, 2], *boxes.size[m].log()]
        values += [boxes.yaw[m].sin(), boxes.yaw[m].cos(), *boxes.velocity[m], *attribute]
        group = group_of[label] if group_of else 0
        regression[boxes.sample[m], group, :, i, j] = torch.stack(
            [torch.as_tensor(x) for x in values]
        )
    return CenterOutput(heatmap, regression)


def some_boxes(last):
    moving, rider = ATTRIBUTES.index("vehicle.moving"), ATTRIBUTES.index("cycle.with_rider")
    return make_boxes(
        [[3.3, 2.1, 0.7], [-12.7, -9.5, 1], [12.7, 9.5, 0], last],
        [0, 7, 9, 8],
        size=torch.tensor([[4.0, 2, 1.5], [1.7, 0.6, 1.2], [0.4, 0.4, 1], [0.7, 0.7, 1.8]]),
        yaw=torch.tensor([3.0, -2.0, 0.3, 1.6]),
        velocity=torch.tensor([[5.0, -1], [2, 1], [0, 0], [1, 0.5]]),
        attribute=torch.tensor([moving, rider, -1, 2]),
    )


GROUPS = [DETECTION_CLASSES[5:], DETECTION_CLASSES[3:5], DETECTION_CLASSES[:3]]


@pytest.mark.parametrize(
    ("class_groups", "last"),
    # With groups, the last may share a cell with the first: each has its own regression.
    [(None, [5.2, 2.3, 0.9]), (GROUPS, [3.2, 2.3, 0.9])],
)
def test_decoding_inverts_the_targets_on_a_rectangular_grid(class_groups, last):
    head = CenterHead(4, GRID, channels=8, class_groups=class_groups).eval()
    boxes = some_boxes(last)
    group_of = head.group_of_class.tolist()
    (found,) = head.decode(ideal_output(boxes, 1, len(class_groups or [1]), group_of))
    assert len(found) == 4
    for name in ("center", "size", "yaw", "velocity", "label"):
        expected = getattr(boxes, name).numpy()
        np.testing.assert_allclose(getattr(found.boxes, name), expected, rtol=1e-5, atol=1e-5)
    assert found.attribute.tolist() == boxes.attribute.tolist()
    assert (np.diff(found.score) <= 0).all()
    assert found.score.dtype == found.boxes.center.dtype == np.float64


def test_two_boxes_in_one_cell_are_legal():
    head = CenterHead(4, GRID, channels=8)
    boxes = make_boxes([[3.3, 2.1, 0.7], [3.2, 2.3, 0.9], [3.4, 2.2, 0.9]], [0, 8, 8])
    terms = head.loss(ideal_output(boxes), make_batch(size=1, boxes=boxes))
    assert all(term.isfinite() for term in terms.values())
    (found,) = head.decode(ideal_output(boxes))
    assert sorted(found.boxes.label) == [0, 8]


def test_ideal_output_has_no_regression_loss():
    head = CenterHead(4, GRID, peaks=PeakShape(regression_value=1.0), channels=8)
    boxes = make_boxes([[3.3, 2.1, 0.7], [-5, 4, 1]], [0, 8], yaw=torch.tensor([3.0, -2.0]))
    losses = head.loss(ideal_output(boxes), make_batch(size=1, boxes=boxes))
    for name in ("offset", "height", "size", "heading", "velocity"):
        assert losses[name] < 1e-5


def test_classes_have_only_their_own_attributes():
    head = CenterHead(4, GRID, channels=8, score_threshold=0.0, nms_scale=0)
    torch.manual_seed(0)
    output = CenterOutput(torch.randn(2, 10, *GRID.shape), torch.randn(2, 1, 18, *GRID.shape))
    prefix = {"pedestrian": "pedestrian", "bicycle": "cycle", "motorcycle": "cycle"}
    for found in head.decode(output):
        assert len(found) > 100
        for label, attribute in zip(found.boxes.label, found.attribute):
            name = DETECTION_CLASSES[label]
            if name in ("barrier", "traffic_cone"):
                assert attribute == -1
            else:
                assert ATTRIBUTES[attribute].startswith(prefix.get(name, "vehicle") + ".")


def test_no_more_boxes_than_asked_for_and_none_below_the_threshold():
    output = CenterOutput(torch.randn(1, 10, *GRID.shape), torch.randn(1, 1, 18, *GRID.shape))
    head = CenterHead(4, GRID, channels=8, max_boxes=7, score_threshold=0.0)
    assert len(head.decode(output)[0]) <= 7
    head = CenterHead(4, GRID, channels=8, score_threshold=0.9)
    assert (head.decode(output)[0].score >= 0.9).all()


@pytest.mark.parametrize(
    ("nms_scale", "labels"), [(1.0, [0, 0, 8]), (0.7, [0, 0, 0, 8]), (0.0, [0, 0, 0, 8])]
)
def test_a_box_nearer_than_the_mean_shorter_side_to_a_better_one_goes(nms_scale, labels):
    """Cars 2 and 1 m wide, 1.2 m apart; a pedestrian beside them; a third car far away."""
    boxes = make_boxes(
        [[2.2, 2.2, 0.7], [3.4, 2.2, 0.7], [2.2, 3.0, 0.9], [-9.0, 2.2, 0.7]],
        [0, 0, 8, 0],
        size=torch.tensor([[4.0, 2, 1.5], [1, 4, 1.5], [0.7, 0.7, 1.8], [4, 2, 1.5]]),
    )
    head = CenterHead(4, GRID, channels=8, nms_scale=nms_scale)
    (found,) = head.decode(ideal_output(boxes))
    assert sorted(found.boxes.label) == labels
    assert (np.diff(found.score) <= 0).all()
    assert found.boxes.center[0] == pytest.approx([2.2, 2.2, 0.7], abs=1e-5)


def test_groups_must_name_every_class_once():
    with pytest.raises(ValueError, match="class_groups"):
        CenterHead(4, GRID, class_groups=[["car"], ["truck"]])


# --- map ------------------------------------------------------------------------------------------


def test_map_head_resamples_metres_to_metres():
    """A ramp over the BEV map, linear in x and y, has the same values at the map's positions."""
    head = MapHead(2, GRID, MAP_GRID, reduce=False)
    head.classifier = torch.nn.Identity()
    x, y = GRID.to_metres(torch.arange(32) + 0.5, torch.arange(24) + 0.5)
    ramp = torch.stack(torch.meshgrid(x, y, indexing="ij"))[None].float()
    resampled = head(ramp).logits
    x, y = MAP_GRID.to_metres(
        torch.arange(MAP_GRID.shape[0]) + 0.5, torch.arange(MAP_GRID.shape[1]) + 0.5
    )
    expected = torch.stack(torch.meshgrid(x, y, indexing="ij"))[None].float()
    torch.testing.assert_close(resampled, expected, rtol=1e-4, atol=1e-4)


def test_map_loss_counts_labelled_samples_only():
    head = MapHead(4, GRID, MAP_GRID, channels=8).eval()
    batch = make_batch()
    bev = torch.randn(2, 4, *GRID.shape)
    alone = head.loss(MapOutput(head(bev).logits[:1]), replace(
        batch, map_masks=batch.map_masks[:1], map_valid=batch.map_valid[:1]))["focal"]  # fmt: skip
    masked = head.loss(head(bev), replace(batch, map_valid=torch.tensor([True, False])))["focal"]
    torch.testing.assert_close(alone, masked)
    none = replace(batch, map_masks=None, map_valid=torch.zeros(2, dtype=torch.bool))
    assert head.loss(head(bev), none)["focal"] == 0


def test_map_labels_on_another_grid_are_refused():
    head = MapHead(4, GRID, BEVGrid((-10, 10), (-8, 8), 1.0), channels=8)
    with pytest.raises(ValueError, match="map_grid"):
        head.loss(head(torch.randn(2, 4, *GRID.shape)), make_batch())


def test_map_decoding_gives_probabilities():
    head = MapHead(4, GRID, MAP_GRID, channels=8)
    probability = head.decode(head(torch.randn(2, 4, *GRID.shape)))
    assert probability.shape == (2, 6, *MAP_GRID.shape)
    assert ((probability >= 0) & (probability <= 1)).all()
