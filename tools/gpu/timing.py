"""Time what a GPU does, in microseconds, by events."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

REPEAT = 30
FLUSH_BYTES = 1 << 31  # far more than any second-level cache; to write it takes half a millisecond


@dataclass(frozen=True)
class Timing:
    """One method on one task. The first of a task is what the others are compared with."""

    task: str
    method: str
    median_us: float
    fastest_us: float
    host_us: float  # median time until the call returned to the host
    floor_us: float | None = None  # bytes that must move / measured copy bandwidth


class Clock:
    """Times single calls after a warm-up, each with cold caches.

    What empties the caches also lets the host run ahead, so that the time between the events is
    the device's alone; where the host waits for the device inside a call, that is in it.
    """

    def __init__(
        self, device: str = "cuda", flush_bytes: int = FLUSH_BYTES, repeat: int = REPEAT
    ) -> None:
        self.repeat = repeat
        self.flush = torch.empty(flush_bytes, dtype=torch.uint8, device=device)

    def time(
        self, task: str, method: str, call: Callable[[], object], floor_us: float | None = None
    ) -> Timing:
        for _ in range(min(3, self.repeat)):
            call()
        device, host = [], []
        for _ in range(self.repeat):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            self.flush.zero_()
            start.record()
            before = time.perf_counter()
            call()
            host.append(1e6 * (time.perf_counter() - before))
            end.record()
            torch.cuda.synchronize()
            device.append(1e3 * start.elapsed_time(end))
        median, fastest = statistics.median(device), min(device)
        return Timing(task, method, median, fastest, statistics.median(host), floor_us)

    def copy_bandwidth(self) -> float:
        """Bytes per second of a copy of two gigabytes, read and written."""
        target = torch.empty_like(self.flush)
        timing = self.time("copy", "copy", lambda: target.copy_(self.flush))
        return 2 * self.flush.nbytes / (timing.median_us * 1e-6)


def table(timings: list[Timing]) -> str:
    """One block per task in Markdown, beside the first line of the task and the floor."""
    lines, first = [], None
    for timing in timings:
        if first is None or timing.task != first.task:
            first = timing
            lines += [
                f"\n**{timing.task}**\n",
                "| method | median µs | fastest µs | host µs | times faster | times the floor |",
                "|---|---:|---:|---:|---:|---:|",
            ]
        floor = f"{timing.median_us / timing.floor_us:.2f}" if timing.floor_us else ""
        lines.append(
            f"| {timing.method} | {timing.median_us:.1f} | {timing.fastest_us:.1f} "
            f"| {timing.host_us:.0f} | {first.median_us / timing.median_us:.1f} | {floor} |"
        )
    return "\n".join(lines)
