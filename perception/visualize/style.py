"""Colours and fonts of every picture: the one place to change them.

The hues of the classes keep apart under the common kinds of colour blindness (they follow Okabe
and Ito's set, widened to ten by lightness); each theme has its own shades, so that all of them are
legible on its background.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...datasets.nuscenes.classes import DETECTION_CLASSES, MAP_CLASSES, OCCUPANCY_CLASSES

Colour = tuple[int, int, int]  # red, green, blue, 0..255


def colour(code: str) -> Colour:
    """``"#rrggbb"`` -> red, green, blue."""
    return int(code[1:3], 16), int(code[3:5], 16), int(code[5:7], 16)


def hex_code(rgb: Colour) -> str:
    """Red, green, blue -> ``"#rrggbb"``."""
    return "#{:02x}{:02x}{:02x}".format(*rgb)


@dataclass(frozen=True)
class Theme:
    """What a picture is drawn with.

    Args:
        background: behind everything.
        surface: of panels that lie on the background.
        text: of titles.
        muted: of labels that should step back, and of rings.
        faint: of lines that are barely there.
        truth: outline of annotated boxes.
        ego: the vehicle itself.
        classes: one for each detection class.
        maps: one for each map class.
        points: colours from low (or weak, or near) to high, any number.
    """

    background: Colour
    surface: Colour
    text: Colour
    muted: Colour
    faint: Colour
    truth: Colour
    ego: Colour
    classes: tuple[Colour, ...]
    maps: tuple[Colour, ...]
    points: tuple[Colour, ...]

    def of_class(self, label: int) -> Colour:
        """Colour of a detection class; -1 (outside the class list) is grey."""
        return self.classes[label % len(self.classes)] if label >= 0 else self.muted


def _shades(names: tuple[str, ...], codes: dict[str, str]) -> tuple[Colour, ...]:
    return tuple(colour(codes[name]) for name in names)


DARK = Theme(
    background=colour("#0e1116"),
    surface=colour("#171c24"),
    text=colour("#eef2f7"),
    muted=colour("#8b97a8"),
    faint=colour("#2d3643"),
    truth=colour("#ffffff"),
    ego=colour("#eef2f7"),
    classes=_shades(
        DETECTION_CLASSES,
        {
            "car": "#ffa53d",
            "truck": "#f4623a",
            "construction_vehicle": "#c8a063",
            "bus": "#ec5fa3",
            "trailer": "#b48cff",
            "barrier": "#a9b4c2",
            "motorcycle": "#4cc3ff",
            "bicycle": "#2bd4a8",
            "pedestrian": "#ffe45c",
            "traffic_cone": "#7d97ff",
        },
    ),
    maps=_shades(
        MAP_CLASSES,
        {
            "drivable_area": "#3d4a5c",
            "ped_crossing": "#4a8fdc",
            "walkway": "#44805f",
            "stop_line": "#e0574c",
            "carpark_area": "#7d64ab",
            "divider": "#e6d796",
        },
    ),
    points=tuple(map(colour, ("#34507a", "#5b86b8", "#9cc3dc", "#e8f4f7"))),
)

LIGHT = Theme(
    background=colour("#ffffff"),
    surface=colour("#f4f6f9"),
    text=colour("#161b22"),
    muted=colour("#68758a"),
    faint=colour("#d5dbe4"),
    truth=colour("#0e1116"),
    ego=colour("#2b3442"),
    classes=_shades(
        DETECTION_CLASSES,
        {
            "car": "#d97706",
            "truck": "#c2380c",
            "construction_vehicle": "#8a6a3b",
            "bus": "#be2f72",
            "trailer": "#7c4dd6",
            "barrier": "#5b6776",
            "motorcycle": "#0278b8",
            "bicycle": "#0b8a6c",
            "pedestrian": "#9a8100",
            "traffic_cone": "#3b5bdb",
        },
    ),
    maps=_shades(
        MAP_CLASSES,
        {
            "drivable_area": "#d3dae4",
            "ped_crossing": "#8ab6ec",
            "walkway": "#a9d3b8",
            "stop_line": "#e57f75",
            "carpark_area": "#c6b4e3",
            "divider": "#a98a1c",
        },
    ),
    points=tuple(map(colour, ("#b9c6d8", "#7f97b8", "#46658f", "#16294a"))),
)

# Of voxels: objects as their boxes, surfaces and scenery in quieter colours.
OCCUPANCY_COLOURS = _shades(
    OCCUPANCY_CLASSES,
    {name: hex_code(DARK.of_class(i)) for i, name in enumerate(DETECTION_CLASSES)}
    | {
        "others": "#e8ecf2",
        "driveable_surface": "#4a5568",
        "other_flat": "#6a5f73",
        "sidewalk": "#8a6f8f",
        "terrain": "#59733f",
        "manmade": "#b7ae9c",
        "vegetation": "#2f9460",
    },
)

# Wide areas stay in the background, thin lines have to be seen.
MAP_OPACITY = dict(zip(MAP_CLASSES, (0.85, 0.75, 0.7, 0.9, 0.7, 0.9), strict=True))


def title_of(name: str) -> str:
    """``"construction_vehicle"`` -> ``"construction vehicle"``, ``"CAM_FRONT"`` -> ``"FRONT"``."""
    return name.removeprefix("CAM_").replace("_", " ")


def ramp(values: NDArray, anchors: tuple[Colour, ...]) -> NDArray[np.uint8]:
    """(P,) values in 0..1, clipped -> (P, 3) colours between the anchors; NaN is the first."""
    position = np.clip(np.nan_to_num(values, nan=0.0), 0, 1) * (len(anchors) - 1)
    table = np.asarray(anchors, float)
    channels = [np.interp(position, np.arange(len(anchors)), table[:, c]) for c in range(3)]
    return np.round(np.stack(channels, -1)).astype(np.uint8)


@lru_cache(maxsize=64)
def font(size: int, bold: bool = False):
    """A Pillow font; DejaVu Sans comes with matplotlib, so it is on every machine."""
    try:
        import matplotlib
        from PIL import ImageFont
    except ImportError as error:
        raise ImportError("pictures need matplotlib: pip install 'bevstack[view]'") from error

    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / name
    return ImageFont.truetype(str(path), size)
