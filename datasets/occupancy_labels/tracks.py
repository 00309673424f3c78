"""Where annotated objects are between key frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..frame import Annotations
from ..geometry import wrap_angle
from ..nuscenes.classes import occupancy_class

MOVES = 0.5  # metres between any two places of a track, from which on it counts as moving
_REACH_US = 550_000  # a place is known this far from an annotation; key frames are 0.5 s apart


@dataclass(frozen=True)
class Track:
    """One object through a scene, in the global frame."""

    label: int  # index into OCCUPANCY_CLASSES
    size: NDArray[np.float64]  # (3,) length, width, height
    time_us: NDArray[np.int64]  # (T,) of the key frames that have it
    center: NDArray[np.float64]  # (T, 3)
    yaw: NDArray[np.float64]  # (T,) unwrapped

    @property
    def moves(self) -> bool:
        """Does it leave its place during the scene?"""
        return bool(np.ptp(self.center, axis=0).max() > MOVES)

    @property
    def speed(self) -> float:
        """The highest from one annotation to the next, m/s; 0 for a single one."""
        if len(self.time_us) < 2:
            return 0.0
        step = np.linalg.norm(np.diff(self.center[:, :2], axis=0), axis=1)
        return float((step / (1e-6 * np.diff(self.time_us))).max())

    def box_at(self, time_us: int) -> NDArray[np.float64] | None:
        """(7,) centre, size and yaw at a time; None where no annotation is near.

        Between annotations place and heading change evenly; before the first and after the last
        they go on as they came.
        """
        if np.abs(self.time_us - time_us).min() > _REACH_US:
            return None
        if len(self.time_us) == 1:
            return np.array([*self.center[0], *self.size, self.yaw[0]])
        k = np.clip(np.searchsorted(self.time_us, time_us) - 1, 0, len(self.time_us) - 2)
        first, last = self.time_us[k], self.time_us[k + 1]
        share = (time_us - first) / (last - first)
        center = self.center[k] + share * (self.center[k + 1] - self.center[k])
        yaw = self.yaw[k] + share * (self.yaw[k + 1] - self.yaw[k])
        return np.array([*center, *self.size, yaw])


def tracks_of(times_us: Sequence[int], annotations: Sequence[Annotations]) -> list[Track]:
    """The tracks of a scene, by instance.

    Args:
        times_us: of its key frames, ascending.
        annotations: theirs, in the global frame.
    """
    rows: dict[str, list[tuple[int, int]]] = {}
    for k, found in enumerate(annotations):
        for m, instance in enumerate(found.instance):
            rows.setdefault(instance, []).append((k, m))
    return [_track(times_us, annotations, mine) for mine in rows.values()]


def _track(
    times_us: Sequence[int], annotations: Sequence[Annotations], rows: list[tuple[int, int]]
) -> Track:
    boxes = [annotations[k].boxes[np.array([m])] for k, m in rows]
    yaw = np.concatenate([box.yaw for box in boxes])
    # The short way round from one annotation to the next.
    turns = np.concatenate([[0.0], np.cumsum(wrap_angle(np.diff(yaw)))])
    first, number = rows[0]
    return Track(
        label=occupancy_class(annotations[first].category[number]),
        size=np.concatenate([box.size for box in boxes]).mean(0),
        time_us=np.array([times_us[k] for k, _ in rows], np.int64),
        center=np.concatenate([box.center for box in boxes]),
        yaw=yaw[0] + turns,
    )


def boxes_at(
    tracks: Sequence[Track], time_us: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Numbers (M,) of the tracks whose place is known at a time, and their boxes (M, 7)."""
    found = [(number, track.box_at(time_us)) for number, track in enumerate(tracks)]
    known = [(number, box) for number, box in found if box is not None]
    boxes = np.array([box for _, box in known]).reshape(-1, 7)
    return np.array([number for number, _ in known], np.int64), boxes
