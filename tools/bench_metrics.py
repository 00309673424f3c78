"""Our detection metrics against the devkit's on a synthetic submission of nuScenes' val size.

    python tools/bench_metrics.py                       # 6,019 frames x 300 boxes
    python tools/bench_metrics.py --frames 600          # a tenth; the ratio changes little

Both read the same submission file and match it to the same ground truth in memory; what each
does to get its ground truth ready is left out, but for the devkit's filtering, which is part of
its metric. Ours: a warm-up on a small part (numba compiles), then the median of several runs. The
devkit: one run, in the same process. The two results are compared to 1e-6.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from bevstack.datasets.boxes import Boxes3D, Detections
from bevstack.datasets.geometry import quaternion_from_yaw, transform
from bevstack.datasets.nuscenes.classes import ATTRIBUTES, DETECTION_CLASSES
from bevstack.perception.evaluation.boxes import GlobalBoxes
from bevstack.perception.evaluation.detection import evaluate_detections
from bevstack.perception.evaluation.ground_truth import GroundTruth
from bevstack.perception.evaluation.submission import (
    read_submission,
    submission_meta,
    write_submission,
)

TRUTH_PER_FRAME = 31  # nuScenes val: about 187,500 annotations on 6,019 samples


def synthetic_truth(rng: np.random.Generator, frames: int) -> GroundTruth:
    """Upright boxes of all classes within 45 m of the vehicle."""
    count = frames * TRUTH_PER_FRAME
    ego = rng.uniform(0, 2000, (frames, 2))
    sample = np.repeat(np.arange(frames), TRUTH_PER_FRAME)
    place = ego[sample] + rng.uniform(-32, 32, (count, 2))
    boxes = GlobalBoxes(
        sample=sample,
        translation=np.column_stack([place, rng.uniform(0, 2, count)]),
        size=rng.uniform(0.5, 5, (count, 3)),
        rotation=quaternion_from_yaw(rng.uniform(-np.pi, np.pi, count)),
        velocity=rng.normal(0, 3, (count, 2)),
        label=rng.choice(len(DETECTION_CLASSES), count),
        score=np.full(count, -1.0),
        attribute=rng.integers(0, len(ATTRIBUTES), count),
        num_points=rng.integers(0, 50, count),
    )
    tokens = tuple(f"{i:032x}" for i in range(frames))
    return GroundTruth(tokens, ego, boxes, GlobalBoxes.empty())


def synthetic_detections(
    rng: np.random.Generator, truth: GroundTruth, boxes: int
) -> tuple[list[Detections], np.ndarray]:
    """Noisy copies of the truth filled up with inventions, in each vehicle's frame."""
    found, transforms = [], []
    starts = np.searchsorted(truth.boxes.sample, np.arange(len(truth.tokens) + 1))
    for frame, ego in enumerate(truth.ego_position):
        here = truth.boxes[np.arange(starts[frame], starts[frame + 1])]
        copied, invented = min(len(here), boxes), max(0, boxes - len(here))
        center = np.concatenate(
            [
                here.translation[:copied] - [*ego, 0] + rng.normal(0, 0.5, (copied, 3)),
                rng.uniform(-54, 54, (invented, 3)),
            ]
        )
        label = np.append(here.label[:copied], rng.choice(len(DETECTION_CLASSES), invented))
        yaw, size = rng.uniform(-np.pi, np.pi, boxes), rng.uniform(0.5, 5, (boxes, 3))
        found.append(
            Detections(
                Boxes3D(center, size, yaw, rng.normal(0, 3, (boxes, 2)), label),
                np.append(rng.beta(4, 2, copied), rng.beta(1, 6, invented)),
                rng.integers(-1, len(ATTRIBUTES), boxes),
            )
        )
        transforms.append(transform(np.eye(3), [*ego, 0]))
    return found, np.stack(transforms)


def ours(path: Path, truth: GroundTruth) -> tuple[dict[str, float], dict]:
    """Seconds by stage, and the metrics."""
    start = time.perf_counter()
    predictions = read_submission(path, truth.tokens)
    read = time.perf_counter()
    metrics = evaluate_detections(predictions, truth)
    end = time.perf_counter()
    return {"read": read - start, "evaluate": end - read}, metrics.to_json()


def devkit(path: Path, truth: GroundTruth) -> tuple[dict[str, float], dict]:
    """The same through the devkit's own functions, as its ``DetectionEval`` calls them."""
    os.environ.setdefault("MPLBACKEND", "Agg")
    from nuscenes.eval.common.config import config_factory
    from nuscenes.eval.common.loaders import add_center_dist, filter_eval_boxes, load_prediction
    from nuscenes.eval.detection.data_classes import DetectionBox
    from nuscenes.eval.detection.evaluate import DetectionEval

    # Stand-ins that offer what these functions use of the devkit's classes.
    tables: Any = _Tables(truth)
    true_boxes = add_center_dist(tables, _devkit_boxes(truth))
    config: Any = config_factory("detection_cvpr_2019")
    true_boxes = filter_eval_boxes(tables, true_boxes, config.class_range)
    start = time.perf_counter()
    predicted, _ = load_prediction(str(path), config.max_boxes_per_sample, DetectionBox)
    predicted = add_center_dist(tables, predicted)
    predicted = filter_eval_boxes(tables, predicted, config.class_range)
    read = time.perf_counter()
    evaluation: Any = SimpleNamespace(
        verbose=False, cfg=config, gt_boxes=true_boxes, pred_boxes=predicted
    )
    metrics, _ = DetectionEval.evaluate(evaluation)
    end = time.perf_counter()
    return {"read": read - start, "evaluate": end - read}, metrics.serialize()


class _Tables:
    """The few records that the devkit's filters ask a ``NuScenes`` object for."""

    def __init__(self, truth: GroundTruth):
        self.records = {}
        for token, (x, y) in zip(truth.tokens, truth.ego_position.tolist(), strict=True):
            self.records["sample", token] = {"data": {"LIDAR_TOP": token}, "anns": []}
            self.records["sample_data", token] = {"ego_pose_token": token}
            self.records["ego_pose", token] = {"translation": [x, y, 0.0]}

    def get(self, table: str, token: str) -> dict:
        return self.records[table, token]


def _devkit_boxes(truth: GroundTruth):
    from nuscenes.eval.common.data_classes import EvalBoxes
    from nuscenes.eval.detection.data_classes import DetectionBox

    boxes, result = truth.boxes, EvalBoxes()
    for token in truth.tokens:
        result.add_boxes(token, [])
    for i in range(len(boxes)):
        token = truth.tokens[boxes.sample[i]]
        box = DetectionBox(
            sample_token=token,
            translation=tuple(boxes.translation[i].tolist()),
            size=tuple(boxes.size[i].tolist()),
            rotation=tuple(boxes.rotation[i].tolist()),
            velocity=tuple(boxes.velocity[i].tolist()),
            num_pts=int(boxes.num_points[i]),
            detection_name=DETECTION_CLASSES[boxes.label[i]],
            attribute_name=ATTRIBUTES[boxes.attribute[i]],
        )
        result.add_boxes(token, [box])
    return result


def main() -> None:
    """Measure, print, and write JSON if asked to."""
    parser = argparse.ArgumentParser(description="Our detection metrics against the devkit's.")
    parser.add_argument("--frames", type=int, default=6019)
    parser.add_argument("--boxes", type=int, default=300, help="predictions a frame")
    parser.add_argument("--runs", type=int, default=3, help="of ours, after a warm-up")
    parser.add_argument("--no-devkit", action="store_true", help="measure ours alone")
    parser.add_argument("--output", type=Path, help="JSON file for the result")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    truth = synthetic_truth(rng, options.frames)
    small = synthetic_truth(rng, 2)
    with tempfile.TemporaryDirectory() as folder:
        path, small_path = Path(folder) / "submission.json", Path(folder) / "small.json"
        meta = submission_meta(True, True)
        write_submission(small_path, small.tokens, *synthetic_detections(rng, small, 40), meta)
        found = synthetic_detections(rng, truth, options.boxes)
        start = time.perf_counter()
        write_submission(path, truth.tokens, *found, meta)
        result = {
            "frames": options.frames,
            "boxes_per_frame": options.boxes,
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "numpy": np.__version__,
            "write_seconds": time.perf_counter() - start,
        }
        del found
        ours(small_path, small)
        runs = [ours(path, truth) for _ in range(options.runs)]
        result["ours"] = {
            stage: statistics.median(seconds[stage] for seconds, _ in runs)
            for stage in ("read", "evaluate")
        }
        if not options.no_devkit:
            result["devkit"], theirs = devkit(path, truth)
            result["ratio"] = sum(result["devkit"].values()) / sum(result["ours"].values())
            mine = runs[0][1]
            difference = abs(mine["mean_ap"] - theirs["mean_ap"])
            difference = max(difference, abs(mine["nd_score"] - theirs["nd_score"]))
            if difference > 1e-6:
                raise SystemExit(f"the two disagree by {difference:g}")
    text = json.dumps(result, indent=2)
    print(text)
    if options.output:
        options.output.write_text(text + "\n")


if __name__ == "__main__":
    main()
