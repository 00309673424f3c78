"""Two processes give the losses and gradients of one process on the same samples."""

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
from training_parts import MadeUpData, Shift, ToyModel, TwoHeads, run

def frozen(model):
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d | torch.nn.BatchNorm1d):
            module.eval()
    return model

devices, folder, kind = int(sys.argv[1]), sys.argv[2], sys.argv[3]
options = {{}}
if kind == "toy":
    model = ToyModel(dropout=0.0)
elif kind == "balanced":
    from bevstack.perception.training.balance import EqualNorms
    model, options = TwoHeads(), {{"gradient_balance": EqualNorms}}
else:  # boxes are spread unevenly: 0 to 4 a frame
    model = frozen(make_model(camera=False, heads=("detection",)))
data = MadeUpData(batch_size=4 // devices, train_steps=[Shift()])
run(folder, data, model, devices=devices, strategy="ddp" if devices > 1 else "auto",
    max_steps=None, epochs=2, lr=0.01, validate_every=1, save_every=4,
    **options)
"""

GRADIENTS = """
import sys
sys.path.insert(0, {here!r})
from dataclasses import replace
from functools import partial
import torch
from model_parts import MAP_GRID, make_batch, make_boxes, make_model
from bevstack.datasets.batch import collate
from bevstack.perception.encoders import ImageSemantics
from bevstack.perception.training.balance import EqualNorms
from bevstack.perception.training.module import TrainingModule
from bevstack.perception.training.options import TrainingOptions

rank, world, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
seen = make_boxes([[3, 2, 1], [-5, 4, 1], [6, -3, 1], [-6, -4, 1]], [0, 8, 3, 8], (6.0, 4.0, 3.0))
blind = make_boxes([[5, 5, 1]], [3])
samples = [make_batch(1, points=3000, boxes=seen), make_batch(1, 0, boxes=blind, seed=1)]
semantics = partial(ImageSemantics, map_grid=MAP_GRID, balanced=True)
model = make_model(semantics=semantics)
for module in model.modules():
    if isinstance(module, torch.nn.BatchNorm2d | torch.nn.BatchNorm1d):
        module.eval()
training = TrainingModule(model, TrainingOptions(gradient_balance=EqualNorms))
if world > 1:
    store = "file://" + folder + "/store"
    torch.distributed.init_process_group("gloo", store, world_size=world, rank=rank)
torch.manual_seed(rank)
batch = samples[rank] if world > 1 else collate(samples)
terms = training.loss_terms(batch)
training.model.total_loss(terms).backward()
gradients = {{}}
for name, parameter in model.named_parameters():
    gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
    if world > 1:
        torch.distributed.all_reduce(gradient)
    gradients[name] = gradient / world
if rank == 0:
    torch.save({{"terms": [*terms], "gradients": gradients}}, folder + "/of" + str(world) + ".pt")
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
@pytest.mark.parametrize("kind", ["toy", "detection", "balanced"])
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


@pytest.mark.slow
def test_gradients_are_those_of_one_process_though_one_of_two_has_no_image(tmp_path):
    """Classes are balanced over all pixels and tasks over all samples, whoever has them."""
    script = tmp_path / "gradients.py"
    script.write_text(textwrap.dedent(GRADIENTS.format(here=str(HERE))))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(script)]
    running = [
        subprocess.Popen([*command, str(rank), str(world), str(tmp_path)], env=environment)
        for world in (1, 2)
        for rank in range(world)
    ]
    try:
        assert [process.wait(timeout=240) for process in running] == [0, 0, 0]
    finally:
        for process in running:
            process.kill()
    one, two = (torch.load(tmp_path / f"of{n}.pt", weights_only=True) for n in (1, 2))
    assert one["terms"] == two["terms"]
    for name, gradient in one["gradients"].items():
        scale = gradient.abs().max().item()
        assert torch.allclose(gradient, two["gradients"][name], 1e-3, 1e-4 * scale + 1e-7), name
