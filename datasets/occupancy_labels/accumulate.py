"""All LiDAR sweeps of a scene in one cloud: what stands still in place, each object by itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ...kernels.numba_points_in_boxes import points_in_boxes
from ..errors import DataError
from ..frame import Annotations, Frame, LidarSweep
from ..geometry import apply, inverse
from ..nuscenes.classes import OCCUPANCY_CLASSES
from ..nuscenes.lidarseg import NOT_A_THING
from .background import GROUND_BAND, UNKNOWN, GroundHeight, NearbyLabels
from .tracks import Track, boxes_at, tracks_of

MARGIN = 0.1  # metres that a box is enlarged by on every side: annotations and sweeps are not exact
_SWEEP_S = 0.05  # a revolution: by then an object has moved on from where its first points lie
_TRUSTED_RANGE = 55.0  # metres from the sensor: what moves beyond is often not annotated
STILL, NOBODY = -1, -2  # in place of a track: what stands still; what is neither that nor an object
# OCCUPANCY_CLASSES from here on are background: surfaces, buildings, plants.
_FIRST_BACKGROUND = OCCUPANCY_CLASSES.index("driveable_surface")
# The vehicle in its own frame, with some room: nothing else can be there. As (low, high) of x, y.
_VEHICLE = ((-1.3, 3.4), (-1.15, 1.15))

Labels = Callable[[int, int], NDArray[np.uint8] | None]  # (key frame, points) -> lidarseg classes


@dataclass(frozen=True)
class Cloud:
    """The points of one sweep, in metres from the scene's origin, axes those of the map."""

    origin: NDArray[np.float64]  # (3,) of its rays
    time_us: int
    points: NDArray[np.float32]  # (P, 3)
    label: NDArray[np.uint8]  # (P,) OCCUPANCY_CLASSES, GROUND or UNKNOWN
    track: NDArray[np.int32]  # (P,) the object that it lies on, STILL or NOBODY


@dataclass(frozen=True)
class SceneCloud:
    """A scene's sweeps, sorted into background and objects."""

    global_from_scene: NDArray[np.float64]  # (4, 4) a shift
    clouds: tuple[Cloud, ...]  # by time
    tracks: tuple[Track, ...]  # in the scene's frame
    # Of each track all points, (P, 3) along length, width and height from the middle of its box.
    objects: tuple[NDArray[np.float32], ...]


def accumulate(
    frames: Sequence[Frame], annotations: Sequence[Annotations], labels: Labels | None = None
) -> SceneCloud:
    """Gather all sweeps of a scene.

    A point in a box at its sweep's time belongs to that object; boxes move evenly between key
    frames. Points on the ground below an object do not. Points just before or behind a moving
    object, and far away, where objects are often not annotated, belong to nobody: their rays say
    what is free, and no more. What stands still is labelled by lidarseg, directly or from nearby
    points, and otherwise by its height.

    Args:
        frames: all key frames of one scene in order, each with its previous sweeps.
        annotations: theirs, in the global frame.
        labels: gives lidarseg's classes of a key sweep; None without lidarseg.

    Raises:
        DataError: if a sensor file cannot be used, or a key frame has no sweep.
    """
    for frame in frames:
        if not frame.sweeps:
            raise DataError(f"sample {frame.token} has no LiDAR sweep; its scene gives no labels")
    global_from_scene = np.eye(4)
    global_from_scene[:3, 3] = frames[0].global_from_ego[:3, 3]
    shift = -global_from_scene[:3, 3]
    tracks = [
        replace(track, center=track.center + shift)
        for track in tracks_of([frame.timestamp_us for frame in frames], annotations)
    ]
    clouds = []
    for sweep, key in _sweeps(frames):
        classes = partial(labels, key) if labels and key is not None else None
        clouds.append(_cloud(sweep, shift, tracks, classes))
    road = np.stack([frame.global_from_ego[:3, 3] + shift for frame in frames])
    standing = np.concatenate([cloud.points[cloud.track == STILL] for cloud in clouds])
    ground = GroundHeight(standing, road)
    labelled = [(cloud.track == STILL) & (cloud.label != UNKNOWN) for cloud in clouds]
    nearby = NearbyLabels(
        np.concatenate([cloud.points[rows] for cloud, rows in zip(clouds, labelled)]),
        np.concatenate([cloud.label[rows] for cloud, rows in zip(clouds, labelled)]),
    )
    clouds = [_classified(_on_ground_released(c, ground), nearby, ground) for c in clouds]
    objects = _object_points(clouds, tracks)
    return SceneCloud(global_from_scene, tuple(clouds), tuple(tracks), tuple(objects))


def _sweeps(frames: Sequence[Frame]) -> list[tuple[LidarSweep, int | None]]:
    """The sweeps of all frames once each by time, with the number of the key frame of key ones."""
    found: dict[int, tuple[LidarSweep, int | None]] = {}
    for frame in frames:
        for sweep in frame.sweeps[1:]:
            found.setdefault(sweep.timestamp_us, (sweep, None))
    for k, frame in enumerate(frames):
        found[frame.sweeps[0].timestamp_us] = frame.sweeps[0], k
    return [found[time] for time in sorted(found)]


def _cloud(
    sweep: LidarSweep,
    shift: NDArray[np.float64],
    tracks: Sequence[Track],
    classes: Callable[[int], NDArray[np.uint8] | None] | None,
) -> Cloud:
    raw = sweep.load()
    label = classes(len(raw)) if classes else None
    label = np.full(len(raw), UNKNOWN, np.uint8) if label is None else label
    ego = apply(sweep.ego_from_lidar, raw[:, :3].astype(np.float64))
    own = np.logical_and.reduce(
        [(ego[:, axis] > low) & (ego[:, axis] < high) for axis, (low, high) in enumerate(_VEHICLE)]
    )
    kept = np.isfinite(ego).all(1) & ~own & (label != NOT_A_THING)
    points, label = apply(sweep.global_from_ego, ego[kept]) + shift, label[kept]
    origin = apply(sweep.global_from_ego @ sweep.ego_from_lidar, np.zeros(3)) + shift
    track = _owners(points, sweep.timestamp_us, tracks)
    # A labelled point tells by itself whether it is of the object or of the road below.
    track[(label >= _FIRST_BACKGROUND) & (label != UNKNOWN)] = STILL
    track[np.linalg.norm(points - origin, axis=1) > _TRUSTED_RANGE] = NOBODY
    return Cloud(origin, sweep.timestamp_us, points.astype(np.float32), label, track)


def _owners(points: NDArray, time_us: int, tracks: Sequence[Track]) -> NDArray[np.int32]:
    """(P,) the number of the track that each point belongs to by its place, STILL or NOBODY."""
    numbers, boxes = boxes_at(tracks, time_us)
    boxes[:, 3:6] += 2 * MARGIN
    inside = points_in_boxes(points, boxes, num_threads=1)
    boxes[:, 3] += [2 * _SWEEP_S * tracks[number].speed for number in numbers]
    smeared = points_in_boxes(points, boxes, num_threads=1) >= 0
    owner = np.where(smeared, NOBODY, STILL)
    owner[inside >= 0] = numbers[inside[inside >= 0]]
    return owner.astype(np.int32)


def _on_ground_released(cloud: Cloud, ground: GroundHeight) -> Cloud:
    """Without labels, points in a box that are on the ground belong to the ground."""
    unsure = np.flatnonzero((cloud.track >= 0) & (cloud.label == UNKNOWN))
    low = ground.above(cloud.points[unsure]) < GROUND_BAND / 2
    track = cloud.track.copy()
    track[unsure[low]] = STILL
    return replace(cloud, track=track)


def _classified(cloud: Cloud, nearby: NearbyLabels, ground: GroundHeight) -> Cloud:
    label = cloud.label.copy()
    open_ = np.flatnonzero((label == UNKNOWN) & (cloud.track == STILL))
    label[open_] = nearby.of(cloud.points[open_])
    open_ = open_[label[open_] == UNKNOWN]
    label[open_] = ground.classes(cloud.points[open_])
    return replace(cloud, label=label)


def _object_points(clouds: Sequence[Cloud], tracks: Sequence[Track]) -> list[NDArray[np.float32]]:
    parts: list[list[NDArray]] = [[np.zeros((0, 3), np.float32)] for _ in tracks]
    for cloud in clouds:
        for number in np.unique(cloud.track[cloud.track >= 0]):
            box = tracks[number].box_at(cloud.time_us)
            assert box is not None
            mine = cloud.points[cloud.track == number].astype(np.float64)
            local = apply(inverse(scene_from_box(box)), mine)
            parts[number].append(local.astype(np.float32))
    return [np.concatenate(part) for part in parts]


def scene_from_box(box: NDArray[np.float64]) -> NDArray[np.float64]:
    """(4, 4) from the axes of a box (7,) to the frame that it is given in."""
    cos, sin = np.cos(box[6]), np.sin(box[6])
    matrix = np.eye(4)
    matrix[:2, :2] = [[cos, -sin], [sin, cos]]
    matrix[:3, 3] = box[:3]
    return matrix
