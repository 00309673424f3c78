"""Tracks of the runtime: those of the tracker in the global frame, from frame to frame."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_parts import GRID, make_batch, make_model

from bevstack.datasets.boxes import Boxes3D, Detections
from bevstack.datasets.sensors import SensorInputs
from bevstack.perception.evaluation.boxes import GlobalBoxes, upright_in_global
from bevstack.perception.evaluation.evaluate import predict
from bevstack.perception.evaluation.exported import ExportedModel
from bevstack.perception.evaluation.tracks import Timeline
from bevstack.perception.export.write import write_folder
from bevstack.perception.heads import AffinityHead
from bevstack.perception.runtime import Moment, Runtime, RuntimeOptions, read_manifest
from bevstack.perception.runtime.manifest import SensorSpec
from bevstack.perception.runtime.state import RuntimeState
from bevstack.perception.runtime.tracks import follow
from bevstack.perception.tracking import GreedyTracker, KalmanTracker
from bevstack.perception.tracking.scenes import track_scenes, tracks_in_global
from bevstack.perception.tracking.settings import make_tracker

RANGE = (-12.8, -9.6, -3.0, 12.8, 9.6, 5.0)
SENSORS = SensorSpec("ego", RANGE, None, (), 1, False, True, True)
OPTIONS = RuntimeOptions(threads=1)


def pose(x, yaw, tilt=0.0):
    """(4, 4) of a vehicle on a slope, kilometres from the origin."""
    c, s = np.cos(yaw), np.sin(yaw)
    cp, sp = np.cos(tilt), np.sin(tilt)
    matrix = np.eye(4)
    turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])
    matrix[:3, :3] = turn @ [[cp, 0, sp], [0, 1, 0], [-sp, 0, cp]]
    matrix[:3, 3] = 1500.0 + x, -700.0, 2.0
    return matrix


def cars(random, count):
    center = random.uniform(-20, 20, (count, 3)) * [1, 1, 0.05]
    boxes = Boxes3D(
        center,
        np.tile([4.5, 2.0, 1.6], (count, 1)),
        random.uniform(-np.pi, np.pi, count),
        random.normal(0, 5, (count, 2)),
        random.choice([0, 5, 8], count),
    )
    return Detections(boxes, random.uniform(0.1, 1, count), np.full(count, -1))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([KalmanTracker(), GreedyTracker()]))
def test_tracks_are_those_of_the_tracker_in_the_global_frame(seed, tracker):
    random = np.random.default_rng(seed)
    world, reference, state = cars(random, 12), tracker.start(), None
    for i in range(4):
        matrix = pose(3.0 * i, 0.1 * i, 0.03)
        found = replace(world, boxes=world.boxes.transformed(np.linalg.inv(matrix)))
        upright = replace(found, boxes=upright_in_global(found.boxes, matrix))
        moment = Moment("a", i * 500_000)
        tracks, tracked = follow(tracker, found, matrix, moment, state)
        reference, expected = tracker.step(reference, upright, moment.timestamp_us)
        state = RuntimeState(moment, tracks)
        assert np.array_equal(tracked.track, expected.track)
        back = upright_in_global(tracked.detections.boxes, matrix)
        np.testing.assert_allclose(back.center, expected.detections.boxes.center, atol=1e-8)
        np.testing.assert_allclose(back.velocity, expected.detections.boxes.velocity, atol=1e-8)
        turned = back.yaw - expected.detections.boxes.yaw
        np.testing.assert_allclose(np.sin(turned), 0, atol=1e-8)


@pytest.mark.parametrize("tracker", [KalmanTracker(), GreedyTracker()], ids=["kalman", "greedy"])
@pytest.mark.parametrize(
    ("second", "goes_on"),
    [
        (Moment("a", 1_500_000), True),
        (Moment("b", 1_500_000), False),  # another scene
        (Moment("a", 1_000_000), False),  # the recording runs once more
        (Moment("a", 3_100_000), False),  # 2.1 s were missed
    ],
)
def test_another_scene_an_earlier_time_and_a_gap_begin_anew(tracker, second, goes_on):
    found = cars(np.random.default_rng(0), 6)
    first = Moment("a", 1_000_000)
    tracks, before = follow(tracker, found, np.eye(4), first, None)
    kept = RuntimeState(first, tracks)
    still = replace(found, boxes=replace(found.boxes, velocity=np.zeros((6, 2))))
    _, after = follow(tracker, still, np.eye(4), second, kept)
    assert len(before) > 0
    assert bool(set(before.track) & set(after.track)) == goes_on  # no number comes twice


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """Random weights; strong peaks, so that there is much to track."""
    model = make_model(camera=False, heads=("detection",))
    with torch.no_grad():
        for seed in range(2):
            model.train()(make_batch(seed=seed))
        model.heads["detection"].heatmap[-1][-1].bias += 2.0
    folder = tmp_path_factory.mktemp("tracks")
    write_folder(model, SENSORS, folder)
    return model.eval(), folder


def clip(scene, size=3, seed=0):
    batch = make_batch(size, cameras=0, seed=seed)
    transforms = np.stack([pose(2.0 * i, 0.05 * i, 0.02) for i in range(size)])
    return replace(
        batch,
        tokens=tuple(f"{scene}-{i}" for i in range(size)),
        scene=torch.full((size,), scene),
        timestamp_us=torch.arange(size) * 500_000,
        global_from_bev=torch.from_numpy(transforms),
    )


def test_an_evaluated_export_tracks_what_tracking_its_boxes_afterwards_gives(exported):
    _, folder = exported
    batches = [clip(1), clip(2, seed=1)]
    tokens = [token for batch in batches for token in batch.tokens]
    found = predict(ExportedModel(folder, OPTIONS), batches, tokens)
    transforms = [found.global_from_bev[token] for token in tokens]
    ours = tracks_in_global([found.tracks[t] for t in tokens], range(6), transforms)
    parts = []
    for i, token in enumerate(tokens):
        seen = found.detections[token]
        upright, count = upright_in_global(seen.boxes, transforms[i]), len(seen)
        none = np.full(count, -1, np.int64)
        parts.append(GlobalBoxes.of_upright(upright, i, seen.score, seen.attribute, none))
    time = Timeline(np.repeat([0, 1], 3), np.tile(np.arange(3) * 500_000, 2))
    expected = track_scenes(KalmanTracker(), GlobalBoxes.concatenate(parts), time)
    assert len(expected) > 50
    assert len(set(expected.track)) < len(expected)  # some go on
    assert np.array_equal(ours.track, expected.track)
    np.testing.assert_allclose(ours.boxes.translation, expected.boxes.translation, atol=1e-6)
    np.testing.assert_allclose(ours.boxes.score, expected.boxes.score, atol=1e-12)


def test_a_frame_on_its_own_has_no_tracks_and_a_state_stays_as_it_was(exported):
    runtime, batch = Runtime(exported[1], OPTIONS), make_batch(1, cameras=0)
    sensors = SensorInputs(
        *(batch.images.numpy(), batch.bev_from_image.numpy(), batch.points.numpy()), np.eye(4)
    )
    alone = runtime.infer(sensors)
    assert alone.tracks is None
    assert alone.state is None
    state = runtime.infer(sensors, Moment("a", 0)).state
    assert state is not None
    once, again = (runtime.infer(sensors, Moment("a", 500_000), state).tracks for _ in range(2))
    assert once is not None
    assert again is not None
    assert np.array_equal(once.track, again.track)
    assert np.array_equal(once.detections.boxes.center, again.detections.boxes.center)


def test_the_trackers_settings_come_with_the_export(tmp_path):
    model = make_model(camera=False, heads=("detection",))
    settings_file = tmp_path / "tracker.yaml"
    settings_file.write_text("fading: 0.2\nprofiles:\n  car: {gate: 1.6}\n")
    for name, path in (("kalman", settings_file), ("greedy", None)):
        tracker = make_tracker(name, path)
        write_folder(model, SENSORS, tmp_path / name, tracker=tracker)
        found = read_manifest(tmp_path / name).tracker
        assert found is not None
        assert {**vars(found), "kind": None} == {**vars(tracker), "kind": None}


def test_affinities_are_those_of_the_model(tmp_path):
    torch.manual_seed(0)
    model = make_model(camera=False, heads=("detection",)).eval()
    head = model.heads["affinity"] = AffinityHead(32, GRID, channels=4, width=16).eval()
    for network in (head.pair, head.row, head.column):  # begin at zero
        torch.nn.init.normal_(network[-1].weight)
    manifest = write_folder(model, SENSORS, tmp_path)
    assert manifest.affinity is not None
    runtime, state, asked = Runtime(tmp_path, OPTIONS), None, []
    link = runtime.link

    def spied(before, now):
        said = link(before, now)
        asked.append((before, now, said))
        return said

    runtime.link = spied
    for k, scene in enumerate("aaab"):
        batch = make_batch(size=1, seed=k, cameras=0)
        sensors = SensorInputs(
            *(batch.images.numpy(), batch.bev_from_image.numpy(), batch.points.numpy()),
            pose(0.5 * k, 0.02 * k),
        )
        state = runtime.infer(sensors, Moment(scene, 500_000 * k), state).state
        with torch.no_grad():
            described = model(batch)["affinity"].map[0]
        np.testing.assert_allclose(state.linked.map.numpy()[0], described, rtol=1e-4, atol=1e-4)
    assert len(asked) == 3
    assert asked[2][2] is None  # another scene
    nothing = Detections(Boxes3D.empty(), np.zeros(0), np.zeros(0, np.int64))
    before, now, _ = asked[1]
    pairs = [asked[0], asked[1]]
    for first, second in ((nothing, now.found), (before.found, nothing), (nothing, nothing)):
        frames = replace(before, found=first), replace(now, found=second)
        pairs.append((*frames, link(*frames)))
    for first, second, said in pairs:
        maps = (torch.from_numpy(frame.map.numpy()[0]) for frame in (first, second))
        frames = (replace(frame, map=m) for frame, m in zip((first, second), maps))
        expected = head.affinity(*frames)
        for name, values in vars(expected).items():
            np.testing.assert_allclose(getattr(said, name), values, atol=1e-5, err_msg=name)
    assert len(pairs[1][2].rows) > 20
    assert pairs[1][2].match.max() > 0.3


def test_a_tracker_that_goes_by_distance_alone_is_given_no_affinity(tmp_path):
    model = make_model(camera=False, heads=("detection",))
    model.heads["affinity"] = AffinityHead(32, GRID, channels=4)
    manifest = write_folder(model, SENSORS, tmp_path, tracker=GreedyTracker())
    assert manifest.affinity is None
    assert set(manifest.graphs) == {"lidar", "fusion_heads"}
