"""A frame as a message; docs/serving.md lists its arrays. Needs numpy alone."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from ...datasets.camera_models import Pinhole
from ...datasets.frame import Camera, Frame
from .messages import pack

FORMAT = "bevstack-frame-1"  # the number goes up when an older server could not read a frame


@dataclass(frozen=True)
class CameraHeader:
    """What the text of a frame says of a camera."""

    name: str
    timestamp_us: int


@dataclass(frozen=True)
class SweepHeader:
    """What the text of a frame says of a LiDAR sweep."""

    timestamp_us: int


@dataclass(frozen=True)
class FrameHeader:
    """The text of a frame; everything else is arrays."""

    token: str
    scene: str
    timestamp_us: int
    cameras: tuple[CameraHeader, ...]
    sweeps: tuple[SweepHeader, ...]


def pack_frame(frame: Frame) -> bytes:
    """The message that holds a frame.

    Images that are still a file (``ImageFile``, ``EncodedImage``) travel as that file, others as
    pixels. ``bev_from_ego`` stays behind: the server knows the frame that its model works in.

    Raises:
        ValueError: if a camera is no pinhole.
        DataError: if sensor files cannot be read.
    """
    arrays = {"global_from_ego": _matrix(frame.global_from_ego)}
    for i, camera in enumerate(frame.cameras):
        if not isinstance(camera.model, Pinhole):
            raise ValueError(f"{camera.name} is a {type(camera.model).__name__}, not a Pinhole")
        arrays |= {
            f"cameras.{i}.image": _image(camera),
            f"cameras.{i}.intrinsic": _matrix(camera.model.intrinsic),
            f"cameras.{i}.ego_from_camera": _matrix(camera.ego_from_camera),
            f"cameras.{i}.global_from_ego": _matrix(camera.global_from_ego),
        }
    for i, sweep in enumerate(frame.sweeps):
        arrays |= {
            f"sweeps.{i}.points": np.asarray(sweep.load(), np.float32),
            f"sweeps.{i}.ego_from_lidar": _matrix(sweep.ego_from_lidar),
            f"sweeps.{i}.global_from_ego": _matrix(sweep.global_from_ego),
        }
    header = FrameHeader(
        *(frame.token, frame.scene, int(frame.timestamp_us)),
        tuple(CameraHeader(camera.name, int(camera.timestamp_us)) for camera in frame.cameras),
        tuple(SweepHeader(int(sweep.timestamp_us)) for sweep in frame.sweeps),
    )
    return pack(arrays, {"format": FORMAT, "frame": json.dumps(asdict(header))})


def _image(camera: Camera) -> NDArray[np.uint8]:
    encoded = getattr(camera.load, "encoded", None)
    return np.asarray(encoded() if encoded is not None else camera.load(), np.uint8)


def _matrix(value: NDArray) -> NDArray[np.float64]:
    return np.asarray(value, np.float64)
