"""Two processes give the losses of one process on the same samples."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from bevstack.perception.training.state_file import read_state

from training_parts import read_losses  # isort: skip

HERE = Path(__file__).parent

# Batch norm sees each process's own samples, so it is frozen; sums of float32 in another order
# then differ by about 1e-6, which 8 steps of AdamW may make larger.
TOLERANCE = 1e-4

SCRIPT = """
import sys
sys.path.insert(0, {here!r})
import torch
from model_parts import make_model
from training_parts import MadeUpData, Shift, ToyModel, run

def frozen(model):
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d | torch.nn.BatchNorm1d):
            module.eval()
    return model

devices, folder, kind = int(sys.argv[1]), sys.argv[2], sys.argv[3]
if kind == "toy":
    model = ToyModel(dropout=0.0)
else:  # boxes are spread unevenly: 0 to 4 a frame
    model = frozen(make_model(camera=False, heads=("detection",)))
data = MadeUpData(batch_size=4 // devices, train_steps=[Shift()])
run(folder, data, model, devices=devices, strategy="ddp" if devices > 1 else "auto",
    max_steps=None, epochs=2, lr=0.01, validate_every=1, save_every=4)
"""


def train_on(devices: int, folder: Path, kind: str) -> None:
    script = folder.parent / "train.py"
    script.write_text(textwrap.dedent(SCRIPT.format(here=str(HERE))))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script), str(devices), str(folder), kind]
    ended = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=240, cwd=folder.parent
    )
    assert ended.returncode == 0, ended.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["toy", "detection"])
def test_two_processes_give_the_losses_and_weights_of_one(tmp_path, kind):
    for devices in (1, 2):
        train_on(devices, tmp_path / f"{kind}{devices}", kind)
    one, two = (read_losses(tmp_path / f"{kind}{n}") for n in (1, 2))
    assert len(one) == len(two) == 10
    for a, b in zip(one, two):
        assert a.keys() == b.keys()
        for name in a:
            assert float(a[name]) == pytest.approx(float(b[name]), rel=TOLERANCE, abs=1e-5), name
    states = [read_state(tmp_path / f"{kind}{n}" / "last.safetensors") for n in (1, 2)]
    for name, weight in states[0]["state_dict"].items():
        assert torch.allclose(weight.float(), states[1]["state_dict"][name].float(), atol=1e-3)
    assert len(states[1]["callbacks"]["RandomState"]["processes"]) == 2
