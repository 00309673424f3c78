"""Writes small nuScenes folders with objects that move, and submissions of tracks on them."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

import numpy as np
from evaluation_tables import BIKE_RACK, SPLIT, fixed_tables, write_folder

from bevstack.datasets.nuscenes.classes import CLASS_OF_CATEGORY, TRACKING_CLASSES

CATEGORY = {
    "bicycle": "vehicle.bicycle",
    "bus": "vehicle.bus.rigid",
    "car": "vehicle.car",
    "motorcycle": "vehicle.motorcycle",
    "pedestrian": "human.pedestrian.adult",
    "trailer": "vehicle.trailer",
    "truck": "vehicle.truck",
}


@dataclass
class Moving:
    """An object of a scene: where it is at each frame, or None while it is not annotated."""

    category: str
    places: list[tuple[float, float] | None]
    points: list[int]
    size: list[float] = field(default_factory=lambda: [2.0, 4.0, 1.5])


class TrackedWorld:
    """A folder of short scenes that the devkit loads, with a custom split of all of them."""

    ROTATION: ClassVar[list[float]] = [0.9, 0.0, 0.0, math.sqrt(1 - 0.81)]

    def __init__(self, root: Path, scenes: list[list[Moving]], times_us: list[list[int]]):
        self.root, self.scenes, self.times_us = root, scenes, times_us
        self.tables = fixed_tables()
        self.tokens = [
            self.token(s, f) for s, times in enumerate(times_us) for f in range(len(times))
        ]
        for s in range(len(scenes)):
            self._add_scene(s)
        names = [record["name"] for record in self.tables["scene"]]
        write_folder(root, self.tables, {SPLIT: names})

    @staticmethod
    def token(scene: int, frame: int) -> str:
        return f"sample-{scene}-{frame:02d}"

    def submit(self, results: dict[str, list[dict]], name: str = "tracks.json") -> Path:
        path = self.root / name
        results = {token: results.get(token, []) for token in self.tokens}
        path.write_text(json.dumps({"meta": {"use_lidar": True}, "results": results}))
        return path

    def box(self, scene: int, frame: int, number: int, **changes) -> dict:
        """A submitted box equal to the annotation, but for the changes."""
        thing = self.scenes[scene][number]
        place = thing.places[frame] or (0.0, 0.0)
        return {
            "sample_token": self.token(scene, frame),
            "translation": [*place, 1.0],
            "size": thing.size,
            "rotation": self.ROTATION,
            "velocity": [0.0, 0.0],
            "tracking_id": str(number),
            "tracking_name": CLASS_OF_CATEGORY[thing.category],
            "tracking_score": 0.5,
        } | changes

    def seen(self):
        """(scene, frame, number) of every annotation."""
        for s, things in enumerate(self.scenes):
            for f in range(len(self.times_us[s])):
                for n, thing in enumerate(things):
                    if thing.places[f] is not None:
                        yield s, f, n

    def _add_scene(self, s: int) -> None:
        t, frames = self.tables, len(self.times_us[s])
        tokens = [self.token(s, f) for f in range(frames)]
        ends = {"first_sample_token": tokens[0], "last_sample_token": tokens[-1]}
        scene = {"token": f"scene{s}", "name": f"scene-{s:04d}", "log_token": "log"}
        t["scene"].append({**scene, **ends, "nbr_samples": frames, "description": ""})
        for f, (token, time) in enumerate(zip(tokens, self.times_us[s], strict=True)):
            links = {"prev": tokens[f - 1] if f else "", "next": [*tokens, ""][f + 1]}
            at = {"token": token, "timestamp": time}
            t["sample"].append({**at, **links, "scene_token": f"scene{s}"})
            pose = {"rotation": [1.0, 0.0, 0.0, 0.0], "translation": [*self.ego(s, f), 0.0]}
            t["ego_pose"].append({**at, **pose})
            refers = {"sample_token": token, "ego_pose_token": token}
            file = {"filename": f"samples/LIDAR_TOP/{token}.pcd.bin", "fileformat": "pcd"}
            record = {**at, **refers, **file, "calibrated_sensor_token": "lidar", "prev": ""}
            size = {"width": 0, "height": 0, "is_key_frame": True, "next": ""}
            t["sample_data"].append({**record, **size})
        for n, thing in enumerate(self.scenes[s]):
            self._add_object(s, n, thing)

    @staticmethod
    def ego(scene: int, frame: int) -> list[float]:
        return [300.0 + 50 * scene + 2 * frame, 700.0]

    def _add_object(self, s: int, n: int, thing: Moving) -> None:
        frames = [f for f, place in enumerate(thing.places) if place is not None]
        tokens = [f"{s}-{n}-{f}" for f in frames]
        self.tables["instance"].append(
            {
                "token": f"object-{s}-{n}",
                "category_token": thing.category,
                "nbr_annotations": len(tokens),
                "first_annotation_token": tokens[0] if tokens else "",
                "last_annotation_token": tokens[-1] if tokens else "",
            }
        )
        for i, f in enumerate(frames):
            self.tables["sample_annotation"].append(
                {
                    "token": tokens[i],
                    "sample_token": self.token(s, f),
                    "instance_token": f"object-{s}-{n}",
                    "translation": [*thing.places[f], 1.0],
                    "size": thing.size,
                    "rotation": self.ROTATION,
                    "attribute_tokens": [],
                    "num_lidar_pts": thing.points[f],
                    "num_radar_pts": 0,
                    "prev": tokens[i - 1] if i else "",
                    "next": [*tokens, ""][i + 1],
                    "visibility_token": "4",
                }
            )


def random_world(root: Path, rng: np.random.Generator, frames: tuple[int, ...] = (6, 4)):
    """Crowded scenes: holes, objects without points, out of range, in bike racks, uneven times."""
    scenes, times = [], []
    for s, count in enumerate(frames):
        steps = rng.integers(350_000, 700_000, count)
        times.append((1_600_000_000_000_000 + 60_000_000 * s + np.cumsum(steps)).tolist())
        categories = [CATEGORY[name] for name in TRACKING_CLASSES]
        categories += ["vehicle.car"] * 3 + ["human.pedestrian.adult"] * 2 + ["vehicle.bicycle"]
        categories += ["movable_object.barrier", BIKE_RACK, "vehicle.construction"]
        if s == 1:  # a class of one scene only
            categories = [c for c in categories if c != "vehicle.trailer"]
        scenes.append([_random_object(rng, c, s, count) for c in categories])
    return TrackedWorld(root, scenes, times)


def _random_object(rng: np.random.Generator, category: str, scene: int, frames: int) -> Moving:
    x, y = TrackedWorld.ego(scene, 0)
    spread = 48 if rng.random() < 0.1 else 12  # mostly close to each other, so that they mix
    start, speed = np.array([x, y]) + rng.uniform(-spread, spread, 2), rng.normal(0, 1.5, 2)
    first, last = sorted(rng.integers(0, frames + 1, 2))
    if last - first < 2 and rng.random() < 0.8:
        first, last = 0, frames
    places = [
        tuple((start + speed * f / 2).tolist())
        if first <= f < last and rng.random() < 0.9
        else None
        for f in range(frames)
    ]
    points = rng.choice([0, 1, 5], frames, p=[0.15, 0.25, 0.6]).tolist()
    size = [2.0, 4.0, 1.5] if category != BIKE_RACK else [8.0, 8.0, 3.0]
    return Moving(category, places, points, size)


def random_tracks(world: TrackedWorld, rng: np.random.Generator) -> dict[str, list[dict]]:
    """Perturbed copies of the truth: moved, missing, renamed, swapped, invented, doubled."""
    noise, lost, swap = rng.uniform(0, 1.5), rng.uniform(0, 0.4), rng.uniform(0, 0.3)
    # The devkit takes its time for every threshold, so most submissions have few scores.
    levels, per_track = (
        int(rng.choice([1, 2, 3, 1000], p=[0.2, 0.35, 0.35, 0.1])),
        rng.random() < 0.7,
    )
    names, scores = {}, {}
    results: dict[str, list[dict]] = {token: [] for token in world.tokens}

    def score(track: object) -> float:
        fresh = float(np.ceil(rng.random() * levels) / levels)
        return scores.setdefault(track, fresh) if per_track else fresh

    for s, f, n in world.seen():
        category = world.scenes[s][n].category
        if CLASS_OF_CATEGORY.get(category) not in TRACKING_CLASSES or rng.random() < lost:
            continue
        if rng.random() < swap:  # a new name, or that of another object, from here on
            names[s, n] = str(rng.integers(0, 40))
        name = names.get((s, n), str(n))
        box = world.box(s, f, n, tracking_id=name, tracking_score=score((s, name)))
        box["translation"] = (np.array(box["translation"]) + rng.normal(0, noise, 3)).tolist()
        if rng.random() < 0.03:
            box["tracking_name"] = str(rng.choice(TRACKING_CLASSES))
        results[box["sample_token"]].append(box)
    for s, times in enumerate(world.times_us):  # inventions
        for _ in range(int(rng.integers(0, 6))):
            first, last = sorted(rng.integers(0, len(times) + 1, 2))
            place = np.array([*world.ego(s, 0), 0]) + rng.uniform(-15, 15, 3)
            name = str(rng.choice(TRACKING_CLASSES))
            for f in range(first, last):
                changes = {"translation": place.tolist(), "tracking_name": name}
                changes |= {
                    "tracking_id": f"invented{place[0]:.3f}",
                    "tracking_score": score(place[0]),
                }
                results[world.token(s, f)].append(world.box(s, f, 0, **changes))
    return {
        token: [boxes[i] for i in rng.permutation(len(boxes))] for token, boxes in results.items()
    }
