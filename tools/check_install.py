"""What the runtime's installation alone can do: in a fresh environment, without torch.

    python tools/check_install.py EXPORT ROOT [--version v1.0-trainval] [--split val] [--frames 8]
        [--out docs/results/install.json]

Installs the project with `[runtime]` into a new virtual environment, indexes ROOT there if it is
not, runs `bevstack infer` on its first frames; then installs `[serve]` too and sends the same
frames to `bevstack serve`. Reports the largest resident memory of both processes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bevstack.datasets.errors import DataError
from bevstack.datasets.nuscenes.reader import NuScenesReader
from bevstack.perception.serving.client import Client

PROJECT = Path(__file__).resolve().parents[1]
SOURCES = ("pyproject.toml", "setup.py", "README.md", "LICENSE",
           "perception", "kernels", "datasets", "configs")  # fmt: skip

RUN = """
import importlib.util, json, sys
assert importlib.util.find_spec("torch") is None, "torch is installed here"
from bevstack.perception.cli import main
main(sys.argv[2:])
assert "torch" not in sys.modules
# Not getrusage: its peak is inherited from the process that started this one.
status = open("/proc/self/status").read().splitlines()
peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024
open(sys.argv[1], "w").write(json.dumps({"peak_mb": round(peak, 1)}))
"""


class Installation:
    """The project in a new virtual environment.

    Args:
        folder: an empty one, for the environment and a copy of the sources.
    """

    def __init__(self, folder: Path):
        self.folder, self.python = folder, folder / "venv" / "bin" / "python"
        self._source = folder / "source"  # a copy: building leaves files behind
        self._source.mkdir()
        for name in SOURCES:
            place = PROJECT / name
            copy = shutil.copytree if place.is_dir() else shutil.copy
            copy(place, self._source / name)
        subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
        # Not what this process sees: PYTHONPATH would bring the checkout's packages along.
        self._environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}

    def reaches_an_index(self) -> bool:
        """Whether pip can get packages at all."""
        pip = [self.python, "-m", "pip", "download", "-q", "--no-deps", "flatbuffers"]
        return subprocess.run(
            [*pip, "-d", self.folder / "wheels"], env=self._environment, capture_output=True
        ).returncode == 0  # fmt: skip

    def install(self, extra: str) -> None:
        """``pip install '.[EXTRA]'``."""
        pip = [self.python, "-m", "pip", "install", "-q", f"{self._source}[{extra}]"]
        subprocess.run(pip, env=self._environment, check=True, stderr=subprocess.DEVNULL)

    def run(self, *arguments: object) -> dict[str, Any]:
        """A verb of ``bevstack``, after which torch must not have been imported."""
        report = self.folder / "report.json"
        command = [self.python, "-c", RUN, report, *map(str, arguments)]
        subprocess.run(command, env=self._environment, check=True, cwd=self.folder)
        return json.loads(report.read_text())

    def serve(self, export: Path, reader: NuScenesReader, frames: int) -> dict[str, Any]:
        """Frames sent to ``bevstack serve``."""
        command = [self.python, "-c", RUN, self.folder / "served.json", "serve", export]
        process = subprocess.Popen(
            [*map(str, command), "--port", "0"], env=self._environment, stdout=subprocess.PIPE,
            text=True, cwd=self.folder,
        )  # fmt: skip
        try:
            assert process.stdout is not None
            client = Client(process.stdout.readline().split(": ")[0], patience=300)
            boxes = 0
            for i in range(frames):
                reply = client.run(reader[i], stream="a")
                boxes += len(reply.detections.boxes) if reply.detections is not None else 0
            status = Path(f"/proc/{process.pid}/status").read_text().splitlines()
        finally:
            process.terminate()
        peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
        return {"peak_mb": round(peak / 1024, 1), "boxes": boxes, "exit_status": process.wait(60)}

    def packages(self) -> dict[str, str]:
        """What is installed."""
        pip = [self.python, "-m", "pip", "list", "--format", "json"]
        found = subprocess.run(pip, env=self._environment, check=True, capture_output=True)
        return {entry["name"]: entry["version"] for entry in json.loads(found.stdout)}


def check(
    folder: Path, export: Path, root: Path, version: str, split: str, frames: int
) -> dict[str, Any] | None:
    """Install and run both; None where no package index can be reached."""
    installation = Installation(folder)
    if not installation.reaches_an_index():
        return None
    installation.install("runtime")
    try:
        NuScenesReader(root, version, split)
    except DataError:
        installation.run("index", root, "--version", version)
    infer = ["infer", root, "--runtime", export, "--version", version, "--split", split]
    infer += ["--num_frames", frames, "--out", folder / "out"]
    figures = {"frames": frames, "infer": installation.run(*infer)}
    submission = json.loads((folder / "out" / "submission.json").read_text())
    figures["infer"]["boxes"] = sum(map(len, submission["results"].values()))
    installation.install("serve")
    figures["serve"] = installation.serve(export, NuScenesReader(root, version, split), frames)
    return {**figures, "packages": installation.packages()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("export", type=Path)
    parser.add_argument("root", type=Path)
    parser.add_argument("--version", default="v1.0-trainval")
    parser.add_argument("--split", default="val")
    parser.add_argument("--frames", type=int, default=8)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = (options.export.resolve(), options.root.resolve(), options.version, options.split)
        figures = check(Path(folder), *place, options.frames)
    if figures is None:
        raise SystemExit("pip reaches no package index here")
    print(json.dumps(figures, indent=2))
    if options.out is not None:
        from provenance import provenance  # brings torch, for the machine's description

        where = provenance(f"python {' '.join(sys.argv)}")
        options.out.write_text(json.dumps({"provenance": where, **figures}, indent=2) + "\n")


if __name__ == "__main__":
    main()
