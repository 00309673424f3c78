"""Test-time augmentation: views move the world consistently, and results come back merged."""

import math
from dataclasses import fields, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bevstack.datasets.boxes import Boxes3D, Detections
from bevstack.kernels.grid import BEVGrid
from bevstack.perception.evaluation.tta import AugmentedModel, Views, merged_boxes, moved_batch

from model_parts import MAP_GRID, fingerprint, make_batch, make_model  # isort: skip

FLIPS = Views(flip_x=True, flip_y=True)
ALL = Views(True, True, (0.1, -0.3), (0.95, 1.05))


def boxes(center, label=0, yaw=0.3, velocity=(1.0, -2.0)) -> Boxes3D:
    count = len(center)
    return Boxes3D(
        np.asarray(center, float),
        np.tile([4.0, 2.0, 1.5], (count, 1)),
        np.full(count, yaw),
        np.tile(velocity, (count, 1)),
        np.full(count, label),
    )


def detections(found: Boxes3D, score) -> Detections:
    return Detections(found, np.asarray(score, float), np.full(len(found), 2))


class SeesPoints:
    """Says that a box stands at every point and that the map is a function of place."""

    training = False

    def __init__(self):
        self.heads = {"map": SimpleNamespace(map_grid=MAP_GRID)}
        self.seen = []

    def parameters(self):
        return iter(())

    def train(self, mode=True):
        self.training = mode

    def __call__(self, batch, use_camera=True, use_lidar=True):
        self.seen.append(batch)
        return {}

    def decode(self, outputs, batch):
        bev_from_global = torch.linalg.inv(batch.global_from_bev)
        found, maps = [], []
        i, j = np.meshgrid(*(np.arange(n) + 0.5 for n in MAP_GRID.shape), indexing="ij")
        x, y = MAP_GRID.to_metres(i, j)
        for b in range(batch.size):
            matrix = bev_from_global[b].numpy()
            here = batch.points[batch.point_sample == b][:4, :3].double().numpy()
            first = boxes(np.zeros((len(here), 3))).transformed(matrix)
            found.append(detections(replace(first, center=here), [0.9, 0.8, 0.7, 0.6]))
            world = np.linalg.inv(matrix)
            u, v = (world[r, 0] * x + world[r, 1] * y + world[r, 3] for r in range(2))
            maps.append(0.5 + 0.4 * np.sin(u / 4) * np.cos(v / 5))
        return {
            "detection": found,
            "map": torch.from_numpy(np.stack(maps))[:, None].float(),
            "other": len(self.seen),
        }


def world():
    batch = make_batch(points=4)
    points = batch.points.clone()
    points[:, :2] = torch.tensor([[6.0, 2], [-5, 4], [1, -6], [-7, -7]]).repeat(2, 1)
    return replace(batch, points=points)


@pytest.mark.parametrize(("views", "count"), [(Views(), 1), (FLIPS, 4), (ALL, 36)])
def test_merged_results_are_those_of_an_equivariant_model(views, count):
    batch, model = world(), SeesPoints()
    before = fingerprint(batch)
    augmented = AugmentedModel(model, views)
    merged = augmented.decode(augmented(batch), batch)
    assert len(model.seen) == count
    assert fingerprint(batch) == before
    alone = SeesPoints()
    alone(batch)
    plain = alone.decode({}, batch)
    for found, expected in zip(merged["detection"], plain["detection"]):
        for field in fields(Boxes3D):
            a, b = getattr(found.boxes, field.name), getattr(expected.boxes, field.name)
            np.testing.assert_allclose(a, b, atol=1e-4)
        np.testing.assert_allclose(found.score, expected.score)
        assert (found.attribute == 2).all()
    # Flips fall on cells exactly; turned maps are interpolated on cells of 0.5 m.
    tolerance = 1e-6 if views is not ALL else 5e-3
    torch.testing.assert_close(merged["map"], plain["map"], atol=tolerance, rtol=0)
    assert merged["other"] == 1


def test_images_and_points_move_together():
    """A pixel's ray meets the same point in every view."""
    batch = make_batch()
    for matrix in ALL.matrices():
        moved = moved_batch(batch, torch.from_numpy(matrix))
        image_from_bev = torch.linalg.inv(batch.bev_from_image[0].double())
        moved_image_from_bev = torch.linalg.inv(moved.bev_from_image[0].double())
        ones = torch.ones(len(batch.points), 1, dtype=torch.float64)
        one = torch.cat([batch.points[:, :3].double(), ones], 1) @ image_from_bev.T
        two = torch.cat([moved.points[:, :3].double(), ones], 1) @ moved_image_from_bev.T
        torch.testing.assert_close(one, two, atol=1e-3, rtol=1e-4)


@given(st.floats(0.0, 1.0), st.floats(0.05, 1.0), st.floats(0.05, 1.0))
@settings(deadline=None, max_examples=25)
def test_two_boxes_of_one_object_become_their_weighted_mean(shift, a, b):
    views = [
        detections(boxes([[5.0, 1.0, 0.0]]), [a]),
        detections(boxes([[5.0 + shift, 1.0, 0.0]], yaw=0.5), [b]),
    ]
    merged = merged_boxes(views, [np.eye(4)] * 2, 1.0)
    assert len(merged) == 1
    assert merged.boxes.center[0, 0] == pytest.approx(5 + shift * b / (a + b))
    assert merged.score[0] == pytest.approx((a + b) / 2)
    total = a * np.exp(0.3j) + b * np.exp(0.5j)
    assert merged.boxes.yaw[0] == pytest.approx(np.angle(total))


def test_boxes_apart_of_other_classes_or_of_one_view_stay_two():
    one = detections(boxes([[0.0, 0, 0]]), [0.8])
    for other in (boxes([[2.5, 0, 0]]), boxes([[0.0, 0, 0]], label=1)):
        merged = merged_boxes([one, detections(other, [0.4])], [np.eye(4)] * 2, 1.0)
        assert merged.score.tolist() == [0.4, 0.2]
    both = detections(boxes([[0.0, 0, 0], [0.5, 0, 0]]), [0.8, 0.4])
    merged = merged_boxes([both, detections(Boxes3D.empty(), [])], [np.eye(4)] * 2, 1.0)
    assert merged.score.tolist() == [0.4, 0.2]


def test_a_heading_the_other_way_round_is_left_out_of_the_mean():
    views = [
        detections(boxes([[0.0, 0, 0]], yaw=0.1), [0.8]),
        detections(boxes([[0.0, 0, 0]], yaw=0.1 + math.pi), [0.7]),
    ]
    assert merged_boxes(views, [np.eye(4)] * 2, 1.0).boxes.yaw[0] == pytest.approx(0.1)


def test_nothing_found_merges_to_nothing():
    empty = detections(Boxes3D.empty(), [])
    assert len(merged_boxes([empty, empty], [np.eye(4)] * 2, 1.0)) == 0


def test_a_real_model_gives_plain_results_with_one_view_and_finite_ones_with_many():
    model, batch = make_model().eval(), make_batch()
    with torch.inference_mode():
        plain = model.decode(model(batch), batch)
        one, many = AugmentedModel(model, Views()), AugmentedModel(model, FLIPS)
        same = one.decode(one(batch), batch)
        merged = many.decode(many(batch, use_camera=False), batch)
    torch.testing.assert_close(same["map"], plain["map"])
    for found, expected in zip(same["detection"], plain["detection"]):
        np.testing.assert_allclose(found.score, expected.score)
    assert merged["map"].isfinite().all()
    assert 0 <= merged["map"].min() <= merged["map"].max() <= 1


def test_rectangular_maps_keep_their_axes():
    from bevstack.perception.evaluation.tta import merged_map

    grid = BEVGrid((-4.0, 4.0), (-2.0, 2.0), 1.0)
    first = torch.arange(32.0).view(1, 1, 8, 4)
    flipped = torch.flip(first, [2])
    merged = merged_map([first, flipped], [np.eye(4), np.diag([-1.0, 1, 1, 1])], grid)
    torch.testing.assert_close(merged, first)


def test_a_scale_of_zero_is_refused():
    with pytest.raises(ValueError, match="factors must be above 0"):
        Views(scales=[0.0])
