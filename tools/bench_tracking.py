"""How fast the trackers and the tracking metrics are.

    python tools/bench_tracking.py                        # trackers, and 6,000 frames measured
    python tools/bench_tracking.py --devkit-scenes 4      # beside nuscenes-devkit, on fewer scenes

Trackers: 50 objects a frame, in every class, noisy and with gaps; one core, frames in sequence; the
baseline of the ratio is the greedy tracker. Metrics: the tracks of as many scenes as asked for,
from boxes in memory; the devkit's time is that of its unmodified ``TrackingEvaluation`` on the
first scenes of the same data, beside ours on the same scenes. Times are processor time of one
thread, so that other work on the machine counts less. Medians of several runs after a
warm-up.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from bevstack.datasets.boxes import Boxes3D, Detections
from bevstack.datasets.nuscenes.classes import DETECTION_CLASSES, TRACKING_CLASSES
from bevstack.perception.evaluation.boxes import GlobalBoxes
from bevstack.perception.evaluation.ground_truth import GroundTruth, TrackingTruth
from bevstack.perception.evaluation.tracking import MAX_DISTANCE, TrackingMetrics, evaluate_tracks
from bevstack.perception.evaluation.tracks import TrackedBoxes
from bevstack.perception.tracking import GreedyTracker, KalmanTracker

FRAMES = 40  # of a scene, at 2 Hz
LABELS = np.array([DETECTION_CLASSES.index(name) for name in TRACKING_CLASSES])


def scene_of(rng: np.random.Generator, objects: int) -> list[Detections]:
    """Noisy detections of moving objects, one in ten missing, as many inventions."""
    place, speed = rng.uniform(-45, 45, (objects, 2)), rng.normal(0, 3, (objects, 2))
    label = rng.choice(LABELS, objects)
    size = np.array([4.5, 2.0, 1.7]) * rng.uniform(0.8, 1.2, (objects, 1))
    moments = []
    for t in range(FRAMES):
        here = place + speed * t / 2 + rng.normal(0, 0.3, (objects, 2))
        invented = rng.random(objects) < 0.1
        here[invented] = rng.uniform(-45, 45, (invented.sum(), 2))
        center = np.column_stack([here, np.ones(objects)])
        yaw = np.arctan2(speed[:, 1], speed[:, 0]) + rng.normal(0, 0.1, objects)
        boxes = Boxes3D(center, size, yaw, speed + rng.normal(0, 0.5, speed.shape), label)
        moments.append(Detections(boxes, rng.beta(3, 2, objects), np.full(objects, -1)))
    return moments


def frames_per_second(tracker: Any, moments: list[Detections]) -> float:
    """Of one pass over a scene."""
    start, state = time.process_time(), tracker.start()
    for i, found in enumerate(moments):
        state, _ = tracker.step(state, found, (i + 1) * 500_000)
    return len(moments) / (time.process_time() - start)


def tracked_set(
    rng: np.random.Generator, scenes: int, objects: int
) -> tuple[TrackedBoxes, TrackingTruth]:
    """Annotated tracks of many scenes, and perturbed ones: moved, missing, renamed, invented."""
    frames = scenes * FRAMES
    scene = np.repeat(np.arange(scenes), FRAMES)
    time_us = 500_000 * (np.arange(frames) + 1)
    thing = np.tile(np.repeat(np.arange(objects), FRAMES), scenes)
    owner = np.repeat(np.arange(scenes), objects * FRAMES)
    sample = owner * FRAMES + np.tile(np.arange(FRAMES), scenes * objects)
    first = owner * objects + thing
    start = rng.uniform(-33, 33, (scenes * objects, 2))[first]
    speed = rng.normal(0, 0.5, (scenes * objects, 2))[first]
    place = start + speed * (sample % FRAMES)[:, None] / 2
    label = rng.choice(LABELS, scenes * objects)[first]
    tokens = tuple(f"{i:08d}" for i in range(frames))
    points = rng.choice([0, 5], len(sample), p=[0.1, 0.9])
    truth = TrackingTruth(
        GroundTruth(tokens, np.zeros((frames, 2)), _boxes(sample, place, label, -1.0, points),
                    GlobalBoxes.empty()),
        first, scene, time_us,
    )  # fmt: skip
    score = np.clip(rng.beta(4, 2, scenes * objects)[first] + rng.normal(0, 0.1, len(first)), 0, 1)
    track = first + scenes * objects * (rng.random(len(first)) < 0.03)
    moved = place + rng.normal(0, 0.4, place.shape)
    moved[rng.random(len(moved)) < 0.1] += 10  # false positives
    found = TrackedBoxes(_boxes(sample, moved, label, score, np.full(len(sample), -1)), track)
    return found[rng.random(len(found)) < 0.85], truth


def _boxes(sample, place, label, score, points) -> GlobalBoxes:
    count = len(sample)
    return GlobalBoxes(
        sample=sample,
        translation=np.column_stack([place, np.ones(count)]),
        size=np.ones((count, 3)),
        rotation=np.tile([1.0, 0, 0, 0], (count, 1)),
        velocity=np.zeros((count, 2)),
        label=label,
        score=np.broadcast_to(np.asarray(score, np.float64), count).copy(),
        attribute=np.full(count, -1),
        num_points=points,
    )


def first_scenes(
    found: TrackedBoxes, truth: TrackingTruth, scenes: int
) -> tuple[TrackedBoxes, TrackingTruth]:
    """The part of a set that the devkit gets."""
    frames, annotated = scenes * FRAMES, truth.annotations
    mine = annotated.boxes.sample < frames
    part = GroundTruth(
        annotated.tokens[:frames],
        annotated.ego_position[:frames],
        annotated.boxes[mine],
        annotated.bike_racks,
    )
    cut = truth.scene[:frames], truth.timestamp_us[:frames]
    return found[found.boxes.sample < frames], TrackingTruth(part, truth.instance[mine], *cut)


def devkit(found: TrackedBoxes, truth: TrackingTruth) -> tuple[float, dict[str, float]]:
    """Seconds and AMOTA by class of the devkit's own functions on boxes that count."""
    os.environ.setdefault("MPLBACKEND", "Agg")
    from nuscenes.eval.common.config import config_factory
    from nuscenes.eval.tracking.algo import TrackingEvaluation
    from nuscenes.eval.tracking.data_classes import TrackingBox, TrackingMetricData
    from nuscenes.eval.tracking.loaders import interpolate_tracks

    from bevstack.perception.evaluation.filters import counts

    config: Any = config_factory("tracking_nips_2019")

    def tracks_of(tracked: TrackedBoxes, means: bool) -> dict:
        tracked = tracked[counts(tracked.boxes, truth.annotations)]
        scenes: dict = {int(s): defaultdict(list) for s in np.unique(truth.scene)}
        for s, t in zip(truth.scene.tolist(), truth.timestamp_us.tolist()):
            scenes[s][t] = []
        score = tracked.boxes.score.copy()
        if means:
            for number in np.unique(tracked.track):
                score[tracked.track == number] = np.mean(score[tracked.track == number])
        for i, sample in enumerate(tracked.boxes.sample.tolist()):
            box = TrackingBox(
                sample_token=truth.annotations.tokens[sample],
                translation=tuple(tracked.boxes.translation[i].tolist()),
                size=(1.0, 1.0, 1.0),
                rotation=(1.0, 0.0, 0.0, 0.0),
                tracking_id=str(tracked.track[i]),
                tracking_name=DETECTION_CLASSES[tracked.boxes.label[i]],
                tracking_score=float(score[i]),
            )
            scenes[int(truth.scene[sample])][int(truth.timestamp_us[sample])].append(box)
        return {s: interpolate_tracks(tracks) for s, tracks in scenes.items()}

    predicted = tracks_of(found, True)
    true = tracks_of(TrackedBoxes(truth.annotations.boxes, truth.instance), False)
    start, amota = time.process_time(), {}
    for name in TRACKING_CLASSES:
        data = TrackingEvaluation(
            true, predicted, name, config.dist_fcn_callable, MAX_DISTANCE, config.min_recall,
            TrackingMetricData.nelem or 0, config.metric_worst, verbose=False,
        ).accumulate()  # fmt: skip
        amota[name] = float(np.mean(np.nan_to_num(data.motar)))
    return time.process_time() - start, amota


def timed(found: TrackedBoxes, truth: TrackingTruth) -> tuple[float, TrackingMetrics]:
    """Seconds and metrics of ours."""
    start = time.process_time()
    metrics = evaluate_tracks(found, truth)
    return time.process_time() - start, metrics


def main() -> None:
    """Measure, print, and write JSON if asked to."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--objects", type=int, default=50)
    parser.add_argument("--scenes", type=int, default=150, help="of 40 frames, for the metrics")
    parser.add_argument("--devkit-scenes", type=int, default=0, help="also run the devkit on these")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--output", type=Path, help="JSON file for the result")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    moments = scene_of(rng, options.objects)
    result: dict[str, Any] = {
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "numpy": np.__version__,
        "objects": options.objects,
    }
    for name, tracker in (("greedy", GreedyTracker()), ("kalman", KalmanTracker())):
        frames_per_second(tracker, moments)
        runs = [frames_per_second(tracker, moments) for _ in range(options.runs)]
        result[f"{name}_frames_per_second"] = round(statistics.median(runs), 1)
    ratio = result["kalman_frames_per_second"] / result["greedy_frames_per_second"]
    result["kalman_to_greedy"] = round(ratio, 3)
    found, truth = tracked_set(rng, options.scenes, objects=22)
    timed(*first_scenes(found, truth, 1))
    runs = [timed(found, truth)[0] for _ in range(options.runs)]
    result["metrics"] = {
        "frames": len(truth.scene),
        "true_boxes": len(truth.instance),
        "seconds": round(statistics.median(runs), 2),
    }
    if options.devkit_scenes:
        part = first_scenes(found, truth, options.devkit_scenes)
        seconds, mine = timed(*part)
        their_seconds, amota = devkit(*part)
        worst = max(abs(amota[n] - mine.label_metrics["amota"][n]) for n in TRACKING_CLASSES)
        if worst > 1e-6:
            raise SystemExit(f"the two disagree by {worst:g}")
        result["devkit"] = {
            "frames": len(part[1].scene),
            "seconds": round(their_seconds, 1),
            "ours_seconds": round(seconds, 3),
            "times_faster": round(their_seconds / seconds),
        }
    text = json.dumps(result, indent=2)
    print(text)
    if options.output:
        options.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
