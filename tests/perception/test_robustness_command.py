"""``bevstack robustness`` as users run it: killed and started again, shared, refused."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from test_commands import train

from bevstack.perception import cli

pytestmark = pytest.mark.slow
TABLES = ("results.json", "results.csv", "tables.md", "tables.tex")
OPTIONS = [
    "--suites=[multicorrupt]", "--corruptions=[pointsreducing,beamsreducing]",
    "--severities=[1,3]", "--frames=2", "--workers=0", "--attack=true", "--attack_steps=2",
]  # fmt: skip


@pytest.fixture(scope="module")
def run_folder(synthetic_root, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("robustness") / "run"
    cli.main(["index", str(synthetic_root), "--version", "v1.0-mini"])
    train("tiny/fusion", synthetic_root, folder)
    return folder


@pytest.fixture(scope="module")
def unbroken(run_folder) -> Path:
    """The results of a run that nobody disturbed."""
    out = run_folder.parent / "unbroken"
    cli.main(["robustness", str(run_folder), *OPTIONS, f"--out={out}"])
    return out


def cells_of(out: Path) -> dict[str, dict]:
    """Finished cells without their times."""
    found = {}
    for path in sorted((out / "cells").glob("*.*.json")):
        found[path.name] = json.loads(path.read_text())
        del found[path.name]["seconds"]
    return found


def test_a_killed_run_started_again_gives_the_table_of_an_unbroken_one(run_folder, unbroken):
    out = run_folder.parent / "killed"
    command = [sys.executable, "-m", "bevstack.perception.cli", "robustness", str(run_folder),
               *OPTIONS, f"--out={out}", "--report=false"]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while len(list((out / "cells").glob("*.*.json"))) < 5:
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before = {p.name: p.stat().st_mtime_ns for p in (out / "cells").glob("*.*.json")}
    assert len(before) < len(cells_of(unbroken))
    assert not (out / "results.json").exists()
    cli.main(command[3:])
    for name, changed_at in before.items():  # none done twice
        assert (out / "cells" / name).stat().st_mtime_ns == changed_at
    assert cells_of(out) == cells_of(unbroken)
    for name in TABLES:
        assert (out / name).read_bytes() == (unbroken / name).read_bytes(), name


def test_shards_by_option_and_by_torchrun_give_the_same_table(run_folder, unbroken, monkeypatch):
    out = run_folder.parent / "shared"
    options = ["robustness", str(run_folder), *OPTIONS, f"--out={out}", "--report=false"]
    cli.main([*options, "--shard=0/2"])
    assert not (out / "results.json").exists()
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    cli.main(options)
    for name in TABLES:
        assert (out / name).read_bytes() == (unbroken / name).read_bytes(), name


def test_all_outputs_are_there_and_every_input_was_changed(unbroken):
    results = json.loads((unbroken / "results.json").read_text())
    assert [row["refused"] for row in results["rows"]] == [""] * len(results["rows"])
    assert all(row["changed_frames"] == 2 for row in results["rows"][1:])
    assert {"NDS", "mAP", "map mIoU"} <= set(results["clean"])
    assert (unbroken / "report.html").read_text().count('class="strip"') == 4
    pictures = sorted(path.name for path in (unbroken / "pictures").iterdir())
    assert pictures == [
        "attack.camera_patch.jpg", "multicorrupt.beamsreducing.jpg",
        "multicorrupt.pointsreducing.jpg", "sensors.lost_sensors.jpg",
    ]  # fmt: skip


def test_a_corruption_that_changes_nothing_is_not_reported(run_folder, monkeypatch, capsys):
    from bevstack.datasets.corruptions import Identity
    from bevstack.datasets.corruptions.entry import Entry

    monkeypatch.setattr(Entry, "at", lambda self, severity, as_published=False: Identity())
    out = run_folder.parent / "unchanged"
    options = ["--suites=[multicorrupt]", "--corruptions=[pointsreducing]", "--severities=[1]",
               "--frames=1", "--workers=0", f"--out={out}", "--report=false"]  # fmt: skip
    cli.main(["robustness", str(run_folder), *options])
    assert "1 of 10 cells are not reported" in capsys.readouterr().err
    row = json.loads((out / "results.json").read_text())["rows"][-1]
    assert row["name"] == "pointsreducing"
    assert row["scores"] == {}
    assert row["changed_frames"] == 0
