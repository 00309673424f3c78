"""``bevstack export``: a trained model as ONNX files, checked against the original."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal


def export(
    run_folder: Path,
    out: Path,
    precision: Literal["fp32", "fp16"] = "fp32",
    single: bool = False,
    root: str | None = None,
    version: str | None = None,
    split: str | None = None,
    check_frames: int = 4,
    tracker: Literal["kalman", "greedy"] = "kalman",
    tracker_settings: Path | None = None,
    trust: list[str] | None = None,
) -> None:
    """Write a model so that it runs without PyTorch, and check that it still is the same.

    Args:
        run_folder: a folder that ``bevstack train`` wrote, or a config file: random weights then.
        out: folder for the graphs, ``manifest.json`` and the config.
        precision: ``fp16`` halves the files, for GPUs.
        single: one ``model.onnx`` instead of one file per sensor and one for the rest.
        root: nuScenes folder to check with; default: the one trained on.
        version: its tables' folder.
        split: the split to check on; default: the validation split of the run.
        check_frames: frames on which both models are compared.
        tracker: what the runtime tracks the boxes with; see ``bevstack track``.
        tracker_settings: YAML file of values of the tracker that should be others.
        trust: further modules whose classes the config may name.
    """
    from ..export.describe import sensor_spec
    from ..export.parity import compare
    from ..export.report import print_report
    from ..export.write import write_folder
    from ..runtime import Runtime
    from ..tracking.settings import make_tracker

    run_folder, out = Path(run_folder), Path(out)
    config, model, data = _load(run_folder, trust or (), root, version, split)
    model.cpu().eval()
    sensors = sensor_spec(data.encoder, data.val_steps, data.frame)
    follower = make_tracker(tracker, tracker_settings)
    write_folder(model, sensors, out, config, single, follower)
    reader, note = _reader(data, data.val_split)
    if precision == "fp16":
        from ..export.half import to_half

        to_half(out)
    if reader is None:
        from ..export.example import example_frame

        print(f"checked on made-up frames: {note}")
        frames: Any = (example_frame(sensors, n, timestamp_us=n * 250_000) for n in (1, 3))
    else:
        frames = _spread(reader, check_frames, 1 if model.memory is None else 2)
    parity = compare(model, _steps(data.val_steps), data.encoder, Runtime(out), frames)
    print_report(out, model, parity)
    if "affinity" in model.heads:
        print("the affinity head is left out: the runtime tracks by the boxes alone")
    if not run_folder.is_dir():
        print("random weights: many peaks of a heat-map are equal but for rounding, so that boxes "
              "may differ where their heat-maps do not")  # fmt: skip
    elif precision == "fp32" and not parity.is_exact:
        raise ValueError(
            f"{out} is not the same model: {parity.box_agreement:.1%} of the boxes agree, "
            f"parameters differ by up to {parity.box.largest:.1e}; please report this"
        )
    print(f"exported to {out}")


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
        return None, "the run has no validation split"
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
