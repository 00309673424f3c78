"""Images that are in memory: as pixels, or as the bytes of a JPEG or PNG file.

OpenCV is imported where it is needed: a program that only sends images has none.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .errors import DataError


@dataclass(frozen=True)
class PixelImage:
    """An image loader over pixels."""

    pixels: NDArray[np.uint8]  # (H, W, 3) RGB

    def __call__(self, reduction: int = 1) -> NDArray[np.uint8]:
        """See ``ImageLoader``."""
        return reduced(self.pixels, reduction)


@dataclass(frozen=True)
class EncodedImage:
    """An image loader over the bytes of an image file, decoded when called.

    Args:
        content: (S,) the file's bytes, JPEG or PNG.
        name: what messages call it.
    """

    content: NDArray[np.uint8]
    name: str = "the image"

    def __call__(self, reduction: int = 1) -> NDArray[np.uint8]:
        """See ``ImageLoader``; DataError if the bytes are no whole image."""
        return decode_image(self.content, reduction, self.name, "send the whole file")

    def encoded(self) -> NDArray[np.uint8]:
        """(S,) the bytes as they are."""
        return self.content


def reduced(pixels: NDArray[np.uint8], reduction: int) -> NDArray[np.uint8]:
    """(ceil(H / reduction), ceil(W / reduction), 3): the means of squares; edges are repeated."""
    if reduction == 1:
        return pixels
    import cv2

    height, width = pixels.shape[:2]
    edges = (0, -height % reduction, 0, -width % reduction)
    pixels = np.asarray(cv2.copyMakeBorder(pixels, *edges, cv2.BORDER_REPLICATE), np.uint8)
    size = (pixels.shape[1] // reduction, pixels.shape[0] // reduction)
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)


def decode_image(
    content: NDArray[np.uint8], reduction: int, name: object, remedy: str
) -> NDArray[np.uint8]:
    """(H, W, 3) RGB from the bytes of an image file.

    A JPEG is decoded at the reduced size, several times faster than at the full one. Orientation
    tags are ignored: calibrations belong to the pixels as they are stored.

    Args:
        content: (S,) the file's bytes.
        reduction: see ``ImageLoader``.
        name: of the image, for messages.
        remedy: what to do about a bad one, for messages.

    Raises:
        DataError: if the bytes are no image, or cut off.
    """
    import cv2

    # OpenCV fills the missing part of a truncated JPEG with grey and only prints a warning; such
    # a file lacks the end-of-image marker. (Padding may follow it.)
    head, tail = content[:2].tobytes(), content[-1024:].tobytes()
    if head == b"\xff\xd8" and b"\xff\xd9" not in tail:
        raise DataError(f"{name} is a JPEG that is cut off; {remedy}")
    kind = f"REDUCED_COLOR_{reduction}" if reduction > 1 else "COLOR"
    flags = getattr(cv2, f"IMREAD_{kind}") | cv2.IMREAD_IGNORE_ORIENTATION
    pixels = cv2.imdecode(content, flags) if len(content) else None
    if pixels is None:
        raise DataError(f"{name} ({len(content)} bytes) is not an image; {remedy}")
    return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB, dst=pixels), np.uint8)


def encoded_size(content: NDArray[np.uint8]) -> tuple[int, int] | None:
    """Width and height that a JPEG or PNG file's header states; None for anything else.

    Nothing is decoded: a few bytes may stand for gigabytes of pixels. Sources: PNG (W3C) 11.2.2,
    JPEG (ITU-T T.81) B.2.2.
    """
    if content[:8].tobytes() == b"\x89PNG\r\n\x1a\n" and content[12:16].tobytes() == b"IHDR":
        width, height = (int.from_bytes(content[k : k + 4].tobytes(), "big") for k in (16, 20))
        return (width, height) if len(content) >= 24 else None
    for marker, start in _jpeg_segments(content):
        # Start of frame; C4, C8 and CC are tables and an extension of the same numbers.
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            sizes = content[start + 3 : start + 7].tobytes()
            height, width = (int.from_bytes(sizes[k : k + 2], "big") for k in (0, 2))
            return (width, height) if len(sizes) == 4 else None
    return None


def _jpeg_segments(content: NDArray[np.uint8]) -> Iterator[tuple[int, int]]:
    """Marker and offset of what follows it, of the segments before the image data."""
    if content[:2].tobytes() != b"\xff\xd8":
        return
    at = 2
    while at + 4 <= len(content) and content[at] == 0xFF:
        marker = int(content[at + 1])
        if marker == 0xFF:  # padding
            at += 1
            continue
        if marker == 0xDA:  # start of scan
            return
        yield marker, at + 2
        alone = marker == 0x01 or 0xD0 <= marker <= 0xD7  # markers without a segment
        at += 2 if alone else 2 + int.from_bytes(content[at + 2 : at + 4].tobytes(), "big")
