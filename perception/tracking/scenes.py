"""Track the detections of a data set, scene by scene."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from ...datasets.boxes import Boxes3D, Detections
from ..evaluation.boxes import GlobalBoxes, upright_in_global
from ..evaluation.ground_truth import AnnotationReader
from ..evaluation.tracks import Timeline, TrackedBoxes
from .affinity import Affinities
from .detections import TrackedDetections, Tracker


def track_scenes(
    tracker: Tracker, found: GlobalBoxes, time: Timeline, affinities: Affinities | None = None
) -> TrackedBoxes:
    """Run a tracker over every scene in the order of time; tracks are numbered through.

    Args:
        tracker: starts anew in each scene.
        found: detections of F samples in the global frame, in any order.
        time: of the F samples.
        affinities: what a model says of consecutive samples; None for distances alone.
    """
    affinities = affinities or Affinities()
    order = np.argsort(found.sample, kind="stable")
    starts = np.searchsorted(found.sample[order], np.arange(len(time.scene) + 1))
    parts: list[GlobalBoxes] = []
    numbers: list[NDArray[np.int64]] = []
    first = 0
    for _, samples in groupby(time.order.tolist(), key=lambda i: time.scene[i]):
        state, last, before = tracker.start(), first, None
        for sample in samples:
            here = found[order[starts[sample] : starts[sample + 1]]]
            state, tracked = tracker.step(
                state,
                upright_detections(here),
                int(time.timestamp_us[sample]),
                affinities.between(before, sample),
            )
            before = sample
            parts.append(_in_global(tracked.detections, sample))
            numbers.append(tracked.track + first)
            last = max(last, first + int(tracked.track.max(initial=-1)) + 1)
        first = last
    whole = [np.zeros(0, np.int64), *numbers]
    return TrackedBoxes(GlobalBoxes.concatenate(parts), np.concatenate(whole))


def upright_detections(boxes: GlobalBoxes) -> Detections:
    """Boxes of one sample as detections in the global frame."""
    upright = Boxes3D(
        boxes.translation, boxes.size[:, [1, 0, 2]], boxes.yaw, boxes.velocity, boxes.label
    )
    return Detections(upright, boxes.score, boxes.attribute)


def tracks_in_global(
    tracked: Sequence[TrackedDetections], samples: Sequence[int], global_from_bev: Sequence[NDArray]
) -> TrackedBoxes:
    """Tracks in the global frame.

    Args:
        tracked: of F moments, in their BEV frames; numbered through.
        samples: F numbers of samples.
        global_from_bev: F transforms (4, 4).
    """
    places = zip(tracked, global_from_bev, samples, strict=True)
    parts = [boxes_in_global(found.detections, matrix, i) for found, matrix, i in places]
    numbers = [np.zeros(0, np.int64), *(t.track for t in tracked)]
    return TrackedBoxes(GlobalBoxes.concatenate(parts), np.concatenate(numbers))


def boxes_in_global(found: Detections, global_from_bev: NDArray, sample: int) -> GlobalBoxes:
    """Detections of one sample in its BEV frame as boxes in the global frame."""
    upright = replace(found, boxes=upright_in_global(found.boxes, global_from_bev))
    return _in_global(upright, sample)


def _in_global(found: Detections, sample: int) -> GlobalBoxes:
    not_counted = np.full(len(found), -1, np.int64)
    return GlobalBoxes.of_upright(
        found.boxes, sample, np.asarray(found.score, np.float64), found.attribute, not_counted
    )


def timeline(reader: AnnotationReader) -> Timeline:
    """The samples of a split as moments of scenes; no sensor file is opened."""
    frames = [reader[i] for i in range(len(reader.tokens))]
    number = {name: i for i, name in enumerate(dict.fromkeys(f.scene for f in frames))}
    return Timeline(
        np.array([number[f.scene] for f in frames], np.int64),
        np.array([f.timestamp_us for f in frames], np.int64),
    )
