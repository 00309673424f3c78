"""nuScenes' JSON tables: records of scenes, joined and written."""

from __future__ import annotations

import hashlib
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

from .map_layers import CANVAS
from .rig import CAMERAS

Record = dict[str, Any]
Tables = dict[str, list[Record]]

# Indices as in nuScenes-lidarseg.
CATEGORIES = (
    "noise", "animal", "human.pedestrian.adult", "human.pedestrian.child",
    "human.pedestrian.construction_worker", "human.pedestrian.personal_mobility",
    "human.pedestrian.police_officer", "human.pedestrian.stroller",
    "human.pedestrian.wheelchair", "movable_object.barrier", "movable_object.debris",
    "movable_object.pushable_pullable", "movable_object.trafficcone",
    "static_object.bicycle_rack", "vehicle.bicycle", "vehicle.bus.bendy", "vehicle.bus.rigid",
    "vehicle.car", "vehicle.construction", "vehicle.emergency.ambulance",
    "vehicle.emergency.police", "vehicle.motorcycle", "vehicle.trailer", "vehicle.truck",
    "flat.driveable_surface", "flat.other", "flat.sidewalk", "flat.terrain", "static.manmade",
    "static.other", "static.vegetation", "vehicle.ego",
)  # fmt: skip
VISIBILITY = ("v0-40", "v40-60", "v60-80", "v80-100")
PER_SCENE = (
    "log", "scene", "sample", "sample_data", "ego_pose", "calibrated_sensor", "instance",
    "sample_annotation", "lidarseg",
)  # fmt: skip


def token(*parts: object) -> str:
    """A repeatable token of 32 hexadecimal digits."""
    return hashlib.md5("/".join(map(str, parts)).encode(), usedforsecurity=False).hexdigest()


def common_tables(attributes: tuple[str, ...]) -> Tables:
    """The tables that do not depend on scenes."""
    channels = [("LIDAR_TOP", "lidar"), *((mount.channel, "camera") for mount in CAMERAS)]
    return {
        "category": [
            {"token": token("category", name), "name": name, "description": "", "index": index}
            for index, name in enumerate(CATEGORIES)
        ],
        "attribute": [
            {"token": token("attribute", name), "name": name, "description": ""}
            for name in attributes
        ],
        "visibility": [
            {"token": str(i + 1), "level": level, "description": ""}
            for i, level in enumerate(VISIBILITY)
        ],
        "sensor": [
            {"token": token("sensor", channel), "channel": channel, "modality": modality}
            for channel, modality in channels
        ],
    }


def map_records(log_tokens: dict[str, list[str]]) -> list[Record]:
    """The map table: location -> tokens of its logs. Every location has a mask file."""
    return [
        {
            "token": token("map", location),
            "log_tokens": log_tokens.get(location, []),
            "category": "semantic_prior",
            "filename": f"maps/{token('map', location)}.png",
        }
        for location in CANVAS
    ]


def write_tables(folder: Path, tables: Tables) -> None:
    """Write one JSON file per table."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, records in tables.items():
        (folder / f"{name}.json").write_text(json.dumps(records, indent=0))


def link(records: list[Record]) -> list[Record]:
    """Fill ``prev`` and ``next`` of records that follow each other; '' at the ends."""
    for before, after in pairwise(records):
        before["next"], after["prev"] = after["token"], before["token"]
    records[0]["prev"] = records[-1]["next"] = ""
    return records
