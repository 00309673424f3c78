"""Anti-aliased drawing with opacity on an RGB image.

Positions are (u, v) in pixels of the finished image; (0, 0) is the centre of the first pixel.
Lines and areas are drawn at ``scale`` times the size and averaged; text is set afterwards, at the
finished size, so that it stays crisp.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from .style import Colour, font

SHIFT = 4  # cv2 takes positions in sixteenths of a pixel


class Canvas:
    """A picture in the making.

    Args:
        image: (H, W, 3) uint8 to draw on; it is copied.
        size: width and height of the finished picture; None: those of the image.
        scale: how many times larger to draw.
    """

    def __init__(
        self, image: NDArray[np.uint8], size: tuple[int, int] | None = None, scale: int = 2
    ) -> None:
        self.width, self.height = size or (image.shape[1], image.shape[0])
        self.scale = scale
        large = (self.width * scale, self.height * scale)
        shrinks = large[0] < image.shape[1]
        how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        self.pixels = cv2.resize(image, large, interpolation=how)
        if self.pixels is image:
            self.pixels = image.copy()
        self._texts: list[tuple] = []

    @staticmethod
    def blank(width: int, height: int, colour: Colour, scale: int = 2) -> Canvas:
        """A canvas of one colour."""
        return Canvas(np.full((1, 1, 3), colour, np.uint8), (width, height), scale)

    def large(self, positions: ArrayLike) -> NDArray[np.float64]:
        """(..., 2) positions -> positions in ``pixels``."""
        return (np.asarray(positions, float) + 0.5) * self.scale - 0.5

    def polygon(self, corners: ArrayLike, colour: Colour, opacity: float = 1.0) -> None:
        """Fill a polygon: (M, 2) corners."""
        points = self.large(corners)

        def fill(mask: NDArray, offset: NDArray) -> None:
            cv2.fillPoly(mask, [_fixed(points - offset)], (255,), cv2.LINE_AA, SHIFT)

        self._stamp(fill, points, 2, colour, opacity)

    def lines(
        self,
        segments: ArrayLike,
        colour: Colour,
        width: float = 1.5,
        opacity: float = 1.0,
        dash: float = 0.0,
    ) -> None:
        """Draw (M, 2, 2) segments as one shape: where they meet, opacity does not add up.

        Args:
            segments: start and end of each.
            colour: of the lines.
            width: in finished pixels.
            opacity: 0..1.
            dash: length of a dash and of the gap after it, finished pixels; 0 for a whole line.
        """
        segments = np.asarray(segments, float).reshape(-1, 2, 2)
        segments = clip_segments(segments, self.width, self.height, margin=width + 2)
        if dash:
            segments = dashes(segments, dash)
        if not len(segments):
            return
        points, thickness = self.large(segments), max(1, round(width * self.scale))

        def stroke(mask: NDArray, offset: NDArray) -> None:
            for start, end in _fixed(points - offset):
                cv2.line(mask, start.tolist(), end.tolist(), (255,), thickness, cv2.LINE_AA, SHIFT)

        self._stamp(stroke, points.reshape(-1, 2), thickness + 2, colour, opacity)

    def circle(
        self, centre: ArrayLike, radius: float, colour: Colour, width: float = 0, opacity=1.0
    ) -> None:
        """A circle; a disc if ``width`` is 0."""
        turn = np.linspace(0, 2 * np.pi, max(24, int(radius)), endpoint=False)
        rim = np.asarray(centre, float) + radius * np.stack([np.cos(turn), np.sin(turn)], -1)
        if width:
            self.lines(np.stack([rim, np.roll(rim, -1, 0)], 1), colour, width, opacity)
        else:
            self.polygon(rim, colour, opacity)

    def dots(self, positions: ArrayLike, colours: NDArray[np.uint8], size: int = 2) -> None:
        """Square dots of ``size`` drawing pixels: (P, 2) positions, (P, 3) colours, last on top."""
        corner = np.floor(self.large(positions) - (size - 1) / 2 + 0.5).astype(np.int64)
        rows, columns = self.pixels.shape[:2]
        for du in range(size):
            for dv in range(size):
                u, v = corner[:, 0] + du, corner[:, 1] + dv
                inside = (u >= 0) & (u < columns) & (v >= 0) & (v < rows)
                self.pixels[v[inside], u[inside]] = colours[inside]

    def text(
        self,
        position: ArrayLike,
        text: str,
        colour: Colour,
        size: int = 12,
        bold: bool = False,
        anchor: tuple[float, float] = (0.0, 0.0),
        pill: Colour | None = None,
        pill_opacity: float = 0.85,
    ) -> None:
        """Write at a position.

        Args:
            position: of the anchor.
            text: one line.
            colour: of the letters.
            size: of the font, pixels.
            bold: or regular.
            anchor: which point of the text's rectangle is at the position; (0, 0) is top left.
            pill: colour of a rounded background, or None.
            pill_opacity: 0..1.
        """
        self._texts.append((position, text, colour, size, bold, anchor, pill, pill_opacity))

    def finish(self) -> NDArray[np.uint8]:
        """The (height, width, 3) picture."""
        shape = (self.width, self.height)
        finished = self.pixels
        if self.scale != 1:
            finished = cv2.resize(finished, shape, interpolation=cv2.INTER_AREA)
        else:
            finished = finished.copy()
        for entry in self._texts:
            _write_(finished, *entry)
        return np.asarray(finished, np.uint8)

    def _stamp(
        self,
        draw: Callable[[NDArray, NDArray], None],
        points: NDArray,
        margin: float,
        colour: Colour,
        opacity: float,
    ) -> None:
        """Blend what ``draw`` puts on a mask; only the rectangle around the points is touched."""
        if not len(points) or not np.isfinite(points).all():
            return
        rows, columns = self.pixels.shape[:2]
        low = np.maximum(np.floor(points.min(0) - margin), 0).astype(int)
        high = np.minimum(np.ceil(points.max(0) + margin) + 1, (columns, rows)).astype(int)
        if (high <= low).any():
            return
        mask = np.zeros((high[1] - low[1], high[0] - low[0]), np.uint8)
        draw(mask, low.astype(float))
        region = self.pixels[low[1] : high[1], low[0] : high[0]]
        alpha = (mask.astype(np.float32) * (opacity / 255))[..., None]
        region[:] = np.round(region * (1 - alpha) + np.asarray(colour, np.float32) * alpha).astype(
            np.uint8
        )


def clip_segments(
    segments: NDArray[np.float64], width: float, height: float, margin: float = 0.0
) -> NDArray[np.float64]:
    """The parts of (M, 2, 2) segments inside a picture (Liang and Barsky); NaN ones are dropped."""
    segments = segments[np.isfinite(segments).all((1, 2))]
    start, step = segments[:, 0], segments[:, 1] - segments[:, 0]
    first, last = np.zeros(len(segments)), np.ones(len(segments))
    low, high = -0.5 - margin, np.array([width, height]) - 0.5 + margin
    outside = np.zeros(len(segments), bool)
    for axis in (0, 1):
        with np.errstate(divide="ignore", invalid="ignore"):
            to_low = (low - start[:, axis]) / step[:, axis]
            to_high = (high[axis] - start[:, axis]) / step[:, axis]
        flat = step[:, axis] == 0
        outside |= flat & ((start[:, axis] < low) | (start[:, axis] > high[axis]))
        first = np.maximum(first, np.where(flat, 0, np.minimum(to_low, to_high)))
        last = np.minimum(last, np.where(flat, 1, np.maximum(to_low, to_high)))
    clipped = start[:, None] + np.stack([first, last], 1)[..., None] * step[:, None]
    return clipped[(first < last) & ~outside]


def dashes(segments: NDArray[np.float64], length: float) -> NDArray[np.float64]:
    """Cut (M, 2, 2) segments into dashes; each begins and ends with one, so that corners close."""
    parts = []
    for start, end in segments:
        span = np.linalg.norm(end - start)
        # An odd number of equal pieces, of which every second one is drawn.
        count = max(1, 2 * int(span / (2 * length)) + 1)
        at = np.linspace(0, 1, count + 1)[:, None]
        points = start + at * (end - start)
        parts.append(np.stack([points[:-1:2], points[1::2]], 1))
    return np.concatenate(parts) if parts else segments


def text_size(text: str, size: int, bold: bool = False) -> tuple[int, int]:
    """Width and height of the rectangle that a text is anchored by."""
    mask = _glyphs(text, size, bold)
    return mask.shape[1], mask.shape[0]


def _fixed(points: NDArray[np.float64]) -> NDArray[np.int32]:
    return np.round(np.clip(points, -1e6, 1e6) * (1 << SHIFT)).astype(np.int32)


@lru_cache(maxsize=1024)
def _glyphs(text: str, size: int, bold: bool) -> NDArray[np.uint8]:
    from PIL import Image, ImageDraw

    face = font(size, bold)
    ascent, descent = face.getmetrics()
    image = Image.new("L", (max(1, round(face.getlength(text))), ascent + descent))
    ImageDraw.Draw(image).text((0, 0), text, fill=255, font=face)
    return np.asarray(image)


def _write_(image, position, text, colour, size, bold, anchor, pill, pill_opacity) -> None:
    mask = _glyphs(text, size, bold)
    shape = np.array([mask.shape[1], mask.shape[0]])
    pad = np.array([size * 0.45, size * 0.12]) if pill is not None else np.zeros(2)
    corner = np.asarray(position, float) - np.asarray(anchor) * (shape + 2 * pad) + pad
    if pill is not None:
        _pill_(image, corner - pad, shape + 2 * pad, pill, pill_opacity)
    _blend_mask_(image, np.round(corner).astype(int), mask, colour, 1.0)


def _pill_(image, corner, shape, colour, opacity) -> None:
    width, height = np.maximum(1, np.round(shape)).astype(int)
    scale, radius = 4, min(4, height // 3)
    mask = np.zeros((height * scale, width * scale), np.uint8)
    r, right, bottom = radius * scale, width * scale - 1, height * scale - 1
    cv2.rectangle(mask, (r, 0), (right - r, bottom), (255,), -1)
    cv2.rectangle(mask, (0, r), (right, bottom - r), (255,), -1)
    for centre in ((r, r), (right - r, r), (r, bottom - r), (right - r, bottom - r)):
        cv2.circle(mask, centre, r, (255,), -1)
    mask = cv2.resize(mask, (int(width), int(height)), interpolation=cv2.INTER_AREA)
    _blend_mask_(image, np.round(corner).astype(int), mask, colour, opacity)


def _blend_mask_(image, corner, mask, colour, opacity) -> None:
    rows, columns = image.shape[:2]
    u0, v0 = max(corner[0], 0), max(corner[1], 0)
    u1 = min(corner[0] + mask.shape[1], columns)
    v1 = min(corner[1] + mask.shape[0], rows)
    if u1 <= u0 or v1 <= v0:
        return
    part = mask[v0 - corner[1] : v1 - corner[1], u0 - corner[0] : u1 - corner[0]]
    alpha = (part.astype(np.float32) * (opacity / 255))[..., None]
    region = image[v0:v1, u0:u1]
    region[:] = np.round(region * (1 - alpha) + np.asarray(colour, np.float32) * alpha).astype(
        np.uint8
    )
