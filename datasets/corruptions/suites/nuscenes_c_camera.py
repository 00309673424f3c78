"""nuScenes-C on cameras: 5 severities."""

from __future__ import annotations

from ..entry import Part

PARTS: dict[str, Part] = {}
