"""Trackers that a learned affinity helps, and the file that keeps affinities."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from affinity_parts import crowd, found, frame, head

from bevstack.datasets.errors import DataError
from bevstack.perception import cli
from bevstack.perception.evaluation.affinities import Linker, read_affinities, write_affinities
from bevstack.perception.evaluation.boxes import GlobalBoxes
from bevstack.perception.evaluation.evaluate import AFFINITIES
from bevstack.perception.evaluation.tracks import Timeline
from bevstack.perception.tracking import Affinities, Affinity, GreedyTracker, KalmanTracker
from bevstack.perception.tracking.scenes import track_scenes

from evaluation_tables import SPLIT, VERSION  # isort: skip
from tracking_tables import Moving, TrackedWorld  # isort: skip


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
