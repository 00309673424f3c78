"""Affinities of an evaluated data set: collected frame by frame, kept beside the submission."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...datasets.errors import DataError
from ..tracking.affinity import Affinities, Affinity

FORMAT = "bevstack affinities 1"
LEAST = 1e-4  # matches less likely than this are not kept


@dataclass
class Linker:
    """Asks a model's affinity head about every frame and the one that came before it."""

    pairs: dict[str, tuple[str, Affinity]] = field(default_factory=dict)  # by the later token
    _last: tuple[str, Any] | None = None

    def add(self, head: Any, token: str, frame: Any) -> None:
        """Take the next frame in the order of time; see ``AffinityHead.decode``."""
        if self._last is not None:
            before, earlier = self._last
            affinity = head.affinity(earlier, frame)
            if affinity is not None:
                self.pairs[token] = before, affinity
        self._last = token, frame

    def affinities(self, tokens: Sequence[str]) -> Affinities:
        """What was said, by the places of frames among all tokens."""
        place = {token: i for i, token in enumerate(tokens)}
        pairs = self.pairs.items()
        return Affinities({place[now]: (place[before], said) for now, (before, said) in pairs})


def write_affinities(path: Path, affinities: Affinities, submission: Path) -> None:
    """Write affinities of the detections in a submission; the file appears complete or not at all.

    Args:
        path: the ``.safetensors`` file.
        affinities: by the places of samples, and of boxes within a sample, in the submission.
        submission: the file; its hash is kept, so that no other is taken for it.
    """
    from safetensors.numpy import save

    frames = np.array([[first, now] for now, (first, _) in affinities.pairs.items()], np.int64)
    said = [affinity for _, affinity in affinities.pairs.values()]
    kept = [np.argwhere(a.match >= LEAST) for a in said]
    tensors = {
        "frames": frames.reshape(-1, 2),
        "row_count": np.array([len(a.rows) for a in said], np.int64),
        "rows": _joined([a.rows for a in said], (), np.int64),
        "row_probability": _joined(
            [np.stack([a.dead, a.missed], 1) for a in said], (2,), np.float32
        ),
        "column_count": np.array([len(a.columns) for a in said], np.int64),
        "columns": _joined([a.columns for a in said], (), np.int64),
        "column_probability": _joined(
            [np.stack([a.newborn, a.false_positive], 1) for a in said], (2,), np.float32
        ),
        "match_count": np.array([len(k) for k in kept], np.int64),
        "matches": _joined(kept, (2,), np.int32),
        "match_probability": _joined([a.match[*k.T] for a, k in zip(said, kept)], (), np.float32),
    }
    partial = path.with_name(path.name + ".partial")
    partial.write_bytes(save(tensors, {"format": FORMAT, "submission": _digest(submission)}))
    os.replace(partial, path)


def read_affinities(path: Path, submission: Path) -> Affinities:
    """Read what :func:`write_affinities` wrote.

    Raises:
        DataError: if the file cannot be read, or belongs to another submission.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            said = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        if said.get("format") != FORMAT:
            raise DataError(f"{path} does not hold affinities; run bevstack evaluate again")
        if said.get("submission") != _digest(submission):
            raise DataError(
                f"{path} does not belong to {submission}; run bevstack evaluate again, or track "
                "with --affinity false"
            )
        return _split(tensors)
    except (OSError, SafetensorError, KeyError, IndexError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{path}: cannot read the affinities ({error}); run bevstack evaluate again"
        ) from error


def _split(tensors: dict[str, NDArray]) -> Affinities:
    parts = {}
    for name, count in {"rows": "row", "columns": "column", "matches": "match"}.items():
        borders = np.cumsum(tensors[f"{count}_count"])[:-1]
        parts[name] = np.split(tensors[name], borders)
        parts[count] = np.split(tensors[f"{count}_probability"], borders)
    pairs = {}
    for k, (first, now) in enumerate(tensors["frames"].tolist()):
        rows, columns = parts["rows"][k], parts["columns"][k]
        match = np.zeros((len(rows), len(columns)), np.float32)
        match[*parts["matches"][k].T] = parts["match"][k]
        row, column = parts["row"][k].T, parts["column"][k].T
        pairs[now] = first, Affinity(rows, columns, match, row[0], row[1], column[0], column[1])
    return Affinities(pairs)


def _joined(parts: Sequence[NDArray], shape: tuple[int, ...], kind: Any) -> NDArray:
    return np.concatenate([np.zeros((0, *shape), kind), *parts]).astype(kind)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "blake2b").hexdigest()
