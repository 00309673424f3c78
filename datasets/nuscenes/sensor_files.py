"""Load nuScenes' sensor files; one that cannot be used gives a DataError that names it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from ..errors import DataError

_POINT_BYTES = 20  # x, y, z, intensity, ring as float32
_DECODE = {
    1: cv2.IMREAD_COLOR,
    2: cv2.IMREAD_REDUCED_COLOR_2,
    4: cv2.IMREAD_REDUCED_COLOR_4,
    8: cv2.IMREAD_REDUCED_COLOR_8,
}


@dataclass(frozen=True)
class ImageFile:
    """An image of known size, decoded when called; see ``ImageLoader`` in ``frame.py``.

    Orientation tags are ignored: calibrations belong to the pixels as they are stored.
    """

    path: Path
    width: int
    height: int

    def __call__(self, reduction: int = 1) -> NDArray[np.uint8]:
        """(ceil(height / reduction), ceil(width / reduction), 3) RGB.

        A JPEG is decoded at the reduced size, several times faster than at the full one.

        Raises:
            DataError: if the file is missing, cut off, no image, or of another size.
        """
        pixels = decode_image(_read(self.path), reduction, self.path)
        expected = (-(-self.height // reduction), -(-self.width // reduction))
        if pixels.shape[:2] != expected:
            raise DataError(
                f"{self.path} has {pixels.shape[1]} x {pixels.shape[0]} pixels at reduction "
                f"{reduction}, expected {expected[1]} x {expected[0]}; {_REMEDY}"
            )
        return pixels


@dataclass(frozen=True)
class PointFile:
    """A LiDAR sweep in nuScenes' format (``.pcd.bin``), read when called."""

    path: Path

    def __call__(self) -> NDArray[np.float32]:
        """(P, 5): x, y, z in the sensor's frame, intensity 0..255, ring; P may be 0.

        Raises:
            DataError: if the file is missing or cut off.
        """
        content = _read(self.path)
        if len(content) % _POINT_BYTES:
            raise DataError(
                f"{self.path} is cut off: {len(content)} bytes are not a whole number of points of "
                f"{_POINT_BYTES} bytes; {_REMEDY}"
            )
        return content.view(np.float32).reshape(-1, 5)


_REMEDY = "copy the file again from nuScenes' archives"


def decode_image(content: NDArray[np.uint8], reduction: int, path: Path) -> NDArray[np.uint8]:
    """(H, W, 3) RGB from the bytes of an image file; ``path`` is for messages."""
    # OpenCV fills the missing part of a truncated JPEG with grey and only prints a warning; such
    # a file lacks the end-of-image marker. (Padding may follow it.)
    head, tail = content[:2].tobytes(), content[-1024:].tobytes()
    if head == b"\xff\xd8" and b"\xff\xd9" not in tail:
        raise DataError(f"{path} is a JPEG that is cut off; {_REMEDY}")
    flags = _DECODE[reduction] | cv2.IMREAD_IGNORE_ORIENTATION
    pixels = cv2.imdecode(content, flags) if len(content) else None
    if pixels is None:
        raise DataError(f"{path} ({len(content)} bytes) is not an image; {_REMEDY}")
    return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB, dst=pixels), np.uint8)


def _read(path: Path) -> NDArray[np.uint8]:
    try:
        return np.fromfile(path, np.uint8)
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing; {_REMEDY}") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); {_REMEDY}") from error
