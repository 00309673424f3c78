"""Learned affinity: targets, loss, symmetry, gradients, and what it does for tracking."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bevstack.datasets.boxes import Boxes3D, Detections
from bevstack.datasets.errors import DataError
from bevstack.kernels.grid import BEVGrid
from bevstack.perception import cli
from bevstack.perception.decoding.affinity import LinkedFrame, sampling_places
from bevstack.perception.evaluation.affinities import Linker, read_affinities, write_affinities
from bevstack.perception.evaluation.boxes import GlobalBoxes
from bevstack.perception.evaluation.evaluate import AFFINITIES
from bevstack.perception.evaluation.tracks import Timeline
from bevstack.perception.evaluation.tta import AugmentedModel, Views
from bevstack.perception.heads import AffinityHead
from bevstack.perception.heads.affinity import consecutive, sample_map
from bevstack.perception.heads.affinity_targets import (
    AffinityLogits,
    affinity_loss,
    affinity_targets,
    objects_shown,
)
from bevstack.perception.tracking import Affinities, Affinity, GreedyTracker, KalmanTracker
from bevstack.perception.tracking.scenes import track_scenes

from evaluation_tables import SPLIT, VERSION  # isort: skip
from model_parts import GRID, make_batch, make_boxes, make_model  # isort: skip
from tracking_tables import Moving, TrackedWorld  # isort: skip

CAR, BARRIER, PEDESTRIAN = 0, 5, 8


def boxes(center, label=PEDESTRIAN, yaw=0.0, velocity=(0.0, 0.0)) -> Boxes3D:
    """At (x, y), 0.8 m long and 0.6 m wide."""
    place = np.asarray(center, float).reshape(-1, 2)
    count = len(place)
    return Boxes3D(
        np.column_stack([place, np.ones(count)]),
        np.tile([0.8, 0.6, 1.7], (count, 1)),
        np.full(count, yaw),
        np.broadcast_to(np.asarray(velocity, float), (count, 2)).copy(),
        np.full(count, label),
    )


def found(center, score=0.8, **given) -> Detections:
    here = boxes(center, **given)
    return Detections(here, np.full(len(here), score), np.full(len(here), -1))


def pose(x=0.0, y=0.0, yaw=0.0, flip=1.0, scale=1.0):
    c, s = np.cos(yaw), np.sin(yaw)
    matrix = np.eye(4)
    matrix[:2, :2] = scale * np.array([[c, -s], [s, c]]) @ np.diag([1, flip])
    matrix[2, 2] = scale
    matrix[:2, 3] = x, y
    return matrix


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


def head(seed=0, **given) -> AffinityHead:
    """One whose last layers say something."""
    torch.manual_seed(seed)
    made = AffinityHead(6, GRID, channels=4, width=16, descriptor=8, **given)
    for network in (made.pair, made.row, made.column):
        torch.nn.init.normal_(network[-1].weight)
    return made.eval()


def frame(seen: Detections, time=0.0, place=None, seed=0, scene=1) -> LinkedFrame:
    bev = torch.randn(4, *GRID.shape, generator=torch.Generator().manual_seed(seed))
    return LinkedFrame(bev, seen, pose() if place is None else place, scene, round(time * 1e6))


def crowd(seed, count) -> Detections:
    rng = np.random.default_rng(seed)
    here = boxes(rng.uniform(-8, 8, (count, 2)), velocity=(1.0, -0.5))
    label = rng.choice([CAR, PEDESTRIAN], count)
    here = replace(here, yaw=rng.uniform(-3, 3, count), label=label)
    return Detections(here, np.sort(rng.random(count))[::-1].copy(), np.full(count, -1))


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
    plain = model.decoder.possible(frame(earlier), frame(later, 0.5))
    np.testing.assert_array_equal(
        model.decoder.possible(frame(augmented, place=place), frame(later, 0.5)), plain
    )


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


# --- Tracking -------------------------------------------------------------------------------------


def certain(pairs, N, M) -> Affinity:
    """One who knows which detections are one object."""
    match = np.zeros((N, M), np.float32)
    for i, j in pairs:
        match[i, j] = 1
    gone, new = 1 - match.sum(1), 1 - match.sum(0)
    return Affinity(np.arange(N), np.arange(M), match, gone, 0 * gone, new, 0 * new)


def crossing(frames=9, step=1.0):
    """Two people who pass each other at a quarter of a metre, seen without their velocity."""
    places = [step * (t - frames // 2) for t in range(frames)]
    return [found([[x, 0.0], [-x, 0.25]], velocity=(np.nan, np.nan)) for x in places]


def bouncing(frames=9, step=0.7):
    """Two people who come within half a metre and turn back: a filter expects them to pass."""
    return [
        found([[-0.25 - step * abs(t - frames // 2), 0], [0.25 + step * abs(t - frames // 2), 0]],
              velocity=(np.nan, np.nan))
        for t in range(frames)
    ]  # fmt: skip


def switches(tracker, moments, affinity=None) -> int:
    """Changes of the track of each object; objects keep their place in the lists."""
    state, last, count = tracker.start(), {}, 0
    for t, seen in enumerate(moments):
        given = (affinity,) if affinity is not None and t else ()
        state, tracked = tracker.step(state, seen, 500_000 * t, *given)
        for track, place in zip(state.tracks.track, state.tracks.source):
            if place >= 0:
                count += last.get(place, track) != track
                last[place] = track
        assert len(tracked)
    return count


def test_a_perfect_affinity_keeps_identities_where_distance_alone_loses_them():
    perfect = certain([(0, 0), (1, 1)], 2, 2)
    assert switches(KalmanTracker(), bouncing()) > 0
    assert switches(KalmanTracker(), bouncing(), perfect) == 0
    assert switches(KalmanTracker(), crossing(), perfect) == 0


def test_an_affinity_opens_no_gate_and_one_that_is_silent_changes_nothing():
    tracker = KalmanTracker()
    far = [found([[0, 0]]), found([[9.0, 0]])]
    said = certain([(0, 0)], 1, 1)
    state, _ = tracker.step(tracker.start(), far[0], 0)
    _, tracked = tracker.step(state, far[1], 500_000, said)
    assert tracked.track.tolist() == [1]
    silent = certain([], 0, 0)
    moments = bouncing()
    plain = state = tracker.start()
    for t, seen in enumerate(moments):
        plain, a = tracker.step(plain, seen, 500_000 * t)
        state, b = tracker.step(state, seen, 500_000 * t, silent if t else None)
        np.testing.assert_array_equal(a.track, b.track)
        np.testing.assert_array_equal(a.detections.score, b.detections.score)


def test_false_positives_lose_score_and_the_dead_lose_confidence():
    tracker = KalmanTracker(refinement=0.5)
    state, _ = tracker.step(tracker.start(), found([[0, 0]], score=0.64), 0)
    said = replace(
        certain([], 1, 1),
        false_positive=np.array([0.75], np.float32),
        dead=np.array([0.75], np.float32),
        missed=np.array([0.25], np.float32),
    )
    state, tracked = tracker.step(state, found([[9, 9]], score=0.64), 500_000, said)
    assert tracked.detections.score.tolist() == pytest.approx([0.8 * 0.5])
    lost = state.tracks[state.tracks.unseen > 0]
    assert lost.score.tolist() == pytest.approx([(0.64 - 0.3 * 0.5) * 0.5])
    assert lost.source.tolist() == [-1]


def test_the_greedy_tracker_says_that_it_takes_none():
    tracker = GreedyTracker()
    with pytest.raises(ValueError, match="takes no affinity"):
        tracker.step(tracker.start(), found([[0, 0]]), 0, certain([], 0, 1))


def in_scene(moments) -> GlobalBoxes:
    return GlobalBoxes.concatenate([
        GlobalBoxes.of_upright(m.boxes, i, m.score, m.attribute, np.full(len(m), -1))
        for i, m in enumerate(moments)
    ])  # fmt: skip


def test_scenes_use_an_affinity_only_if_no_frame_lies_between():
    moments = bouncing()
    time = Timeline(np.zeros(9, np.int64), 500_000 * np.arange(9))
    perfect = certain([(0, 0), (1, 1)], 2, 2)
    both = Affinities({t: (t - 1, perfect) for t in range(1, 9)})
    skipping = Affinities({t: (t - 2, perfect) for t in range(2, 9)})
    alone, used, unused = (
        track_scenes(KalmanTracker(), in_scene(moments), time, a) for a in (None, both, skipping)
    )
    np.testing.assert_array_equal(alone.track, unused.track)
    order = np.lexsort((used.boxes.translation[:, 0], used.boxes.sample))
    assert used.track[order].tolist() == [0, 1] * 9


# --- Files ----------------------------------------------------------------------------------------


def test_affinities_come_back_from_their_file_and_only_for_their_submission(tmp_path):
    linker, model = Linker(), head()
    tokens = ("a", "b", "lost", "c", "d")
    for k, token in enumerate(("a", "b", "c", "d")):
        time = {"a": 0.0, "b": 0.5, "c": 1.5, "d": 2.0}[token]  # the frame at 1 s is missing
        linker.add(model, token, frame(crowd(k, 4 + k), time, seed=k))
    said = linker.affinities(tokens)
    assert list(said.pairs) == [1, 4]
    assert said.between(0, 1) is not None
    assert said.between(1, 3) is None
    assert said.between(None, 1) is None
    submission = tmp_path / "submission.json"
    submission.write_text("{}")
    path = tmp_path / "affinities.safetensors"
    write_affinities(path, said, submission)
    again = read_affinities(path, submission)
    assert again.pairs.keys() == said.pairs.keys()
    for now, (before, affinity) in said.pairs.items():
        assert again.pairs[now][0] == before
        for name, value in vars(affinity).items():
            kept = getattr(again.pairs[now][1], name)
            np.testing.assert_allclose(kept, value, atol=1e-4 if name == "match" else 0)
    submission.write_text("{ }")
    with pytest.raises(DataError, match="does not belong to"):
        read_affinities(path, submission)
    path.write_bytes(b"no such file")
    with pytest.raises(DataError, match="cannot read the affinities"):
        read_affinities(path, submission)


def test_the_command_uses_the_affinities_beside_a_submission(tmp_path, capsys):
    # Two people who turn back before each other, as in ``bouncing``.
    steps = np.abs(np.arange(9) - 4) * 0.7 + 0.25
    walkers = [
        Moving(
            "human.pedestrian.adult",
            [(310 + s * x, 700.0) for x in steps],
            [5] * 9,
            [0.6, 0.8, 1.7],
        )
        for s in (-1, 1)
    ]
    world = TrackedWorld(tmp_path / "data", [walkers], [[500_000 * (i + 1) for i in range(9)]])
    results: dict[str, list[dict]] = {}
    for s, f, n in world.seen():
        kept = {k: v for k, v in world.box(s, f, n).items() if not k.startswith("tracking")}
        kept |= {"velocity": [0.0, 0.0], "detection_name": "pedestrian", "detection_score": 0.8}
        results.setdefault(world.token(s, f), []).append(kept | {"attribute_name": ""})
    submission = world.submit(results, "submission.json")
    cli.main(["index", str(world.root), "--version", VERSION])
    command = ["track", str(submission), "--root", str(world.root), "--version", VERSION,
               "--split", SPLIT, "--out", str(tmp_path / "out")]  # fmt: skip

    def switched(*options) -> float:
        cli.main([*command, *options])
        return json.loads((tmp_path / "out" / "metrics.json").read_text())["IDS"]

    with pytest.raises(SystemExit):
        cli.main([*command, "--affinity", "true"])
    assert "for a model with an affinity head" in capsys.readouterr().err
    perfect = certain([(0, 0), (1, 1)], 2, 2)
    pairs = Affinities({t: (t - 1, perfect) for t in range(1, 9)})
    write_affinities(submission.with_name(AFFINITIES), pairs, submission)
    assert switched() == 0
    assert "affinities of 8 pairs" in capsys.readouterr().out
    assert switched("--affinity", "false") > 0
    with pytest.raises(SystemExit):
        cli.main([*command, "--tracker", "greedy", "--affinity", "true"])
    assert "makes no use of affinities" in capsys.readouterr().err
