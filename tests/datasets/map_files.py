"""Map expansion files made by hand or at random, for tests."""

import json
from pathlib import Path

import numpy as np
import pytest

from bevstack.datasets.nuscenes.classes import MAP_CLASSES

POLYGON_LAYERS = ("road_segment", "road_block", "lane", "ped_crossing", "walkway")
POLYGON_LAYERS += ("stop_line", "carpark_area")


class MapFile:
    """Collects shapes and writes them as a map expansion file."""

    def __init__(self):
        self.tables = {"version": "1.3", "canvas_edge": [2979.5, 2118.1]}
        layers = ["polygon", "line", "node", "drivable_area", *POLYGON_LAYERS]
        layers += ["road_divider", "lane_divider", "traffic_light", "lane_connector"]
        self.tables |= {name: [] for name in layers}
        self.tables |= {"arcline_path_3": {}, "connectivity": {}}

    def _nodes(self, points) -> list[str]:
        rows = self.tables["node"]
        tokens = [f"node{len(rows) + i}" for i in range(len(points))]
        rows += [{"token": t, "x": float(x), "y": float(y)} for t, (x, y) in zip(tokens, points)]
        return tokens

    def polygon(self, layer, outer, holes=()):
        token = f"polygon{len(self.tables['polygon'])}"
        holes = [{"node_tokens": self._nodes(hole)} for hole in holes]
        row = {"token": token, "exterior_node_tokens": self._nodes(outer), "holes": holes}
        self.tables["polygon"].append(row)
        record = {"token": f"{layer}{len(self.tables[layer])}", "polygon_token": token}
        if layer == "drivable_area":
            record = {"token": record["token"], "polygon_tokens": [token]}
        if layer == "stop_line":
            record["stop_line_type"] = "YIELD"
        self.tables[layer].append(record)

    def line(self, layer, points):
        token = f"line{len(self.tables['line'])}"
        self.tables["line"].append({"token": token, "node_tokens": self._nodes(points)})
        name = f"{layer}{len(self.tables[layer])}"
        self.tables[layer].append({"token": name, "line_token": token})

    def write(self, root: Path, location="boston-seaport") -> Path:
        path = root / "maps" / "expansion" / f"{location}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.tables))
        return root


def rectangle(x0, y0, x1, y1):
    return [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]


def star(random, center, radius, corners):
    """A simple polygon of irregular outline around a point."""
    angle = np.sort(random.uniform(0, 2 * np.pi, corners))
    reach = radius * random.uniform(0.6, 1.0, corners)
    return np.asarray(center) + np.stack([np.cos(angle), np.sin(angle)], 1) * reach[:, None]


def random_map(seed: int) -> MapFile:
    """A map of 600 x 600 m with all six classes, as dense as a city's."""
    random, file = np.random.default_rng(seed), MapFile()
    for _ in range(20):
        center = random.uniform(0, 600, 2)
        hole = star(random, center, 15, 12) if random.random() < 0.7 else None
        file.polygon(
            "drivable_area", star(random, center, 80, 40), [hole] if hole is not None else []
        )
    for layer, number, radius in [("ped_crossing", 150, 6), ("walkway", 80, 25)]:
        for _ in range(number):
            file.polygon(layer, star(random, random.uniform(0, 600, 2), radius, 9))
    for layer, number, radius in [("stop_line", 150, 5), ("carpark_area", 60, 12)]:
        for _ in range(number):
            file.polygon(layer, star(random, random.uniform(0, 600, 2), radius, 7))
    for layer in ("road_divider", "lane_divider"):
        for _ in range(150):
            steps = random.normal([6, 0], [2, 3], (random.integers(1, 30), 2))
            turn = random.uniform(0, 2 * np.pi)
            turn = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
            file.line(
                layer, random.uniform(0, 600, 2) + np.cumsum(np.vstack([[0, 0], steps]), 0) @ turn
            )
    return file


def devkit_masks(root, location, x, y, yaw, grid):
    """(6, X, Y) by the unmodified devkit, but for the line drawing that Shapely 2 broke."""
    api = pytest.importorskip("nuscenes.map_expansion.map_api")
    explorer = api.NuScenesMapExplorer
    original = explorer.mask_for_lines

    def draw_each(lines, mask):
        for line in getattr(lines, "geoms", [lines]):
            mask = original(line, mask)
        return mask

    layers = [*MAP_CLASSES[:5], "road_divider", "lane_divider"]
    nusc_map = api.NuScenesMap(str(root), location)
    nx, ny = grid.shape
    patch = (x, y, ny * grid.cell_size, nx * grid.cell_size)
    with pytest.MonkeyPatch.context() as patcher:
        patcher.setattr(explorer, "mask_for_lines", staticmethod(draw_each))
        masks = nusc_map.get_map_mask(patch, np.degrees(yaw), layers, (ny, nx))
    masks = masks.astype(bool).transpose(0, 2, 1)
    return np.concatenate([masks[:5], masks[5:6] | masks[6:7]])
