"""Pictures as a video: MP4 through OpenCV, animated WebP through Pillow."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray


def save_video(
    path: Path | str,
    pictures: Sequence[NDArray[np.uint8]],
    frames_per_second: float = 3.0,
    quality: int = 70,
) -> None:
    """Write a video; the file appears complete or not at all.

    Args:
        path: ends in ``.mp4`` or ``.webp``.
        pictures: (H, W, 3) RGB each, all of one size.
        frames_per_second: how fast it runs; a WebP runs for ever.
        quality: of a WebP, 0..100.

    Raises:
        ValueError: for another ending, no picture, or sizes that differ.
    """
    path = Path(path)
    if path.suffix not in (".mp4", ".webp"):
        raise ValueError(f"{path} ends in {path.suffix!r}; a video is .mp4 or .webp")
    if not pictures or len({picture.shape for picture in pictures}) != 1:
        raise ValueError(f"{path} needs pictures of one size, at least one")
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.stem}.partial{path.suffix}")
    if path.suffix == ".mp4":
        _write_mp4(partial, pictures, frames_per_second)
    else:
        partial.write_bytes(encode_webp(pictures, frames_per_second, quality))
    partial.replace(path)


def _write_mp4(path: Path, pictures: Sequence[NDArray], frames_per_second: float) -> None:
    # The codec wants even sides; a black line more is seen by nobody.
    height, width = (side + side % 2 for side in pictures[0].shape[:2])
    code = cv2.VideoWriter.fourcc(*"mp4v")
    writer = cv2.VideoWriter(str(path), code, frames_per_second, (width, height))
    if not writer.isOpened():
        raise ValueError(f"OpenCV cannot write {path}; it was built without FFmpeg: use .webp")
    try:
        for picture in pictures:
            rows, columns = height - picture.shape[0], width - picture.shape[1]
            even = np.pad(picture, ((0, rows), (0, columns), (0, 0)))
            writer.write(np.ascontiguousarray(even[..., ::-1]))
    finally:
        writer.release()


def encode_webp(
    pictures: Sequence[NDArray[np.uint8]], frames_per_second: float = 3.0, quality: int = 70
) -> bytes:
    """Pictures as the bytes of an animated WebP that runs for ever; see :func:`save_video`."""
    from PIL import Image

    first, *rest = (Image.fromarray(picture) for picture in pictures)
    milliseconds, content = round(1000 / frames_per_second), BytesIO()
    first.save(content, "WEBP", save_all=True, append_images=rest, duration=milliseconds, loop=0,
               quality=quality)  # fmt: skip
    return content.getvalue()
