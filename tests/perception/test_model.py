"""The model as a whole: sensors that come and go, inputs that stay, boxes that are learned."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from model_parts import GRID, MAP_GRID, fingerprint, make_batch, make_boxes, make_model

from bevstack.datasets.batch import collate
from bevstack.perception.fusion import ConvFuser
from bevstack.perception.heads import CenterHead
from bevstack.perception.model import FusionModel
from bevstack.perception.necks import SECOND

SENSORS = [(True, True), (True, False), (False, True)]


def flat(outputs) -> list[torch.Tensor]:
    return [tensor for output in heads_only(outputs).values() for tensor in vars(output).values()]


def assert_same(first, second, tolerance=0.0):
    for a, b in zip(flat(first), flat(second), strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def without(batch, camera=True, lidar=True):
    if not camera:
        batch = replace(
            batch,
            images=batch.images[:0],
            image_sample=batch.image_sample[:0],
            bev_from_image=batch.bev_from_image[:0],
        )
    if not lidar:
        batch = replace(batch, points=batch.points[:0], point_sample=batch.point_sample[:0])
    return batch


def heads_only(outputs):
    return {task: output for task, output in outputs.items() if task != "camera"}


def train_step(model, batch, **use):
    outputs = model(batch, **use)
    terms = model.loss(outputs, batch)
    model.total_loss(terms).backward()
    return outputs, terms


@pytest.mark.parametrize(("camera", "lidar"), SENSORS)
@pytest.mark.parametrize("heads", [("detection",), ("map",), ("detection", "map")])
def test_peer_bug_1_every_sensor_and_head_setup_trains_and_predicts(camera, lidar, heads):
    model = make_model(camera, lidar, heads)
    batch = make_batch()
    _, terms = train_step(model, batch)
    assert all(term.isfinite() for term in terms.values())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    decoded = model.eval().decode(model(batch), batch)
    assert set(decoded) == set(heads)
    if "detection" in heads:
        assert len(decoded["detection"]) == 2
    if "map" in heads:
        assert decoded["map"].shape == (2, 6, *MAP_GRID.shape)


@pytest.mark.parametrize(("with_camera", "with_lidar"), SENSORS)
@pytest.mark.parametrize(("camera", "lidar"), [*SENSORS, (False, False)])
def test_peer_bug_16_a_sensor_may_lack_in_data_or_model(camera, lidar, with_camera, with_lidar):
    """And every parameter has a gradient all the same, as DDP demands."""
    model = make_model(camera=with_camera, lidar=with_lidar)
    batch = without(make_batch(), camera, lidar)
    outputs, terms = train_step(model, batch)
    assert all(tensor.isfinite().all() for tensor in flat(outputs))
    assert all(term.isfinite() for term in terms.values())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    assert all(buffer.isfinite().all() for buffer in model.buffers())


@pytest.mark.parametrize("lidar_depth", [None, "one_hot"])
@pytest.mark.parametrize(("camera", "lidar"), SENSORS)
def test_withheld_sensor_is_a_sensor_that_delivered_nothing(camera, lidar, lidar_depth):
    model = make_model(lidar_depth=lidar_depth).eval()
    batch = make_batch()
    with torch.no_grad():
        withheld = model(batch, use_camera=camera, use_lidar=lidar)
        missing = model(without(batch, camera, lidar))
    assert_same(withheld, missing)


def test_sensor_missing_in_one_sample_is_missing_there_only():
    model = make_model().eval()
    batch = make_batch()
    with torch.no_grad():
        both, lidar_only = model(batch), model(batch, use_camera=False)
        mixed = heads_only(model(batch, use_camera=torch.tensor([True, False])))
    for task, output in mixed.items():
        for name, value in vars(output).items():
            full, single = (getattr(o[task], name) for o in (both, lidar_only))
            torch.testing.assert_close(value[0], full[0], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(value[1], single[1], rtol=1e-4, atol=1e-4)


def test_sample_is_predicted_the_same_alone_and_in_a_batch():
    """Also with another number of cameras beside it, and an empty cloud last."""
    model = make_model().eval()
    first = make_batch(size=1, cameras=3, seed=1)
    second = without(make_batch(size=1, cameras=1, seed=2), lidar=False)
    joined = collate([first, second])
    with torch.no_grad():
        together = heads_only(model(joined))
        alone = [heads_only(model(batch)) for batch in (first, second)]
    for task, output in together.items():
        for name, value in vars(output).items():
            expected = torch.cat([getattr(part[task], name) for part in alone])
            torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("lidar_depth", [None, "metric"])
def test_peer_bugs_3_and_4_forward_loss_and_decode_leave_the_batch_as_it_was(lidar_depth):
    model = make_model(lidar_depth=lidar_depth)
    batch = make_batch()
    before = fingerprint(batch)
    outputs, _ = train_step(model, batch, use_lidar=torch.tensor([True, False]))
    model.decode(outputs, batch)
    assert fingerprint(batch) == before


def test_peer_bug_13_two_runs_agree_bit_by_bit():
    runs = []
    for _ in range(2):
        model = make_model(lidar_depth="one_hot")
        outputs, _ = train_step(model, make_batch(points=3000))
        runs.append([*flat(outputs), *(p.grad for p in model.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*runs))


def test_bfloat16_autocast_keeps_geometry_exact():
    model = make_model(lidar_depth="one_hot")
    batch = make_batch()
    with torch.no_grad():
        full = model(batch)["camera"].depth.bev_from_image
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(batch)
        terms = model.loss(outputs, batch)
    assert torch.equal(outputs["camera"].depth.bev_from_image, full)
    model.total_loss(terms).backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_total_weighs_tasks():
    model = make_model()
    model.task_weights = {"map": 3.0, "camera": 0.0}
    terms = {"detection/a": torch.tensor(1.0), "map/b": torch.tensor(2.0)}
    assert model.total_loss(terms | {"camera/c": torch.tensor(5.0)}) == 7


def test_contradictions_are_refused_by_the_constructor():
    build = partial(
        FusionModel,
        GRID,
        ConvFuser,
        SECOND,
        {"detection": CenterHead},
    )
    with pytest.raises(ValueError, match="no sensor"):
        build()
    lidar = make_model().lidar
    with pytest.raises(ValueError, match="no head"):
        FusionModel(GRID, ConvFuser, SECOND, {}, lidar=lambda grid: lidar)
    with pytest.raises(ValueError, match="name it 'detection'"):
        FusionModel(GRID, ConvFuser, SECOND, {"boxes": CenterHead}, lidar=lambda grid: lidar)
    with pytest.raises(ValueError, match="task_weights"):
        build(lidar=lambda grid: lidar, task_weights={"occupancy": 1.0})


def test_three_boxes_are_learned_from_one_sample():
    moving = 5  # vehicle.moving
    boxes = make_boxes(
        [[4.0, 3.0, 0.8], [-6.0, -4.0, 0.9], [-3.0, 5.5, 0.5]],
        [0, 8, 3],
        size=torch.tensor([[4.5, 1.9, 1.6], [0.7, 0.7, 1.8], [9.0, 2.5, 3.0]]),
        yaw=torch.tensor([0.5, -2.0, 3.0]),
        velocity=torch.tensor([[3.0, 1.0], [0.5, -1.0], [torch.nan, torch.nan]]),
        attribute=torch.tensor([moving, 3, -1]),
    )
    model = make_model(heads=("detection",))
    batch = make_batch(size=1, boxes=boxes)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for step in range(150):
        for group in optimizer.param_groups:
            group["lr"] = 5e-3 * min(1, 4 * (1 - step / 150))
        optimizer.zero_grad()
        train_step(model, batch)
        optimizer.step()
    (found,) = model.decode(model(batch), batch)["detection"]
    found = found[found.score > 0.3]
    order = np.argsort(found.boxes.label)
    assert found.boxes.label[order].tolist() == [0, 3, 8]
    found, truth = found[order], [0, 2, 1]
    np.testing.assert_allclose(found.boxes.center, boxes.center[truth], atol=0.25)
    np.testing.assert_allclose(found.boxes.size, boxes.size[truth], rtol=0.15)
    turn = found.boxes.yaw - boxes.yaw[truth].numpy()
    assert (np.cos(turn) > 0.97).all()
    np.testing.assert_allclose(found.boxes.velocity[[0, 2]], boxes.velocity[[0, 1]], atol=0.4)
    assert found.attribute[[0, 2]].tolist() == [moving, 3]
