"""nuScenes' official detection submission: writing and reading the JSON file."""

from __future__ import annotations

import gc
import json
import os
from array import array
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...datasets.boxes import Detections
from ...datasets.errors import DataError
from ...datasets.geometry import quaternion_from_yaw
from ...datasets.nuscenes.classes import ATTRIBUTES, DETECTION_CLASSES
from .boxes import GlobalBoxes, upright_in_global

MAX_BOXES = 500  # a sample, by the rules
_LABEL = {name: index for index, name in enumerate(DETECTION_CLASSES)}
_ATTRIBUTE = {name: index for index, name in enumerate(ATTRIBUTES)} | {"": -1}
_NUMBERS = 13  # translation 3, size 3, rotation 4, velocity 2, score


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
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        file.write(f'{{"meta": {json.dumps(dict(meta))}, "results": {{')
        for index, (token, found) in enumerate(zip(tokens, detections, strict=True)):
            records = _records(token, found, np.asarray(global_from_bev[index], np.float64))
            file.write(f"{', ' if index else ''}{json.dumps(token)}: {json.dumps(records)}")
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
    path = Path(path)
    columns = _Columns(path, tokens)
    try:
        with path.open(encoding="utf-8") as file, _no_garbage_collection():
            # Each box goes into flat arrays as it is parsed: millions of dicts take gigabytes.
            content = json.load(file, object_hook=columns.take)
    except OSError as error:
        raise DataError(f"{path}: cannot read the submission: {error.strerror}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not a JSON file ({error}); write the submission again") from error
    results = content.get("results") if isinstance(content, dict) else None
    if not isinstance(results, dict) or "meta" not in content:
        raise DataError(f"{path}: a submission needs the fields `meta` and `results`")
    _check_tokens(path, results, tokens)
    return columns.boxes(results)


@contextmanager
def _no_garbage_collection():
    """Parsing makes no cycles, and looking for them doubles its time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _check_tokens(path: Path, results: dict, tokens: Sequence[str]) -> None:
    missing, extra = set(tokens) - results.keys(), results.keys() - set(tokens)
    if missing or extra:
        example = f"`{min(missing)}` is missing" if missing else f"`{min(extra)}` is not in it"
        raise DataError(
            f"{path}: the samples are not those of the split: {len(missing)} missing, "
            f"{len(extra)} too many ({example}); a sample without boxes needs an empty list"
        )


class _Columns:
    """Takes boxes out of the JSON stream."""

    def __init__(self, path: Path, tokens: Sequence[str]):
        self.path = path
        self.sample_of = {token: index for index, token in enumerate(tokens)}
        self.numbers = array("d")
        self.names = array("q")  # sample, label, attribute, number of points

    def take(self, record: dict) -> dict | None:
        """Called by the parser for every object; swallows the boxes and passes on the rest."""
        if "detection_name" not in record and "sample_token" not in record:
            return record
        try:
            x, y, z = record["translation"]
            width, length, height = record["size"]
            qw, qx, qy, qz = record["rotation"]
            vx, vy = record["velocity"]
            score = record["detection_score"]
            self.numbers.extend((x, y, z, width, length, height, qw, qx, qy, qz, vx, vy, score))
            self.names.extend(
                (
                    self.sample_of.get(record["sample_token"], -1),
                    _LABEL[record["detection_name"]],
                    _ATTRIBUTE[record["attribute_name"]],
                    record.get("num_pts", -1),
                )
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise DataError(f"{self.path}: {_what_is_wrong(record, error)}") from error
        return None

    def boxes(self, results: dict[str, list]) -> GlobalBoxes:
        """All boxes taken, checked against the lists they stood in."""
        count = [len(boxes) if isinstance(boxes, list) else -1 for boxes in results.values()]
        for token, number in zip(results, count, strict=True):
            if number < 0:
                raise DataError(f"{self.path}: sample {token} has no list of boxes")
            if number > MAX_BOXES:
                raise DataError(
                    f"{self.path}: sample {token} has {number} boxes; at most {MAX_BOXES} are "
                    "allowed: keep the best"
                )
        numbers = np.frombuffer(self.numbers, np.float64).reshape(-1, _NUMBERS)
        sample, label, attribute, points = np.frombuffer(self.names, np.int64).reshape(-1, 4).T
        listed = np.repeat([self.sample_of[token] for token in results], count).astype(np.int64)
        if len(listed) != len(sample) or (listed != sample).any():
            raise DataError(
                f"{self.path}: a box stands in the list of another sample than its `sample_token` "
                "says, or a sample comes twice"
            )
        self._check_finite(numbers, list(results), count)
        return GlobalBoxes(
            sample=sample,
            translation=numbers[:, 0:3],
            size=numbers[:, 3:6],
            rotation=numbers[:, 6:10],
            velocity=numbers[:, 10:12],
            label=label,
            score=numbers[:, 12],
            attribute=attribute,
            num_points=points,
        )

    def _check_finite(self, numbers: NDArray, tokens: list[str], count: list[int]) -> None:
        bad = ~np.isfinite(numbers)
        bad[:, 10:12] = False  # a velocity may be unknown
        if bad.any():
            row, column = np.argwhere(bad)[0]
            token = np.repeat(tokens, count)[row]
            field = ("translation",) * 3 + ("size",) * 3 + ("rotation",) * 4 + ("velocity",) * 2
            name = (*field, "detection_score")[column]
            raise DataError(f"{self.path}: a box of sample {token} has a {name} that is not finite")


def _what_is_wrong(record: dict, error: Exception) -> str:
    where = f"a box of sample {record.get('sample_token', '(no sample_token)')}"
    fields = ("sample_token", "translation", "size", "rotation", "velocity")
    missing = [
        name
        for name in (*fields, "detection_name", "detection_score", "attribute_name")
        if name not in record
    ]
    if missing:
        return f"{where} lacks {', '.join(f'`{name}`' for name in missing)}"
    if record["detection_name"] not in DETECTION_CLASSES:
        return f"{where} has the unknown detection_name {record['detection_name']!r}"
    if record["attribute_name"] not in _ATTRIBUTE:
        return f"{where} has the unknown attribute_name {record['attribute_name']!r}"
    return f"{where} has numbers that are not ({error})"
