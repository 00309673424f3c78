"""Schedules, learning rates and weights of parts, trainings that start from another."""

import math

import pytest
import torch
from torch import nn

from bevstack.perception.training.module import TrainingModule
from bevstack.perception.training.options import TrainingOptions
from bevstack.perception.training.parts import parameter_groups, start_from
from bevstack.perception.training.schedule import CosineByEpoch, OneCycle, Progress
from bevstack.perception.training.state_file import read_state, write_state

from model_parts import make_batch, make_model  # isort: skip
from training_parts import ToyModel, read_losses, run  # isort: skip


def at(done: float, step: int = 0, epoch: int = 0, epochs: int | None = None) -> Progress:
    return Progress(done, step, epoch, epochs)


def test_one_cycle_rises_to_one_and_falls_to_its_end():
    cycle = OneCycle(warmup=0.3, start=0.1, end=1e-3)
    values = [cycle(at(i / 1000)) for i in range(1001)]
    assert values[0] == pytest.approx(0.1)
    assert max(values) == values[300] == pytest.approx(1)
    assert values[-1] == pytest.approx(1e-3)
    assert values[:301] == sorted(values[:301])
    assert values[300:] == sorted(values[300:], reverse=True)
    assert cycle(at(1.5)) == cycle(at(1.0))
    flat = OneCycle(warmup=0.0)
    assert flat(at(0.5)) < flat(at(0.0)) == 1


def test_published_cycles_are_mmcvs():
    """mmcv's cyclic policy, written out: target ratios (10, 1e-4) of 1e-4, momentum 0.85 / 0.95."""

    def annealed(start, end, part):
        return end + 0.5 * (start - end) * (math.cos(math.pi * part) + 1)

    rate, beta1 = OneCycle(0.4, 0.1, 1.0, 1e-5), OneCycle(0.4, 1.0, 0.85 / 0.95, 1.0)
    for i in range(0, 1000, 37):
        up, part = i < 400, i / 400 if i < 400 else (i - 400) / 600
        lr = annealed(1e-4, 1e-3, part) if up else annealed(1e-3, 1e-8, part)
        momentum = annealed(0.9, 0.9 * 0.85 / 0.95, part)
        if not up:
            momentum = annealed(0.9 * 0.85 / 0.95, 0.9, part)
        assert 1e-3 * rate(at(i / 1000)) == pytest.approx(lr)
        assert 0.9 * beta1(at(i / 1000)) == pytest.approx(momentum)


def test_cosine_by_epoch_is_the_published_detectors():
    schedule = CosineByEpoch(500, 1 / 3, 1e-3)
    for epoch in range(6):
        expected = 1e-3 + (1 - 1e-3) * (1 + math.cos(math.pi * epoch / 6)) / 2
        for step in (0, 250, 499, 500, 20000):
            warm = 1 - (1 - step / 500) * (1 - 1 / 3) if step < 500 else 1.0
            assert schedule(at(0, step, epoch, 6)) == pytest.approx(expected * warm)
    with pytest.raises(ValueError, match="given in epochs or steps"):
        schedule(at(0.5))


def test_learning_rate_falls_from_epoch_to_epoch(tmp_path):
    # 22 frames by 4 are 5 steps an epoch.
    run(tmp_path, epochs=3, max_steps=None, lr=0.01, schedule=CosineByEpoch(0, 1.0, 0.0))
    rates = [float(row["lr"]) for row in read_losses(tmp_path)]
    expected = [0.01 * (1 + math.cos(math.pi * e / 3)) / 2 for e in range(3) for _ in range(5)]
    assert rates == pytest.approx(expected)


def test_learning_rate_falls_by_epochs_of_a_training_of_some_steps(tmp_path):
    run(tmp_path, max_steps=12, lr=0.01, schedule=CosineByEpoch(0, 1.0, 0.0))  # 5 + 5 + 2
    rates = [float(row["lr"]) for row in read_losses(tmp_path)]
    expected = [0.01 * (1 + math.cos(math.pi * (i // 5) / 3)) / 2 for i in range(12)]
    assert rates == pytest.approx(expected)


def test_beta1_is_set_at_every_step(tmp_path):
    run(tmp_path, beta1_schedule=OneCycle(0.5, 1.0, 0.5, 1.0))
    state = read_state(tmp_path / "last.safetensors")["optimizer_states"][0]
    last = 0.9 * OneCycle(0.5, 1.0, 0.5, 1.0)(at(11 / 12))
    assert state["param_groups"][0]["betas"] == pytest.approx((last, 0.999))


def test_parts_have_their_own_rates_and_decay():
    model = nn.ModuleDict(
        {
            "camera": nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)),
            "lidar": nn.Linear(2, 3),
        }
    )
    groups = parameter_groups(
        model, 0.01, lr_factors={"camera": 0.1, "camera.1": 0.5}, no_decay=["lidar.w"], lr=2.0
    )
    found = {id(p): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    expected = {
        "camera.0.weight": (0.2, 0.01),
        "camera.0.bias": (0.2, 0.0),
        "camera.1.weight": (1.0, 0.0),
        "camera.1.bias": (1.0, 0.0),
        "lidar.weight": (2.0, 0.0),
        "lidar.bias": (2.0, 0.0),
    }
    assert {n: found[id(p)] for n, p in model.named_parameters()} == expected
    assert groups[0]["lr"] == 2.0  # the one that is logged
    everything = parameter_groups(model, 0.01, decay_all=True)
    assert [group["weight_decay"] for group in everything] == [0.01]
    with pytest.raises(ValueError, match=r"lr_factors names 'radar'.*'camera', 'lidar'"):
        parameter_groups(model, 0.01, lr_factors={"radar": 1.0})


def test_frozen_parts_and_norms_stay_as_they_are():
    model = make_model()
    options = TrainingOptions(frozen=["lidar"], frozen_norms=["camera.backbone"])
    module = TrainingModule(model, options)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model.total_loss(module.loss_terms(make_batch())).backward()
    optimizer.step()
    changed = {n for n, t in model.state_dict().items() if not torch.equal(t, before[n])}
    assert not any(name.startswith("lidar") for name in changed)
    statistics = {name for name in changed if name.endswith(("running_mean", "running_var"))}
    assert not any(name.startswith("camera.backbone") for name in statistics)
    assert {"camera.backbone", "camera.fpn", "fuser"} <= {
        ".".join(n.split(".")[: 2 if n.startswith("camera") else 1]) for n in changed
    }
    assert any(name.startswith("camera.fpn") for name in statistics)
    with pytest.raises(ValueError, match="frozen names 'radar'"):
        TrainingModule(make_model(), TrainingOptions(frozen=["radar"]))


def test_fusion_starts_from_a_lidar_training_with_an_account(tmp_path):
    lidar, fusion = make_model(camera=False), make_model()
    with torch.no_grad():
        for parameter in lidar.parameters():
            parameter.fill_(0.25)
    write_state({"state_dict": lidar.state_dict()}, tmp_path / "last.safetensors")
    before = {name: tensor.clone() for name, tensor in fusion.state_dict().items()}
    account = start_from(fusion, tmp_path)
    state, source = fusion.state_dict(), lidar.state_dict()
    fuser = "fuser.conv.0.weight"  # more channels come in here
    for name, tensor in state.items():
        same = name in source and name != fuser
        assert torch.equal(tensor, source[name] if same else before[name]), name
    lidar_tensors = sum(name.startswith("lidar.") for name in state)
    assert f"  lidar: {lidar_tensors} of {lidar_tensors}" in account
    assert "  camera.backbone: 0 of" in account
    assert f"not taken: {fuser} is (16, 16, 3, 3) there, (16, 24, 3, 3) here" in account


def test_only_named_parts_are_taken(tmp_path):
    source, model = make_model(), make_model()
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(1)
    write_state({"state_dict": source.state_dict()}, tmp_path / "w.safetensors")
    start_from(model, tmp_path / "w.safetensors", ["lidar", "heads.map"])
    for name, parameter in model.named_parameters():
        taken = name.startswith(("lidar.", "heads.map."))
        assert torch.equal(parameter, dict(source.named_parameters())[name]) == taken, name
    with pytest.raises(ValueError, match="start_parts names 'radar'"):
        start_from(model, tmp_path / "w.safetensors", ["radar"])
    with pytest.raises(ValueError, match=r"nothing in .* fits"):
        start_from(ToyModel(), tmp_path / "w.safetensors")


def test_training_starts_from_the_average_of_another_run(tmp_path):
    first, _ = run(tmp_path / "first", ema_decay=0.9)
    average = dict(read_state(tmp_path / "first" / "last.safetensors")["callbacks"]["EMA"])
    second, _ = run(tmp_path / "second", start_from=tmp_path / "first", max_steps=1, lr=0.0)
    for name, tensor in second.state_dict().items():
        assert torch.equal(tensor, average["average"][f"model.{name}"])
        assert not torch.equal(tensor, first.state_dict()[name])
