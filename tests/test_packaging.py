"""What an installed copy contains."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_the_wheel_holds_the_packages_under_one_name_and_no_test_data(tmp_path):
    # --no-build-isolation: the environment's setuptools, so that the test needs no network.
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation"]
    subprocess.run([*pip, "-w", tmp_path, ROOT], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    packages = {name.rsplit("/", 1)[0] for name in names if name.endswith(".py")}
    for folder in ("perception", "kernels", "datasets", "configs"):
        for path in (ROOT / folder).rglob("*.py"):
            assert f"bevstack/{path.relative_to(ROOT).parent.as_posix()}" in packages
    assert any(name.startswith("bevstack/configs/") and name.endswith(".yaml") for name in names)
    assert not [name for name in names if not name.startswith(("bevstack/", "bevstack-"))]
