"""What detection and tracking submissions share: reading a large JSON file into flat arrays."""

from __future__ import annotations

import gc
import json
from array import array
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

from ...datasets.errors import DataError
from .boxes import GlobalBoxes

MAX_BOXES = 500  # a sample, by the rules
_NUMBERS = 13  # translation 3, size 3, rotation 4, velocity 2, score
_SHARED = ("sample_token", "translation", "size", "rotation", "velocity")


class BoxColumns:
    """Takes boxes out of the JSON stream; a task says what its fields are called."""

    name: ClassVar[str]  # field of the class name
    score: ClassVar[str]
    extra: ClassVar[str]  # a third field, kept as a whole number
    labels: ClassVar[Mapping[str, int]]  # class name -> label

    def __init__(self, path: Path, tokens: Sequence[str]):
        self.path = path
        self.sample_of = {token: index for index, token in enumerate(tokens)}
        self.numbers = array("d")
        self.meta: dict[str, Any] = {}
        self.names = array("q")  # sample, label, extra, number of points

    def number_of(self, value: Any) -> int:
        """The number that stands for a value of the third field."""
        raise NotImplementedError

    def is_known(self, value: object) -> bool:
        """May the third field have this value?"""
        raise NotImplementedError

    def take(self, record: dict) -> dict | None:
        """Called by the parser for every object; swallows the boxes and passes on the rest."""
        if self.name not in record and "sample_token" not in record:
            return record
        try:
            x, y, z = record["translation"]
            width, length, height = record["size"]
            qw, qx, qy, qz = record["rotation"]
            vx, vy = record["velocity"]
            score = record[self.score]
            self.numbers.extend((x, y, z, width, length, height, qw, qx, qy, qz, vx, vy, score))
            self.names.extend(
                (
                    self.sample_of.get(record["sample_token"], -1),
                    self.labels[record[self.name]],
                    self.number_of(record[self.extra]),
                    record.get("num_pts", -1),
                )
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise DataError(f"{self.path}: {self._what_is_wrong(record, error)}") from error
        return None

    @property
    def third(self) -> NDArray[np.int64]:
        """(M,) the third field."""
        return np.frombuffer(self.names, np.int64).reshape(-1, 4)[:, 2]

    def boxes(self, attribute: NDArray) -> GlobalBoxes:
        """All boxes taken."""
        numbers = np.frombuffer(self.numbers, np.float64).reshape(-1, _NUMBERS)
        sample, label, _, points = np.frombuffer(self.names, np.int64).reshape(-1, 4).T
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

    def check(self, results: dict[str, list]) -> None:
        """Hold the boxes against the lists they stood in."""
        count = [len(boxes) if isinstance(boxes, list) else -1 for boxes in results.values()]
        for token, number in zip(results, count, strict=True):
            if number < 0:
                raise DataError(f"{self.path}: sample {token} has no list of boxes")
            if number > MAX_BOXES:
                raise DataError(
                    f"{self.path}: sample {token} has {number} boxes; at most {MAX_BOXES} are "
                    "allowed: keep the best"
                )
        sample = np.frombuffer(self.names, np.int64).reshape(-1, 4)[:, 0]
        listed = np.repeat([self.sample_of[token] for token in results], count).astype(np.int64)
        if len(listed) != len(sample) or (listed != sample).any():
            raise DataError(
                f"{self.path}: a box stands in the list of another sample than its `sample_token` "
                "says, or a sample comes twice"
            )
        bad = ~np.isfinite(np.frombuffer(self.numbers, np.float64).reshape(-1, _NUMBERS))
        bad[:, 10:12] = False  # a velocity may be unknown
        if bad.any():
            row, column = np.argwhere(bad)[0]
            token = np.repeat(list(results), count)[row]
            field = ("translation",) * 3 + ("size",) * 3 + ("rotation",) * 4 + ("velocity",) * 2
            name = (*field, self.score)[column]
            raise DataError(f"{self.path}: a box of sample {token} has a {name} that is not finite")

    def _what_is_wrong(self, record: dict, error: Exception) -> str:
        where = f"a box of sample {record.get('sample_token', '(no sample_token)')}"
        needed = (*_SHARED, self.name, self.score, self.extra)
        missing = [name for name in needed if name not in record]
        if missing:
            return f"{where} lacks {', '.join(f'`{name}`' for name in missing)}"
        if record[self.name] not in tuple(self.labels):
            return f"{where} has the unknown {self.name} {record[self.name]!r}"
        if not self.is_known(record[self.extra]):
            return f"{where} has the unknown {self.extra} {record[self.extra]!r}"
        return f"{where} has numbers that are not ({error})"


Columns = TypeVar("Columns", bound=BoxColumns)


def read_boxes(path: Path | str, tokens: Sequence[str], kind: type[Columns]) -> Columns:
    """Parse and check a submission; see ``read_submission`` for the errors."""
    path = Path(path)
    columns = kind(path, tokens)
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
    columns.check(results)
    columns.meta = content["meta"] or {}
    return columns


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
