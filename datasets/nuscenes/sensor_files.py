"""Load nuScenes' sensor files; one that cannot be used gives a DataError that names it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..images import decode_image

_POINT_BYTES = 20  # x, y, z, intensity, ring as float32


@dataclass(frozen=True)
class ImageFile:
    """An image of known size, decoded when called; see ``ImageLoader`` in ``frame.py``."""

    path: Path
    width: int
    height: int

    def __call__(self, reduction: int = 1) -> NDArray[np.uint8]:
        """(ceil(height / reduction), ceil(width / reduction), 3) RGB.

        Raises:
            DataError: if the file is missing, cut off, no image, or of another size.
        """
        pixels = decode_image(self.encoded(), reduction, self.path, _REMEDY)
        expected = (-(-self.height // reduction), -(-self.width // reduction))
        if pixels.shape[:2] != expected:
            raise DataError(
                f"{self.path} has {pixels.shape[1]} x {pixels.shape[0]} pixels at reduction "
                f"{reduction}, expected {expected[1]} x {expected[0]}; {_REMEDY}"
            )
        return pixels

    def encoded(self) -> NDArray[np.uint8]:
        """(S,) the file's bytes; DataError if it cannot be read."""
        return _read(self.path)


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


def _read(path: Path) -> NDArray[np.uint8]:
    try:
        return np.fromfile(path, np.uint8)
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing; {_REMEDY}") from error
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); {_REMEDY}") from error
