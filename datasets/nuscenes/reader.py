"""Frames of a nuScenes dataset, from its index."""

# pyarrow makes its compute functions when it is imported, so no type checker sees them.
# pyright: reportAttributeAccessIssue=false

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ..boxes import Boxes3D
from ..camera_models import Pinhole
from ..errors import DataError
from ..frame import Annotations, Camera, Frame, LidarSweep
from ..geometry import inverse, rotation_from_quaternion, wrap_angle
from .classes import ATTRIBUTES, DETECTION_CLASSES, label_of_category
from .frame_index import Column, FrameIndex, is_rigid, names, numbers
from .label_files import KeyFrame, LabelFile, LabelFolder
from .sensor_files import ImageFile, PointFile
from .splits import scenes_of_split


class NuScenesReader:
    """The key frames of a dataset or of one of its splits, by scene and time.

    Reading a frame touches no sensor file: its images and sweeps load when they are called.
    Workers may share a reader by fork or by pickling; the index is mapped, never copied.

    Args:
        root: the folder that holds ``<version>/``, ``samples/`` and ``sweeps/``.
        version: for instance ``v1.0-trainval``.
        split: name of an official split or of one in ``<version>/splits.json``; None for all.
        previous_sweeps: previous LiDAR sweeps of a frame, besides the key sweep.
        frame: the BEV frame: the vehicle's, or that of LIDAR_TOP as published models want it.
        index_dir: where the index is, if not in its usual place.
        occupancy: folder of the occupancy labels; None for frames without.

    Raises:
        DataError: if there is no index that fits, or no such split.
    """

    def __init__(
        self,
        root: Path | str,
        version: str,
        split: str | None = None,
        previous_sweeps: int = 9,
        frame: Literal["ego", "lidar"] = "ego",
        index_dir: Path | str | None = None,
        occupancy: LabelFolder | None = None,
    ) -> None:
        self._arguments = (root, version, split, previous_sweeps, frame, index_dir, occupancy)
        self.root, self.version, self.split = Path(root), version, split
        self.previous_sweeps, self.frame = previous_sweeps, frame
        self.occupancy = occupancy
        self.index = FrameIndex.open(root, version, index_dir)
        if previous_sweeps > self.index.previous_sweeps:
            raise DataError(
                f"the index of {root} holds {self.index.previous_sweeps} previous sweeps, not "
                f"{previous_sweeps}; build it again with previous_sweeps={previous_sweeps}"
            )
        self._rows = np.arange(len(self.index))
        if split is not None:
            self._rows = self.index.rows_of_scenes(scenes_of_split(root, version, split))

    def __reduce__(self):
        return _of_rows, (self._arguments, self._rows)

    def taking(self, frames: NDArray[np.integer]) -> NuScenesReader:
        """A reader of some of the frames: indices into this one's, in the wanted order."""
        return _of_rows(self._arguments, self._rows[frames])

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def tokens(self) -> tuple[str, ...]:
        """The sample tokens of the frames."""
        return tuple(self.index.batch.column("token").take(pa.array(self._rows)).to_pylist())

    def index_of(self, token: str) -> int:
        """The position of a sample token.

        Raises:
            DataError: if the token is not among the frames.
        """
        row = pc.index(self.index.batch.column("token"), token).as_py()
        found = np.flatnonzero(self._rows == row)
        if row < 0 or not len(found):
            part = f"split {self.split} of " if self.split else ""
            raise DataError(f"sample {token} is not in {part}{self.root} {self.version}")
        return int(found[0])

    def __getitem__(self, i: int) -> Frame:
        """Frame i.

        Raises:
            DataError: if a calibration or pose is not finite, or ``frame`` is lidar and the key
                frame has no LiDAR sweep.
        """
        return self._frame(int(self._rows[i]))

    def _frame(self, row: int) -> Frame:
        batch = self.index.batch
        global_from_ego = self._placement(batch.column("pose"), slice(row, row + 1), "ego_pose")[0]
        sweeps = self._sweeps(row)
        return Frame(
            token=batch.column("token")[row].as_py(),
            scene=batch.column("scene")[row].as_py(),
            location=batch.column("location")[row].as_py(),
            timestamp_us=batch.column("timestamp_us")[row].as_py(),
            global_from_ego=global_from_ego,
            cameras=self._cameras(row),
            sweeps=sweeps,
            annotations=self._annotations(row, inverse(global_from_ego)),
            bev_from_ego=self._bev_from_ego(row, sweeps),
            occupancy=self._occupancy(row, sweeps),
            previous=partial(self._frame_before, row),
        )

    def _frame_before(self, row: int) -> Frame | None:
        """The key frame before, which may lie outside the split; None at a scene's start."""
        scene = self.index.batch.column("scene").indices
        is_first = row == 0 or scene[row] != scene[row - 1]
        return None if is_first else self._frame(row - 1)

    def annotations(self, i: int) -> Annotations | None:
        """The annotations of frame i, in its ego frame; None where the dataset has none."""
        row = int(self._rows[i])
        pose = self._placement(self.index.batch.column("pose"), slice(row, row + 1), "ego_pose")[0]
        return self._annotations(row, inverse(pose))

    def global_annotations(self, i: int) -> Annotations | None:
        """The annotations of frame i as they were made: boxes upright in the global frame."""
        return self._annotations(int(self._rows[i]), np.eye(4))

    def class_counts(self, count_radar: bool = False) -> NDArray[np.int64]:
        """(F, K): boxes of each detection class with at least one LiDAR point, in each frame.

        Args:
            count_radar: a radar point is enough too.
        """
        boxes, num_classes = self.index.boxes, len(DETECTION_CLASSES)
        everything = slice(0, len(boxes.rows))
        label = self._labels(everything)
        frame = np.repeat(np.arange(len(self.index)), np.diff(boxes.starts))
        seen = numbers(boxes.rows.field("num_lidar_points"), everything) > 0
        if count_radar:
            seen = seen | (numbers(boxes.rows.field("num_radar_points"), everything) > 0)
        cell = (frame * num_classes + label)[seen & (label >= 0)]
        counts = np.bincount(cell, minlength=len(self.index) * num_classes)
        return counts.reshape(-1, num_classes)[self._rows]

    def scene_numbers(self) -> NDArray[np.int64]:
        """(F,): a number for the scene of each frame."""
        column = self.index.batch.column("scene").take(pa.array(self._rows))
        return np.asarray(column.indices.to_numpy(zero_copy_only=False), np.int64)

    def _bev_from_ego(self, row: int, sweeps: tuple[LidarSweep, ...]) -> NDArray[np.float64]:
        if self.frame == "ego":
            return np.eye(4)
        if not sweeps:
            token = self.index.batch.column("token")[row].as_py()
            raise DataError(f"sample {token} has no LiDAR sweep; use the ego frame for this data")
        return inverse(sweeps[0].ego_from_lidar)

    def _occupancy(self, row: int, sweeps: tuple[LidarSweep, ...]) -> LabelFile | None:
        return self.occupancy.find(self._key_frame(row, sweeps)) if self.occupancy else None

    def key_frame(self, i: int) -> KeyFrame:
        """The names of frame i in folders of labels."""
        row = int(self._rows[i])
        return self._key_frame(row, self._sweeps(row))

    def _key_frame(self, row: int, sweeps: tuple[LidarSweep, ...]) -> KeyFrame:
        batch, column = self.index.batch, self.index.sweeps
        key = column.span(row).start
        first = slice(key, key + len(sweeps[:1]))
        # In nuScenes the ego pose of a sensor file has the token of its sample_data record.
        lidar_token = names(column.rows.field("pose").field("token"), first)
        lidar_file = [Path(file).name for file in names(column.rows.field("file"), first)]
        return KeyFrame(
            scene=batch.column("scene")[row].as_py(),
            sample=batch.column("token")[row].as_py(),
            lidar_file=lidar_file[0] if lidar_file else "",
            lidar_token=lidar_token[0] if lidar_token else "",
            lidar_from_ego=inverse(sweeps[0].ego_from_lidar) if sweeps else np.eye(4),
        )

    def _cameras(self, row: int) -> tuple[Camera, ...]:
        column = self.index.cameras
        span, rows = column.span(row), column.rows
        matrix = numbers(rows.field("intrinsic"), span).reshape(-1, 3, 3)
        channel = names(rows.field("channel"), span)
        if not np.isfinite(matrix).all():
            bad = int(np.argmin(np.isfinite(matrix).all((1, 2))))
            token = rows.field("calibration").field("token")[span.start + bad].as_py()
            raise self._not_finite("calibrated_sensor", token)
        size = zip(numbers(rows.field("width"), span), numbers(rows.field("height"), span))
        return tuple(
            Camera(name, ImageFile(path, int(w), int(h)), Pinhole(k.copy(), int(w), int(h)), *where)
            for name, path, (w, h), k, where in zip(
                channel, self._files(column, span), size, matrix, self._places(column, span)
            )
        )

    def _sweeps(self, row: int) -> tuple[LidarSweep, ...]:
        column = self.index.sweeps
        span = column.span(row)
        span = slice(span.start, min(span.stop, span.start + 1 + self.previous_sweeps))
        places = self._places(column, span)
        return tuple(
            LidarSweep(PointFile(path), *where)
            for path, where in zip(self._files(column, span), places)
        )

    def _files(self, column: Column, span: slice) -> list[Path]:
        return [self.root / file for file in names(column.rows.field("file"), span)]

    def _places(self, column: Column, span: slice) -> list[tuple[NDArray, NDArray, int]]:
        """(ego_from_sensor, global_from_ego, timestamp_us) of sensor files."""
        rows = column.rows
        mounting = self._placement(rows.field("calibration"), span, "calibrated_sensor")
        pose = self._placement(rows.field("pose"), span, "ego_pose")
        return list(zip(mounting, pose, numbers(rows.field("timestamp_us"), span).tolist()))

    def _placement(self, rows: pa.StructArray, span: slice, table: str) -> list[NDArray]:
        translation = numbers(rows.field("translation"), span)
        rotation = numbers(rows.field("rotation"), span)
        usable = is_rigid(translation, rotation)
        if not usable.all():
            bad = span.start + int(np.argmin(usable))
            raise self._not_finite(table, rows.field("token")[bad].as_py())
        matrices = np.tile(np.eye(4), (len(rotation), 1, 1))
        matrices[:, :3, :3] = rotation_from_quaternion(rotation)
        matrices[:, :3, 3] = translation
        return list(matrices)

    def _not_finite(self, table: str, token: str) -> DataError:
        return DataError(
            f"{self.root / self.version / table}.json: record {token} has NaN, infinite or all-zero"
            " values; correct it, index again, or go on without its frames (on_error='skip')"
        )

    def _annotations(self, row: int, target_from_global: NDArray) -> Annotations | None:
        column = self.index.boxes
        if not len(column.rows):
            return None
        span, rows = column.span(row), column.rows
        boxes = Boxes3D(
            center=numbers(rows.field("center"), span),
            size=numbers(rows.field("size"), span),
            yaw=wrap_angle(numbers(rows.field("yaw"), span)),
            velocity=numbers(rows.field("velocity"), span)[:, :2],
            label=self._labels(span),
        )
        return Annotations(
            boxes=boxes.transformed(target_from_global),
            attribute=self._attributes(span),
            instance=names(rows.field("instance"), span),
            visibility=numbers(rows.field("visibility"), span).astype(np.int64),
            num_lidar_points=numbers(rows.field("num_lidar_points"), span).astype(np.int64),
            num_radar_points=numbers(rows.field("num_radar_points"), span).astype(np.int64),
            category=names(rows.field("category"), span),
        )

    def _labels(self, span: slice) -> NDArray[np.int64]:
        column = self.index.boxes.rows.field("category")
        label = np.array([label_of_category(c) for c in column.dictionary.to_pylist()], np.int64)
        return label[numbers(column.indices, span)]

    def _attributes(self, span: slice) -> NDArray[np.int64]:
        column = self.index.boxes.rows.field("attribute")
        known = {name: i for i, name in enumerate(ATTRIBUTES)}
        number = np.array([known.get(a, -1) for a in column.dictionary.to_pylist()], np.int64)
        return number[numbers(column.indices, span)]


def _of_rows(arguments: tuple, rows: NDArray[np.int64]) -> NuScenesReader:
    reader = NuScenesReader(*arguments)
    reader._rows = rows
    return reader
