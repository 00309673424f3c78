"""Occupancy metrics against closed forms, a plain restatement, and through a whole evaluation."""

import json

import numpy as np
import pytest
import torch

from bevstack.datasets.dataset import FrameDataset, collate_counting
from bevstack.datasets.encode import Encoder
from bevstack.datasets.geometry import inverse
from bevstack.datasets.nuscenes.classes import FREE, OCCUPANCY_CLASSES
from bevstack.datasets.nuscenes.index import build_index
from bevstack.datasets.nuscenes.label_files import LabelFolder
from bevstack.datasets.nuscenes.reader import NuScenesReader
from bevstack.kernels.voxel_grid import OCC3D_GRID, VoxelGrid
from bevstack.perception.evaluation.evaluate import evaluate_model
from bevstack.perception.evaluation.occupancy import OccupancyIoU, mean_of_known
from bevstack.perception.evaluation.ray_iou import (
    RAY_THRESHOLDS,
    RayIoU,
    ray_directions,
    ray_origins,
)
from bevstack.perception.heads.occupancy import OccupancyVolume

CAR, ROAD = OCCUPANCY_CLASSES.index("car"), OCCUPANCY_CLASSES.index("driveable_surface")
SMALL = VoxelGrid((-8, 8), (-8, 8), (-1, 1.4), 0.4)


def random_volume(random, shape=SMALL.shape, filled=0.2):
    volume = np.full(shape, FREE, np.uint8)
    there = random.random(shape) < filled
    volume[there] = random.integers(0, FREE, there.sum())
    return volume


def test_iou_by_class_and_mask_equals_the_plain_definition():
    random, counted = np.random.default_rng(0), OccupancyIoU()
    samples = []
    for _ in range(3):
        truth, found = random_volume(random), random_volume(random)
        found = np.where(random.random(truth.shape) < 0.5, truth, found)
        lidar = random.random(truth.shape) < 0.5
        camera = random.random(truth.shape) < 0.3
        samples.append((found, truth, lidar, camera))
        counted.update(*samples[-1])
    ious, occupied = counted.ious(), counted.occupied_ious()
    found, truth, lidar, camera = (np.stack(column) for column in zip(*samples))
    for mask, kept in {"lidar": lidar, "camera": camera, "none": np.ones_like(lidar)}.items():
        f, t = found[kept], truth[kept]
        for k, name in enumerate(OCCUPANCY_CLASSES):
            expected = ((f == k) & (t == k)).sum() / ((f == k) | (t == k)).sum()
            assert ious[mask][name] == pytest.approx(expected, abs=1e-12)
        there = ((f != FREE) & (t != FREE)).sum() / ((f != FREE) | (t != FREE)).sum()
        assert occupied[mask] == pytest.approx(there, abs=1e-12)


def test_classes_that_do_not_occur_are_left_out_and_inventions_count_nothing():
    truth = np.full(SMALL.shape, FREE, np.uint8)
    truth[:, :, 0] = ROAD
    found, seen, counted = truth.copy(), np.ones_like(truth), OccupancyIoU()
    found[0, 0, 3] = CAR
    counted.update(found, truth, seen, seen)
    ious = counted.ious()["camera"]
    assert ious["driveable_surface"] == 1
    assert ious["car"] == 0
    assert sum(np.isnan(v) for v in ious.values()) == 15
    assert mean_of_known(ious.values()) == 0.5


def test_volumes_on_different_grids_are_refused():
    truth = np.full(SMALL.shape, FREE, np.uint8)
    with pytest.raises(ValueError, match="one grid"):
        OccupancyIoU().update(truth[:-1], truth, truth, truth)


def test_rays_are_those_of_the_protocol():
    directions = ray_directions()
    assert directions.shape == (14_040, 3)
    assert np.linalg.norm(directions, axis=1) == pytest.approx(np.ones(14_040))
    pitch = np.rad2deg(np.arcsin(directions[::360, 2]))
    assert pitch[[0, 9]] == pytest.approx([-45, -5.7106], abs=1e-3)
    assert np.diff(pitch)[9:] == pytest.approx(np.full(29, 0.6296), abs=1e-3)
    assert pitch[-1] > np.rad2deg(0.21) > pitch[-2]


def test_at_most_eight_origins_within_reach_in_the_ego_frame():
    pose = np.eye(4)
    pose[:3, 3] = [100, 0, 0]
    along = np.stack([np.linspace(50, 150, 41), np.zeros(41), np.full(41, 1.8)], 1)
    origins = ray_origins(pose, along)
    near = along[np.abs(along[:, 0] - 100) < 39] - [100, 0, 0]
    chosen = near[np.round(np.linspace(0, len(near) - 1, 8)).astype(int)]
    assert origins == pytest.approx(chosen)
    assert len(ray_origins(pose, along[:3])) == 0


def brute_force_ray_iou(found, truth, origins):
    """The protocol restated with a walk in small steps; counts by threshold and class."""
    hits, truths, founds = np.zeros((3, FREE), int), np.zeros(FREE, int), np.zeros(FREE, int)

    def meet(volume, origin, direction):
        step, left = 1e-3, 0.0
        position = origin + 0.5 * step * direction
        met = None
        while ((position >= 0) & (position < volume.shape)).all():
            cell = tuple(np.floor(position).astype(int))
            if met is not None and cell != met:
                break
            if met is None and volume[cell] != FREE:
                met = cell
            position, left = position + step * direction, left + step
        return (volume[met] if met else FREE), left

    for origin in SMALL.to_voxels(origins):
        for direction in ray_directions()[::997]:
            t, t_depth = meet(truth, origin, direction)
            if t == FREE:
                continue
            f, f_depth = meet(found, origin, direction)
            truths[t] += 1
            if f != FREE:
                founds[f] += 1
            for i, threshold in enumerate(RAY_THRESHOLDS):
                hits[i, t] += t == f and abs(t_depth - f_depth) * SMALL.voxel_size < threshold
    return hits, truths, founds


def test_ray_iou_equals_the_brute_force(monkeypatch):
    random = np.random.default_rng(3)
    truth = random_volume(random, filled=0.03)
    truth[truth != FREE] %= 3  # few classes, so that mistakes hit
    found = np.where(random.random(truth.shape) < 0.9, truth, random_volume(random, filled=0.03))
    found = found.astype(np.uint8)
    origins = np.array([[0.13, 0.21, 0.1], [-4.3, 2.1, 0.3]])
    counted = RayIoU()
    counted._directions = ray_directions()[::997]
    counted.update(found, truth, SMALL, origins)
    hits, truths, founds = brute_force_ray_iou(found, truth, origins)
    assert truths.sum() > 15
    assert np.array_equal(counted.hits, hits)
    assert np.array_equal(counted.truths, truths)
    assert np.array_equal(counted.found, founds)


def test_a_wall_predicted_too_near_is_right_within_the_threshold():
    truth = np.full(OCC3D_GRID.shape, FREE, np.uint8)
    truth[150:152, :, :] = CAR  # x from 20 m
    for shift, expected in ((0, [1, 1, 1]), (4, [0, 1, 1]), (8, [0, 0, 1])):
        counted = RayIoU()
        counted._directions = np.array([[1.0, 0.0, 0.0]])
        counted.update(np.roll(truth, -shift, 0), truth, OCC3D_GRID, np.array([[0.0, 0, 1.8]]))
        car = [by_class[CAR] for by_class in counted.ious().values()]
        assert car == expected, shift


class Oracle(torch.nn.Module):
    """Says what the labels say, on a grid and in a frame of its own."""

    def __init__(self, grid, wrong=0.0):
        super().__init__()
        self.grid, self.wrong = grid, wrong

    def forward(self, batch, use_camera=True, use_lidar=True):
        return batch

    def decode(self, outputs, batch):
        semantics = batch.occupancy.semantics.clone()
        random = torch.rand(semantics.shape, generator=torch.Generator().manual_seed(0))
        semantics[random < self.wrong] = FREE
        volume = OccupancyVolume(semantics, torch.ones_like(semantics).float(), self.grid)
        return {"occupancy": volume}


@pytest.fixture(scope="module")
def world(synthetic_root, tmp_path_factory):
    index_dir = tmp_path_factory.mktemp("index")
    build_index(synthetic_root, "v1.0-mini", index_dir=index_dir)

    def reader(frame="ego"):
        return NuScenesReader(
            *(synthetic_root, "v1.0-mini", "mini_val", 0, frame, index_dir),
            LabelFolder(synthetic_root / "gts"),
        )

    return reader


def evaluate(reader, grid, folder, wrong=0.0):
    encoder = Encoder((-40, -40, -5, 40, 40, 3), num_sweeps=1, occupancy_grid=grid)
    loader = torch.utils.data.DataLoader(
        FrameDataset(reader, encoder), 2, collate_fn=collate_counting
    )
    return evaluate_model(Oracle(grid, wrong), loader, reader, folder)


def test_the_truth_scores_one_and_holes_cost(world, tmp_path):
    metrics = evaluate(world(), OCC3D_GRID, tmp_path / "truth").occupancy
    assert metrics.num_samples == len(world())
    assert metrics.mean_iou() == metrics.mean_iou("none") == metrics.ray_iou == 1.0
    content = json.loads((tmp_path / "truth" / "metrics.json").read_text())
    assert content["occupancy"]["mIoU"] == content["occupancy"]["RayIoU"] == 1.0
    csv = (tmp_path / "truth" / "occupancy.csv").read_text().splitlines()
    assert csv[0].startswith('class,"IoU, voxels seen by a camera"')
    assert csv[-1].split(",")[:2] == ["mean over classes", "1.0"]
    holes = evaluate(world(), OCC3D_GRID, tmp_path / "holes", wrong=0.3).occupancy
    assert holes.occupied_ious["none"] == pytest.approx(0.7, abs=0.01)
    assert holes.ray_iou < 0.9


def test_a_model_of_the_lidar_frame_is_measured_in_the_ego_frame(world, tmp_path):
    """Resampling twice loses some borders, no more."""
    grid = VoxelGrid((-44, 44), (-44, 44), (-5, 5.4), 0.2)
    reader = world("lidar")
    assert not np.allclose(inverse(reader[0].bev_from_ego)[:2, :2], np.eye(2))
    metrics = evaluate(reader, grid, tmp_path).occupancy
    assert metrics.occupied_ious["none"] > 0.9
    assert metrics.ray_iou > 0.8
