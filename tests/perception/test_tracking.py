"""Trackers: filters against closed forms, identities through crossings, gaps and borders."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from evaluation_tables import SPLIT, VERSION
from hypothesis import given, settings
from hypothesis import strategies as st
from tracking_tables import Moving, TrackedWorld

from bevstack.datasets.boxes import Boxes3D, Detections
from bevstack.datasets.errors import DataError
from bevstack.perception import cli
from bevstack.perception.tracking import PROFILES, GreedyTracker, KalmanTracker
from bevstack.perception.tracking.association import associate
from bevstack.perception.tracking.motion import correct_, predict_
from bevstack.perception.tracking.settings import make_tracker

CAR, PEDESTRIAN, BARRIER = 0, 8, 5
TRACKERS = [KalmanTracker(), GreedyTracker()]


def boxes(*rows, label=CAR) -> Boxes3D:
    """Rows of x, y, yaw, vx, vy."""
    data = np.array(rows, float).reshape(-1, 5)
    size = np.tile([4.5, 2.0, 1.6], (len(data), 1))
    center = np.column_stack([data[:, :2], np.full(len(data), 0.8)])
    return Boxes3D(center, size, data[:, 2], data[:, 3:5], np.full(len(data), label))


def seen(*rows, score=0.9, label=CAR) -> Detections:
    found = boxes(*rows, label=label)
    return Detections(found, np.full(len(found), score), np.full(len(found), -1))


def track_all(tracker, moments, step_us=500_000) -> list[list[int]]:
    """Track numbers at each moment, in the order of the x coordinate."""
    state, numbers = tracker.start(), []
    for i, found in enumerate(moments):
        state, tracked = tracker.step(state, found, i * step_us)
        order = np.argsort(tracked.detections.boxes.center[:, 0])
        numbers.append(tracked.track[order].tolist())
    return numbers


# --- Motion ---------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.floats(0.05, 2.0), st.sampled_from([0.0, 1e-5, 0.3, -0.8]))
def test_a_turn_is_an_arc_and_its_covariance_moves_by_the_jacobian(seed, seconds, turn):
    rng = np.random.default_rng(seed)
    start = np.array([*rng.uniform(-50, 50, 2), *rng.normal(0, 8, 2), rng.uniform(-1, 1), turn])

    def moved(state):
        mean = state[None].copy()
        predict_(mean, np.zeros((1, 6, 6)), np.zeros((1, 3)), seconds)
        return mean[0]

    # Many small straight steps of a velocity that turns, in float64, are the arc.
    place, time = start[:2].copy(), np.linspace(0, seconds, 20001)
    angle = turn * (time[1:] + time[:-1]) / 2
    vx, vy = start[2:4]
    place += np.stack(
        [vx * np.cos(angle) - vy * np.sin(angle), vx * np.sin(angle) + vy * np.cos(angle)], -1
    ).mean(0) * seconds  # fmt: skip
    end = moved(start)
    np.testing.assert_allclose(end[:2], place, atol=1e-6)
    assert np.hypot(*end[2:4]) == pytest.approx(np.hypot(vx, vy))
    step = 1e-5
    jacobian = np.stack(
        [(moved(start + e) - moved(start - e)) / (2 * step) for e in np.eye(6) * step], -1
    )
    spread = rng.normal(size=(6, 6))
    covariance = (spread @ spread.T)[None]
    expected = jacobian @ covariance[0] @ jacobian.T
    predict_(start[None].copy(), covariance, np.zeros((1, 3)), seconds)
    np.testing.assert_allclose(covariance[0], expected, rtol=1e-4, atol=1e-4)


def test_one_part_after_the_other_is_the_kalman_update():
    rng = np.random.default_rng(0)
    spread = rng.normal(size=(6, 6))
    mean, covariance = rng.normal(size=(1, 6)), (spread @ spread.T)[None]
    measured, noise = mean[:, :5] + rng.normal(0, 0.2, (1, 5)), np.array([[0.3, 0.4, 1, 2, 0.5]])
    H, R = np.eye(5, 6), np.diag(noise[0] ** 2)
    gain = covariance[0] @ H.T @ np.linalg.inv(H @ covariance[0] @ H.T + R)
    expected = mean[0] + gain @ (measured[0] - H @ mean[0])
    expected_covariance = (np.eye(6) - gain @ H) @ covariance[0]
    correct_(mean, covariance, measured, noise)
    np.testing.assert_allclose(mean[0], expected, atol=1e-10)
    np.testing.assert_allclose(covariance[0], expected_covariance, atol=1e-10)


def test_unknown_velocity_says_nothing_and_a_backward_heading_is_turned_round():
    def corrected(vx, yaw):
        mean, covariance = np.zeros((1, 6)), np.eye(6)[None]
        correct_(mean, covariance, np.array([[1.0, 0, vx, vx, yaw]]), np.ones((1, 5)))
        return mean[0]

    unknown = corrected(np.nan, 0.2)
    assert unknown[2:4].tolist() == [0, 0]
    assert np.isfinite(unknown).all()
    np.testing.assert_allclose(corrected(0.0, 0.2), corrected(0.0, 0.2 + np.pi), atol=1e-12)


# --- Association ----------------------------------------------------------------------------------


def test_a_good_pair_is_not_given_up_for_two_bad_ones():
    tracks, found = boxes((0, 0, 0, 0, 0), (3.8, 0, 0, 0, 0)), boxes((0.1, 0, 0, 0, 0))
    more = boxes((0.1, 0, 0, 0, 0), (-3.8, 0, 0, 0, 0))
    distance, gate = np.zeros(2, bool), np.full(2, 4.0)
    assert associate(tracks, found, distance, gate).tolist() == [0, -1]
    assert associate(tracks, more, distance, gate).tolist() == [0, -1]


def test_classes_and_gates_are_kept():
    track, walker = boxes((0, 0, 0, 0, 0)), boxes((0, 0, 0, 0, 0), label=PEDESTRIAN)
    gate = np.array([2.0])
    assert associate(track, walker, np.array([False]), gate).tolist() == [-1]
    assert associate(track, boxes((2.1, 0, 0, 0, 0)), np.array([False]), gate).tolist() == [-1]
    assert associate(track, boxes((1.9, 0, 0, 0, 0)), np.array([False]), gate).tolist() == [0]


def test_giou_reaches_farther_along_a_box_than_across_it():
    track, giou, gate = boxes((0, 0, 0, 0, 0)), np.array([True]), np.array([1.3])
    assert associate(track, boxes((6.0, 0, 0, 0, 0)), giou, gate).tolist() == [0]
    assert associate(track, boxes((0, 6.0, 0, 0, 0)), giou, gate).tolist() == [-1]


# --- Trackers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("tracker", TRACKERS, ids=["kalman", "greedy"])
def test_cars_that_pass_each_other_keep_their_numbers(tracker):
    moments = [
        seen((5 * t, 0, 0, 10, 0), (40 - 5 * t, 3.5, np.pi, -10, 0), (20, 9, 0, 0, 0))
        for t in range(9)
    ]
    numbers = track_all(tracker, moments)
    assert numbers[0] == [0, 2, 1]
    assert numbers[-1] == [1, 2, 0]
    assert {n for row in numbers for n in row} == {0, 1, 2}


@pytest.mark.parametrize("tracker", TRACKERS, ids=["kalman", "greedy"])
def test_a_car_that_is_hidden_for_a_second_is_found_again_and_not_reported_between(tracker):
    moments = [seen((5 * t, 0, 0, 10, 0)) if t not in (3, 4) else seen() for t in range(7)]
    assert track_all(tracker, moments) == [[0], [0], [0], [], [], [0], [0]]


@pytest.mark.parametrize("tracker", TRACKERS, ids=["kalman", "greedy"])
def test_a_stream_cut_anywhere_goes_on_the_same_and_states_stay_as_they_were(tracker):
    rng = np.random.default_rng(0)
    moments = [seen(*rng.normal(0, 10, (6, 5)), score=0.6) for _ in range(6)]
    states, state = [], tracker.start()
    for i, found in enumerate(moments):
        states.append(state)
        state, _ = tracker.step(state, found, i * 500_000)
    for i, found in enumerate(moments):  # each step again, later, from its stored state
        again, _ = tracker.step(states[i], found, i * 500_000)
        expected = states[i + 1] if i + 1 < len(states) else state
        np.testing.assert_equal(vars(getattr(again, "tracks", again)),
                                vars(getattr(expected, "tracks", expected)))  # fmt: skip


@pytest.mark.parametrize("tracker", TRACKERS, ids=["kalman", "greedy"])
def test_untracked_classes_are_left_out_and_nothing_is_legal(tracker):
    state, tracked = tracker.step(tracker.start(), seen((0, 0, 0, 0, 0), label=BARRIER), 0)
    assert len(tracked) == 0
    _, tracked = tracker.step(state, seen(), 1)
    assert len(tracked) == 0


@pytest.mark.parametrize("tracker", TRACKERS, ids=["kalman", "greedy"])
def test_time_that_stands_still_and_boxes_that_are_not_finite_are_refused(tracker):
    state, _ = tracker.step(tracker.start(), seen((0, 0, 0, 0, 0)), 10)
    with pytest.raises(ValueError, match="in order"):
        tracker.step(state, seen(), 10)
    with pytest.raises(ValueError, match="center that is not finite"):
        tracker.step(state, seen((np.nan, 0, 0, 0, 0)), 11)


def test_unknown_velocities_do_not_spread():
    moments = [seen((3 * t, 0, 0, np.nan, np.nan)) for t in range(5)]
    assert track_all(KalmanTracker(), moments) == [[0]] * 5


def test_a_weak_detection_continues_a_track_but_begins_none():
    moments = [seen((0, 0, 0, 0, 0)), seen((0.2, 0, 0, 0, 0), (30, 0, 0, 0, 0), score=0.08)]
    assert track_all(KalmanTracker(), moments) == [[0], [0]]


def test_confidence_grows_with_detections_and_fades_without():
    tracker, scores = KalmanTracker(), []
    state = tracker.start()
    for i, found in enumerate([seen((0, 0, 0, 0, 0), score=0.4)] * 3 + [seen()]):
        state, _ = tracker.step(state, found, i * 500_000)
        scores.append(float(state.tracks.score[0]))
    assert scores[0] == pytest.approx(0.4)
    assert scores[0] < scores[1] < scores[2]
    assert scores[3] == pytest.approx(scores[2] - tracker.fading * 0.5)


def test_a_track_dies_of_being_unseen_and_its_number_does_not_come_back():
    moments = [seen((0, 0, 0, 0, 0)), *[seen()] * 6, seen((0, 0, 0, 0, 0))]
    assert track_all(KalmanTracker(), moments)[-1] == [1]


def test_the_turning_filter_predicts_an_arc_better_than_the_straight_one():
    def worst_error(turns: bool) -> float:
        car = replace(PROFILES["car"], turns=turns, turn_acceleration=0.2)
        tracker = KalmanTracker(profiles=PROFILES | {"car": car})
        state, errors = tracker.start(), []
        for t in range(12):
            angle = 0.4 * t * 0.5  # 0.4 rad/s on a circle of 20 m
            x, y = 20 * np.sin(angle), 20 * (1 - np.cos(angle))
            if t > 6:
                expected = tracker._predicted(state.tracks, 0.5).mean[0, :2]
                errors.append(np.hypot(*(expected - [x, y])))
            found = seen((x, y, angle, 8 * np.cos(angle), 8 * np.sin(angle)))
            state, _ = tracker.step(state, found, t * 500_000)
        return max(errors)

    assert worst_error(True) < 0.5 * worst_error(False)


def test_the_runtime_needs_no_torch():
    code = "import bevstack.perception.tracking, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


# --- Settings and command -------------------------------------------------------------------------


def test_settings_change_what_they_name_and_nothing_else(tmp_path):
    path = tmp_path / "tracker.yaml"
    path.write_text("fading: 0.1\nprofiles:\n  car: {gate: 1.7}\n")
    tracker = make_tracker("kalman", path)
    assert tracker.fading == 0.1
    assert tracker.profiles["car"] == replace(PROFILES["car"], gate=1.7)
    assert tracker.profiles["bus"] == PROFILES["bus"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("kalman", "fadding: 1", "no 'fadding'; it has: profiles"),
        ("kalman", "profiles: {car: {gat: 1}}", "profile of car has no 'gat'"),
        ("kalman", "profiles: {tank: {}}", "no class 'tank'"),
        ("greedy", "max_distance: 3", "is not a mapping"),
        ("greedy", "[", "cannot read"),
    ],
)
def test_settings_that_do_not_fit_are_named(tmp_path, name, text, message):
    path = tmp_path / "tracker.yaml"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        make_tracker(name, path)


def moving_world(root) -> TrackedWorld:
    things = [
        Moving("vehicle.car", [(305.0 + 3 * f, 690.0 + 5 * k) for f in range(5)], [5] * 5)
        for k in range(3)
    ]
    return TrackedWorld(root, [things], [[10**15 + 500_000 * f for f in range(5)]])


def test_the_command_tracks_measures_and_agrees_with_the_devkit(tmp_path, capsys):
    pytest.importorskip("motmetrics")
    world = moving_world(tmp_path / "data")
    results: dict[str, list[dict]] = {}
    for s, f, n in world.seen():
        box = world.box(s, f, n, velocity=[6.0, 0.0])
        named = {"detection_name": "car", "detection_score": 0.8, "attribute_name": ""}
        kept = {k: v for k, v in box.items() if not k.startswith("tracking")}
        results.setdefault(world.token(s, f), []).append(kept | named)
    path = world.submit(results, "detections.json")
    cli.main(["index", str(world.root), "--version", VERSION])
    where = ["--root", str(world.root), "--version", VERSION, "--split", SPLIT]
    cli.main(["track", str(path), *where, "--out", str(tmp_path / "out"), "--official", "true"])
    content = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert content["AMOTA"] == pytest.approx(1.0)
    assert content["official"]["AMOTA"] == pytest.approx(1.0)
    assert content["IDS"] == 0
    assert (tmp_path / "out" / "tracking.csv").read_text().startswith("class,boxes,tracks,AMOTA")
    assert "AMOTA 1.0000" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        cli.main(["track", str(path)])
    assert "--root, --version, --split" in capsys.readouterr().err
