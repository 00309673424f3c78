"""nuScenes' official tracking submission: writing and reading the JSON file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...datasets.errors import DataError
from ...datasets.nuscenes.classes import DETECTION_CLASSES, TRACKING_CLASSES
from .boxes import GlobalBoxes
from .submission import write_results
from .submission_file import MAX_BOXES, BoxColumns, read_boxes
from .tracks import TrackedBoxes

_LABEL = {name: DETECTION_CLASSES.index(name) for name in TRACKING_CLASSES}


def write_tracking_submission(
    path: Path | str, tokens: Sequence[str], tracked: TrackedBoxes, meta: Mapping[str, bool]
) -> None:
    """Write tracks as an official submission.

    Boxes of classes that the task does not know are left out; of more than 500 boxes a sample the
    best stay. The file appears complete or not at all.

    Args:
        path: the JSON file to write.
        tokens: F sample tokens; every sample of the split must be there, with boxes or without.
        tracked: boxes of these samples.
        meta: see ``submission_meta``.
    """
    tracked = tracked[np.isin(tracked.boxes.label, list(_LABEL.values()))]
    order = np.lexsort((-tracked.boxes.score, tracked.boxes.sample))
    tracked = tracked[order]
    starts = np.searchsorted(tracked.boxes.sample, np.arange(len(tokens) + 1))
    records = (
        _records(token, tracked[np.arange(first, min(last, first + MAX_BOXES))])
        for token, first, last in zip(tokens, starts, starts[1:])
    )
    write_results(path, tokens, records, meta)


def _records(token: str, tracked: TrackedBoxes) -> list[dict]:
    boxes = tracked.boxes
    columns = boxes.translation, boxes.size, boxes.rotation, boxes.velocity, boxes.label
    rows = zip(*(c.tolist() for c in (*columns, boxes.score, tracked.track)), strict=True)
    return [
        {
            "sample_token": token,
            "translation": translation,
            "size": size,
            "rotation": rotation,
            "velocity": velocity,
            "tracking_id": str(track),
            "tracking_name": DETECTION_CLASSES[label],
            "tracking_score": score,
        }
        for translation, size, rotation, velocity, label, score, track in rows
    ]


def read_tracking_submission(path: Path | str, tokens: Sequence[str]) -> TrackedBoxes:
    """Read an official tracking submission; boxes keep the order of the file.

    Tracks are numbered in the order in which their ``tracking_id`` first comes.

    Args:
        path: the JSON file.
        tokens: the F sample tokens of the split.

    Raises:
        DataError: as ``read_submission``; also for a class that only the detection task knows.
    """
    columns = read_boxes(path, tokens, _Tracks)
    boxes: GlobalBoxes = columns.boxes(attribute=np.full(len(columns.third), -1))
    return TrackedBoxes(boxes, columns.third)


def is_tracking_submission(path: Path | str) -> bool:
    """Does the first box of a submission carry a ``tracking_name``? A file without boxes does not.

    Raises:
        DataError: if the file cannot be read.
    """
    try:
        with Path(path).open(encoding="utf-8", errors="replace") as file:
            before = ""
            while part := file.read(1 << 20):
                text = before + part
                if '"tracking_name"' in text or '"detection_name"' in text:
                    return '"tracking_name"' in text
                before = part[-32:]
    except OSError as error:
        raise DataError(f"{path}: cannot read the submission: {error.strerror}") from error
    return False


class _Tracks(BoxColumns):
    name, score, extra = "tracking_name", "tracking_score", "tracking_id"
    labels = _LABEL

    def __init__(self, path: Path, tokens: Sequence[str]):
        super().__init__(path, tokens)
        self.number: dict[Any, int] = {}

    def number_of(self, value: Any) -> int:
        return self.number.setdefault(value, len(self.number))

    def is_known(self, value: object) -> bool:
        return isinstance(value, str | int)
