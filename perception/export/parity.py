"""Is the exported model the trained one? Outputs and boxes of both, compared frame by frame."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields, replace

import numpy as np
import torch
from numpy.typing import NDArray

from ...datasets.boxes import Detections
from ...datasets.encode import Encoder
from ...datasets.frame import Frame
from ..decoding.affinity import LinkedFrame
from ..memory import Stream
from ..model import FusionModel
from ..runtime import Moment, Runtime
from ..tracking import Affinity

TOLERANCE = (
    1e-3  # metres, radians, m/s, probability of a map layer: the most that float32 may differ by
)
SAME_BOX = 0.5  # metres between centres
WORTH_COMPARING = 0.1  # score


@dataclass
class Difference:
    """Of one output, over all frames."""

    largest: float = 0.0
    total: float = 0.0
    count: int = 0

    @property
    def mean(self) -> float:
        """Mean absolute difference."""
        return self.total / max(self.count, 1)

    def add(self, found: NDArray, expected: NDArray) -> None:
        """Take in one frame."""
        apart = np.abs(found.astype(np.float64) - expected.astype(np.float64))
        self.largest = max(self.largest, float(apart.max(initial=0)))
        self.total += float(apart.sum())
        self.count += apart.size


@dataclass
class Parity:
    """How far an exported model is from the one it was made from."""

    frames: int = 0
    outputs: dict[str, Difference] = field(default_factory=dict)
    num_boxes: int = 0  # of the trained model, with a score worth comparing
    boxes_found: int = 0  # of them, by the exported model: same class, nearly the same place
    box: Difference = field(default_factory=Difference)  # parameters of these
    map: Difference = field(default_factory=Difference)  # probabilities
    affinity: Difference = field(default_factory=Difference)  # probabilities of links

    @property
    def box_agreement(self) -> float:
        """Share of the boxes that the exported model gives too."""
        return self.boxes_found / self.num_boxes if self.num_boxes else 1.0

    @property
    def is_exact(self) -> bool:
        """Is it as near as float32 has to be?"""
        # Of two peaks with scores equal to the last digits either may suppress the other.
        largest = max(self.box.largest, self.map.largest, self.affinity.largest)
        return self.box_agreement >= 0.99 and largest < TOLERANCE


@torch.inference_mode()
def compare(
    model: FusionModel,
    encode: Callable[[Frame], Frame],
    encoder: Encoder,
    runtime: Runtime,
    frames: Iterable[Frame],
    least_score: float = WORTH_COMPARING,
) -> Parity:
    """Run both models over frames.

    Args:
        model: the trained model, in evaluation mode, on the CPU.
        encode: what evaluation does to a frame before it is encoded.
        encoder: of the trained model's data.
        runtime: of the exported model; it gets the raw frames.
        frames: raw frames, a stream.
        least_score: of the boxes that are compared.
    """
    parity, stream, state = Parity(), Stream(model), None
    before: LinkedFrame | None = None
    for frame in frames:
        batch = encoder(encode(frame))
        outputs = stream(batch)
        sensors, moment = runtime.sensors(frame), Moment(frame.scene, frame.timestamp_us)
        for name, found in runtime.outputs(sensors, moment, state).items():
            task, part = name.split(".")
            expected = getattr(outputs[task], part).numpy()
            parity.outputs.setdefault(name, Difference()).add(found, expected)
        results = runtime.infer(sensors, moment, state)
        if runtime.link is not None and results.state is not None and results.state.linked:
            linked = results.state.linked
            now = replace(linked, map=outputs["affinity"].map[0])
            if before is not None and state is not None and state.linked is not None:
                expected = model.heads["affinity"].affinity(before, now)  # pyright: ignore
                compare_affinity(expected, runtime.link(state.linked, linked), parity)
            before = now
        state = results.state
        decoded = model.decode(outputs, batch)
        if results.detections is not None:
            compare_boxes(decoded["detection"][0], results.detections, parity, least_score)
        if results.map is not None:
            parity.map.add(results.map, decoded["map"][0].numpy())
        parity.frames += 1
    return parity


def compare_affinity(expected: Affinity | None, found: Affinity | None, parity: Parity) -> None:
    """Take in what is said of the same boxes of two frames."""
    if expected is None or found is None:
        assert expected is found  # both know whether the frames are consecutive
        return
    for name in (f.name for f in fields(expected)):
        parity.affinity.add(getattr(found, name), getattr(expected, name))


def compare_boxes(
    expected: Detections, found: Detections, parity: Parity, least_score: float = WORTH_COMPARING
) -> None:
    """Take in one frame's boxes; their order does not matter."""
    expected = expected[expected.score >= least_score]
    parity.num_boxes += len(expected)
    if not len(expected) or not len(found):
        return
    apart = np.linalg.norm(expected.boxes.center[:, None] - found.boxes.center[None], axis=-1)
    apart[expected.boxes.label[:, None] != found.boxes.label[None]] = np.inf
    nearest = apart.argmin(1)
    same = apart[np.arange(len(expected)), nearest] < SAME_BOX
    parity.boxes_found += int(same.sum())
    a, b = expected[same].boxes, found[nearest[same]].boxes
    for name in (f.name for f in fields(a)):
        ours, theirs = getattr(a, name), getattr(b, name)
        if name == "yaw":  # the short way around
            ours, theirs = (ours - theirs + np.pi) % (2 * np.pi) - np.pi, np.zeros_like(theirs)
        parity.box.add(ours, theirs)
