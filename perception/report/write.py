"""Render a report: one file that needs no other, no server and no network."""

from __future__ import annotations

import base64
import math
import os
import re
from numbers import Integral
from pathlib import Path

from numpy.typing import NDArray

from ...datasets.nuscenes.classes import DETECTION_CLASSES, MAP_CLASSES
from ..visualize.overview import encode_image
from ..visualize.style import DARK, hex_code, title_of
from .content import RunReport

TEMPLATES = Path(__file__).parent / "templates"


def write_report(run: RunReport, path: Path | str) -> Path:
    """Write the report as one HTML file; the file appears whole or not at all.

    Args:
        run: what it says; all text is escaped.
        path: of the file; folders are made.

    Returns:
        The path.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        partial.write_text(render_report(run), encoding="utf-8")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def render_report(run: RunReport) -> str:
    """The report as HTML text."""
    try:
        import jinja2
    except ImportError as error:
        raise ImportError("a report needs Jinja2: pip install 'bevstack[view]'") from error

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": number, "signed": signed, "duration": duration, "words": title_of,
        "share": share, "colour": class_colour, "picture": picture, "slug": slug,
        "jpeg_address": jpeg_address, "webp_address": webp_address,
    }  # fmt: skip
    sections = [section for section in run.sections if not section.empty]
    return environment.get_template("page.html.j2").render(run=run, sections=sections)


def number(value: float | str | None, digits: int = 3) -> str:
    """A number as all of the report writes it: n/a for none, thousands apart; text as it is."""
    if isinstance(value, str):
        return value
    if value is None or math.isnan(value):
        return "n/a"
    if isinstance(value, Integral):
        return f"{int(value):,}".replace(",", "\N{NARROW NO-BREAK SPACE}")
    return f"{value:.{digits}f}".replace("-", "\N{MINUS SIGN}")


def signed(value: float, digits: int = 3) -> str:
    """A difference, with its sign."""
    text = number(value, digits)
    return text if text == "n/a" or value < 0 else f"+{text}"


def duration(seconds: float) -> str:
    """Seconds as people say them: 0.4 s, 12 s, 3 min 05 s, 2 h 10 min."""
    if math.isnan(seconds):
        return "n/a"
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def share(value: float | str | None, of: float = 1.0) -> str:
    """A length between 0 and 1 for a bar; 0 where there is no number."""
    if isinstance(value, str) or value is None or math.isnan(value) or not of > 0:
        return "0"
    return f"{min(max(value / of, 0.0), 1.0):.4f}"


def class_colour(name: str) -> str:
    """The colour in which the pictures show a detection or map class; none: transparent."""
    for names, colours in ((DETECTION_CLASSES, DARK.classes), (MAP_CLASSES, DARK.maps)):
        if name in names:
            return hex_code(colours[names.index(name)])
    return "transparent"


def picture(image: NDArray, quality: int = 80) -> str:
    """An RGB image as a data address."""
    return jpeg_address(encode_image(image, ".jpg", quality))


def jpeg_address(data: bytes) -> str:
    """A JPEG file as a data address."""
    return f"data:image/jpeg;base64,{base64.b64encode(data).decode('ascii')}"


def webp_address(data: bytes) -> str:
    """A WebP file as a data address."""
    return f"data:image/webp;base64,{base64.b64encode(data).decode('ascii')}"


def slug(text: str) -> str:
    """A heading as an id."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
