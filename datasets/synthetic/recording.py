"""Drive through one scene and write what the sensors see."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from ..geometry import apply, quaternion_from_rotation, quaternion_from_yaw
from ..seeding import generator
from .camera import View, pixel_rays, take_picture
from .casting import Snapshot, Stage
from .ground import SURFACE_CATEGORY
from .labels import BoxLabel, label_agents
from .lidar import Sweep, cast_sweep
from .occupancy import OccupancyMaker
from .rig import CAMERA_PERIOD_US, CAMERAS, KEY_PERIOD_US, LIDAR_PERIOD_US, ego_from_lidar
from .tables import CATEGORIES, PER_SCENE, Record, Tables, link, token
from .world import EGO, GROUND, SCENERY, World, build_world

SWEEPS_PER_KEY = KEY_PERIOD_US // LIDAR_PERIOD_US
START_US = 1_600_000_000_000_000


@dataclass(frozen=True)
class SceneJob:
    """What one worker process is told to make."""

    root: Path
    version: str
    name: str  # of the scene
    number: int
    location: str
    middle: tuple[float, float]  # of the scene on its location's map, metres
    seed: int
    num_frames: int
    image_size: tuple[int, int]
    camera_sweeps: bool


class Recorder:
    """Records one scene: files on disk, table rows in memory."""

    def __init__(self, job: SceneJob) -> None:
        self.job = job
        self.world: World = build_world(np.array(job.middle), self._random("world"))
        self.stage = Stage(self.world)
        self.occupancy = OccupancyMaker(self.stage)
        self.rays = {mount.channel: pixel_rays(mount, job.image_size) for mount in CAMERAS}
        self.tables: Tables = {name: [] for name in PER_SCENE}
        self.start_us = START_US + job.number * 1_000_000_000
        self.tracks: dict[int, list[Record]] = {}
        self.chains: dict[str, list[Record]] = {}
        self.log = f"synthetic-{job.number:04d}"

    def run(self) -> Tables:
        """Record the scene and give its rows."""
        job = self.job
        self._write_calibration()
        # The first key frame comes when a full set of previous sweeps has been seen.
        first = self.start_us + KEY_PERIOD_US
        for index in range(job.num_frames):
            self._record_key_frame(index, first + index * KEY_PERIOD_US)
        samples = link(self.tables["sample"])
        for chain in self.chains.values():
            chain.sort(key=lambda record: record["timestamp"])
            self.tables["sample_data"] += link(chain)
        self._write_instances()
        log = token(job.name, "log")
        self.tables["log"] = [
            {"token": log, "logfile": self.log, "vehicle": "synthetic", "location": job.location,
             "date_captured": "2020-09-13"}
        ]  # fmt: skip
        self.tables["scene"] = [
            {"token": token(job.name), "log_token": log, "nbr_samples": len(samples),
             "first_sample_token": samples[0]["token"], "last_sample_token": samples[-1]["token"],
             "name": job.name, "description": f"synthetic, seed {job.seed}"}
        ]  # fmt: skip
        return self.tables

    def _random(self, step: str) -> np.random.Generator:
        return generator(self.job.seed, self.job.name, step)

    def _time(self, timestamp_us: int) -> float:
        return (timestamp_us - self.start_us) * 1e-6

    def _record_key_frame(self, index: int, timestamp_us: int) -> None:
        sample = token(self.job.name, "sample", index)
        self.tables["sample"].append(
            {"token": sample, "timestamp": timestamp_us, "scene_token": token(self.job.name)}
        )
        for back in range(SWEEPS_PER_KEY - 1, 0, -1):
            self._record_sweep(sample, timestamp_us - back * LIDAR_PERIOD_US, False)
        sweep, data = self._record_sweep(sample, timestamp_us, True)
        self._write_lidarseg(sweep, data)
        views = self._record_cameras(sample, timestamp_us)
        snapshot = self.stage.at(self._time(timestamp_us))
        cloud = apply(
            self.world.global_from_ego(self._time(timestamp_us)) @ ego_from_lidar(),
            sweep.points[:, :3].astype(np.float64),
        )
        labels = label_agents(self.world, snapshot, self._time(timestamp_us), cloud)
        self._annotate(sample, labels)
        self._write_occupancy(sample, timestamp_us, snapshot, cloud, views)

    def _record_sweep(self, sample: str, timestamp_us: int, key: bool) -> tuple[Sweep, str]:
        sweep = cast_sweep(
            self.stage, self._time(timestamp_us), self._random(f"lidar/{timestamp_us}")
        )
        data, path = self._data_record(sample, "LIDAR_TOP", timestamp_us, key, "pcd", "pcd.bin")
        sweep.points.tofile(path)
        return sweep, data

    def _record_cameras(self, sample: str, key_us: int) -> list[View]:
        views = []
        for mount in CAMERAS:
            at = key_us + mount.delay_us
            if self.job.camera_sweeps:
                for back in range(KEY_PERIOD_US // CAMERA_PERIOD_US - 1, 0, -1):
                    self._record_image(sample, mount, at - back * CAMERA_PERIOD_US, False)
            views.append(self._record_image(sample, mount, at, True))
        return views

    def _record_image(self, sample: str, mount, timestamp_us: int, key: bool) -> View:
        channel = mount.channel
        view = take_picture(
            self.stage, mount, self.rays[channel], self.job.image_size, self._time(timestamp_us),
            self._random(f"{channel}/{timestamp_us}"),
        )  # fmt: skip
        _, path = self._data_record(sample, channel, timestamp_us, key, "jpg", "jpg")
        quality = [cv2.IMWRITE_JPEG_QUALITY, 90]
        if not cv2.imwrite(str(path), view.image[..., ::-1], quality):
            raise OSError(f"cannot write {path}; is the disk full?")
        return view

    def _data_record(
        self, sample: str, channel: str, timestamp_us: int, key: bool, fileformat: str, ending: str
    ) -> tuple[str, Path]:
        """Add a sample_data row with its ego pose; give its token and the file to write."""
        folder = "samples" if key else "sweeps"
        name = f"{folder}/{channel}/{self.log}__{channel}__{timestamp_us}.{ending}"
        data = token(self.job.name, channel, timestamp_us)
        width, height = self.job.image_size if fileformat == "jpg" else (0, 0)
        self.chains.setdefault(channel, []).append(
            {"token": data, "sample_token": sample, "ego_pose_token": data,
             "calibrated_sensor_token": token(self.job.name, channel), "timestamp": timestamp_us,
             "fileformat": fileformat, "is_key_frame": key, "height": height, "width": width,
             "filename": name}
        )  # fmt: skip
        pose = self.world.global_from_ego(self._time(timestamp_us))
        self.tables["ego_pose"].append(
            {"token": data, "timestamp": timestamp_us, "translation": pose[:3, 3].tolist(),
             "rotation": quaternion_from_rotation(pose[:3, :3]).tolist()}
        )  # fmt: skip
        return data, self.job.root / name

    def _write_calibration(self) -> None:
        mounts = [("LIDAR_TOP", ego_from_lidar(), [])]
        mounts += [
            (m.channel, m.ego_from_camera, m.intrinsic(self.job.image_size).tolist())
            for m in CAMERAS
        ]
        for channel, pose, intrinsic in mounts:
            self.tables["calibrated_sensor"].append(
                {"token": token(self.job.name, channel), "sensor_token": token("sensor", channel),
                 "translation": pose[:3, 3].tolist(),
                 "rotation": quaternion_from_rotation(pose[:3, :3]).tolist(),
                 "camera_intrinsic": intrinsic}
            )  # fmt: skip

    def _write_lidarseg(self, sweep: Sweep, data: str) -> None:
        index = {name: i for i, name in enumerate(CATEGORIES)}
        label = np.full(len(sweep.owner), index["noise"], np.uint8)
        label[sweep.owner == EGO] = index["vehicle.ego"]
        ground = np.array([index[name] for name in SURFACE_CATEGORY.values()], np.uint8)
        on_ground = sweep.owner == GROUND
        label[on_ground] = ground[sweep.ground[on_ground]]
        agents = np.array([index[a.shape.category] for a in self.world.agents], np.uint8)
        label[sweep.owner >= 0] = agents[sweep.owner[sweep.owner >= 0]]
        things = np.array([index[c] for c in self.stage.scenery_categories], np.uint8)
        label[sweep.owner <= SCENERY] = things[SCENERY - sweep.owner[sweep.owner <= SCENERY]]
        name = f"lidarseg/{self.job.version}/{data}_lidarseg.bin"
        label.tofile(self.job.root / name)
        self.tables["lidarseg"].append({"token": data, "sample_data_token": data, "filename": name})

    def _annotate(self, sample: str, labels: list[BoxLabel]) -> None:
        for label in labels:
            agent = self.world.agents[label.agent]
            length, width, height = agent.shape.size.tolist()
            attributes = [token("attribute", agent.attribute)] if agent.attribute else []
            record = {
                "token": token(self.job.name, sample, label.agent), "sample_token": sample,
                "instance_token": token(self.job.name, "instance", label.agent),
                "visibility_token": str(label.visibility), "attribute_tokens": attributes,
                "translation": label.center.tolist(), "size": [width, length, height],
                "rotation": quaternion_from_yaw(label.yaw).tolist(),
                "num_lidar_pts": label.num_lidar_points, "num_radar_pts": 0,
            }  # fmt: skip
            self.tracks.setdefault(label.agent, []).append(record)

    def _write_instances(self) -> None:
        # A track that leaves the range and comes back later is one instance, as in nuScenes.
        for agent, records in sorted(self.tracks.items()):
            self.tables["sample_annotation"] += link(records)
            category = self.world.agents[agent].shape.category
            self.tables["instance"].append(
                {"token": token(self.job.name, "instance", agent),
                 "category_token": token("category", category), "nbr_annotations": len(records),
                 "first_annotation_token": records[0]["token"],
                 "last_annotation_token": records[-1]["token"]}
            )  # fmt: skip

    def _write_occupancy(
        self, sample: str, timestamp_us: int, snapshot: Snapshot, cloud: NDArray, views: list[View]
    ) -> None:
        time = self._time(timestamp_us)
        pose = self.world.global_from_ego(time)
        lidar = [((pose @ ego_from_lidar())[:3, 3], cloud)]
        step = max(self.job.image_size[0] // 100, 1)
        camera = []
        for view in views:
            ends = view.hits.point.reshape(*view.image.shape)[::step, ::step].reshape(-1, 3)
            found = view.hits.distance.reshape(view.image.shape[:2])[::step, ::step].ravel()
            camera.append((view.origin, ends[np.isfinite(found)]))
        made = self.occupancy.make(snapshot, time, lidar, camera)
        folder = self.job.root / "gts" / self.job.name / sample
        folder.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(folder / "labels.npz", semantics=made.semantics,
                            mask_lidar=made.mask_lidar, mask_camera=made.mask_camera)  # fmt: skip


def record_scene(job: SceneJob) -> tuple[Tables, World]:
    """Make one scene. Runs in a worker process; what it gives depends on the job alone."""
    cv2.setNumThreads(1)
    recorder = Recorder(job)
    return recorder.run(), recorder.world
