"""The commands one after another, as a user types them, on the synthetic world."""

import json
from pathlib import Path

import pytest

from bevstack.perception import cli

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
RUNS = {  # every shipped config, with what is laid over it
    "tiny/fusion": ["tiny/fusion"],
    "tiny/lidar_only": ["tiny/fusion", "tiny/lidar_only"],
    "tiny/camera_only": ["tiny/fusion", "tiny/camera_only"],
    "tiny/voxels": ["tiny/fusion", "tiny/voxels"],
    "tiny/detection": ["tiny/fusion", "tiny/detection"],
    "tiny/map": ["tiny/fusion", "tiny/map"],
    "tiny/occupancy": ["tiny/fusion", "tiny/occupancy"],
    "tiny/memory": ["tiny/fusion", "tiny/memory"],
    "tiny/affinity": ["tiny/fusion", "tiny/affinity"],
    "overfit_keyframe": ["overfit_keyframe"],
    "nuscenes/fusion": ["nuscenes/fusion"],
    "multitask/all": ["nuscenes/fusion", "multitask/all"],
    "bevfusion/det": ["bevfusion/det"],
    "bevfusion/seg": ["bevfusion/seg"],
    "bevfusion/lidar_det": ["bevfusion/lidar_det"],
    "bevfusion/camera_det": ["bevfusion/camera_det"],
    "tiny/transfusion": ["tiny/fusion", "tiny/transfusion"],
    "multitask/det_map": ["multitask/det_map"],
    "bevstack/base": ["bevstack/base"],
}


@pytest.fixture(scope="module")
def world(synthetic_root):
    """The synthetic folder, indexed by the command."""
    cli.main(["index", str(synthetic_root), "--version", "v1.0-mini"])
    return synthetic_root


def train(name: str, world: Path, folder: Path) -> None:
    """One optimizer step with a shipped config."""
    files = [x for n in RUNS[name] for x in ("--config", str(CONFIGS / f"{n}.yaml"))]
    batch_size = 2 if name in ("tiny/memory", "tiny/affinity") else 1  # it holds whole clips
    data = {"root": world, "version": "v1.0-mini", "batch_size": batch_size, "workers": 0}
    data |= {"train_split": "mini_train", "val_split": "mini_val", "index_dir": "null"}
    changes = [f"--data.{key}={value}" for key, value in data.items()]
    cli.main(["train", *files, *changes, "--training.max_seconds=null", "--training.max_steps=1",
              "--training.precision=32-true", "--training.tensorboard=false",
              f"--run_folder={folder}"])  # fmt: skip


def test_no_config_is_forgotten():
    shipped = {str(p.relative_to(CONFIGS).with_suffix("")) for p in CONFIGS.rglob("*.yaml")}
    assert shipped == {name for names in RUNS.values() for name in names}


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_peer_bug_01_every_shipped_config_trains_and_evaluates(name, world, tmp_path):
    train(name, world, tmp_path / "run")
    cli.main(["evaluate", str(tmp_path / "run")])
    metrics = json.loads((tmp_path / "run" / "evaluation" / "metrics.json").read_text())
    main = {"detection": "mAP", "map": "mIoU", "occupancy": "mIoU"}
    scores = [metrics[task][name] for task, name in main.items() if task in metrics]
    assert scores
    assert all(0 <= score <= 1 for score in scores)
    assert metrics["frames"] == {"total": 4, "skipped": []}


def test_a_run_leaves_config_metrics_official_numbers_and_report(world, tmp_path, capfd):
    run, report = tmp_path / "run", tmp_path / "report.html"
    train("tiny/fusion", world, run)
    cli.main(["evaluate", str(run), "--official=true", "--ablation=true", f"--report={report}"])
    metrics = json.loads((run / "evaluation" / "metrics.json").read_text())
    assert metrics["official"]["mAP"] == pytest.approx(metrics["detection"]["mAP"], abs=1e-6)
    assert metrics["official"]["NDS"] == pytest.approx(metrics["detection"]["NDS"], abs=1e-6)
    assert set(metrics["ablation"]) == {"both", "camera only", "LiDAR only"}
    page = report.read_text()
    assert "map mIoU" in page
    assert "data:image/webp;base64," in page
    assert "boxes, tracks, map, voxels" in page
    assert {"map mIoU", "occupancy mIoU", "occupancy RayIoU"} <= set(metrics["ablation"]["both"])
    assert (run / "config.yaml").exists()
    assert "difference to ours" in capfd.readouterr().out
    where = [str(world), "--version=v1.0-mini", "--width=600", f"--model={run}"]
    cli.main(["view", *where, f"--video={tmp_path / 'scene.webp'}"])
    assert "4 frames" in capfd.readouterr().out
    cli.main(["view", *where, "--num_frames=1", f"--out={tmp_path / 'pictures'}"])
    assert len([*tmp_path.glob("pictures/*_occupancy.jpg")]) == 1


def test_a_config_with_a_foreign_class_does_not_run(world, tmp_path, capsys):
    evil = tmp_path / "evil.yaml"
    evil.write_text(
        "model: {camera: {class_path: subprocess.Popen, init_args: {args: [touch, x]}}}"
    )
    with pytest.raises(SystemExit):
        cli.main(["train", f"--config={evil}", f"--run_folder={tmp_path / 'run'}"])
    assert "names the class subprocess.Popen" in capsys.readouterr().err


def test_a_folder_that_is_no_run_is_named(tmp_path, capsys):
    with pytest.raises(SystemExit):
        cli.main(["evaluate", str(tmp_path)])
    assert f"{tmp_path} is not a run folder" in capsys.readouterr().err


def test_pictures_of_frames(world, tmp_path):
    cli.main(["view", str(world), "--version=v1.0-mini", "--split=mini_val", "--num_frames=1",
              "--width=800", f"--out={tmp_path}"])  # fmt: skip
    (picture,) = tmp_path.glob("*.jpg")
    assert picture.stat().st_size > 20_000
