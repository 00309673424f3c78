"""nuScenes' official detection submission: writing and reading the JSON file."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...datasets.boxes import Detections
from ...datasets.geometry import quaternion_from_yaw
from ...datasets.nuscenes.classes import ATTRIBUTES, DETECTION_CLASSES
from .boxes import GlobalBoxes, upright_in_global
from .submission_file import MAX_BOXES, BoxColumns, read_boxes

__all__ = [
    "MAX_BOXES",
    "read_submission",
    "read_submission_and_meta",
    "submission_meta",
    "write_results",
    "write_submission",
]
_LABEL = {name: index for index, name in enumerate(DETECTION_CLASSES)}
_ATTRIBUTE = {name: index for index, name in enumerate(ATTRIBUTES)} | {"": -1}


def submission_meta(use_camera: bool, use_lidar: bool) -> dict[str, bool]:
    """The ``meta`` of a submission: which inputs were used."""
    return {
        "use_camera": use_camera,
        "use_lidar": use_lidar,
        "use_radar": False,
        "use_map": False,
        "use_external": False,
    }


def write_submission(
    path: Path | str,
    tokens: Sequence[str],
    detections: Sequence[Detections],
    global_from_bev: NDArray,
    meta: Mapping[str, bool],
) -> None:
    """Write detections as an official submission.

    Boxes stand upright in the global frame there, so their heading is the global one whose
    projection the BEV frame saw, tilted or not. Of more than 500 boxes a sample the best stay.
    The file appears complete or not at all.

    Args:
        path: the JSON file to write.
        tokens: F sample tokens; every sample of the split must be there, with boxes or without.
        detections: F sets of boxes in the BEV frame.
        global_from_bev: (F, 4, 4); undoes augmentation too.
        meta: see ``submission_meta``.

    Raises:
        ValueError: if the counts differ, a token comes twice, or a box holds NaN (velocity may).
    """
    if not len(tokens) == len(detections) == len(global_from_bev):
        raise ValueError(
            f"{len(tokens)} tokens, {len(detections)} sets of detections and "
            f"{len(global_from_bev)} transforms; one of each per sample is needed"
        )
    if len(set(tokens)) != len(tokens):
        raise ValueError("a sample token comes twice; a submission has every sample once")
    records = (
        _records(token, found, np.asarray(transform, np.float64))
        for token, found, transform in zip(tokens, detections, global_from_bev)
    )
    write_results(path, tokens, records, meta)


def write_results(
    path: Path | str,
    tokens: Sequence[str],
    records: Iterable[Sequence[dict]],
    meta: Mapping[str, bool],
) -> None:
    """Write F samples' records as a submission; the file appears complete or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(f'{{"meta": {json.dumps(dict(meta))}, "results": {{')
        for index, (token, boxes) in enumerate(zip(tokens, records, strict=True)):
            file.write(f"{', ' if index else ''}{json.dumps(token)}: {json.dumps(list(boxes))}")
        file.write("}}")
    os.replace(partial, path)


def _records(token: str, detections: Detections, global_from_bev: NDArray) -> list[dict]:
    best = np.argsort(-detections.score, kind="stable")[:MAX_BOXES]
    detections = detections[best]
    boxes = upright_in_global(detections.boxes, global_from_bev)
    for name in ("center", "size", "yaw"):
        if not np.isfinite(getattr(boxes, name)).all():
            raise ValueError(f"a detection of sample {token} has a {name} that is not finite")
    if not np.isfinite(detections.score).all():
        raise ValueError(f"a detection of sample {token} has a score that is not finite")
    columns = zip(
        boxes.center.tolist(),
        boxes.size[:, [1, 0, 2]].tolist(),
        quaternion_from_yaw(boxes.yaw).tolist(),
        boxes.velocity.tolist(),
        boxes.label.tolist(),
        np.asarray(detections.score, np.float64).tolist(),
        detections.attribute.tolist(),
        strict=True,
    )
    return [
        {
            "sample_token": token,
            "translation": translation,
            "size": size,
            "rotation": rotation,
            "velocity": velocity,
            "detection_name": DETECTION_CLASSES[label],
            "detection_score": score,
            "attribute_name": ATTRIBUTES[attribute] if attribute >= 0 else "",
        }
        for translation, size, rotation, velocity, label, score, attribute in columns
    ]


def read_submission(path: Path | str, tokens: Sequence[str]) -> GlobalBoxes:
    """Read an official submission.

    Boxes keep the order of the file, which decides between equal scores.

    Args:
        path: the JSON file.
        tokens: the F sample tokens of the split.

    Raises:
        DataError: if the file cannot be read, its samples are not exactly ``tokens``, a sample has
            more than 500 boxes, or a box is incomplete, of an unknown class, or holds NaN
            (velocity may).
    """
    return read_submission_and_meta(path, tokens)[0]


def read_submission_and_meta(
    path: Path | str, tokens: Sequence[str]
) -> tuple[GlobalBoxes, dict[str, bool]]:
    """As ``read_submission``, with what the file says of its inputs."""
    columns = read_boxes(path, tokens, _Detections)
    return columns.boxes(attribute=columns.third), columns.meta


class _Detections(BoxColumns):
    name, score, extra = "detection_name", "detection_score", "attribute_name"
    labels = _LABEL

    def number_of(self, value: str) -> int:
        return _ATTRIBUTE[value]

    def is_known(self, value: object) -> bool:
        return isinstance(value, str) and value in _ATTRIBUTE
