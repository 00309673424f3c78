"""Read the layers of a map expansion file that the map classes need."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from .classes import MAP_CLASSES

Array = NDArray[np.float64]

_LINE_LAYERS = ("road_divider", "lane_divider")
_REMEDY = "unpack nuScenes-map-expansion-v1.3.zip into the dataset's maps folder"


@dataclass(frozen=True)
class Polygons:
    """Polygons of one layer in the global frame."""

    rings: list[list[Array]]  # per polygon: the outer ring (V, 2), then its holes
    bounds: Array  # (n, 4) x0, y0, x1, y1 of the outer ring


@dataclass(frozen=True)
class Lines:
    """Line segments of one layer in the global frame."""

    segments: Array  # (n, 2, 2) start and end
    bounds: Array  # (n, 4)


@lru_cache(maxsize=8)
def load_map_layers(path: Path) -> dict[str, Polygons | Lines]:
    """The layers of a map expansion file by class name; kept for the life of the process.

    Raises:
        DataError: if the file is missing, broken, incomplete or too old.
    """
    tables = _read_json(path)
    try:
        nodes = {node["token"]: (node["x"], node["y"]) for node in tables["node"]}
        polygons = {polygon["token"]: polygon for polygon in tables["polygon"]}
        lines = {line["token"]: line["node_tokens"] for line in tables["line"]}
        layers: dict[str, Polygons | Lines] = {}
        for name in MAP_CLASSES:
            if name == "divider":
                tokens = [row["line_token"] for layer in _LINE_LAYERS for row in tables[layer]]
                layers[name] = _lines([_ring(nodes, lines[token]) for token in tokens])
            else:
                tokens = [token for row in tables[name] for token in _polygon_tokens(row)]
                layers[name] = _polygons([polygons[token] for token in tokens], nodes)
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{path} is not a complete map expansion of version 1.3 ({error} is missing or "
            f"malformed); {_REMEDY}"
        ) from error
    return layers


def _read_json(path: Path) -> dict[str, Any]:
    try:
        tables = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing; {_REMEDY}, or train without map labels") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}); {_REMEDY}") from error
    version = tables.get("version", "unknown") if isinstance(tables, dict) else "unknown"
    if version < "1.3":  # as the devkit compares it; "unknown" is caught by what is missing
        raise DataError(f"{path} has version {version}, expected 1.3 or later; {_REMEDY}")
    return tables


def _polygon_tokens(row: dict[str, Any]) -> list[str]:
    return row["polygon_tokens"] if "polygon_tokens" in row else [row["polygon_token"]]


def _ring(nodes: dict[str, tuple[float, float]], tokens: list[str]) -> Array:
    return np.array([nodes[token] for token in tokens], np.float64).reshape(-1, 2)


def _polygons(records: list[dict], nodes: dict[str, tuple[float, float]]) -> Polygons:
    rings = []
    for record in records:
        holes = [hole["node_tokens"] for hole in record["holes"]]
        outer, *inner = (_ring(nodes, t) for t in [record["exterior_node_tokens"], *holes])
        if len(outer) >= 3:
            rings.append([outer, *(ring for ring in inner if len(ring) >= 3)])
    bounds = [np.concatenate([ring[0].min(0), ring[0].max(0)]) for ring in rings]
    return Polygons(rings, np.array(bounds).reshape(-1, 4))


def _lines(lines: list[Array]) -> Lines:
    pairs = [np.stack([line[:-1], line[1:]], 1) for line in lines if len(line) >= 2]
    segments = np.concatenate([np.zeros((0, 2, 2)), *pairs])
    return Lines(segments, np.concatenate([segments.min(1), segments.max(1)], 1))
