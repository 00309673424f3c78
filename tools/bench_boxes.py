"""Time box overlap and suppression on the CPU beside shapely, in the same run.

    python tools/bench_boxes.py [--boxes 1000] [--threads 2] [--json file]

Shapely is used as fast as it goes without an index: one call for the intersections of all pairs,
polygons made beforehand; for suppression the greedy loop, one call for each box that stays with
those that are still alive. Results are compared before anything is timed, which is the warm-up:
overlaps to 1e-5, the boxes that stay one by one. A figure is the median, in milliseconds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import shapely
import torch
from bench_kernels import Timing, compare, environment, table
from torch import Tensor

from bevstack.kernels import box_giou_bev, box_iou, box_iou_bev, circle_nms, nms

THRESHOLD = 0.2
RANGE, CROWD = 54.0, 6.0  # metres from the middle to the edge; in the crowd most boxes meet
CLASS_SIZE = [[4.6, 1.9, 1.7], [6.9, 2.5, 2.8], [11, 2.9, 3.4], [0.7, 0.7, 1.8], [2.1, 0.8, 1.5]]


def make_boxes(count: int, extent: float) -> tuple[Tensor, Tensor, Tensor]:
    """Detections as a head gives them before suppression: several of one object.

    Returns:
        Boxes (M, 7), scores (M,), labels (M,).
    """
    random = np.random.default_rng(0)
    num_objects = max(count // 4, 1)
    position = random.uniform(-extent, extent, (num_objects, 2))
    label = random.integers(0, len(CLASS_SIZE), num_objects)
    size = np.array(CLASS_SIZE)[label] * random.uniform(0.8, 1.2, (num_objects, 3))
    yaw = random.uniform(-np.pi, np.pi, (num_objects, 1))
    height = random.normal(0, 0.3, (num_objects, 1))
    objects = np.concatenate([position, height, size, yaw], 1)
    owner = random.integers(0, num_objects, count)
    boxes = objects[owner] + random.normal(0, [0.4, 0.4, 0.1, 0.1, 0.05, 0.05, 0.1], (count, 7))
    boxes[:, 3:6] = boxes[:, 3:6].clip(0.2)
    boxes, scores = torch.from_numpy(boxes).float(), torch.from_numpy(random.uniform(0, 1, count))
    return boxes, scores.float(), torch.from_numpy(label[owner])


# --- Baselines ------------------------------------------------------------------------------------


def polygons(boxes: Tensor) -> np.ndarray:
    """(M,) ground rectangles."""
    box = boxes.double().numpy()
    half = box[:, None, 3:5] / 2 * np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]])
    cos, sin = np.cos(box[:, 6:]), np.sin(box[:, 6:])
    x = half[..., 0] * cos - half[..., 1] * sin + box[:, :1]
    y = half[..., 0] * sin + half[..., 1] * cos + box[:, 1:2]
    return np.asarray(shapely.polygons(np.stack([x, y], -1)))


def shared_area(shapes: np.ndarray) -> np.ndarray:
    """Areas of the intersections of all pairs (M, M)."""
    # A copy: shapely locks both arrays while it works, and cannot unlock a view.
    return shapely.area(shapely.intersection(shapes[:, None].copy(), shapes))


def shapely_iou_bev(shapes: np.ndarray) -> np.ndarray:
    """IoU of all pairs."""
    shared, area = shared_area(shapes), shapely.area(shapes)
    return shared / (area[:, None] + area - shared)


def shapely_iou(shapes: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """IoU of the volumes of all pairs."""
    shared, area = shared_area(shapes), shapely.area(shapes)
    low, high = boxes[:, 2] - boxes[:, 5] / 2, boxes[:, 2] + boxes[:, 5] / 2
    both = np.minimum(high[:, None], high) - np.maximum(low[:, None], low)
    shared, volume = shared * both.clip(0), area * boxes[:, 5]
    return shared / (volume[:, None] + volume - shared)


def shapely_giou_bev(shapes: np.ndarray) -> np.ndarray:
    """Generalized IoU of all pairs."""
    shared, area = shared_area(shapes), shapely.area(shapes)
    union = area[:, None] + area - shared
    pairs = np.stack(np.broadcast_arrays(shapes[:, None], shapes), -1)
    hull = shapely.area(shapely.convex_hull(shapely.geometrycollections(pairs)))
    return shared / union - (hull - union) / hull


def shapely_nms(shapes: np.ndarray, scores: np.ndarray, labels: np.ndarray) -> list[int]:
    """The greedy loop, intersecting the best with what is still alive of its class."""
    area, alive, kept = shapely.area(shapes), np.argsort(-scores, kind="stable"), []
    while len(alive):
        best, rest = alive[0], alive[1:]
        kept.append(int(best))
        same = rest[labels[rest] == labels[best]]
        shared = shapely.area(shapely.intersection(shapes[best], shapes[same]))
        gone = same[shared / (area[best] + area[same] - shared) > THRESHOLD]
        alive = rest[~np.isin(rest, gone)]
    return kept


def rounds_circle_nms(position, side, labels, scale: float) -> np.ndarray:
    """Circle suppression by rounds over a numpy table, as decoding had it before; best first."""
    distance = np.linalg.norm(position[:, None] - position[None], axis=-1)
    near = distance < scale * (side[:, None] + side[None]) / 2
    near = np.tril(near & (labels[:, None] == labels[None]), -1)
    keep = np.ones(len(labels), bool)
    while True:
        settled = ~(near & keep).any(1)
        if (settled == keep).all():
            return np.flatnonzero(keep)
        keep = settled


# --- Tasks ----------------------------------------------------------------------------------------


def measure(task: str, methods: dict[str, Callable], repeat: int) -> list[Timing]:
    """Compare the results of the methods with the first, then time single calls."""
    expected, *others = [call() for call in methods.values()]
    for got in others:
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5)
    timings = []
    for method, call in methods.items():
        seconds = []
        for _ in range(min(repeat, 3) if method == "shapely" else repeat):
            start = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - start)
        median, fastest = 1e3 * statistics.median(seconds), 1e3 * min(seconds)
        timings.append(Timing(task, method, median, fastest, None))
    return timings


def bench_scene(count: int, extent: float, repeat: int) -> list[Timing]:
    """Overlap of all pairs, and suppression with and without labels."""
    boxes, scores, labels = make_boxes(count, extent)
    shapes, array = polygons(boxes), boxes.double().numpy()
    one, np_scores, np_labels = np.zeros(count, int), scores.numpy(), labels.numpy()
    tasks: dict[str, dict[str, Callable]] = {
        "box_iou_bev": {
            "shapely": lambda: shapely_iou_bev(shapes),
            "ours": lambda: box_iou_bev(boxes, boxes).numpy(),
        },
        "box_iou": {
            "shapely": lambda: shapely_iou(shapes, array),
            "ours": lambda: box_iou(boxes, boxes).numpy(),
        },
        "box_giou_bev": {
            "shapely": lambda: shapely_giou_bev(shapes),
            "ours": lambda: box_giou_bev(boxes, boxes).numpy(),
        },
        "nms": {
            "shapely": lambda: shapely_nms(shapes, np_scores, one),
            "ours": lambda: nms(boxes, scores, THRESHOLD).tolist(),
        },
        "nms by class": {
            "shapely": lambda: shapely_nms(shapes, np_scores, np_labels),
            "ours": lambda: nms(boxes, scores, THRESHOLD, labels).tolist(),
        },
    }
    timings = []
    for task, methods in tasks.items():
        timings += measure(f"{task}, {count} boxes within {extent:g} m", methods, repeat)
    return timings


def bench_circle(count: int, repeat: int) -> list[Timing]:
    """Circle suppression as the centre head decodes one sample."""
    boxes, scores, labels = make_boxes(count, RANGE)
    order = scores.argsort(descending=True, stable=True)
    boxes, scores, labels = boxes[order].double(), scores[order], labels[order]
    side, position = boxes[:, 3:5].amin(1), boxes[:, :2].numpy()
    methods = {
        "numpy rounds (before)": lambda: rounds_circle_nms(
            position, side.numpy(), labels.numpy(), 1.0
        ),
        "ours": lambda: circle_nms(boxes, scores, side, labels).numpy(),
    }
    return measure(f"circle_nms by class, {count} boxes", methods, repeat)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--boxes", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeat", type=int, default=21)
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    about = environment(args.threads, "none") | {"shapely": shapely.__version__}
    del about["calibration"]
    print(" | ".join(f"{key} {value}" for key, value in about.items()))
    timings = bench_scene(args.boxes, RANGE, args.repeat)
    timings += bench_scene(args.boxes // 5, CROWD, args.repeat)
    for count in (500, args.boxes):  # a head gives at most 500
        timings += bench_circle(count, args.repeat)
    timings = compare(timings)
    print(table(timings))
    if args.json:
        rows = [asdict(timing) for timing in timings]
        args.json.write_text(json.dumps({"environment": about, "timings": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
