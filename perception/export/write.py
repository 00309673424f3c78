"""Write an export folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...datasets.boxes import Boxes3D, Detections
from ...datasets.sensors import SensorInputs
from ..decoding.affinity import LinkedFrame
from ..encoders import PillarEncoder
from ..heads import AffinityHead
from ..memory import BEVMemory
from ..model import FusionModel
from ..runtime.affinity import MAP_BEFORE, MAP_NOW
from ..runtime.camera import CameraInputs
from ..runtime.manifest import (
    FORMAT,
    AffinitySpec,
    Manifest,
    MemorySpec,
    SensorSpec,
    write_manifest,
)
from ..runtime.pillars import PillarInputs
from ..runtime.runtime import SensorPreparation
from ..runtime.voxels import VoxelInputs
from ..tracking import GreedyTracker, KalmanTracker
from .describe import camera_spec, head_spec, lidar_spec, tracker_spec
from .example import example_frame
from .graphs import AffinityGraph, CameraGraph, HeadsGraph, PillarGraph, VoxelGraph, WholeGraph
from .trace import OPSET, describe_onnx, prepared, write_onnx

CONFIG = "config.yaml"
WHOLE, HEADS, LINK = "model", "fusion_heads", "affinity"  # names of graphs


@dataclass(frozen=True)
class Parts:
    """The parts of a model by the names of their graphs, and what makes their inputs."""

    modules: dict[str, Any]
    camera: Any  # CameraSpec, or None
    lidar: Any  # PillarSpec, VoxelSpec, or None
    inputs_of: dict[str, Callable[[SensorInputs], dict[str, NDArray]]]  # by sensor


def parts_of(model: FusionModel, image_size: tuple[int, int] | None, single: bool) -> Parts:
    """Cut a prepared model into parts.

    Args:
        model: of :func:`prepared`.
        image_size: width and height of the images; None for a model without cameras.
        single: one part that holds everything.
    """
    sensors, specs = {}, {}
    inputs_of: dict[str, Callable[[SensorInputs], dict[str, NDArray]]] = {}
    if model.camera is not None:
        assert image_size is not None
        sensors["camera"] = graph = CameraGraph(model.camera, (image_size[1], image_size[0]))
        specs["camera"] = camera_spec(model.camera, graph, WHOLE if single else "camera")
        inputs_of["camera"] = CameraInputs(specs["camera"])
    if model.lidar is not None:
        pillars = isinstance(model.lidar, PillarEncoder)
        sensors["lidar"] = graph = (PillarGraph if pillars else VoxelGraph)(model.lidar)  # pyright: ignore
        specs["lidar"] = spec = lidar_spec(model.lidar, graph, WHOLE if single else "lidar")
        lidar_inputs = (PillarInputs if pillars else VoxelInputs)(spec, model.grid)  # pyright: ignore
        inputs_of["lidar"] = lambda sensors: lidar_inputs(sensors.points) or {}
    heads = HeadsGraph(model)
    modules = {WHOLE: WholeGraph(sensors, heads)} if single else {**sensors, HEADS: heads}
    for module in modules.values():
        module.eval()
    return Parts(modules, specs.get("camera"), specs.get("lidar"), inputs_of)


def write_folder(
    model: FusionModel,
    sensors: SensorSpec,
    folder: Path,
    config: Path | None = None,
    single: bool = False,
    tracker: KalmanTracker | GreedyTracker | None = None,
) -> Manifest:
    """Write graphs in float32, manifest and config.

    Args:
        model: a trained model; it stays as it was.
        sensors: what a runtime does to a frame.
        folder: made if missing; its files are written over.
        config: the training's config, to be copied.
        single: one file instead of one per part, but for a learned affinity.
        tracker: of the boxes; None for the default one.

    Raises:
        ValueError: if a part cannot be written with standard operators.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model = prepared(model)
    tracker = tracker or KalmanTracker()
    if AffinityHead.task in model.heads and not isinstance(tracker, KalmanTracker):
        model.heads.pop(AffinityHead.task)  # the tracker makes no use of it
    heads: dict[str, Any] = dict(model.heads.items())
    link = heads.pop(AffinityHead.task, None)
    parts = parts_of(model, sensors.image_size, single)
    example = SensorPreparation(sensors)(example_frame(sensors))
    inputs: dict[str, NDArray] = {}
    for sensor, make in parts.inputs_of.items():
        inputs |= make(example)
        inputs[f"{sensor}_present"] = np.ones(1, np.float32)
        encoder: Any = model.camera if sensor == "camera" else model.lidar
        shape = 1, encoder.out_channels, *model.grid.shape
        inputs[f"{sensor}_bev"] = np.random.default_rng(0).random(shape, np.float32)
    if (memory := model.memory) is not None:
        inputs |= _example_past(memory, model.fuser.out_channels)
    graphs = {}
    affinity = None
    if link is not None:
        affinity = AffinitySpec(**vars(link.decoder), graph=LINK)
        inputs |= _example_link(affinity, link.project[0].out_channels)
        parts.modules[LINK] = AffinityGraph(link).eval()
    for name, module in parts.modules.items():
        path = folder / f"{name}.onnx"
        write_onnx(module, inputs, path)
        graphs[name] = describe_onnx(path)
    if config is not None:
        shutil.copyfile(config, folder / CONFIG)
    specs = {task: head_spec(head) for task, head in heads.items()}
    manifest = Manifest(
        format=FORMAT,
        precision="fp32",
        opset=OPSET,
        grid=model.grid,
        sensors=sensors,
        camera=parts.camera,
        lidar=parts.lidar,
        heads_graph=WHOLE if single else HEADS,
        heads=specs,
        graphs=graphs,
        config=CONFIG,
        versions=versions(),
        tracker=tracker_spec(tracker, specs),
        memory=None if memory is None else MemorySpec(memory.moments, memory.max_age),
        affinity=affinity,
    )
    write_manifest(folder, manifest)
    return manifest


def _example_past(memory: BEVMemory, channels: int) -> dict[str, NDArray]:
    """Moments that lie half a second and a metre apart."""
    random, count = np.random.default_rng(1), memory.moments
    steps = np.arange(1, count + 1)
    shape = 1, channels, *memory.grid.shape
    maps = {f"past_map_{k}": random.random(shape, np.float32) for k in range(count)}
    transform = np.tile(np.eye(4, dtype=np.float32), (1, count, 1, 1))
    transform[0, :, 0, 3] = steps
    age = (0.5 * steps[None]).astype(np.float32)
    return {
        **maps,
        "past_transform": transform,
        "past_age": age,
        "past_valid": np.ones_like(age),
    }


def _example_link(spec: AffinitySpec, channels: int) -> dict[str, NDArray]:
    """Three boxes, and two of them half a second later."""
    shape = 1, channels, *spec.grid.shape
    maps = np.random.default_rng(2).random((2, *shape), np.float32)
    places = np.zeros((3, 3))
    places[:, 0] = 0, 1, 4
    whole = np.full(3, spec.labels[0], np.int64)
    boxes = Boxes3D(places, np.ones((3, 3)), np.zeros(3), np.ones((3, 2)), whole)
    found = Detections(boxes, np.full(3, 0.5), whole)
    before = LinkedFrame(maps[0], found, np.eye(4), "", 0)
    now = LinkedFrame(maps[1], found[np.arange(2)], np.eye(4), "", 500_000)
    inputs = spec.inputs(before, now)._asdict()
    return {MAP_BEFORE: maps[0], MAP_NOW: maps[1], **inputs}


def versions() -> dict[str, str]:
    """Of what wrote the folder."""
    found = {"torch": str(torch.__version__)}
    for package in ("bevstack", "onnx", "onnxruntime"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "from source"
    return found
