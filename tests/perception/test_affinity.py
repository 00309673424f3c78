"""Learned affinity: targets, loss, symmetry, gradients, and what it does for tracking."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from affinity_parts import BARRIER, CAR, PEDESTRIAN, boxes, crowd, found, frame, head, pose
from hypothesis import given, settings
from hypothesis import strategies as st

from bevstack.datasets.boxes import Detections
from bevstack.kernels.grid import BEVGrid
from bevstack.perception.decoding.affinity import sampling_places
from bevstack.perception.evaluation.tta import AugmentedModel, Views
from bevstack.perception.heads import AffinityHead
from bevstack.perception.heads.affinity import consecutive, sample_map
from bevstack.perception.heads.affinity_targets import (
    AffinityLogits,
    affinity_loss,
    affinity_targets,
    objects_shown,
)

from model_parts import GRID, make_batch, make_boxes, make_model  # isort: skip


# --- Targets --------------------------------------------------------------------------------------


def test_every_fate_of_a_hand_made_clip():
    # Earlier: object 7 seen, 8 seen and then missed, 9 seen and then gone, and an invention.
    # Later: 7 seen again, 5 new, and an invention; 8 is annotated all the same.
    before, now = np.array([7, 8, 9, -1]), np.array([5, 7, -1])
    N, M = 4, 3
    targets = affinity_targets(before, now, np.array([5, 7, 8]), np.ones((N, M), bool))
    dead, missed, newborn, false_positive = M, M + 1, N, N + 1
    assert targets.row.tolist() == [1, missed, dead, dead]
    assert targets.column.tolist() == [newborn, 0, false_positive]


def test_what_cannot_be_matched_is_missed_and_newborn():
    possible = np.zeros((1, 1), bool)
    targets = affinity_targets(np.array([7]), np.array([7]), np.array([7]), possible)
    assert (targets.row.tolist(), targets.column.tolist()) == ([2], [1])


def test_a_detection_shows_the_nearest_free_object_of_its_class():
    truth, instance = boxes([[0, 0], [1.5, 0], [9, 9]]), np.array([11, 12, 13])
    shown = objects_shown(boxes([[0.2, 0], [0.3, 0], [0.1, 0], [9, 6.9]]), truth, instance, 2.0)
    assert shown.tolist() == [11, 12, -1, -1]
    assert objects_shown(boxes([[0, 0]], label=CAR), truth, instance, 2.0).tolist() == [-1]
    assert objects_shown(boxes([[0, 0]]), boxes(np.zeros((0, 2))), instance[:0], 2.0) == [-1]


# --- Loss -----------------------------------------------------------------------------------------


def naive_loss(match, row, column, row_target, column_target):
    """Sums of -log of softmax entries, one by one in float64."""
    N, M = match.shape
    forward = backward = 0.0
    for i in range(N):
        scores = np.exp(np.append(match[i], row[i]))
        forward -= np.log(scores[row_target[i]] / scores.sum())
    for j in range(M):
        scores = np.exp(np.append(match[:, j], column[j]))
        backward -= np.log(scores[column_target[j]] / scores.sum())
    return forward, backward


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 6), st.integers(0, 6))
def test_the_loss_is_the_likelihood_written_out(seed, N, M):
    rng = np.random.default_rng(seed)
    match = np.where(rng.random((N, M)) < 0.6, rng.normal(0, 3, (N, M)), -np.inf)
    row, column = rng.normal(0, 3, (N, 2)), rng.normal(0, 3, (M, 2))
    before, now = rng.permutation(9)[:N] - 2, rng.permutation(9)[:M] - 2
    before, now = np.maximum(before, -1), np.maximum(now, -1)
    targets = affinity_targets(before, now, np.arange(5), np.isfinite(match))
    logits = AffinityLogits(*(torch.from_numpy(x).float() for x in (match, row, column)))
    expected = naive_loss(match, row, column, targets.row, targets.column)
    actual = [float(part) for part in affinity_loss(logits, targets)]
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-5)


# --- Features -------------------------------------------------------------------------------------


def test_a_box_is_sampled_at_its_middle_and_its_edges():
    grid = BEVGrid((-8, 8), (-6, 6), 0.5)
    i, j = torch.meshgrid(*(torch.arange(n) + 0.5 for n in grid.shape), indexing="ij")
    plane = torch.stack(grid.to_metres(i, j))  # x and y themselves, which bilinear sampling keeps
    turned = boxes([[1.3, -2.1]], yaw=0.6)
    places = torch.from_numpy(sampling_places(turned, grid))
    places = sample_map(plane, places).view(5, 2).double().numpy()
    c, s = np.cos(0.6), np.sin(0.6)
    local = np.array([[0, 0], [0.4, 0], [-0.4, 0], [0, 0.3], [0, -0.3]])
    expected = local @ np.array([[c, s], [-s, c]]) + [1.3, -2.1]
    np.testing.assert_allclose(places, expected, atol=1e-5)
    far = sampling_places(boxes([[50, 50]]), grid)
    assert not sample_map(plane, torch.from_numpy(far)).any()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 8), st.integers(1, 8))
def test_permuted_detections_permute_the_affinity(seed, N, M):
    rng, model = np.random.default_rng(seed), head()
    earlier, later = crowd(seed, N), crowd(seed + 1, M)
    said = model.affinity(frame(earlier), frame(later, 0.5, seed=1))
    rows, columns = rng.permutation(N), rng.permutation(M)
    other = model.affinity(frame(earlier[rows]), frame(later[columns], 0.5, seed=1))
    assert said is not None and other is not None  # noqa: PT018
    every = np.arange(N), np.arange(M)
    moved = rows[every[0]], columns[every[1]]
    close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    close(other.matches(*every), said.matches(*moved))
    for name in ("dead", "missed"):
        a, b = getattr(other, name), getattr(said, name)
        close(other.of_rows(a, every[0]), said.of_rows(b, moved[0]))
    for name in ("newborn", "false_positive"):
        a, b = getattr(other, name), getattr(said, name)
        close(other.of_columns(a, every[1]), said.of_columns(b, moved[1]))


def test_probabilities_are_of_all_fates_and_matches_of_one_class_within_reach():
    said = head(reach=4.0).affinity(frame(crowd(0, 7)), frame(crowd(1, 5), 0.5, seed=1))
    assert said is not None
    logits = np.concatenate([said.dead, said.missed, said.newborn, said.false_positive])
    assert ((logits >= 0) & (logits <= 1)).all()
    # The mean of both directions' matches, over all pairs, is what the fates leave over.
    left = (1 - said.dead - said.missed).sum() + (1 - said.newborn - said.false_positive).sum()
    assert said.match.sum() == pytest.approx(left / 2, abs=1e-4)
    before, now = crowd(0, 7).boxes, crowd(1, 5).boxes
    alike = before.label[said.rows][:, None] == now.label[said.columns][None]
    assert not said.match[~alike].any()
    assert said.match[alike].any()


@settings(max_examples=20, deadline=None)
@given(
    st.floats(-3, 3), st.floats(-3, 3), st.floats(-3, 3), st.sampled_from([-1, 1]),
    st.floats(0.9, 1.1),
)  # fmt: skip
def test_what_can_be_matched_does_not_depend_on_the_frames_augmentation(x, y, yaw, flip, scale):
    model = head(reach=2.0)
    earlier, later = crowd(3, 6), crowd(4, 6)
    bev_from_global = pose(x, y, yaw, flip, scale)
    augmented = replace(earlier, boxes=earlier.boxes.transformed(bev_from_global))
    place = np.linalg.inv(bev_from_global)
    plain = model.decoder.inputs(frame(earlier), frame(later, 0.5))
    moved = model.decoder.inputs(frame(augmented, place=place), frame(later, 0.5))
    np.testing.assert_array_equal(moved.possible, plain.possible)


def test_only_consecutive_frames_of_a_scene_are_linked():
    here = found([[0, 0]])
    times = [(1.0, 1), (0.0, 1), (0.5, 1), (0.5, 2), (2.5, 1)]
    frames = [frame(here, time, scene=scene) for time, scene in times]
    assert consecutive(frames, 0.75) == [(2, 0), (1, 2)]
    model = head()
    assert model.affinity(frames[1], frames[2]) is not None
    assert model.affinity(frames[1], frames[0]) is None  # a frame is missing between
    assert model.affinity(frames[1], frames[3]) is None
    assert model.affinity(frames[2], frames[1]) is None


@pytest.mark.parametrize(("N", "M"), [(0, 3), (3, 0), (0, 0)])
def test_no_detection_is_legal(N, M):
    said = head().affinity(frame(crowd(0, N)), frame(crowd(1, M), 0.5))
    assert said is not None
    assert said.match.shape == (N, M)


def test_detections_of_other_classes_and_beyond_the_best_are_not_spoken_of():
    seen = Detections(
        replace(boxes([[0, 0], [1, 0], [2, 0]]), label=np.array([CAR, BARRIER, CAR])),
        np.array([0.2, 0.9, 0.5]), np.full(3, -1),
    )  # fmt: skip
    said = head(max_boxes=1).affinity(frame(seen), frame(seen, 0.5))
    assert said is not None
    assert said.rows.tolist() == [2]
    known = np.isfinite(said.matches(np.array([-1, 0, 1, 2]), np.arange(3)))
    assert known.tolist() == [[False] * 3] * 3 + [[False, False, True]]


# --- The model ------------------------------------------------------------------------------------


def linked_batch():
    """Two consecutive frames in which one car is seen twice, a metre on."""
    truth = make_boxes([[3, 2, 1], [4, 2, 1]], [0, 0], sample=[0, 1], instance=torch.tensor([5, 5]))
    return replace(
        make_batch(2, boxes=truth),
        scene=torch.tensor([1, 1]),
        timestamp_us=torch.tensor([0, 500_000]),
    )


def linking_model():
    model = make_model()
    torch.manual_seed(0)
    model.heads["affinity"] = AffinityHead(model.backbone.out_channels, GRID, channels=4, width=8)
    return model


def test_a_training_step_moves_the_head_and_the_shared_map_but_not_through_the_boxes():
    model, batch = linking_model(), linked_batch()
    for network in ("pair", "row", "column"):  # else, at first, nothing flows back through them
        torch.nn.init.normal_(getattr(model.heads["affinity"], network)[-1].weight)
    terms = model.loss(model(batch), batch)
    loss = terms["affinity/forward"] + terms["affinity/backward"]
    loss.backward()
    for name, parameter in model.heads["affinity"].named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name  # noqa: PT018
        assert parameter.grad.abs().sum() > 0, name
    shared = [parameter.grad for parameter in model.backbone.parameters()]
    assert any(gradient is not None and gradient.abs().sum() > 0 for gradient in shared)
    assert all(parameter.grad is None for parameter in model.heads["detection"].parameters())


def test_a_batch_without_consecutive_frames_costs_nothing_and_reaches_all_parameters():
    model, batch = linking_model(), linked_batch()
    for apart in (
        replace(batch, scene=torch.tensor([1, 2])),
        replace(batch, box_valid=torch.tensor([True, False])),
    ):
        model.zero_grad()
        terms = model.loss(model(apart), apart)
        loss = terms["affinity/forward"] + terms["affinity/backward"]
        assert loss.item() == 0
        loss.backward()
        assert all(p.grad is not None for p in model.heads["affinity"].parameters())


def test_the_head_learns_by_the_maps_who_is_who():
    # Two people who change places between frames: distance says the wrong thing, the map the right.
    torch.manual_seed(0)
    model = AffinityHead(2, GRID, channels=8, width=32, descriptor=16, classes=("pedestrian",))
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    places, swapped = [[0.0, 1.6], [0.0, -1.6]], [[0.0, -1.6], [0.0, 1.6]]

    def batch_of(seed):
        bev = torch.zeros(2, 2, *GRID.shape)
        for sample, order in enumerate((places, swapped)):
            for kind, (x, y) in enumerate(order):
                i, j = (int(c) for c in GRID.to_cells(x, y))
                bev[sample, kind, i - 1 : i + 2, j - 1 : j + 2] = 1.0
        bev = bev + 0.1 * torch.randn(bev.shape, generator=torch.Generator().manual_seed(seed))
        truth = make_boxes(
            [[x, y, 1] for x, y in places + swapped], [PEDESTRIAN] * 4, sample=[0, 0, 1, 1],
            instance=torch.tensor([1, 2, 1, 2]),
        )  # fmt: skip
        batch = replace(make_batch(2, cameras=0, points=1, boxes=truth), scene=torch.tensor([1, 1]),
                        timestamp_us=torch.tensor([0, 500_000]))  # fmt: skip
        return bev, batch, [found(places), found(swapped)]

    for step in range(60):
        bev, batch, seen = batch_of(step)
        loss = sum(model.loss(model(bev), batch, seen).values())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    bev, batch, seen = batch_of(1000)
    said = model.eval().affinity(*model.decode(model(bev), batch, seen))
    assert said is not None
    assert said.match[0, 0] > 0.9
    assert said.match[1, 1] > 0.9


def test_affinity_without_detection_is_refused():
    model = make_model()
    heads = {"affinity": AffinityHead}
    with pytest.raises(ValueError, match="add a detection head"):
        type(model)(GRID, lambda *_: model.fuser, lambda *_: model.backbone, heads,
                    lidar=lambda grid: model.lidar)  # fmt: skip


def test_merged_views_have_boxes_of_their_own_and_no_affinity():
    model, batch = linking_model().eval(), linked_batch()
    merging = AugmentedModel(model, Views(flip_y=True))
    with torch.inference_mode():
        assert len(model.decode(model(batch), batch)["affinity"]) == 2
        assert "affinity" not in merging.decode(merging(batch), batch)
