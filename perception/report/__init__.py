"""One self-contained HTML page about a run: what was done, how good it is, what it looks like."""

from .content import Card, RunReport
from .from_metrics import agreement_section, detection_section, distance_section, map_section
from .sections import (
    Ablation,
    Agreement,
    AgreementRow,
    ClassResult,
    Commands,
    Configuration,
    DetectionTable,
    FramePicture,
    Gallery,
    LossCurves,
    MapTable,
    PrecisionRecall,
    SceneVideo,
    Section,
    Table,
    Timings,
)
from .write import write_report

__all__ = [
    "Ablation",
    "Agreement",
    "AgreementRow",
    "Card",
    "ClassResult",
    "Commands",
    "Configuration",
    "DetectionTable",
    "FramePicture",
    "Gallery",
    "LossCurves",
    "MapTable",
    "PrecisionRecall",
    "RunReport",
    "SceneVideo",
    "Section",
    "Table",
    "Timings",
    "agreement_section",
    "detection_section",
    "distance_section",
    "map_section",
    "write_report",
]
