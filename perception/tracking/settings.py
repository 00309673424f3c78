"""A tracker by name, with what a YAML file changes about it."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal

from ...datasets.errors import DataError
from .greedy import MAX_DISTANCE, GreedyTracker
from .kalman import KalmanTracker
from .profiles import PROFILES, Profile

TrackerName = Literal["kalman", "greedy"]
_KINDS = {"kalman": KalmanTracker, "greedy": GreedyTracker}


def make_tracker(
    name: TrackerName, path: Path | str | None = None
) -> KalmanTracker | GreedyTracker:
    """A tracker with its default values, or with those of a file.

    Args:
        name: which one.
        path: a YAML file of the tracker's arguments; of ``profiles`` and ``max_distance``, classes
            and fields that it does not name stay as they are:

                fading: 0.2
                profiles:
                  car: {gate: 1.6}

    Raises:
        DataError: if the file cannot be read, or names what the tracker does not have.
    """
    changes = _read(Path(path)) if path is not None else {}
    kind = _KINDS[name]
    where = f"{path}: " if path is not None else ""
    _known(changes, [f.name for f in fields(kind)], f"{where}the {name} tracker has no")
    if "profiles" in changes:
        changes["profiles"] = _profiles(changes["profiles"], where)
    if "max_distance" in changes:
        _known(changes["max_distance"], list(MAX_DISTANCE), f"{where}max_distance has no class")
        changes["max_distance"] = MAX_DISTANCE | changes["max_distance"]
    return kind(**changes)


def _profiles(changes: dict[str, dict[str, Any]], where: str) -> dict[str, Profile]:
    _known(changes, list(PROFILES), f"{where}profiles has no class")
    known = [f.name for f in fields(Profile)]
    profiles = dict(PROFILES)
    for name, values in changes.items():
        _known(values, known, f"{where}the profile of {name} has no")
        profiles[name] = replace(profiles[name], **values)
    return profiles


def _read(path: Path) -> dict[str, Any]:
    import yaml

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DataError(f"{path}: cannot read the tracker's settings ({error})") from error
    return content or {}


def _known(changes: Any, names: list[str], message: str) -> None:
    if not isinstance(changes, dict):
        raise DataError(f"{message} fields: {changes!r} is not a mapping")
    unknown = [name for name in changes if name not in names]
    if unknown:
        raise DataError(f"{message} {unknown[0]!r}; it has: {', '.join(names)}")
