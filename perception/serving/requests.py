"""From a client's message to a frame, every field checked: nothing in it is trusted."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ...datasets.camera_models import Pinhole
from ...datasets.errors import DataError
from ...datasets.frame import Camera, Frame, LidarSweep
from ...datasets.geometry import inverse
from ...datasets.images import EncodedImage, PixelImage, encoded_size
from ..runtime.structure import from_json
from .frames import FORMAT, CameraHeader, FrameHeader, SweepHeader
from .messages import MessageError, parse_json, unpack


@dataclass(frozen=True)
class FrameLimits:
    """How much of everything a frame may hold.

    Args:
        cameras: images.
        sweeps: LiDAR sweeps.
        pixels: of one image; a small PNG may stand for gigabytes.
    """

    cameras: int = 16
    sweeps: int = 32
    pixels: int = 1 << 24


def unpack_frame(
    message: bytes | bytearray,
    bev_frame: Literal["ego", "lidar"] = "ego",
    limits: FrameLimits | None = None,
) -> Frame:
    """The frame in a message. Its images are decoded when they are loaded.

    Args:
        message: see docs/serving.md.
        bev_frame: the BEV frame of the model, which the frame is given.
        limits: how much of everything it may hold.

    Raises:
        MessageError: naming the field that is missing, unknown or cannot be used.
    """
    limits = limits or FrameLimits()
    arrays, metadata = unpack(message)
    if metadata.get("format") != FORMAT:
        raise MessageError("format", f"is {metadata.get('format')!r}; expected {FORMAT!r}")
    header = _header(metadata.get("frame", ""))
    for kind, count in (("cameras", len(header.cameras)), ("sweeps", len(header.sweeps))):
        if count > getattr(limits, kind):
            raise MessageError(kind, f"are {count}; {getattr(limits, kind)} are the most")
    fields = _Fields(arrays)
    frame = Frame(
        *(header.token, header.scene, "", header.timestamp_us, fields.pose("global_from_ego")),
        tuple(_camera(fields, i, camera, limits) for i, camera in enumerate(header.cameras)),
        tuple(_sweep(fields, i, sweep) for i, sweep in enumerate(header.sweeps)),
        annotations=None,
    )
    fields.finish()
    if bev_frame == "lidar":
        if not frame.sweeps:
            raise MessageError("sweeps", "are none; this model works in the frame of the LiDAR")
        frame = replace(frame, bev_from_ego=inverse(frame.sweeps[0].ego_from_lidar))
    return frame


def _header(text: str) -> FrameHeader:
    content = parse_json(text, "frame")
    try:
        header = from_json(FrameHeader, content)
    except ValueError as error:
        raise MessageError("frame", str(error)) from error
    moments = [header.timestamp_us, *(c.timestamp_us for c in header.cameras)]
    moments += [s.timestamp_us for s in header.sweeps]
    if not all(abs(moment) < 1 << 62 for moment in moments):
        raise MessageError("frame", "a timestamp_us is beyond 64 bits")
    return header


def _camera(fields: _Fields, i: int, header: CameraHeader, limits: FrameLimits) -> Camera:
    name = f"cameras.{i}"
    image = fields.array(f"{name}.image", "U8")
    if image.ndim == 1:
        size = encoded_size(image)
        if size is None:
            raise MessageError(f"{name}.image", "is neither a JPEG nor a PNG file")
        load = _ImageFile(f"{name}.image", image)
    elif image.ndim == 3 and image.shape[2] == 3:
        size, load = (image.shape[1], image.shape[0]), PixelImage(image)
    else:
        raise MessageError(
            f"{name}.image", f"has shape {image.shape}; expected (H, W, 3) or the bytes of a file"
        )
    if not 0 < size[0] * size[1] <= limits.pixels:
        raise MessageError(
            f"{name}.image", f"is {size[0]} x {size[1]}; {limits.pixels} pixels are the most"
        )
    return Camera(
        header.name,
        load,
        Pinhole(fields.intrinsic(f"{name}.intrinsic"), *size),
        fields.pose(f"{name}.ego_from_camera"),
        fields.pose(f"{name}.global_from_ego"),
        header.timestamp_us,
    )


def _sweep(fields: _Fields, i: int, header: SweepHeader) -> LidarSweep:
    name = f"sweeps.{i}"
    points = fields.array(f"{name}.points", "F32")
    if points.ndim != 2 or points.shape[1] != 5:
        raise MessageError(
            f"{name}.points",
            f"has shape {points.shape}; expected (P, 5): x, y, z, intensity, ring",
        )
    return LidarSweep(
        lambda: points,
        fields.pose(f"{name}.ego_from_lidar"),
        fields.pose(f"{name}.global_from_ego"),
        header.timestamp_us,
    )


@dataclass(frozen=True)
class _ImageFile:
    """Loads an image that was sent as a file."""

    field: str
    content: NDArray[np.uint8]

    def __call__(self, reduction: int = 1) -> NDArray[np.uint8]:
        try:
            return EncodedImage(self.content, "the file")(reduction)
        except DataError as error:
            raise MessageError(self.field, str(error)) from error


class _Fields:
    """The arrays of a message, each to be taken once."""

    def __init__(self, arrays: dict[str, NDArray]):
        self._arrays = arrays

    def array(self, name: str, dtype: Literal["U8", "F32", "F64"]) -> NDArray:
        if name not in self._arrays:
            raise MessageError(name, "is missing")
        array = self._arrays.pop(name)
        if array.dtype != {"U8": np.uint8, "F32": np.float32, "F64": np.float64}[dtype]:
            raise MessageError(name, f"holds {array.dtype}; expected {dtype}")
        return array

    def pose(self, name: str) -> NDArray[np.float64]:
        """A rotation and a translation, (4, 4)."""
        matrix = self._matrix(name, 4)
        rotation = matrix[:3, :3]
        rigid = abs(rotation @ rotation.T - np.eye(3)).max() < 1e-3 and np.linalg.det(rotation) > 0
        if not rigid or matrix[3].tolist() != [0, 0, 0, 1]:
            raise MessageError(name, "is not a rotation and a translation with last row 0 0 0 1")
        return matrix

    def intrinsic(self, name: str) -> NDArray[np.float64]:
        """A camera matrix, (3, 3)."""
        matrix = self._matrix(name, 3)
        if not abs(np.linalg.det(matrix)) > 1e-9 or matrix[2].tolist() != [0, 0, 1]:
            raise MessageError(name, "is not an invertible camera matrix with last row 0 0 1")
        return matrix

    def _matrix(self, name: str, edge: int) -> NDArray[np.float64]:
        matrix = self.array(name, "F64")
        if matrix.shape != (edge, edge):
            raise MessageError(name, f"has shape {matrix.shape}; expected ({edge}, {edge})")
        # Far above any coordinate on Earth, far below where products overflow.
        if not (np.isfinite(matrix).all() and abs(matrix).max() < 1e9):
            raise MessageError(name, "has a number that is not finite or beyond 1e9")
        return matrix

    def finish(self) -> None:
        """Nothing may be left: a misspelt name would be a sensor that is missing."""
        if self._arrays:
            raise MessageError(min(self._arrays), "is not a field of a frame with this header")
