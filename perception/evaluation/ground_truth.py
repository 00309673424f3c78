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


def ground_truth(reader: AnnotationReader) -> GroundTruth:
    """Collect a split's annotations; no sensor file is opened.

    Raises:
        DataError: if a frame has no annotations (the test split).
    """
    tokens = tuple(reader.tokens)
    boxes, racks, position = [], [], []
    for index, token in enumerate(tokens):
        annotations = reader.global_annotations(index)
        if annotations is None:
            raise DataError(f"sample {token} has no annotations to evaluate against (test split?)")
        position.append(reader[index].global_from_ego[:2, 3])
        is_rack = np.array([name == BIKE_RACK for name in annotations.category], bool)
        found = _in_global(annotations, index)
        boxes.append(found[found.label >= 0])
        racks.append(found[is_rack])
    return GroundTruth(
        tokens=tokens,
        ego_position=np.array(position, np.float64).reshape(-1, 2),
        boxes=GlobalBoxes.concatenate(boxes),
        bike_racks=GlobalBoxes.concatenate(racks),
    )


def _in_global(annotations: Annotations, sample: int) -> GlobalBoxes:
    points = annotations.num_lidar_points + annotations.num_radar_points
    no_score = np.full(len(annotations), -1.0)
    return GlobalBoxes.of_upright(
        annotations.boxes, sample, no_score, annotations.attribute, points
    )
