"""Writes tiny tables-only nuScenes folders and runs the unmodified devkit on them."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from bevstack.datasets.nuscenes.classes import (
    ATTRIBUTES,
    CLASS_OF_CATEGORY,
    DETECTION_CLASSES,
    attributes_of,
)
from bevstack.perception.evaluation.boxes import GlobalBoxes
from bevstack.perception.evaluation.ground_truth import BIKE_RACK, GroundTruth

CATEGORIES = (*CLASS_OF_CATEGORY, BIKE_RACK, "animal")
SPLIT = "tiny"
VERSION = "v1.0-tiny"


@dataclass
class Annotation:
    """One annotated box, as in the table; ``velocity`` decides where its neighbours are."""

    translation: list[float]
    category: str = "vehicle.car"
    size: list[float] = field(default_factory=lambda: [2.0, 4.0, 1.5])
    rotation: list[float] = field(default_factory=lambda: [1.0, 0.0, 0.0, 0.0])
    velocity: tuple[float, float] = (math.nan, math.nan)
    attribute: str = ""
    num_points: int = 5


@dataclass
class Sample:
    """One key frame: where the vehicle is and what stands around it."""

    ego: tuple[float, float]
    annotations: list[Annotation]

    def box(self, token: str, annotation: Annotation, **changes) -> dict:
        """A submitted box equal to the annotation, but for the changes."""
        return {
            "sample_token": token,
            "translation": annotation.translation,
            "size": annotation.size,
            "rotation": annotation.rotation,
            "velocity": list(annotation.velocity),
            "detection_name": CLASS_OF_CATEGORY[annotation.category],
            "detection_score": 0.5,
            "attribute_name": annotation.attribute,
        } | changes


class TinyDataset:
    """A folder that the devkit loads.

    A moving object's velocity comes, as in nuScenes, from its neighbours in time: hidden samples
    of another scene, which is not in the split, hold them.
    """

    def __init__(self, root: Path, samples: list[Sample]):
        self.root, self.samples = root, samples
        self.tokens = [f"sample{i:03d}" for i in range(len(samples))]
        self.tables: dict[str, list[dict]] = {}
        self._write()

    def submit(self, results: dict[str, list[dict]], name: str = "submission.json") -> Path:
        path = self.root / name
        results = {token: results.get(token, []) for token in self.tokens}
        path.write_text(json.dumps({"meta": {"use_lidar": True}, "results": results}))
        return path

    def devkit(self, submission: Path) -> dict:
        """The devkit's metrics_summary for a submission."""
        from nuscenes import NuScenes
        from nuscenes.eval.common.config import config_factory
        from nuscenes.eval.detection.evaluate import DetectionEval

        nusc = NuScenes(VERSION, str(self.root), verbose=False)
        evaluation = DetectionEval(
            nusc,
            config_factory("detection_cvpr_2019"),
            str(submission),
            SPLIT,
            str(self.root / "out"),
            verbose=False,
        )
        metrics, _ = evaluation.evaluate()
        return metrics.serialize()

    def truth(self) -> GroundTruth:
        """Our ground truth, straight from the values."""
        rows = [(i, a) for i, sample in enumerate(self.samples) for a in sample.annotations]
        label = [_label(a.category) for _, a in rows]
        boxes = GlobalBoxes(
            sample=np.array([i for i, _ in rows], np.int64),
            translation=np.array([a.translation for _, a in rows], float).reshape(-1, 3),
            size=np.array([a.size for _, a in rows], float).reshape(-1, 3),
            rotation=np.array([a.rotation for _, a in rows], float).reshape(-1, 4),
            velocity=np.array([a.velocity for _, a in rows], float).reshape(-1, 2),
            label=np.array(label, np.int64),
            score=np.full(len(rows), -1.0),
            attribute=np.array(
                [ATTRIBUTES.index(a.attribute) if a.attribute else -1 for _, a in rows], np.int64
            ),
            num_points=np.array([a.num_points for _, a in rows], np.int64),
        )
        rack = np.array([a.category == BIKE_RACK for _, a in rows], bool)
        ego = np.array([sample.ego for sample in self.samples], float)
        return GroundTruth(tuple(self.tokens), ego, boxes[boxes.label >= 0], boxes[rack])

    def _write(self) -> None:
        t = self.tables = fixed_tables()
        for scene in ("scene-0001", "scene-hidden"):
            t["scene"].append(
                {
                    "token": scene,
                    "name": scene,
                    "log_token": "log",
                    "first_sample_token": "",
                    "last_sample_token": "",
                    "nbr_samples": 0,
                    "description": "",
                }
            )
        # The hidden samples lie half a second before and after.
        for i, (token, sample) in enumerate(zip(self.tokens, self.samples, strict=True)):
            time = (i + 1) * 10_000_000
            self._add_sample(token, "scene-0001", time, sample.ego)
            self._add_sample(token + "-before", "scene-hidden", time - 500_000, sample.ego)
            self._add_sample(token + "-after", "scene-hidden", time + 500_000, sample.ego)
            for number, annotation in enumerate(sample.annotations):
                self._add_annotation(token, f"{token}-{number}", annotation)
        write_folder(self.root, t, {SPLIT: ["scene-0001"]})

    def _add_sample(self, token: str, scene: str, time: int, ego: tuple[float, float]) -> None:
        self.tables["sample"].append(
            {"token": token, "timestamp": time, "prev": "", "next": "", "scene_token": scene}
        )
        self.tables["ego_pose"].append(
            {
                "token": token,
                "timestamp": time,
                "rotation": [1.0, 0.0, 0.0, 0.0],
                "translation": [*ego, 0.0],
            }
        )
        self.tables["sample_data"].append(
            {
                "token": token,
                "sample_token": token,
                "ego_pose_token": token,
                "calibrated_sensor_token": "lidar",
                "timestamp": time,
                "filename": f"samples/LIDAR_TOP/{token}.pcd.bin",
                "fileformat": "pcd",
                "width": 0,
                "height": 0,
                "is_key_frame": True,
                "prev": "",
                "next": "",
            }
        )

    def _add_annotation(self, sample: str, token: str, annotation: Annotation) -> None:
        moving = not math.isnan(annotation.velocity[0])
        row = {
            "token": token,
            "sample_token": sample,
            "instance_token": token,
            "translation": annotation.translation,
            "size": annotation.size,
            "rotation": annotation.rotation,
            "attribute_tokens": [annotation.attribute] if annotation.attribute else [],
            "num_lidar_pts": annotation.num_points,
            "num_radar_pts": 0,
            "prev": token + "-before" if moving else "",
            "next": token + "-after" if moving else "",
            "visibility_token": "4",
        }
        self.tables["instance"].append(
            {
                "token": token,
                "category_token": annotation.category,
                "nbr_annotations": 3 if moving else 1,
                "first_annotation_token": token,
                "last_annotation_token": token,
            }
        )
        self.tables["sample_annotation"].append(row)
        if not moving:
            return
        for when, sign in (("before", -0.5), ("after", 0.5)):
            x, y = (p + sign * v for p, v in zip(annotation.translation, annotation.velocity))
            self.tables["sample_annotation"].append(
                row
                | {
                    "token": f"{token}-{when}",
                    "sample_token": f"{sample}-{when}",
                    "translation": [x, y, annotation.translation[2]],
                    "prev": "",
                    "next": "",
                }
            )


_TABLES = (
    "category",
    "attribute",
    "visibility",
    "instance",
    "sensor",
    "calibrated_sensor",
    "ego_pose",
    "log",
    "scene",
    "sample",
    "sample_data",
    "sample_annotation",
    "map",
)


def fixed_tables() -> dict[str, list[dict]]:
    """All tables; those that do not depend on the samples are filled."""
    t: dict[str, list[dict]] = {name: [] for name in _TABLES}
    t["category"] = [{"token": name, "name": name, "description": ""} for name in CATEGORIES]
    t["attribute"] = [{"token": name, "name": name, "description": ""} for name in ATTRIBUTES]
    t["visibility"] = [{"token": str(i), "level": "", "description": ""} for i in range(1, 5)]
    t["sensor"] = [{"token": "lidar", "channel": "LIDAR_TOP", "modality": "lidar"}]
    t["calibrated_sensor"] = [
        {
            "token": "lidar",
            "sensor_token": "lidar",
            "translation": [0.9, 0.0, 1.8],
            "rotation": [1.0, 0.0, 0.0, 0.0],
            "camera_intrinsic": [],
        }
    ]
    t["log"] = [
        {
            "token": "log",
            "logfile": "log",
            "vehicle": "v",
            "date_captured": "2020-01-01",
            "location": "singapore-onenorth",
        }
    ]
    t["map"] = [
        {
            "token": "map",
            "filename": "maps/map.png",
            "log_tokens": ["log"],
            "category": "semantic_prior",
        }
    ]
    return t


def write_folder(root: Path, tables: dict[str, list[dict]], splits: dict[str, list[str]]) -> None:
    """Write the tables and what else the devkit looks for."""
    folder = root / VERSION
    folder.mkdir(parents=True)
    (root / "maps").mkdir()
    cv2.imwrite(str(root / "maps/map.png"), np.zeros((10, 10), np.uint8))
    for name, rows in tables.items():
        (folder / f"{name}.json").write_text(json.dumps(rows))
    (folder / "splits.json").write_text(json.dumps(splits))


def _label(category: str) -> int:
    name = CLASS_OF_CATEGORY.get(category)
    return DETECTION_CLASSES.index(name) if name else -1


def random_samples(rng: np.random.Generator, count: int = 6, boxes: int = 40) -> list[Sample]:
    """Samples with every class, tilted boxes, bike racks, boxes without points or attribute."""
    return [_random_sample(rng, boxes) for _ in range(count)]


def _random_sample(rng: np.random.Generator, boxes: int) -> Sample:
    ego = rng.uniform(0, 1500, 2).round(3)
    annotations = []
    for _ in range(boxes):
        category = CATEGORIES[rng.integers(len(CATEGORIES))]
        detection_class = CLASS_OF_CATEGORY.get(category)
        allowed = attributes_of(detection_class) if detection_class else ()
        attribute = str(rng.choice(allowed)) if allowed and rng.random() < 0.8 else ""
        size = rng.uniform(0.5, 5, 3) if category != BIKE_RACK else rng.uniform(6, 14, 3)
        rotation = np.array([rng.normal(), *(0.05 * rng.normal(size=2)), rng.normal()])
        annotations.append(
            Annotation(
                translation=[*(ego + rng.uniform(-40, 40, 2)), rng.uniform(0, 2)],
                category=category,
                size=size.tolist(),
                rotation=rotation.tolist(),
                velocity=tuple(rng.normal(0, 3, 2)) if rng.random() < 0.7 else (math.nan,) * 2,
                attribute=attribute,
                num_points=int(rng.integers(0, 6)),
            )
        )
    return Sample((float(ego[0]), float(ego[1])), annotations)


def random_results(
    rng: np.random.Generator, data: TinyDataset, noise: float, levels: int | None = None
) -> dict[str, list[dict]]:
    """Perturbed copies, some repeated, left out or renamed; with ``levels`` scores tie."""
    results = {}
    for token, sample in zip(data.tokens, data.samples, strict=True):
        known = [a for a in sample.annotations if a.category in CLASS_OF_CATEGORY]
        found = [
            _perturbed(rng, token, sample, annotation, noise, levels)
            for annotation in known
            for _ in range(int(rng.choice([0, 1, 1, 1, 2])))
        ]
        results[token] = [found[i] for i in rng.permutation(len(found))]
    return results


def _perturbed(rng, token, sample, annotation, noise, levels) -> dict:
    score = float(rng.random())
    if levels:
        score = math.floor(score * levels) / levels
    changes = {
        "translation": (np.array(annotation.translation) + rng.normal(0, noise, 3)).tolist(),
        "size": (np.array(annotation.size) * np.exp(rng.normal(0, 0.2, 3))).tolist(),
        "rotation": (np.array(annotation.rotation) + rng.normal(0, 0.3, 4)).tolist(),
        "velocity": rng.normal(0, 3, 2).tolist() if rng.random() < 0.9 else [math.nan, math.nan],
        "detection_score": score,
    }
    if rng.random() < 0.15:
        changes["detection_name"] = str(rng.choice(DETECTION_CLASSES))
    if rng.random() < 0.3:
        changes["attribute_name"] = str(rng.choice(["", *ATTRIBUTES]))
    return sample.box(token, annotation, **changes)
