"""What the annotators wrote down for a split, ready for the metrics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ...datasets.errors import DataError
from ...datasets.frame import Annotations
from .boxes import GlobalBoxes

BIKE_RACK = "static_object.bicycle_rack"


class AnnotatedFrame(Protocol):
    """The part of ``Frame`` that is needed here."""

    @property
    def scene(self) -> str: ...

    @property
    def timestamp_us(self) -> int: ...

    @property
    def global_from_ego(self) -> NDArray: ...


class AnnotationReader(Protocol):
    """The part of a data set's reader that is needed here."""

    @property
    def tokens(self) -> Sequence[str]: ...

    def global_annotations(self, i: int) -> Annotations | None: ...

    def __getitem__(self, i: int) -> AnnotatedFrame: ...


@dataclass(frozen=True)
class GroundTruth:
    """The annotations of F samples in the global frame."""

    tokens: tuple[str, ...]  # (F,)
    ego_position: NDArray[np.float64]  # (F, 2) vehicle in the global frame at the key LiDAR time
    boxes: GlobalBoxes  # the ten detection classes, in the order of the annotation table
    bike_racks: GlobalBoxes  # boxes inside which bicycles and motorcycles do not count


@dataclass(frozen=True)
class TrackingTruth:
    """The annotations of F samples, and who is who in them."""

    annotations: GroundTruth
    instance: NDArray[np.int64]  # (M,) of each of the M boxes: the object that it shows
    scene: NDArray[np.int64]  # (F,) which scene each sample belongs to
    timestamp_us: NDArray[np.int64]  # (F,)


def ground_truth(reader: AnnotationReader) -> GroundTruth:
    """Collect a split's annotations; see ``tracking_truth``."""
    return tracking_truth(reader).annotations


def tracking_truth(reader: AnnotationReader) -> TrackingTruth:
    """Collect a split's annotations with their identities; no sensor file is opened.

    Raises:
        DataError: if a frame has no annotations (the test split).
    """
    tokens = tuple(reader.tokens)
    boxes, racks, position, scene, time = [], [], [], [], []
    scenes: dict[str, int] = {}
    objects: dict[str, int] = {}
    instance: list[int] = []
    for index, token in enumerate(tokens):
        annotations = reader.global_annotations(index)
        if annotations is None:
            raise DataError(f"sample {token} has no annotations to evaluate against (test split?)")
        frame = reader[index]
        position.append(frame.global_from_ego[:2, 3])
        scene.append(scenes.setdefault(frame.scene, len(scenes)))
        time.append(frame.timestamp_us)
        is_rack = np.array([name == BIKE_RACK for name in annotations.category], bool)
        found = _in_global(annotations, index)
        known = np.flatnonzero(found.label >= 0)
        boxes.append(found[known])
        racks.append(found[is_rack])
        instance += [objects.setdefault(annotations.instance[i], len(objects)) for i in known]
    annotated = GroundTruth(
        tokens=tokens,
        ego_position=np.array(position, np.float64).reshape(-1, 2),
        boxes=GlobalBoxes.concatenate(boxes),
        bike_racks=GlobalBoxes.concatenate(racks),
    )
    return TrackingTruth(
        annotated, *(np.array(column, np.int64) for column in (instance, scene, time))
    )


def _in_global(annotations: Annotations, sample: int) -> GlobalBoxes:
    points = annotations.num_lidar_points + annotations.num_radar_points
    no_score = np.full(len(annotations), -1.0)
    return GlobalBoxes.of_upright(
        annotations.boxes, sample, no_score, annotations.attribute, points
    )
