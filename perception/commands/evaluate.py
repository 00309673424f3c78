"""``bevstack evaluate``: official metrics of a trained model."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Literal

from ..evaluation.tta import AugmentedModel, Views
from .exports import with_run_folder

SENSORS_ALONE = {"camera only": (True, False), "LiDAR only": (False, True)}


def main(options: list[str]) -> None:
    """Parse the options; an exported model alone brings the config of its run with it."""
    from jsonargparse import auto_cli

    auto_cli(evaluate, args=with_run_folder(options), prog="bevstack evaluate")


def evaluate(
    run_folder: Path,
    runtime: Path | None = None,
    root: str | None = None,
    version: str | None = None,
    split: str | None = None,
    official: bool = False,
    ablation: bool = False,
    report: Path | None = None,
    stages: Path | None = None,
    on_error: Literal["raise", "skip"] = "raise",
    tta: Views | None = None,
    trust: list[str] | None = None,
) -> None:
    """Measure a trained or exported model; results go to RUN_FOLDER/evaluation.

    Args:
        run_folder: a folder that ``bevstack train`` or ``bevstack export`` wrote.
        runtime: measure this exported model, on the data of the run; results go to its folder.
        root: nuScenes folder to measure on; default: the one trained on.
        version: its tables' folder.
        split: the split to measure on; default: the validation split of the run.
        official: also run the unmodified nuscenes-devkit, and compare.
        ablation: also measure with each sensor alone.
        report: write a self-contained HTML report here.
        stages: JSON file with the ``seconds`` and ``commands`` of earlier stages, for the report.
        on_error: ``raise`` stops at an unreadable frame; ``skip`` goes on and says how many.
        tta: look at every sample from several sides and merge what the model says; for instance
            --tta.flip_y true --tta.scales [0.95,1.05].
        trust: further modules whose classes the run's config may name.
    """
    from rich.console import Console

    from ..evaluation.evaluate import evaluate_model
    from ..evaluation.exported import ExportedModel
    from .progress import progress_bar
    from .train import load_run

    if runtime is not None and report is not None:
        raise ValueError("a report shows a trained model; leave --runtime or --report out")
    if runtime is not None and tta is not None:
        raise ValueError("--tta asks a trained model several times; leave --runtime or --tta out")
    start, out = time.monotonic(), Path(runtime or run_folder) / "evaluation"
    model, data, config = load_run(
        run_folder, trust or (), root=root, version=version, val_split=split, on_error=on_error
    )
    if runtime is not None:
        model = ExportedModel(runtime)
    if data.val_split is None:
        raise ValueError(f"the run {run_folder} has no validation split; give --split")
    data.prepare_data()
    reader = data.reader(data.val_split)
    measured = model if tta is None else AugmentedModel(model, tta)

    def measure(folder: Path, use_camera: bool = True, use_lidar: bool = True):
        with progress_bar(f"evaluate {folder.name}", "frames") as advance:
            return evaluate_model(
                measured, data.val_dataloader(), reader, folder, use_camera=use_camera,
                use_lidar=use_lidar, progress=advance,
            )  # fmt: skip

    metrics = measure(out)
    metrics.print()
    content = metrics.to_json()
    alone = {}
    if ablation and model.camera is not None and model.lidar is not None:
        for name, sensors in SENSORS_ALONE.items():
            alone[name] = measure(out / name.replace(" ", "_"), *sensors)
        content["ablation"] = {name: m.headline() for name, m in alone.items()}
        content["ablation"]["both"] = metrics.headline()
    devkit = None
    if official and metrics.detection:
        devkit = _run_devkit(data, out)
        content["official"] = {"mAP": devkit["mean_ap"], "NDS": devkit["nd_score"]}
        difference = max(
            abs(devkit["mean_ap"] - metrics.detection.mean_ap),
            abs(devkit["nd_score"] - metrics.detection.nd_score),
        )
        Console().print(
            f"nuscenes-devkit: mAP {devkit['mean_ap']:.4f}, NDS {devkit['nd_score']:.4f}; "
            f"largest difference to ours {difference:.1e}"
        )
        Console().print(_distance_table(devkit))
    (out / "metrics.json").write_text(json.dumps(content, indent=2) + "\n")
    print(f"results in {out}")
    if report is not None:
        from ..report.of_run import write_run_report

        earlier = json.loads(Path(stages).read_text()) if stages else {}
        seconds = {**earlier.get("seconds", {}), "evaluate": round(time.monotonic() - start, 1)}
        write_run_report(
            report, Path(run_folder), model, data, config, metrics, alone, devkit, seconds,
            tuple(earlier.get("commands", ())),
        )  # fmt: skip
        print(f"report in {report}")


def _run_devkit(data, out: Path) -> dict:
    from ..evaluation.evaluate import SUBMISSION
    from ..evaluation.official import official_detection

    return official_detection(
        data.root, data.version, data.val_split, out / SUBMISSION, out / "official"
    )


def _distance_table(devkit: dict):
    """The devkit's AP by class and match distance."""
    from rich.table import Table

    distances = list(next(iter(devkit["label_aps"].values())))
    table = Table("class", *(f"{d} m" for d in distances), title="AP by nuscenes-devkit")
    for name, aps in devkit["label_aps"].items():
        table.add_row(name, *(f"{aps[d]:.3f}" for d in distances))
    return table
