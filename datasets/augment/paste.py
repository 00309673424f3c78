"""Paste annotated objects of other frames into a frame: their points and their boxes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...kernels.numba_boxes import box_overlap
from ...kernels.numba_points_in_boxes import points_in_boxes
from ...kernels.overlap import Overlap
from ..boxes import Boxes3D
from ..frame import Annotations, Frame, LidarSweep, PointLoader
from ..geometry import apply, inverse
from ..nuscenes.classes import DETECTION_CLASSES
from ..objects.bank import ObjectBank, StoredObject, open_bank
from ..objects.build import BankOptions, box_columns
from ..seeding import generator

# Of MIT BEVFusion's LiDAR recipe, after CBGS (Zhu et al. 2019).
COUNTS = {
    "car": 2,
    "truck": 3,
    "construction_vehicle": 7,
    "bus": 4,
    "trailer": 6,
    "barrier": 2,
    "motorcycle": 6,
    "bicycle": 6,
    "pedestrian": 2,
    "traffic_cone": 2,
}


@dataclass(frozen=True)
class PastedSweep:
    """A point loader that takes what is where objects shall stand out of a sweep, and adds them.

    Args:
        load: gives the original sweep.
        key_from_lidar: (4, 4) to the vehicle's frame at the key time.
        boxes: (M, 7) where the objects were at the sweep's time, in that frame.
        added: (P, 5) their points in that frame.
    """

    load: PointLoader
    key_from_lidar: NDArray[np.float64]
    boxes: NDArray[np.float64]
    added: NDArray[np.float32]

    def __call__(self) -> NDArray[np.float32]:
        """See :class:`PointLoader`."""
        points = self.load()
        position = apply(self.key_from_lidar, points[:, :3].astype(np.float64))
        free = points_in_boxes(position, self.boxes, num_threads=1) < 0
        added = self.added.copy()
        added[:, :3] = apply(inverse(self.key_from_lidar), self.added[:, :3].astype(np.float64))
        return np.concatenate([added, points[free]])


@dataclass(frozen=True)
class ObjectPaste:
    """Add objects from a bank, class by class, up to a number per frame (Yan et al., SECOND 2018).

    An object keeps the place relative to the vehicle that it had, so that it is seen as densely as
    there. It is left out where it would overlap, seen from above, with an object that the frame
    has or got before. Points of the frame inside it are removed. Every sweep gets what that sweep
    saw of it, so that moving objects have their trail. Images stay as they are: for training
    without cameras.

    Args:
        counts: objects of each class that a frame is filled up to.
        bank: what the bank holds.
        folder: of the bank; null lets the data build it beside the index of the training split.
    """

    counts: Mapping[str, int] = field(default_factory=lambda: dict(COUNTS))
    bank: BankOptions = field(default_factory=BankOptions)
    folder: Path | None = None

    def __post_init__(self) -> None:
        if unknown := set(self.counts) - set(DETECTION_CLASSES):
            raise ValueError(f"ObjectPaste.counts names {sorted(unknown)}, which are no classes")

    def __call__(self, frame: Frame, seed: int) -> Frame:
        """The frame with more objects, the same for the same frame and ``seed``."""
        if self.folder is None:
            raise ValueError("ObjectPaste has no bank; give its folder")
        if frame.annotations is None or not frame.sweeps:
            return frame
        placed = self._drawn(frame, frame.annotations, open_bank(Path(self.folder)), seed)
        if not placed:
            return frame
        pasted = _annotations(placed)
        sweeps = tuple(
            _with_objects(frame, sweep, k, placed, pasted) for k, sweep in enumerate(frame.sweeps)
        )
        return replace(frame, sweeps=sweeps, annotations=_joined(frame.annotations, pasted))

    def _drawn(
        self, frame: Frame, truth: Annotations, bank: ObjectBank, seed: int
    ) -> list[StoredObject]:
        random = generator(seed, frame.token, "object_paste")
        present = np.bincount(
            truth.boxes.label[truth.boxes.label >= 0], minlength=len(DETECTION_CLASSES)
        )
        drawn: list[int] = []
        for name, count in self.counts.items():
            label = DETECTION_CLASSES.index(name)
            rows = np.flatnonzero(bank.label == label)
            wanted = min(max(count - int(present[label]), 0), len(rows))
            drawn += random.choice(rows, wanted, replace=False).tolist()
        candidates = [bank[row] for row in drawn if bank.tokens[row] != frame.token]
        if not candidates:
            return []
        columns = np.stack([stored.columns for stored in candidates])
        everything = np.concatenate([box_columns(truth, 0.0), columns])
        area = box_overlap(columns, everything, Overlap.BEV_AREA, False, num_threads=1)
        occupied = np.arange(len(everything)) < len(truth)
        placed = []
        for m, stored in enumerate(candidates):
            if not (area[m] > 0)[occupied].any():
                occupied[len(truth) + m] = True
                placed.append(stored)
        return placed


def _with_objects(
    frame: Frame, sweep: LidarSweep, k: int, placed: list[StoredObject], pasted: Annotations
) -> LidarSweep:
    key_from_lidar = inverse(frame.global_from_ego) @ sweep.global_from_ego @ sweep.ego_from_lidar
    lag = (frame.timestamp_us - sweep.timestamp_us) * 1e-6
    parts = [_points_of(stored, k) for stored in placed if k < len(stored.points)]
    added = np.concatenate([*parts, np.zeros((0, 5), np.float32)])
    load = PastedSweep(sweep.load, key_from_lidar, box_columns(pasted, lag), added)
    return replace(sweep, load=load)


def _points_of(stored: StoredObject, k: int) -> NDArray[np.float32]:
    """(P, 5) the object's points of sweep k in the vehicle's frame."""
    points = np.array(stored.points[k], np.float32)
    cos, sin = np.cos(stored.yaw), np.sin(stored.yaw)
    turn = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    points[:, :3] = points[:, :3].astype(np.float64) @ turn.T + stored.center
    return points


def _annotations(placed: list[StoredObject]) -> Annotations:
    boxes = Boxes3D(
        center=np.stack([stored.center for stored in placed]),
        size=np.stack([stored.size for stored in placed]),
        yaw=np.array([stored.yaw for stored in placed]),
        velocity=np.stack([stored.velocity for stored in placed]),
        label=np.array([stored.label for stored in placed], np.int64),
    )
    return Annotations(
        boxes,
        attribute=np.array([stored.attribute for stored in placed], np.int64),
        instance=tuple(f"pasted/{stored.instance}" for stored in placed),
        visibility=np.zeros(len(placed), np.int64),
        num_lidar_points=np.array([len(stored.points[0]) for stored in placed], np.int64),
        num_radar_points=np.array([stored.num_radar_points for stored in placed], np.int64),
        category=tuple(stored.category for stored in placed),
    )


def _joined(first: Annotations, second: Annotations) -> Annotations:
    a, b = first.boxes, second.boxes
    return Annotations(
        Boxes3D(
            np.concatenate([a.center, b.center]),
            np.concatenate([a.size, b.size]),
            np.concatenate([a.yaw, b.yaw]),
            np.concatenate([a.velocity, b.velocity]),
            np.concatenate([a.label, b.label]),
        ),
        np.concatenate([first.attribute, second.attribute]),
        first.instance + second.instance,
        np.concatenate([first.visibility, second.visibility]),
        np.concatenate([first.num_lidar_points, second.num_lidar_points]),
        np.concatenate([first.num_radar_points, second.num_radar_points]),
        first.category + second.category,
    )
