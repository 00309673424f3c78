"""nuScenes-C inside boxes and on moving objects: 5 severities."""

from __future__ import annotations

from ..entry import Part

PARTS: dict[str, Part] = {}
