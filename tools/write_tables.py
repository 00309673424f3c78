"""Write a nuScenes folder that has tables only, of any size: what indexing is measured on.

    python tools/write_tables.py /tmp/tables                     # as large as trainval, 2.4 GB
    python tools/write_tables.py /tmp/tables --scenes 10 --samples 404 --version v1.0-mini

Numbers of records, fields, layout and links are nuScenes'; values are made up.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from bevstack.datasets.nuscenes.classes import ATTRIBUTES, CLASS_OF_CATEGORY
from bevstack.datasets.nuscenes.splits import SPLITS

CAMERAS = ("FRONT", "FRONT_RIGHT", "BACK_RIGHT", "BACK", "BACK_LEFT", "FRONT_LEFT")
RADARS = ("FRONT", "FRONT_LEFT", "FRONT_RIGHT", "BACK_LEFT", "BACK_RIGHT")
# (channel, modality, files in each half second between key frames)
SENSORS = (
    *((f"CAM_{name}", "camera", 6) for name in CAMERAS),
    ("LIDAR_TOP", "lidar", 10),
    *((f"RADAR_{name}", "radar", 7 - i % 2) for i, name in enumerate(RADARS)),
)
LOCATIONS = ("singapore-onenorth", "boston-seaport", "singapore-queenstown")
KEY_FRAME_US = 500_000
OBJECTS_PER_SCENE, FRAMES_PER_OBJECT = 76, 18
TABLES = (
    *("category", "attribute", "visibility", "instance", "sensor", "calibrated_sensor", "ego_pose"),
    *("log", "scene", "sample", "sample_data", "sample_annotation", "map"),
)


class Table:
    """A JSON list that is written record by record, laid out as nuScenes' files are."""

    def __init__(self, path: Path) -> None:
        self.file: TextIO = path.open("w")
        self.separator = "[\n"

    def add(self, **record: Any) -> str:
        """Write a record and return its token."""
        fields = ",\n".join(f'"{name}": {_value(value)}' for name, value in record.items())
        self.file.write(f"{self.separator}{{\n{fields}\n}}")
        self.separator = ",\n"
        return record["token"]

    def close(self) -> None:
        """End the list."""
        self.file.write("[\n]" if self.separator == "[\n" else "\n]")
        self.file.close()


def _value(value: Any) -> str:
    """As json.dumps(value, indent=0) gives it, but quickly."""
    if isinstance(value, str):
        return f'"{value}"'
    if isinstance(value, list):
        return "[\n" + ",\n".join(map(_value, value)) + "\n]" if value else "[]"
    return json.dumps(value) if isinstance(value, bool) else repr(value)


@dataclass
class Writer:
    """Writes scene after scene."""

    tables: dict[str, Table]
    version: str
    random: random.Random
    categories: list[str] = field(default_factory=list)
    attributes: list[str] = field(default_factory=list)
    sensors: list[str] = field(default_factory=list)

    def token(self) -> str:
        return f"{self.random.getrandbits(128):032x}"

    def fixed_tables(self) -> None:
        """Categories, attributes, visibility levels and sensors."""

        def add(table: str, **record: Any) -> str:
            return self.tables[table].add(token=self.token(), **record)

        self.categories = [
            add("category", name=name, description="") for name in (*CLASS_OF_CATEGORY, "animal")
        ]
        self.attributes = [add("attribute", name=name, description="") for name in ATTRIBUTES]
        self.sensors = [
            add("sensor", channel=channel, modality=kind) for channel, kind, _ in SENSORS
        ]
        for number, level in enumerate(("v0-40", "v40-60", "v60-80", "v80-100"), 1):
            self.tables["visibility"].add(token=str(number), level=level, description="")

    def scene(self, number: int, name: str, num_samples: int) -> None:
        """Everything of one scene."""
        log, scene = self.token(), self.token()
        location = LOCATIONS[number % len(LOCATIONS)]
        logfile = f"n015-2018-07-24-11-22-45+0800-{number}"
        self.tables["log"].add(
            token=log,
            logfile=logfile,
            vehicle="n015",
            date_captured="2018-07-24",
            location=location,
        )
        self.tables["map"].add(
            category="semantic_prior", token=self.token(), filename="maps/x.png", log_tokens=[log]
        )
        start = 1_532_402_927_000_000 + number * 60_000_000
        samples = [self.token() for _ in range(num_samples)]
        times = [start + i * KEY_FRAME_US for i in range(num_samples)]
        for token, before, after, time_us in zip(samples, *_links(samples), times):
            self.tables["sample"].add(
                token=token, timestamp=time_us, prev=before, next=after, scene_token=scene
            )
        self.tables["scene"].add(
            token=scene,
            log_token=log,
            nbr_samples=num_samples,
            first_sample_token=samples[0],
            last_sample_token=samples[-1],
            name=name,
            description="",
        )
        for (channel, kind, rate), sensor in zip(SENSORS, self.sensors):
            self.sensor_files(channel, kind, rate, sensor, samples, start, logfile)
        self.objects(samples)

    def sensor_files(
        self,
        channel: str,
        kind: str,
        rate: int,
        sensor: str,
        samples: list[str],
        start: int,
        logfile: str,
    ) -> None:
        """The calibration, the files and the vehicle poses of one sensor."""
        number = self.random.random
        focal = [[1266.4, 0.0, 816.2], [0.0, 1266.4, 491.5], [0.0, 0.0, 1.0]]
        calibration = self.tables["calibrated_sensor"].add(
            token=self.token(),
            sensor_token=sensor,
            translation=[number(), number(), number()],
            rotation=[0.5, -0.5 - number() / 100, 0.5, -0.5],
            camera_intrinsic=focal if kind == "camera" else [],
        )
        ending, format_name = (".jpg", "jpg") if kind == "camera" else (".pcd.bin", "pcd")
        width, height = (1600, 900) if kind == "camera" else (0, 0)
        tokens = [self.token() for _ in range((len(samples) - 1) * rate + 1)]
        for i, (token, before, after) in enumerate(zip(tokens, *_links(tokens))):
            time_us, is_key = start + i * KEY_FRAME_US // rate, i % rate == 0
            folder = "samples" if is_key else "sweeps"
            self.tables["sample_data"].add(
                token=token,
                sample_token=samples[-(-i // rate)],  # a sweep belongs to the key frame after it
                ego_pose_token=token,
                calibrated_sensor_token=calibration,
                timestamp=time_us,
                fileformat=format_name,
                is_key_frame=is_key,
                height=height,
                width=width,
                filename=f"{folder}/{channel}/{logfile}__{channel}__{time_us}{ending}",
                prev=before,
                next=after,
            )
            self.tables["ego_pose"].add(
                token=token,
                timestamp=time_us,
                rotation=[0.572 + number() / 100, -0.0016, 0.0118, -0.82],
                translation=[411.3 + i * number(), 1180.9 + number(), 0.0],
            )

    def objects(self, samples: list[str]) -> None:
        """The annotated objects, each seen in some consecutive key frames."""
        number, choose = self.random.random, self.random.choice
        for _ in range(OBJECTS_PER_SCENE):
            length = min(FRAMES_PER_OBJECT, len(samples))
            first = self.random.randrange(len(samples) - length + 1)
            tokens, instance = [self.token() for _ in range(length)], self.token()
            self.tables["instance"].add(
                token=instance,
                category_token=choose(self.categories),
                nbr_annotations=length,
                first_annotation_token=tokens[0],
                last_annotation_token=tokens[-1],
            )
            x, y, speed = 411 + 50 * number(), 1180 + 50 * number(), 10 * number()
            for i, (token, before, after) in enumerate(zip(tokens, *_links(tokens))):
                self.tables["sample_annotation"].add(
                    token=token,
                    sample_token=samples[first + i],
                    instance_token=instance,
                    visibility_token=choose("1234"),
                    attribute_tokens=[choose(self.attributes)],
                    translation=[x + i * speed / 2, y, number()],
                    size=[0.6 + number(), 0.7 + number(), 1.6],
                    rotation=[0.983, 0.0, 0.0, number()],
                    prev=before,
                    next=after,
                    num_lidar_pts=int(20 * number()),
                    num_radar_pts=0,
                )


def _links(tokens: list[str]) -> tuple[Iterable[str], Iterable[str]]:
    """The token before and the token after each; '' at the ends."""
    return ["", *tokens[:-1]], [*tokens[1:], ""]


def write_tables(root: Path, version: str, scenes: int, samples: int) -> None:
    """Write ``samples`` key frames in ``scenes`` scenes."""
    folder = root / version
    folder.mkdir(parents=True, exist_ok=True)
    writer = Writer(
        {name: Table(folder / f"{name}.json") for name in TABLES}, version, random.Random(0)
    )
    writer.fixed_tables()
    official = SPLITS["mini_train"] + SPLITS["mini_val"]
    if not version.endswith("mini"):
        official = SPLITS["train"] + SPLITS["val"]
    began = time.perf_counter()
    for i in range(scenes):
        share = (i + 1) * samples // scenes - i * samples // scenes
        writer.scene(i, official[i % len(official)], share)
        if (i + 1) % 50 == 0:
            print(f"{i + 1} of {scenes} scenes, {time.perf_counter() - began:.0f} s", flush=True)
    for table in writer.tables.values():
        table.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("root", type=Path)
    parser.add_argument("--version", default="v1.0-trainval")
    parser.add_argument("--scenes", type=int, default=850)
    parser.add_argument("--samples", type=int, default=34_149)
    options = parser.parse_args()
    write_tables(options.root, options.version, options.scenes, options.samples)
    files = sorted((options.root / options.version).glob("*.json"))
    print(
        f"{sum(f.stat().st_size for f in files) / 1e9:.2f} GB in {options.root / options.version}"
    )


if __name__ == "__main__":
    main()
