"""RoboBEV: cameras, 3 severities."""

from __future__ import annotations

from ..entry import Part

PARTS: dict[str, Part] = {}
