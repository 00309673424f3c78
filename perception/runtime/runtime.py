"""From a frame to results with an exported model."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...datasets import augment
from ...datasets.errors import DataError
from ...datasets.frame import Frame
from ...datasets.sensors import SensorEncoder, SensorInputs
from ..decoding.affinity import LinkedFrame
from .affinity import MAP, AffinityLink
from .camera import CameraInputs
from .manifest import Manifest, PillarSpec, SensorSpec, read_manifest
from .memory import FUSED, recalled
from .pillars import PillarInputs
from .results import Perception, decoder_of
from .session import GraphSession, Observer, RuntimeOptions
from .state import Moment, Remembered, RuntimeState
from .tracks import follow
from .voxels import VoxelInputs


class Runtime:
    """An exported model, ready to run.

    A frame may lack any sensor: the model then sees the map of that sensor as zeros, as in
    training. One thread at a time may use it. Frames of a drive are given in order, each with the
    state that the one before left, for tracks and the model's memory to go on::

        state = None
        for frame in frames:
            found = runtime.run(frame, state)
            state = found.state

    Args:
        folder: what ``bevstack export`` wrote.
        options: how to run it.
        observe: called after every run of a graph; see ``dump.py``.

    Raises:
        DataError: if the folder cannot be used.
    """

    def __init__(
        self,
        folder: Path | str,
        options: RuntimeOptions | None = None,
        observe: Observer | None = None,
    ):
        options = options or RuntimeOptions()
        self.manifest: Manifest = read_manifest(folder, options.verify)
        manifest, threads = self.manifest, options.num_threads
        self.sensors = SensorPreparation(manifest.sensors)
        self._camera = CameraInputs(manifest.camera, threads) if manifest.camera else None
        self._lidar = None
        if manifest.lidar is not None:
            kind = PillarInputs if isinstance(manifest.lidar, PillarSpec) else VoxelInputs
            self._lidar = kind(manifest.lidar, manifest.grid, threads)  # pyright: ignore
        self._decoders = {task: decoder_of(spec, threads) for task, spec in manifest.heads.items()}
        self._graphs = {
            name: GraphSession(Path(folder), spec, options, observe)
            for name, spec in manifest.graphs.items()
        }
        self._heads = self._graphs[manifest.heads_graph]
        self.link: AffinityLink | None = None
        if manifest.affinity is not None:
            self.link = AffinityLink(manifest.affinity, self._graphs[manifest.affinity.graph])
        self._absent = self._absent_maps()
        self._plan: dict[str, tuple[Any, Any]] = {}  # by input: the array, and its value

    def run(self, frame: Frame, state: RuntimeState | None = None) -> Perception:
        """Everything that the model finds in a frame of raw sensor data.

        Args:
            frame: one moment of a drive.
            state: of the frame before; None at the start of a stream. It is left as it is.

        Raises:
            DataError: if sensor files or calibration cannot be used.
            ValueError: if the frame's BEV frame or images are not what the model was made for.
        """
        start = time.perf_counter()
        sensors = self.sensors(frame)
        moment = Moment(frame.scene, frame.timestamp_us)
        return self.infer(sensors, moment, state, {"sensors": time.perf_counter() - start})

    def infer(
        self,
        sensors: SensorInputs,
        moment: Moment | None = None,
        state: RuntimeState | None = None,
        seconds: dict[str, float] | None = None,
    ) -> Perception:
        """The same from sensor data that is already read.

        Args:
            sensors: see ``SensorEncoder``.
            moment: of the frame; None for a frame on its own, without tracks and memory.
            state: see :meth:`run`.
            seconds: of stages before, to be given back with the others.
        """
        clock = _Clock(seconds or {})
        outputs, left = self._outputs(sensors, moment, state, clock)
        found: dict[str, dict] = {task: {} for task in self._decoders}
        for name, value in outputs.items():
            task, field = name.split(".")
            found[task][field] = value[0]
        results = {task: decode(**found[task]) for task, decode in self._decoders.items()}
        clock.lap("decode")
        detections, layers, voxels = map(results.get, ("detection", "map", "occupancy"))
        tracks, following = None, None
        if moment is not None:
            linked, affinity, of_tracker = None, None, None
            tracker, pose = self.manifest.tracker, sensors.global_from_bev
            if tracker is not None and detections is not None:
                if self.link is not None:
                    when = moment.scene, moment.timestamp_us
                    linked = LinkedFrame(left.affinity_map, detections, pose, *when)
                    if state is not None and state.linked is not None:
                        affinity = self.link(state.linked, linked)
                        clock.lap("affinity")
                of_tracker, tracks = follow(tracker, detections, pose, moment, state, affinity)
                clock.lap("tracks")
            following = RuntimeState(moment, of_tracker, left.memory, linked)
        return Perception(
            *(detections, layers, voxels, tracks, sensors.global_from_bev),
            *(following, clock.seconds),
        )

    def outputs(
        self,
        sensors: SensorInputs,
        moment: Moment | None = None,
        state: RuntimeState | None = None,
    ) -> dict[str, NDArray]:
        """The raw outputs of all heads, "task.field", with a batch axis of one."""
        return self._outputs(sensors, moment, state, _Clock({}))[0]

    def _outputs(
        self,
        sensors: SensorInputs,
        moment: Moment | None,
        state: RuntimeState | None,
        clock: _Clock,
    ) -> tuple[dict[str, NDArray], _Left]:
        """Outputs of the heads, and what is kept for the frames to come."""
        inputs: dict[str, Any] = dict(self._absent)
        camera, lidar = self.manifest.camera, self.manifest.lidar
        if camera is not None and self._camera is not None and len(sensors.images):
            feeds = self._kept(camera.graph, self._camera(sensors))
            clock.lap("camera inputs")
            self._branch("camera", camera.graph, feeds, inputs)
            clock.lap("camera")
        if lidar is not None and self._lidar is not None and len(sensors.points):
            feeds = self._lidar(sensors.points)
            clock.lap("lidar inputs")
            if feeds is not None:
                self._branch("lidar", lidar.graph, feeds, inputs)
                clock.lap("lidar")
        spec, pose = self.manifest.memory, sensors.global_from_bev
        memory = state.memory if state is not None and moment is not None else ()
        if spec is not None and moment is not None:
            inputs |= recalled(spec, memory, moment, pose)
        values = self._heads.run(inputs, on_device=(FUSED, MAP))
        fused, affinity_map = values.pop(FUSED, None), values.pop(MAP, None)
        if spec is not None and moment is not None:
            memory = (*memory, Remembered(moment, pose, fused))[-spec.moments :]
        outputs = {name: value.numpy() for name, value in values.items()}
        clock.lap("heads")
        return outputs, _Left(memory, affinity_map)

    def _branch(self, sensor: str, graph: str, feeds: dict[str, Any], inputs: dict) -> None:
        """Run a sensor's graph, or leave its inputs to the one graph that holds everything."""
        if graph == self.manifest.heads_graph:
            inputs.update(feeds)
            inputs[f"{sensor}_present"] = np.ones(1, np.float32)
        else:
            session = self._graphs[graph]
            inputs.update(session.run(feeds, on_device=session.outputs))

    def _kept(self, graph: str, feeds: dict[str, Any]) -> dict[str, Any]:
        """The same, with the arrays of an unchanged calibration on the device since it came."""
        assert self.manifest.camera is not None
        for name in self.manifest.camera.inputs_by_calibration:
            if name not in self._plan or self._plan[name][0] is not feeds[name]:
                self._plan[name] = feeds[name], self._graphs[graph].value(feeds[name])
            feeds[name] = self._plan[name][1]
        return feeds

    def _absent_maps(self) -> dict[str, Any]:
        """What stands for a sensor that sees nothing and a moment that never was: zeros.

        Of inputs without a fixed size, in the one graph that holds everything, the smallest.
        """
        return {
            tensor.name: self._heads.value(
                np.zeros([1 if isinstance(n, str) else n for n in tensor.shape], tensor.dtype)
            )
            for tensor in self._heads.spec.inputs
        }


class _Left(NamedTuple):
    """What a frame leaves for those to come."""

    memory: tuple[Remembered, ...]
    affinity_map: Any  # OrtValue; None without an affinity head


class SensorPreparation:
    """From a raw frame to sensor inputs, as the evaluation of the trained model does it."""

    def __init__(self, spec: SensorSpec):
        self.spec = spec
        self._steps = [
            getattr(augment, step.name)(**{k: _tupled(v) for k, v in step.arguments.items()})
            for step in spec.image_steps
        ]
        self._encode = SensorEncoder(
            *(spec.point_range, spec.image_size, spec.num_sweeps),
            *(spec.cameras, spec.lidar, spec.clear_key_sweep, spec.half_points),
        )

    def __call__(self, frame: Frame) -> SensorInputs:
        """Images, calibration and points of a frame.

        Raises:
            ValueError: if the frame cannot be made into what the model takes.
            DataError: if sensor files or calibration cannot be used.
        """
        for step in self._steps:
            frame = step(frame, 0)
        try:
            return self._encode(frame)
        except DataError as error:
            raise DataError(f"frame {frame.token} cannot be read: {error}") from error


class _Clock:
    """Adds up the seconds between laps."""

    def __init__(self, seconds: dict[str, float]):
        self.seconds, self._last = dict(seconds), time.perf_counter()

    def lap(self, stage: str) -> None:
        now = time.perf_counter()
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._last
        self._last = now


def _tupled(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
