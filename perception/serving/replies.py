"""What the server found in a frame, as a message. Reading one needs numpy alone."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from ...datasets.boxes import Boxes3D, Detections
from ...datasets.nuscenes.classes import ATTRIBUTES
from ...kernels.grid import BEVGrid
from .messages import MessageError, pack, parse_json, unpack

if TYPE_CHECKING:
    from ...datasets.frame import Frame
    from ..runtime import Manifest, Perception
    from ..runtime.manifest import OccupancySpec

FORMAT = "bevstack-reply-1"
TASKS = ("detection", "tracks", "map", "occupancy")
_BOX_FIELDS = ("center", "size", "yaw", "velocity", "label")


@dataclass(frozen=True)
class MapLayers:
    """The map of one frame."""

    probability: NDArray[np.float32]  # (K, X, Y)
    classes: tuple[str, ...]
    grid: BEVGrid


@dataclass(frozen=True)
class Voxels:
    """The occupancy of one frame; voxel (i, j, k)'s middle is low + ((i, j, k) + 0.5) * size."""

    semantics: NDArray[np.uint8]  # (X, Y, Z) index into classes, len(classes) where nothing is
    probability: NDArray[np.float32]  # (X, Y, Z) of what `semantics` says
    classes: tuple[str, ...]
    low: tuple[float, float, float]  # the lowest corner, metres
    size: float  # edge of a voxel, metres


@dataclass(frozen=True)
class Reply:
    """Results of one frame in the BEV frame of its model; what was not asked for is None."""

    token: str  # of the frame
    timestamp_us: int
    bev_frame: str  # "ego" or "lidar": the axes of the vehicle or of LIDAR_TOP at that time
    global_from_bev: NDArray[np.float64]  # (4, 4)
    classes: tuple[str, ...]  # names of the boxes' labels
    attributes: tuple[str, ...]
    detections: Detections | None
    tracks: Detections | None  # boxes that belong to a track; the score is the track's
    track_ids: NDArray[np.int64] | None  # (M,) of those boxes, never used again within a stream
    map: MapLayers | None
    occupancy: Voxels | None
    seconds: dict[str, float] = field(default_factory=dict)  # in the server, by stage

    def names(self, boxes: Boxes3D) -> list[str]:
        """The class of each box."""
        return [self.classes[label] for label in boxes.label]


def pack_reply(
    found: Perception, frame: Frame, manifest: Manifest, tasks: tuple[str, ...] = TASKS
) -> bytes:
    """The message that holds the results of these tasks."""
    boxes = manifest.heads.get("detection")
    text: dict[str, Any] = {
        "token": frame.token,
        "timestamp_us": frame.timestamp_us,
        "bev_frame": manifest.sensors.frame,
        "classes": [] if boxes is None else [*boxes.classes],
        "attributes": [*ATTRIBUTES],
        "seconds": found.seconds,
    }
    arrays: dict[str, NDArray] = {"global_from_bev": found.global_from_bev}
    if found.detections is not None and "detection" in tasks:
        arrays |= _of_boxes("detection", found.detections)
    if found.tracks is not None and "tracks" in tasks:
        arrays |= _of_boxes("tracks", found.tracks.detections)
        arrays["tracks.track"] = found.tracks.track
    if found.map is not None and "map" in tasks:
        spec = manifest.heads["map"]
        arrays["map.probability"] = found.map
        text["map"] = {"classes": [*spec.classes], "grid": asdict(spec.grid)}
    if found.occupancy is not None and "occupancy" in tasks:
        spec = cast("OccupancySpec", manifest.heads["occupancy"])
        arrays["occupancy.semantics"] = found.occupancy.semantics
        arrays["occupancy.probability"] = found.occupancy.probability
        text["occupancy"] = {
            "classes": [*spec.classes],
            "low": spec.grid.low.tolist(),
            "size": spec.grid.voxel_size,
        }
    return pack(arrays, {"format": FORMAT, "reply": json.dumps(text)})


def unpack_reply(message: bytes) -> Reply:
    """The results in a message.

    Raises:
        MessageError: if it is no reply, or of another format.
    """
    arrays, metadata = unpack(message)
    if metadata.get("format") != FORMAT:
        raise MessageError("format", f"is {metadata.get('format')!r}; expected {FORMAT!r}")
    text = parse_json(metadata.get("reply", ""), "reply")
    try:
        return _reply(arrays, text)
    except (KeyError, TypeError, ValueError) as error:
        raise MessageError("reply", f"cannot be used: {error!r}") from error


def _reply(arrays: dict[str, NDArray], text: dict[str, Any]) -> Reply:
    layers, voxels = None, None
    if "map" in text:
        grid = BEVGrid(**text["map"]["grid"])
        layers = MapLayers(arrays["map.probability"], tuple(text["map"]["classes"]), grid)
    if "occupancy" in text:
        volume = text["occupancy"]
        voxels = Voxels(
            *(arrays["occupancy.semantics"], arrays["occupancy.probability"]),
            *(tuple(volume["classes"]), tuple(volume["low"]), volume["size"]),
        )
    return Reply(
        *(text["token"], text["timestamp_us"], text["bev_frame"], arrays["global_from_bev"]),
        *(tuple(text["classes"]), tuple(text["attributes"])),
        *(_boxes(arrays, "detection"), _boxes(arrays, "tracks"), arrays.get("tracks.track")),
        *(layers, voxels, text["seconds"]),
    )


def _of_boxes(task: str, found: Detections) -> dict[str, NDArray]:
    columns = {name: getattr(found.boxes, name) for name in _BOX_FIELDS}
    columns |= {"score": found.score, "attribute": found.attribute}
    return {f"{task}.{name}": column for name, column in columns.items()}


def _boxes(arrays: dict[str, NDArray], task: str) -> Detections | None:
    if f"{task}.center" not in arrays:
        return None
    boxes = Boxes3D(*(arrays[f"{task}.{name}"] for name in _BOX_FIELDS))
    return Detections(boxes, arrays[f"{task}.score"], arrays[f"{task}.attribute"])
