"""How long frames take, by stage."""

from __future__ import annotations

import numpy as np


class Latencies:
    """Collects the seconds of frames and gives medians and 99th percentiles.

    The first frame, which compiles and plans, is kept apart.
    """

    def __init__(self) -> None:
        self.first: dict[str, float] | None = None
        self._frames: list[dict[str, float]] = []

    def add(self, seconds: dict[str, float]) -> None:
        """One frame, by stage."""
        if self.first is None:
            self.first = seconds
        else:
            self._frames.append(seconds)

    def to_json(self) -> dict[str, dict[str, float]]:
        """Median and p99 in milliseconds by stage and in all; empty below two frames."""
        stages = list(dict.fromkeys(stage for frame in self._frames for stage in frame))
        columns = {s: [frame.get(s, 0.0) for frame in self._frames] for s in stages}
        if columns:
            columns["all"] = [sum(frame.values()) for frame in self._frames]
        return {
            stage: {
                "median_ms": round(1e3 * float(np.median(values)), 2),
                "p99_ms": round(1e3 * float(np.percentile(values, 99)), 2),
            }
            for stage, values in columns.items()
        }

    def print(self) -> None:
        """A table for the terminal."""
        from rich.console import Console
        from rich.table import Table

        table = Table("stage", "median ms", "p99 ms")
        for stage, figures in self.to_json().items():
            table.add_row(stage, f"{figures['median_ms']:.1f}", f"{figures['p99_ms']:.1f}")
        table.caption = f"{len(self._frames)} frames after the first"
        if self._frames:
            Console().print(table)
