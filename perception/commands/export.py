"""``bevstack export``: a trained model as ONNX files, checked against the original."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal


def export(
    run_folder: Path,
    out: Path,
    precision: Literal["fp32", "fp16", "int8"] = "fp32",
    format: Literal["onnx", "aoti", "tensorrt"] = "onnx",
    single: bool = False,
    root: str | None = None,
    version: str | None = None,
    split: str | None = None,
    check_frames: int = 4,
    tracker: Literal["kalman", "greedy"] = "kalman",
    tracker_settings: Path | None = None,
    calibration_frames: int = 32,
    agreement: float = 0.95,
    trust: list[str] | None = None,
) -> None:
    """Write a model so that it runs without PyTorch, and check that it still is the same.

    Args:
        run_folder: a folder that ``bevstack train`` wrote, or a config file: random weights then.
        out: folder for the graphs, ``manifest.json`` and the config.
        precision: ``fp16`` halves the files, for GPUs; ``int8`` quarters them and is faster on
            CPUs: calibrated with frames of the training split, layers that it hurts stay in float.
        format: what to add to the ONNX files: ``aoti``, an AOTInductor package of fusion and heads
            for PyTorch programs (needs a C++ compiler; fp32); ``tensorrt``, the trtexec commands,
            with fp16 allowed or not, and the engines where TensorRT's Python package is installed.
        single: one ``model.onnx`` instead of one file per sensor and one for the rest; a learned
            affinity stays a file of its own.
        root: nuScenes folder to check with; default: the one trained on.
        version: its tables' folder.
        split: the split to check on; default: the validation split of the run.
        check_frames: frames on which both models are compared.
        tracker: what the runtime tracks the boxes with; see ``bevstack track``.
        tracker_settings: YAML file of values of the tracker that should be others.
        calibration_frames: frames that ``int8`` is calibrated with.
        agreement: share of the results that ``int8`` has to leave as they were, on these frames:
            boxes, map, voxels.
        trust: further modules whose classes the config may name.
    """
    from ..export.describe import sensor_spec
    from ..export.example import example_frame
    from ..export.parity import WORTH_COMPARING, compare
    from ..export.report import print_report
    from ..export.untrained import spread_peaks
    from ..export.write import write_folder
    from ..runtime import Runtime
    from ..tracking import KalmanTracker
    from ..tracking.settings import make_tracker

    if format == "aoti" and (precision != "fp32" or single):
        raise ValueError("an AOTInductor package is of fusion_heads in fp32: leave out --precision "
                         "and --single")  # fmt: skip
    if format == "tensorrt" and precision == "int8":
        raise ValueError("TensorRT's 8-bit layers are not those of --precision int8, which is for "
                         "ONNX Runtime; give it fp16 or fp32")  # fmt: skip
    run_folder, out = Path(run_folder), Path(out)
    is_trained = run_folder.is_dir()
    config, model, data = _load(run_folder, trust or (), root, version, split)
    model.cpu().eval()
    sensors = sensor_spec(data.encoder, data.val_steps, data.frame)
    follower = make_tracker(tracker, tracker_settings)
    links = "affinity" in model.heads and isinstance(follower, KalmanTracker)
    in_row = 1 if model.memory is None and not links else 2
    reader, note = _reader(data, data.val_split)
    if reader is None:
        print(f"checked on made-up frames: {note}")
        frames = [example_frame(sensors, n, timestamp_us=n * 250_000) for n in (1, 3)]
    else:
        frames = _spread(reader, max(check_frames, in_row), in_row)
    encode = _steps(data.val_steps)
    if not is_trained:
        print("random weights: normalisation and the last layer of heat-maps are set by a frame, "
              "to tell their peaks apart")  # fmt: skip
        spread_peaks(model, data.encoder(encode(frames[0])))
    write_folder(model, sensors, out, config, single, follower)
    if precision == "fp16" and format != "tensorrt":
        from ..export.half import to_half

        to_half(out)
    elif precision == "int8":
        from ..export.int8 import to_int8

        training, missing = _reader(data, data.train_split)
        if training is None:
            raise ValueError(f"int8 needs frames to calibrate with: {missing}; give --root")
        to_int8(out, _spread(training, calibration_frames, in_row), agreement)
    least_score = WORTH_COMPARING if is_trained else 0.0
    parity = compare(model, encode, data.encoder, Runtime(out), frames, least_score)
    print_report(out, model, parity)
    if "affinity" in model.heads and not links:
        print(f"the affinity head is left out: the {tracker} tracker makes no use of it")
    exact = precision == "fp32" or format == "tensorrt"
    if exact and not parity.is_exact:
        raise ValueError(
            f"{out} is not the same model: {parity.box_agreement:.1%} of the boxes agree, "
            f"parameters differ by up to {parity.box.largest:.1e}, probabilities of the map by "
            f"{parity.map.largest:.1e}; please report this"
        )
    if format == "aoti":
        _aoti(model, out, frames)
    elif format == "tensorrt":
        _tensorrt(out, frames, precision == "fp16")
    print(f"exported to {out}")


def _aoti(model: Any, out: Path, frames: list[Any]) -> None:
    """Add an AOTInductor package."""
    from ..export.aoti import PACKAGE, write_package
    from ..export.report import print_differences

    differences = write_package(model, out, frames)
    print_differences(f"{PACKAGE} against PyTorch, {len(frames)} frames", differences)


def _tensorrt(out: Path, frames: list[Any], half: bool) -> None:
    """Add the commands for TensorRT, and the engines where they can be built."""
    from ..export.tensorrt import build_engine, is_installed, profile, write_script
    from ..runtime import read_manifest

    manifest = read_manifest(out)
    shapes = profile(out, frames)
    script = write_script(out, manifest, shapes, half)
    print(f"{script} builds the engines with trtexec")
    if not is_installed():
        print("TensorRT's Python package is not installed here: no engine was built")
        return
    for name, graph in manifest.graphs.items():
        build_engine(out / graph.file, out / f"{name}.engine", shapes[name], half)
        print(f"built {name}.engine")


def _load(
    path: Path, trust: Sequence[str], root: str | None, version: str | None, split: str | None
) -> tuple[Path, Any, Any]:
    """Config file, model and data of a run folder, or of a config with random weights."""
    from .train import CONFIG, load_run, run_parser

    if path.is_dir():
        model, data, _ = load_run(path, trust, root=root, version=version, val_split=split)
        return path / CONFIG, model, data
    import torch

    from ..safe_config import check_config

    check_config(path, trust)
    torch.manual_seed(0)
    options = {"root": root, "version": version, "val_split": split}
    given = [f"--data.{name}={value}" for name, value in options.items() if value is not None]
    parser = run_parser()
    parts = parser.instantiate(parser.parse_args(["--config", str(path), *given]))
    return path, parts.model, parts.data


def _reader(data: Any, split: str | None) -> tuple[Any, str]:
    """Frames of a split; or None, and why."""
    from ...datasets.errors import DataError

    if split is None:
        return None, "the run has no such split"
    if not (Path(data.root) / data.version).is_dir():
        return None, f"there is no data set in {data.root}"
    try:
        data.prepare_data()
        return data.reader(split), ""
    except DataError as error:
        return None, str(error)


def _spread(reader: Any, count: int, in_row: int) -> list[Any]:
    """So many frames, from all over the split, some neighbours at a time."""
    step = max(len(reader) * in_row // max(count, 1), in_row)
    places = (i + k for i in range(0, len(reader) - in_row + 1, step) for k in range(in_row))
    return [reader[i] for i in islice(places, count)]


def _steps(steps: Sequence[Any]):
    def prepare(frame):
        for step in steps:
            frame = step(frame, 0)
        return frame

    return prepare
