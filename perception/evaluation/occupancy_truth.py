"""Occupancy labels of a data set's frames, as they were read, and where the rays of each start."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ...datasets.frame import Frame
from ...datasets.occupancy import OccupancyLabels
from .ray_iou import ray_origins


class FrameReader(Protocol):
    """The part of a data set's reader that is needed here; frames stand by scene and time."""

    @property
    def tokens(self) -> Sequence[str]: ...

    def __getitem__(self, i: int) -> Frame: ...


class OccupancyTruth:
    """Labels by sample token.

    Args:
        reader: of the frames that are measured.
    """

    def __init__(self, reader: FrameReader) -> None:
        self.reader = reader
        self._index = {token: i for i, token in enumerate(reader.tokens)}
        self._positions: dict[str, NDArray[np.float64]] = {}  # by scene

    def frame(self, token: str) -> Frame:
        """The frame of a sample."""
        return self.reader[self._index[token]]

    def labels(self, token: str) -> OccupancyLabels | None:
        """The labels of a sample in their own frame; None where it has none."""
        frame = self.frame(token)
        return frame.occupancy() if frame.occupancy is not None else None

    def ray_origins(self, token: str) -> NDArray[np.float64]:
        """(O, 3) where the rays of RayIoU start, in the ego frame of the sample."""
        frame = self.frame(token)
        if frame.scene not in self._positions:
            self._positions[frame.scene] = self._lidar_positions(self._index[token])
        return ray_origins(frame.global_from_ego, self._positions[frame.scene])

    def _lidar_positions(self, index: int) -> NDArray[np.float64]:
        """(F, 3) global positions of the LiDAR at the key frames of the scene of frame ``index``.

        Where a frame has no LiDAR, that of its vehicle at 1.84 m, a LIDAR_TOP's height.
        """
        scene, first = self.reader[index].scene, index
        while first > 0 and self.reader[first - 1].scene == scene:
            first -= 1
        positions = []
        for i in range(first, len(self._index)):
            frame = self.reader[i]
            if frame.scene != scene:
                break
            mounting = frame.sweeps[0].ego_from_lidar[:3, 3] if frame.sweeps else [0, 0, 1.84]
            positions.append(frame.global_from_ego[:3] @ [*mounting, 1.0])
        return np.array(positions)
