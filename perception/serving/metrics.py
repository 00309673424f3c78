"""What the server counts, for Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import (
    CONTENT_TYPE_LATEST,
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)

_SECONDS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2, 5, 10, 30)


class ServerMetrics:
    """Counters of one server.

    Args:
        queue_depth: gives the frames that wait.
        ready: whether frames are taken.
    """

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, queue_depth: Callable[[], float], ready: Callable[[], float]):
        self._registry = CollectorRegistry()
        owned = {"namespace": "bevstack", "registry": self._registry}
        self.requests = Counter(
            "requests", "Frames that were answered, by HTTP status.", ["status"], **owned
        )
        self.errors = Counter("errors", "Frames without a result, by kind.", ["kind"], **owned)
        self.latency = Histogram(
            "request_seconds", "From a frame's first byte to its result.", buckets=_SECONDS, **owned
        )
        self.stages = Histogram(
            "stage_seconds", "Stages of the runtime.", ["stage"], buckets=_SECONDS, **owned
        )
        depth = Gauge("queue_depth", "Frames that wait, without the one that runs.", **owned)
        depth.set_function(queue_depth)
        Gauge("ready", "1 while frames are taken.", **owned).set_function(ready)
        ProcessCollector(registry=self._registry)
        PlatformCollector(registry=self._registry)

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self._registry)
