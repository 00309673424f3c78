"""Learned affinity: which detections of two consecutive frames are one object."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ...datasets.batch import Batch
from ...datasets.boxes import Detections
from ...datasets.nuscenes.classes import DETECTION_CLASSES, TRACKING_CLASSES
from ...kernels.grid import BEVGrid
from ..decoding.affinity import (
    BOX_FEATURES,
    NUM_POINTS,
    PAIR_FEATURES,
    AffinityDecoder,
    AffinityInputs,
    LinkedFrame,
)
from ..layers import ConvBlock, full_precision
from ..losses import mean_over_processes
from ..tracking.affinity import Affinity
from .affinity_targets import (
    AffinityLogits,
    affinity_loss,
    affinity_targets,
    objects_of_sample,
    objects_shown,
)


@dataclass(frozen=True)
class AffinityOutput:
    """What boxes are described by; the boxes come from detection."""

    map: Tensor  # (B, C, X, Y)


class AffinityHead(nn.Module):
    """Affinity of detections to those of the frame before, from map features at the boxes.

    The idea is ShaSTA's with its camera (Sadjadpour et al., RA-L 2023, and ShaSTA-Fuse,
    arXiv:2310.02532, 2023): a matrix of matches, two columns for objects that are dead or missed
    and two rows for newborn ones and false positives, a softmax along each direction, and the
    log-likelihood of both. Here every detection is described by the maps of both frames, where it
    is and where it was or will be, and a pair by how its descriptions and boxes differ, so that
    neither the number of detections nor their order matters. What is learned of a pair is added to
    a score that falls with distance. Train it on clips (``data.clip_length``).

    Args:
        in_channels: channels of the BEV map.
        grid: the grid of the BEV map.
        channels: of the map that boxes are described by.
        width: of the hidden layers.
        descriptor: numbers that describe a box.
        classes: those whose detections are linked; labels are those of the ten classes.
        max_boxes: of a frame, only the best so many are linked.
        match_distance: metres that a detection may be off from the object that it shows; 2 as in
            nuScenes' tracking metrics.
        reach: metres between two detections, moved on by the earlier one's velocity or not, from
            which on they are not one object.
        max_age: seconds from which on two frames are not consecutive.
    """

    task = "affinity"

    def __init__(
        self,
        in_channels: int,
        grid: BEVGrid,
        channels: int = 32,
        width: int = 64,
        descriptor: int = 32,
        classes: Sequence[str] = TRACKING_CLASSES,
        max_boxes: int = 200,
        match_distance: float = 2.0,
        reach: float = 8.0,
        max_age: float = 0.75,
    ):
        super().__init__()
        if unknown := set(classes) - set(DETECTION_CLASSES):
            raise ValueError(
                f"affinity classes {sorted(unknown)} are none of {list(DETECTION_CLASSES)}"
            )
        labels = tuple(DETECTION_CLASSES.index(name) for name in classes)
        self.decoder = AffinityDecoder(grid, labels, max_boxes, reach, max_age)
        self.match_distance = match_distance
        self.project = ConvBlock(in_channels, channels, 1)
        described = NUM_POINTS * channels + BOX_FEATURES + len(labels)
        self.describe = _mlp(described, width, descriptor)
        self.pair = _mlp(3 * descriptor + PAIR_FEATURES, width, 1)
        self.row = _mlp(3 * descriptor, width, 2)
        self.column = _mlp(3 * descriptor, width, 2)
        # The score of a pair before anything is learned: at its place, and lost per metre.
        self.nearness = nn.Parameter(torch.tensor([2.0, 1.0]))
        for network in (self.pair, self.row, self.column):
            for parameter in network[-1].parameters():
                nn.init.zeros_(parameter)

    def forward(self, bev: Tensor) -> AffinityOutput:
        """The map (B, in_channels, X, Y) as boxes are described by it."""
        return AffinityOutput(self.project(bev))

    def loss(
        self, output: AffinityOutput, batch: Batch, found: Sequence[Detections]
    ) -> dict[str, Tensor]:
        """Means over the detections of the log-likelihood losses, forward and backward in time.

        Samples count with the consecutive sample before them in the batch, if both are annotated.

        Args:
            output: of the batch.
            batch: its samples, in any order.
            found: detections of each sample, which are taken as they are.
        """
        frames = self.decode(output, batch, found)
        valid = batch.box_valid.tolist()
        # Depends on all parameters, for DDP, even where there is nothing to learn from.
        nothing = 0 * (output.map.sum() + sum(p.sum() for p in self.parameters()))
        forward, backward, rows, columns = nothing, nothing, 0, 0
        for first, second in consecutive(frames, self.decoder.max_age):
            if not (valid[first] and valid[second]):
                continue
            before, now = self.decoder.best(frames[first]), self.decoder.best(frames[second])
            inputs = self.decoder.inputs(before, now)
            logits, possible = self.logits(before.map, now.map, inputs), inputs.possible
            shown_before, _ = self._shown(before, batch, first)
            shown_now, annotated = self._shown(now, batch, second)
            targets = affinity_targets(shown_before, shown_now, annotated, possible)
            loss = affinity_loss(logits, targets)
            forward, backward = forward + loss[0], backward + loss[1]
            rows, columns = rows + possible.shape[0], columns + possible.shape[1]
        count = mean_over_processes(torch.tensor([rows, columns], device=output.map.device))
        return {"forward": forward / count[0] / 2, "backward": backward / count[1] / 2}

    @torch.no_grad()
    def affinity(self, before: LinkedFrame, now: LinkedFrame) -> Affinity | None:
        """What becomes of the detections; None if the frames are not consecutive."""

        def scores(
            first: Tensor, second: Tensor, inputs: AffinityInputs
        ) -> tuple[NDArray, NDArray, NDArray]:
            pair, row, column = self.scores(first, second, *_on(second, inputs))
            return pair.cpu().numpy(), row.cpu().numpy(), column.cpu().numpy()

        return self.decoder.link(before, now, scores)

    def decode(
        self, output: AffinityOutput, batch: Batch, found: Sequence[Detections]
    ) -> list[LinkedFrame]:
        """Every sample with its detections, for :meth:`affinity`.

        Raises:
            ValueError: if the batch does not say its scenes and times.
        """
        if batch.scene is None or batch.timestamp_us is None:
            raise ValueError(
                "affinities need Batch.scene and Batch.timestamp_us, which encode gives"
            )
        poses = batch.global_from_bev.cpu().numpy()
        scenes, times = batch.scene.tolist(), batch.timestamp_us.tolist()
        columns = zip(output.map, found, poses, scenes, times, strict=True)
        return [LinkedFrame(*frame) for frame in columns]

    def logits(self, before: Tensor, now: Tensor, inputs: AffinityInputs) -> AffinityLogits:
        """:meth:`scores`, those of the pairs as a matrix."""
        tensors = _on(now, inputs)
        pair, row, column = self.scores(before, now, *tensors)
        match = pair.new_full((len(row), len(column)), -torch.inf)
        return AffinityLogits(match.index_put(tensors[-2:], pair), row, column)

    def scores(self, before: Tensor, now: Tensor, *given: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scores of P pairs, of N earlier and of M later detections: (P,), (N, 2) and (M, 2).

        Args:
            before: (C, X, Y) the earlier map.
            now: (C, X, Y) the later one.
            given: ``AffinityInputs``.
        """
        *boxes, told, i, j = given
        places, of_boxes = boxes[:4], boxes[4:]
        # Each in its own map, and in the other one at where it will be or was.
        own_before, ahead, own_now, behind = (
            self.describe(torch.cat([sample_map(bev, place), features], 1))
            for bev, place, features in zip((before, now, now, before), places, of_boxes)
        )
        differences = [
            (own_before[i] - own_now[j]).abs(),
            (ahead[i] - own_now[j]).abs(),
            (own_before[i] - behind[j]).abs(),
        ]
        nearest = torch.minimum(told[:, 2], told[:, 7])
        score = self.pair(torch.cat([*differences, told], 1))[:, 0].float()
        return (
            score + self.nearness[0] - self.nearness[1] * nearest,
            self.row(torch.cat([own_before, ahead, (own_before - ahead).abs()], 1)).float(),
            self.column(torch.cat([own_now, behind, (own_now - behind).abs()], 1)).float(),
        )

    def _shown(
        self, frame: LinkedFrame, batch: Batch, sample: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The objects that a frame's detections show, and all that are annotated."""
        truth, instance = objects_of_sample(batch.boxes, sample)
        shown = objects_shown(frame.found.boxes, truth, instance, self.match_distance)
        return shown, instance


def sample_map(bev: Tensor, places: Tensor) -> Tensor:
    """A map (C, X, Y) at places (M, 5, 2), bilinearly, zero beside it: (M, 5 * C)."""
    with full_precision(bev):
        found = F.grid_sample(bev[None].float(), places[None], align_corners=False)
    return found[0].permute(1, 2, 0).flatten(1)  # of (1, C, M, 5)


def _on(bev: Tensor, inputs: AffinityInputs) -> tuple[Tensor, ...]:
    return tuple(torch.from_numpy(array).to(bev.device) for array in inputs)


def consecutive(frames: Sequence[LinkedFrame], max_age: float) -> list[tuple[int, int]]:
    """Pairs of frames, each with the one directly before it among them.

    Args:
        frames: in any order.
        max_age: seconds between the two at most.
    """
    pairs = []
    for k, now in enumerate(frames):
        age = [now.seconds_after(other) for other in frames]
        known = [i for i, seconds in enumerate(age) if 0 < seconds <= max_age]
        if known:
            pairs.append((min(known, key=age.__getitem__), k))
    return pairs


def _mlp(inputs: int, width: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, outputs))
