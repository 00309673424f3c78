"""The runtime and the server in an environment that has never had torch."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path += [str(ROOT / "tools"), str(ROOT / "tests" / "perception")]

from check_install import check  # noqa: E402
from model_parts import IMAGE_SIZE, make_batch, make_model  # noqa: E402
from serving_parts import SENSORS  # noqa: E402

from bevstack.perception.export.write import write_folder  # noqa: E402
from bevstack.perception.runtime.manifest import ImageStep  # noqa: E402

MOST_MB = 1500


@pytest.mark.slow
def test_a_fresh_environment_runs_and_serves_an_export_without_torch(synthetic_root, tmp_path):
    resize = ImageStep("ImageResize", {"size": list(IMAGE_SIZE[::-1])})
    model = make_model()
    model.train()(make_batch())
    write_folder(model, replace(SENSORS, image_steps=(resize,)), tmp_path / "export")
    (tmp_path / "fresh").mkdir()
    place = (synthetic_root, "v1.0-mini", "mini_val")
    figures = check(tmp_path / "fresh", tmp_path / "export", *place, frames=2)
    if figures is None:
        pytest.skip("pip reaches no package index here")
    assert "torch" not in figures["packages"]
    assert {"numpy", "numba", "onnxruntime", "starlette"} <= set(figures["packages"])
    assert figures["infer"]["boxes"] > 0
    assert figures["serve"]["boxes"] == figures["infer"]["boxes"]
    assert figures["serve"]["exit_status"] == 0
    assert max(figures["infer"]["peak_mb"], figures["serve"]["peak_mb"]) < MOST_MB
