"""Tracks of a stream's detections."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from numpy.typing import NDArray

from ...datasets.boxes import Detections
from ...datasets.geometry import inverse
from ..evaluation.boxes import upright_in_global
from ..tracking import TrackedDetections, Tracker
from ..tracking.affinity import Affinity
from .state import Moment, RuntimeState


def follow(
    tracker: Tracker,
    detections: Detections,
    global_from_bev: NDArray,
    moment: Moment,
    state: RuntimeState | None,
    affinity: Affinity | None = None,
) -> tuple[Any, TrackedDetections]:
    """Take the tracker on by one frame.

    Args:
        tracker: works in the global frame, where boxes stand upright.
        detections: in the BEV frame.
        global_from_bev: (4, 4).
        moment: of the frame.
        state: of the stream; None at its start.
        affinity: what a model says of the detections and those of ``state``.

    Returns:
        The tracker's next state, and its tracks in the BEV frame. They are numbered through from
        scene to scene.
    """
    tracks = tracker.start()
    if state is not None and state.tracks is not None:
        before = state.moment
        if before.scene == moment.scene and before.timestamp_us < moment.timestamp_us:
            tracks = state.tracks
        else:
            tracks = replace(tracks, next_track=state.tracks.next_track)
    found = replace(detections, boxes=upright_in_global(detections.boxes, global_from_bev))
    tracks, tracked = tracker.step(tracks, found, moment.timestamp_us, affinity)
    boxes = tracked.detections.boxes.transformed(inverse(global_from_bev))
    return tracks, replace(tracked, detections=replace(tracked.detections, boxes=boxes))
