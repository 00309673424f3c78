"""Map expansion files (v1.3) from streets."""

from __future__ import annotations

from typing import Any

import numpy as np

from .streets import Polygon, Street

CANVAS = {  # the devkit knows these names and sizes, metres; no other is accepted
    "singapore-onenorth": (1585.6, 2025.0),
    "singapore-hollandvillage": (2808.3, 2922.9),
    "singapore-queenstown": (3228.6, 3687.1),
    "boston-seaport": (2979.5, 2118.1),
}
LAYERS = (
    "polygon", "line", "node", "drivable_area", "road_segment", "road_block", "lane",
    "ped_crossing", "walkway", "stop_line", "carpark_area", "road_divider", "lane_divider",
    "traffic_light", "lane_connector",
)  # fmt: skip


class MapFile:
    """Collects the streets of one location."""

    def __init__(self, location: str) -> None:
        self.location = location
        self.content: dict[str, Any] = {layer: [] for layer in LAYERS}
        self.content |= {"version": "1.3", "canvas_edge": list(CANVAS[location])}
        self.content |= {"arcline_path_3": {}, "connectivity": {}}
        self._count = 0

    def add(self, street: Street) -> None:
        """Add a street's layers."""
        roads = [self._polygon(polygon) for polygon in street.roads]
        drivable = self._record("drivable_area", polygon_tokens=roads)
        for polygon in street.intersections:
            self._area("road_segment", polygon, is_intersection=True, drivable_area_token=drivable)
        for polygon in street.roads:
            segment = self._area(
                "road_segment", polygon, is_intersection=False, drivable_area_token=drivable
            )
            self._area("road_block", polygon, from_edge_line_token="", to_edge_line_token="",
                       road_segment_token=segment)  # fmt: skip
        for polygon in street.lanes:
            lane = self._area(
                "lane", polygon, lane_type="CAR", from_edge_line_token="", to_edge_line_token="",
                left_lane_divider_segments=[], right_lane_divider_segments=[],
            )  # fmt: skip
            self.content["connectivity"][lane] = {"incoming": [], "outgoing": []}
        for polygon in street.crossings:
            self._area("ped_crossing", polygon, road_segment_token="")
        for polygon in street.walkways:
            self._area("walkway", polygon)
        for polygon in street.stop_lines:
            self._area("stop_line", polygon, stop_line_type="STOP_SIGN", road_block_token="")
        for polygon in street.park_areas:
            self._area("carpark_area", polygon, orientation="", road_block_token="")
        for line in street.road_dividers:
            self._record("road_divider", line_token=self._line(line), road_segment_token="")
        for line in street.lane_dividers:
            self._record("lane_divider", line_token=self._line(line), lane_divider_segments=[])

    def _record(self, layer: str, **values: Any) -> str:
        token = f"{self.location}-{layer}-{self._count:07d}"
        self._count += 1
        self.content[layer].append({"token": token, **values})
        return token

    def _nodes(self, points: Polygon) -> list[str]:
        return [self._record("node", x=float(x), y=float(y)) for x, y in np.round(points, 4)]

    def _polygon(self, points: Polygon) -> str:
        return self._record("polygon", exterior_node_tokens=self._nodes(points), holes=[])

    def _line(self, points: Polygon) -> str:
        return self._record("line", node_tokens=self._nodes(points))

    def _area(self, layer: str, points: Polygon, **values: Any) -> str:
        return self._record(layer, polygon_token=self._polygon(points), **values)
