"""Our nuScenes tracking metrics against the unmodified devkit's."""

from __future__ import annotations

import math

import numpy as np
import pytest
from evaluation_tables import SPLIT, VERSION
from tracking_tables import Moving, TrackedWorld, random_tracks, random_world

from bevstack.datasets.errors import DataError
from bevstack.datasets.nuscenes.classes import TRACKING_CLASSES
from bevstack.datasets.nuscenes.index import build_index
from bevstack.datasets.nuscenes.reader import NuScenesReader
from bevstack.perception.evaluation.ground_truth import TrackingTruth, tracking_truth
from bevstack.perception.evaluation.official import official_tracking
from bevstack.perception.evaluation.submission import submission_meta
from bevstack.perception.evaluation.tracking import METRICS, TrackingMetrics, evaluate_tracks
from bevstack.perception.evaluation.tracking_submission import (
    read_tracking_submission,
    write_tracking_submission,
)

pytest.importorskip("nuscenes")
pytest.importorskip("motmetrics")


def truth_of(world: TrackedWorld) -> TrackingTruth:
    build_index(world.root, VERSION)
    return tracking_truth(NuScenesReader(world.root, VERSION, SPLIT))


def measured(world: TrackedWorld, truth: TrackingTruth, results) -> TrackingMetrics:
    path = world.submit(results)
    return evaluate_tracks(read_tracking_submission(path, truth.annotations.tokens), truth)


def assert_equal_to_devkit(world: TrackedWorld, truth: TrackingTruth, results) -> TrackingMetrics:
    """Every number of the summary agrees to 1e-6, NaN with NaN."""
    ours = measured(world, truth, results)
    theirs = official_tracking(
        world.root, VERSION, SPLIT, world.root / "tracks.json", world.root / "out"
    )
    for metric in METRICS:
        expected = theirs["label_metrics"][metric]
        mine = ours.label_metrics[metric]
        assert mine == pytest.approx(expected, abs=1e-6, nan_ok=True), metric
        assert ours.overall(metric) == pytest.approx(theirs[metric], abs=1e-6, nan_ok=True), metric
    return ours


@pytest.fixture(scope="module")
def crowded(tmp_path_factory):
    world = random_world(tmp_path_factory.mktemp("crowded") / "data", np.random.default_rng(0))
    return world, truth_of(world)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(50))
def test_a_random_perturbed_submission_has_the_devkits_numbers(crowded, seed):
    world, truth = crowded
    assert_equal_to_devkit(world, truth, random_tracks(world, np.random.default_rng(seed)))


def line(category="vehicle.car", frames=4, y=700.0, **changes) -> Moving:
    """An object that moves ahead, 3 m a frame."""
    places = [(305.0 + 3 * f, y) for f in range(frames)]
    return Moving(**{"category": category, "places": places, "points": [5] * frames} | changes)


def small_world(tmp_path, *things: Moving, times=(0, 500_000, 1_000_000, 1_500_000)):
    world = TrackedWorld(tmp_path / "data", [list(things)], [[10**15 + t for t in times]])
    return world, truth_of(world)


def test_a_perfect_submission_has_amota_one(tmp_path):
    names = ["vehicle.car", "vehicle.truck", "vehicle.bus.bendy", "vehicle.trailer"]
    names += ["human.pedestrian.child", "vehicle.motorcycle", "vehicle.bicycle"]
    things = [line(name, y=690.0 + 5 * i) for i, name in enumerate(names)]
    world, truth = small_world(tmp_path, *things)
    results = {token: [] for token in world.tokens}
    for s, f, n in world.seen():
        results[world.token(s, f)].append(world.box(s, f, n))
    ours = assert_equal_to_devkit(world, truth, results)
    assert ours.amota == 1.0
    assert ours.amotp < 1e-4
    assert ours.overall("ids") == 0
    assert set(ours.num_truth) == set(TRACKING_CLASSES)


def test_holes_are_filled_backwards_as_the_devkit_does(tmp_path):
    # Seen at frames 0 and 3 only; what is put into frames 1 and 2 is where it was at 2 and 1.
    hole = line(places=[(305.0, 700.0), None, None, (314.0, 700.0)])
    world, truth = small_world(tmp_path, hole)
    results = {world.token(0, f): [world.box(0, f, 0)] for f in (0, 3)}
    for f, x in ((1, 311.0), (2, 308.0)):
        box = world.box(0, f, 0, translation=[x, 700.0, 1.0])
        results[world.token(0, f)] = [box]
    assert assert_equal_to_devkit(world, truth, results).amotp < 1e-4
    for f, x in ((1, 308.0), (2, 311.0)):  # what is right in fact
        results[world.token(0, f)][0]["translation"] = [x, 700.0, 1.0]
    assert assert_equal_to_devkit(world, truth, results).overall("recall") == 0.5


def test_an_object_that_gets_another_track_is_a_switch(tmp_path):
    world, truth = small_world(tmp_path, line())
    results = {world.token(0, f): [world.box(0, f, 0, tracking_id="ab"[f > 1])] for f in range(4)}
    ours = assert_equal_to_devkit(world, truth, results)
    assert ours.overall("ids") == 1
    assert ours.overall("tp") == 3


def test_a_class_of_which_nothing_is_found_has_the_worst_values(tmp_path):
    world, truth = small_world(tmp_path, line(), line("vehicle.truck", y=706.0))
    results = {world.token(0, f): [world.box(0, f, 0)] for f in range(4)}
    ours = assert_equal_to_devkit(world, truth, results)
    assert ours.label_metrics["amota"]["truck"] == 0.0
    assert ours.label_metrics["amotp"]["truck"] == 2.0
    assert ours.label_metrics["fn"]["truck"] == 4.0
    assert math.isnan(ours.label_metrics["amota"]["bus"])
    assert ours.to_json()["label_metrics"]["amota"]["bus"] is None


def test_an_id_that_comes_twice_in_a_sample(tmp_path):
    world, truth = small_world(tmp_path, line(), line(y=701.5))
    results = {
        world.token(0, f): [
            world.box(0, f, n, tracking_id=7, tracking_score=0.2 + 0.1 * f + 0.05 * n)
            for n in (0, 1)
        ]
        for f in range(4)
    }
    assert_equal_to_devkit(world, truth, results)


def test_no_box_at_all_is_measured_by_us_and_named_by_the_devkit(tmp_path):
    world, truth = small_world(tmp_path, line())
    assert measured(world, truth, {}).amota == 0.0
    with pytest.raises(DataError, match="no box at all"):
        assert_equal_to_devkit(world, truth, {})


def test_written_tracks_come_back(crowded, tmp_path):
    world, truth = crowded
    tokens = truth.annotations.tokens
    path = world.submit(random_tracks(world, np.random.default_rng(3)))
    tracked = read_tracking_submission(path, tokens)
    again = tmp_path / "again.json"
    write_tracking_submission(again, tokens, tracked, submission_meta(True, False))
    back = read_tracking_submission(again, tokens)
    assert evaluate_tracks(back, truth).to_json() == evaluate_tracks(tracked, truth).to_json()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tracking_name": "barrier"}, "unknown tracking_name 'barrier'"),
        ({"tracking_id": [1]}, "unknown tracking_id"),
        ({"tracking_score": math.nan}, "tracking_score that is not finite"),
    ],
)
def test_a_bad_tracked_box_is_refused_by_name(tmp_path, changes, message):
    world = TrackedWorld(tmp_path / "data", [[line()]], [[10**15 + f for f in range(4)]])
    path = world.submit({world.token(0, 0): [world.box(0, 0, 0, **changes)]})
    with pytest.raises(DataError, match=message):
        read_tracking_submission(path, world.tokens)
