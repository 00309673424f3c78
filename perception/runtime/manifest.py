"""``manifest.json``: all that a program needs to know to run an exported model."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ...datasets.errors import DataError
from ...datasets.sensors import Range
from ...kernels.grid import BEVGrid
from ...kernels.voxel_grid import VoxelGrid
from ..decoding.affinity import AffinityDecoder
from ..decoding.centers import CenterDecoder
from ..decoding.queries import QueryDecoder
from ..tracking import GreedyTracker, KalmanTracker
from .structure import from_json, to_json

MANIFEST = "manifest.json"
FORMAT = 2  # goes up when an older runtime could not run what is written

Triple = tuple[int, int, int]
Precision = Literal["fp32", "fp16", "int8"]


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a graph; an axis of changing length has a name."""

    name: str
    dtype: str  # numpy's name
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class GraphSpec:
    """One ONNX file."""

    file: str
    sha256: str
    bytes: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True)
class ImageStep:
    """A change to the camera images before they are read: a class of ``datasets.augment``."""

    name: Literal["ImageResize", "PublishedResize"]
    arguments: dict[str, Any]


@dataclass(frozen=True)
class SensorSpec:
    """From a frame to images, calibration and points; see ``SensorEncoder``."""

    frame: Literal["ego", "lidar"]  # the BEV frame that the model was trained in
    point_range: Range
    image_size: tuple[int, int] | None  # width, height
    image_steps: tuple[ImageStep, ...]
    num_sweeps: int
    cameras: bool
    lidar: bool
    clear_key_sweep: bool
    half_points: bool = False


@dataclass(frozen=True)
class CameraSpec:
    """The inputs of the camera graph; see ``runtime/camera.py`` for how they are made.

    The graph itself subtracts ``mean`` from the images and divides by ``std`` (RGB, 0..255).
    """

    graph: str  # key in Manifest.graphs
    channels: int  # of the BEV map
    feature_size: tuple[int, int]  # H, W
    image_from_feature: tuple[tuple[float, ...], ...]  # (4, 4), of (u * d, v * d, d, 1)
    first_depth: float  # metres; what follows is FrustumShape
    depth_step: float
    num_bins: int
    depth_in_bin: float
    height_range: tuple[float, float]
    truncate_cells: bool
    pool_grid: BEVGrid
    depth: Literal["nearest", "last"] | None  # which LiDAR depth the graph is given
    depth_size: tuple[int, int] | None  # H, W
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    inputs_by_calibration: tuple[str, ...]  # inputs that change with the calibration alone


@dataclass(frozen=True)
class PillarSpec:
    """The inputs of a LiDAR graph of pillars; see ``runtime/pillars.py``."""

    graph: str
    channels: int
    pillar_size: float
    height_range: tuple[float, float]
    height_bins: int
    kind: Literal["pillars"] = "pillars"


@dataclass(frozen=True)
class TableSpec:
    """A neighbour table; one that is not submanifold leads to the next level of voxels."""

    input: str  # of the graph
    level: int  # of the voxels it is made from
    kernel: Triple  # z, y, x
    stride: Triple
    padding: Triple
    dilation: Triple
    submanifold: bool


@dataclass(frozen=True)
class VoxelSpec:
    """The inputs of a LiDAR graph of voxels; see ``runtime/voxels.py``."""

    graph: str
    channels: int
    voxel_size: tuple[float, float, float]
    height_range: tuple[float, float]
    max_points: int | None
    max_voxels: int | None
    shape: Triple  # cells along z, y, x
    tables: tuple[TableSpec, ...]
    kind: Literal["voxels"] = "voxels"


@dataclass(frozen=True)
class CenterSpec(CenterDecoder):
    """Boxes of heat-maps."""

    kind: Literal["centers"] = "centers"


@dataclass(frozen=True)
class QuerySpec(QueryDecoder):
    """Boxes of object queries."""

    kind: Literal["queries"] = "queries"


@dataclass(frozen=True)
class MapSpec:
    """Map layers: the sigmoid of the logits, each layer present above some threshold."""

    grid: BEVGrid
    classes: tuple[str, ...]
    kind: Literal["map"] = "map"


@dataclass(frozen=True)
class OccupancySpec:
    """Voxels; see ``decoding/occupancy.py``."""

    grid: VoxelGrid
    classes: tuple[str, ...]
    threshold: float
    kind: Literal["occupancy"] = "occupancy"


@dataclass(frozen=True)
class QuantizationSpec:
    """How 8-bit graphs were made."""

    frames: int  # calibrated with
    agreement: dict[str, float]  # with the float graphs on these frames, by task
    float_layers: dict[str, tuple[str, ...]]  # by graph: nodes that compute in float, found so


HeadSpec = CenterSpec | QuerySpec | MapSpec | OccupancySpec


@dataclass(frozen=True)
class MemorySpec:
    """What the heads' graph looks back at; see ``runtime/memory.py``."""

    moments: int  # the most
    max_age: float  # seconds; older moments are forgotten


@dataclass(frozen=True)
class KalmanSpec(KalmanTracker):
    """Tracks of the boxes by Kalman filters."""

    kind: Literal["kalman"] = "kalman"


@dataclass(frozen=True)
class GreedySpec(GreedyTracker):
    """Tracks of the boxes by detected velocity."""

    kind: Literal["greedy"] = "greedy"


TrackerSpec = KalmanSpec | GreedySpec


@dataclass(frozen=True)
class AffinitySpec(AffinityDecoder):
    """Learned affinities, which help the tracker; see ``runtime/affinity.py``."""

    graph: str  # key in Manifest.graphs


@dataclass(frozen=True)
class Manifest:
    """What ``manifest.json`` holds."""

    format: int
    precision: Precision
    opset: int
    grid: BEVGrid  # of the BEV maps that graphs hand on
    sensors: SensorSpec
    camera: CameraSpec | None
    lidar: PillarSpec | VoxelSpec | None
    heads_graph: str  # key in graphs; its outputs are "task.field"
    heads: dict[str, HeadSpec]
    graphs: dict[str, GraphSpec]  # model, or camera, lidar, fusion_heads; affinity
    config: str  # file of the training's config
    versions: dict[str, str] = field(default_factory=dict)
    quantization: QuantizationSpec | None = None  # of int8
    package: GraphSpec | None = None  # fusion_heads as an AOTInductor package, beside graphs
    tracker: TrackerSpec | None = None  # None without a detection head
    memory: MemorySpec | None = None  # None for a model that sees every frame on its own
    affinity: AffinitySpec | None = None  # None where distance alone links boxes


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write ``manifest.json`` into the export folder."""
    text = json.dumps(to_json(manifest), indent=2, allow_nan=False)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def read_manifest(folder: Path | str, verify: bool = True) -> Manifest:
    """Read ``manifest.json``.

    Args:
        folder: an export folder.
        verify: compare the checksums of the graphs.

    Raises:
        DataError: if the folder is no export, of another format, or a file was changed.
    """
    path = Path(folder) / MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(
            f"{folder} is not an exported model: {path.name} cannot be read ({error.strerror}); "
            "make one with `bevstack export`"
        ) from error
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error}); export the model again") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format") if isinstance(content, dict) else None
        raise DataError(
            f"{path} has format {found!r}, this version of bevstack reads {FORMAT}; export the "
            "model again"
        )
    try:
        manifest = from_json(Manifest, content)
    except ValueError as error:
        raise DataError(f"{path}: {error}; export the model again") from error
    for graph in manifest.graphs.values():
        if Path(graph.file).name != graph.file:
            raise DataError(f"{path}: {graph.file!r} is not a file name")
        if verify and sha256_of(path.with_name(graph.file)) != graph.sha256:
            raise DataError(
                f"{path.with_name(graph.file)} is not the file that was exported: its checksum "
                "differs; copy the folder again"
            )
    return manifest


def sha256_of(path: Path) -> str:
    """Checksum of a file; DataError if it cannot be read."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    except OSError as error:
        raise DataError(
            f"{path} cannot be read: {error.strerror}; copy the folder again"
        ) from error
    return digest.hexdigest()
