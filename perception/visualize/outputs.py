"""What a model finds in frames, ready to be drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...datasets.boxes import Detections
from ...datasets.occupancy import OccupancyLabels
from ...datasets.sensors import global_from_bev
from ...kernels.grid import BEVGrid
from ..evaluation.boxes import GlobalBoxes
from ..evaluation.tracks import TrackedBoxes
from .occupancy import Voxels


@dataclass(frozen=True)
class Outputs:
    """Of one frame; what the model has no head for is None."""

    boxes: Detections | None = None  # in the BEV frame
    map: NDArray | None = None  # (K, X, Y) probabilities or masks on ``map_grid``, in the BEV frame
    map_grid: BEVGrid | None = None
    voxels: Voxels | None = None  # in the vehicle's frame


def outputs_of(
    model: Any,
    dataset: Any,
    frames: Sequence[int],
    progress: Callable[[int, int], None] | None = None,
) -> list[Outputs]:
    """Run a model over frames as a stream: one with memory remembers those before.

    Args:
        model: a ``FusionModel`` or an ``ExportedModel``.
        dataset: gives a batch of one for a number (``FrameDataset``).
        frames: numbers of frames; those of a scene in the order of time.
        progress: is told the frames done and all.
    """
    import torch

    from ..memory.stream import Stream

    parameter = next(model.parameters(), None) if hasattr(model, "parameters") else None
    device = "cpu" if parameter is None else parameter.device
    stream, found, was_training = Stream(model), [], model.training
    model.train(False)
    try:
        with torch.inference_mode():
            for done, i in enumerate(frames, 1):
                batch = dataset[i].to(device)
                decoded = model.decode(stream(batch), batch)
                bev_from_ego = dataset.reader[i].bev_from_ego
                found.append(_outputs(decoded, dataset.encoder.map_grid, bev_from_ego))
                if progress:
                    progress(done, len(frames))
    finally:
        model.train(was_training)
    return found


def _outputs(
    decoded: dict[str, Any], map_grid: BEVGrid | None, bev_from_ego: NDArray[np.float64]
) -> Outputs:
    layers, volume = decoded.get("map"), decoded.get("occupancy")
    voxels = None
    if volume is not None:
        semantics = volume.semantics[0].cpu().numpy()
        seen = np.ones_like(semantics)
        voxels = Voxels.of(OccupancyLabels(semantics, seen, seen, volume.grid, bev_from_ego))
    return Outputs(
        boxes=decoded["detection"][0] if "detection" in decoded else None,
        map=None if layers is None else layers[0].float().cpu().numpy(),
        map_grid=None if layers is None else map_grid,
        voxels=voxels,
    )


def tracks_of(found: Sequence[Outputs], frames: Sequence[int], reader: Any) -> TrackedBoxes:
    """The default tracker's tracks through the frames of scenes.

    Args:
        found: outputs with boxes.
        frames: their numbers, in the order of time.
        reader: of the data set.
    """
    from ..tracking import KalmanTracker
    from ..tracking.scenes import boxes_in_global, timeline, track_scenes

    parts = []
    for outputs, i in zip(found, frames, strict=True):
        assert outputs.boxes is not None
        parts.append(boxes_in_global(outputs.boxes, global_from_bev(reader[i]), i))
    return track_scenes(KalmanTracker(), GlobalBoxes.concatenate(parts), timeline(reader))
