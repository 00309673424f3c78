"""The sections of a report: each is a dataclass and a template of the same name.

A new one needs these two and nothing else: a subclass of :class:`Section` that names its template,
and that template in ``templates/sections``, where ``section`` is the instance.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from ...datasets.nuscenes.classes import DETECTION_CLASSES, MAP_CLASSES
from ..visualize import curves
from ..visualize.style import DARK, hex_code, title_of

ERRORS = ("ATE", "ASE", "AOE", "AVE", "AAE")


@dataclass(frozen=True)
class Section:
    """A part of the page with a heading of its own."""

    template: ClassVar[str]
    heading: ClassVar[str]
    data: ClassVar[str]  # the field that has to hold something for the section to appear

    short = ""  # the heading in the page's menu, if another; a constant or a field

    @property
    def title(self) -> str:
        """The heading."""
        return self.heading

    @property
    def empty(self) -> bool:
        """Is there nothing to show?"""
        return not len(getattr(self, self.data))


@dataclass(frozen=True)
class Timings(Section):
    """Seconds that each stage took, in order."""

    template, heading, data = "timings.html.j2", "Time by stage", "seconds"
    short = "Time"
    seconds: Mapping[str, float]

    @property
    def total(self) -> float:
        """Seconds in all."""
        return sum(self.seconds.values())


@dataclass(frozen=True)
class Ablation(Section):
    """The model with fewer sensors: row -> metric -> value, compared to the first row."""

    template, heading, data = "ablation.html.j2", "What each sensor adds", "rows"
    short = "Sensors"
    hint: ClassVar[str] = "The same weights, with the inputs of one sensor taken away."
    rows: Mapping[str, Mapping[str, float]]

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names of the columns."""
        return tuple(next(iter(self.rows.values())))

    @property
    def reference(self) -> Mapping[str, float]:
        """The first row."""
        return next(iter(self.rows.values()))


@dataclass(frozen=True)
class ClassResult:
    """Detection of one class.

    Args:
        average_precision: one for each distance threshold.
        errors: translation, scale, orientation, velocity, attribute; NaN where not defined.
        num_truth: annotated boxes; None if unknown.
    """

    average_precision: tuple[float, ...]
    errors: tuple[float, ...]
    num_truth: int | None = None

    @property
    def mean(self) -> float:
        """AP over all thresholds."""
        return float(np.mean(self.average_precision))


@dataclass(frozen=True)
class DetectionTable(Section):
    """nuScenes' detection metrics by class."""

    template, heading, data = "detection.html.j2", "Detection by class", "classes"
    short = "Classes"
    classes: Mapping[str, ClassResult]
    thresholds: tuple[float, ...] = (0.5, 1.0, 2.0, 4.0)
    mean_ap: float = float("nan")
    mean_errors: tuple[float, ...] = ()
    error_names: tuple[str, ...] = ERRORS


@dataclass(frozen=True)
class MapTable(Section):
    """Intersection over union of each map class.

    Args:
        iou: class -> value at its best threshold.
        threshold: class -> that threshold.
        mean: over the classes; None: computed.
    """

    template, heading, data = "map.html.j2", "Map segmentation", "iou"
    short = "Map"
    iou: Mapping[str, float]
    threshold: Mapping[str, float] = field(default_factory=dict)
    mean: float | None = None

    @property
    def mean_iou(self) -> float:
        """Mean over the classes."""
        return float(np.mean(list(self.iou.values()))) if self.mean is None else self.mean


@dataclass(frozen=True)
class AgreementRow:
    """One metric, by our code and by the official one."""

    metric: str
    ours: float
    official: float

    @property
    def difference(self) -> float:
        """How far apart they are."""
        return abs(self.ours - self.official)


@dataclass(frozen=True)
class Agreement(Section):
    """Our metrics against those of the official code on the same submission."""

    template, heading, data = "agreement.html.j2", "Agreement with the official code", "rows"
    short = "Official code"
    rows: tuple[AgreementRow, ...]
    official_name: str = "nuscenes-devkit"
    tolerance: float = 1e-6

    @property
    def agrees(self) -> bool:
        """Is every difference within the tolerance? (Two NaN agree.)"""
        return all(
            row.difference <= self.tolerance or (np.isnan(row.ours) and np.isnan(row.official))
            for row in self.rows
        )


@dataclass(frozen=True)
class LossCurves(Section):
    """Columns of ``losses.csv`` (:func:`bevstack.perception.visualize.curves.read_losses`)."""

    template, heading, data = "figure.html.j2", "Training", "losses"
    losses: Mapping[str, NDArray]
    note: str = "Faint: every step. Strong: the running mean of about 2 % of the steps."

    @property
    def empty(self) -> bool:
        """Is there no step?"""
        return not len(self.losses.get("step", ()))

    @property
    def svg(self) -> str:
        """The figure."""
        return curves.to_svg(curves.loss_figure(self.losses), "losses", "loss over training steps")


@dataclass(frozen=True)
class PrecisionRecall(Section):
    """Precision over recall by class: (R,) and class -> (T, R) or (R,)."""

    template, heading, data = "figure.html.j2", "Precision over recall", "precision"
    short = "Precision"
    recall: NDArray
    precision: Mapping[str, NDArray]
    note: str = (
        "Across: recall, up: precision. The wider the distance threshold, the stronger the line."
    )

    @property
    def svg(self) -> str:
        """The figure."""
        figure = curves.precision_recall_figure(self.recall, self.precision)
        return curves.to_svg(figure, "precision", "precision over recall of each class")


@dataclass(frozen=True)
class Table(Section):
    """Any table of numbers: row -> column -> value, NaN for none.

    Args:
        name: the heading.
        rows: all with the same columns.
        note: a sentence above it.
        bars: shade cells by their value, taken to be between 0 and 1.
        digits: after the point.
        short: the heading in the page's menu.
    """

    template, heading, data = "table.html.j2", "", "rows"
    name: str
    rows: Mapping[str, Mapping[str, float | str]]
    note: str = ""
    bars: bool = True
    digits: int = 3
    short: str = ""

    @property
    def title(self) -> str:
        """The heading."""
        return self.name

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns."""
        return tuple(next(iter(self.rows.values())))


@dataclass(frozen=True)
class FramePicture:
    """Pictures of one frame, (H, W, 3) uint8 RGB each; None is left out.

    Args:
        title: which frame.
        cameras: all images in one.
        prediction: from above.
        truth: from above.
        voxels: predicted occupancy.
        true_voxels: its labels.
        caption: why it is shown, for instance ``"best of 81 frames"``.
    """

    title: str
    cameras: NDArray[np.uint8] | None = None
    prediction: NDArray[np.uint8] | None = None
    truth: NDArray[np.uint8] | None = None
    caption: str = ""
    voxels: NDArray[np.uint8] | None = None
    true_voxels: NDArray[np.uint8] | None = None


@dataclass(frozen=True)
class Gallery(Section):
    """Frames to look at."""

    template, heading, data = "gallery.html.j2", "Frames", "frames"
    frames: tuple[FramePicture, ...]
    quality: int = 80  # of the JPEG pictures

    @property
    def legend(self) -> tuple[tuple[str, str, str], ...]:
        """Name, colour and kind of everything that is drawn."""
        classes = [
            (title_of(n), hex_code(c), "box") for n, c in zip(DETECTION_CLASSES, DARK.classes)
        ]
        maps = [(title_of(n), hex_code(c), "area") for n, c in zip(MAP_CLASSES, DARK.maps)]
        return (*classes, ("truth", "currentColor", "dashed"), *maps)


@dataclass(frozen=True)
class TrackGallery(Gallery):
    """Tracked objects with the ways that they came."""

    template, heading, data = "gallery.html.j2", "Tracks", "frames"


@dataclass(frozen=True)
class SceneVideo(Section):
    """A scene as a moving picture.

    Args:
        webp: an animated WebP file; empty for none.
        caption: what it shows.
    """

    template, heading, data = "video.html.j2", "A scene with all outputs", "webp"
    short = "Video"
    webp: bytes
    caption: str = ""


@dataclass(frozen=True)
class Commands(Section):
    """The commands that make this run again, one a line."""

    template, heading, data = "commands.html.j2", "Run it again", "lines"
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Configuration(Section):
    """The full configuration as text, folded away."""

    template, heading, data = "configuration.html.j2", "Configuration", "text"
    text: str
