"""Occupancy labels: published layouts, the synthetic world's, and their way into a batch."""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from hand_made import make_frame, pose

from bevstack.datasets.augment.bev import BEVAugmentation
from bevstack.datasets.batch import collate
from bevstack.datasets.encode import Encoder
from bevstack.datasets.errors import DataError
from bevstack.datasets.geometry import apply, inverse
from bevstack.datasets.nuscenes.classes import FREE, OCCUPANCY_CLASSES, occupancy_class
from bevstack.datasets.nuscenes.index import build_index
from bevstack.datasets.nuscenes.label_files import KeyFrame, LabelFolder
from bevstack.datasets.nuscenes.reader import NuScenesReader
from bevstack.datasets.occupancy import OccupancyLabels
from bevstack.kernels.voxel_grid import (
    OCC3D_GRID,
    OPENOCCUPANCY_GRID,
    SURROUNDOCC_GRID,
    VoxelGrid,
)

FRAME = KeyFrame("scene-0001", "s0", "n008__LIDAR_TOP__1.pcd.bin", "lidar0", pose(0, 0, -1.8, 1.5))
CAR = OCCUPANCY_CLASSES.index("car")


def write_occ3d(root, frame=FRAME, **volumes):
    folder = root / frame.scene / frame.sample
    folder.mkdir(parents=True)
    shape = OCC3D_GRID.shape
    default = {
        "semantics": np.full(shape, FREE, np.uint8),
        "mask_lidar": np.ones(shape, np.uint8),
        "mask_camera": np.zeros(shape, np.uint8),
    }
    np.savez_compressed(folder / "labels.npz", **(default | volumes))
    return folder / "labels.npz"


def test_occ3d_is_read_as_written(tmp_path):
    semantics = np.full(OCC3D_GRID.shape, FREE, np.uint8)
    semantics[150, 40, 3] = CAR
    write_occ3d(tmp_path, semantics=semantics)
    labels = LabelFolder(tmp_path).find(FRAME)()
    assert np.array_equal(labels.semantics, semantics)
    assert labels.mask_lidar.all()
    assert not labels.mask_camera.any()
    assert labels.grid == OCC3D_GRID
    assert np.array_equal(labels.grid_from_ego, np.eye(4))


def test_surroundocc_voxels_lie_in_the_lidar_frame(tmp_path):
    (tmp_path / "samples").mkdir()
    rows = np.array([[150, 40, 12, CAR], [3, 4, 5, 0]])
    np.save(tmp_path / "samples" / f"{FRAME.lidar_file}.npy", rows)
    labels = LabelFolder(tmp_path, "surroundocc").find(FRAME)()
    assert labels.grid == SURROUNDOCC_GRID
    assert labels.semantics[150, 40, 12] == CAR
    assert (labels.semantics != FREE).sum() == 2
    assert np.array_equal(labels.grid_from_ego, FRAME.lidar_from_ego)
    # Noise is not free, and counts nowhere.
    assert labels.mask_lidar[3, 4, 5] == 0
    assert labels.mask_lidar.sum() == labels.mask_lidar.size - 1


@pytest.mark.parametrize("velocity", [False, True])
def test_openoccupancy_is_written_height_first(tmp_path, velocity):
    tables, folder = tmp_path / "v1.0-mini", tmp_path / "labels" / "scene_abc" / "occupancy"
    tables.mkdir()
    folder.mkdir(parents=True)
    (tables / "scene.json").write_text(json.dumps([{"name": "scene-0001", "token": "abc"}]))
    row = [30, 40, 500, *([0.5, 0.1, 0.0] if velocity else []), CAR]
    np.save(folder / "lidar0.npy", np.array([row]))
    labels = LabelFolder(tmp_path / "labels", "openoccupancy", tables).find(FRAME)()
    assert labels.grid == OPENOCCUPANCY_GRID
    assert np.argwhere(labels.semantics != FREE).tolist() == [[500, 40, 30]]
    assert labels.semantics[500, 40, 30] == CAR


def test_a_frame_without_a_file_has_no_labels(tmp_path):
    write_occ3d(tmp_path)
    assert LabelFolder(tmp_path).find(replace(FRAME, sample="s1")) is None


def test_a_missing_folder_and_an_unknown_format_are_refused(tmp_path):
    with pytest.raises(DataError, match="not a folder of occupancy labels"):
        LabelFolder(tmp_path / "gts")
    with pytest.raises(ValueError, match="surroundocc"):
        LabelFolder(tmp_path, "occ4d")


@pytest.mark.parametrize("damage", ["cut", "shape", "class", "no mask"])
def test_a_damaged_file_is_named(tmp_path, damage):
    wrong = {
        "shape": {"semantics": np.zeros((100, 100, 8), np.uint8)},
        "class": {"semantics": np.full(OCC3D_GRID.shape, FREE + 1, np.uint8)},
    }
    path = write_occ3d(tmp_path, **wrong.get(damage, {}))
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:200])
    if damage == "no mask":
        np.savez_compressed(path, semantics=np.zeros(OCC3D_GRID.shape, np.uint8))
    with pytest.raises(DataError, match=r"labels.npz is not a whole file of occ3d labels"):
        LabelFolder(tmp_path).find(FRAME)()


def test_classes_follow_the_lidarseg_challenge():
    assert len(OCCUPANCY_CLASSES) == 17
    assert FREE == 17
    for category, index in {
        "vehicle.car": 4,
        "human.pedestrian.adult": 7,
        "vehicle.bus.bendy": 3,
        "flat.driveable_surface": 11,
        "static.vegetation": 16,
        "movable_object.debris": 0,
        "vehicle.ego": 0,
    }.items():
        assert occupancy_class(category) == index, category


def test_the_real_label_file(shared_data, tmp_path):
    """Counts as in the facts; the road is the lowest layer around the vehicle."""
    folder = tmp_path / FRAME.scene / FRAME.sample
    folder.mkdir(parents=True)
    (folder / "labels.npz").symlink_to(shared_data / "occ3d" / "labels.npz")
    labels = LabelFolder(tmp_path).find(FRAME)()
    assert (labels.semantics == FREE).sum() == 600_908
    assert labels.mask_lidar.sum() == 56_601
    assert labels.mask_camera.sum() == 43_355
    assert not (labels.mask_camera > labels.mask_lidar).any()
    near = labels.semantics[85:115, 85:115]
    road = near == OCCUPANCY_CLASSES.index("driveable_surface")
    # The axes are x, y, z: the road is in few layers along the last.
    assert road.any((0, 1)).sum() <= 3
    assert road[:, :, :3].sum() == road.sum() > 100


def block(low, high, label=CAR) -> OccupancyLabels:
    """A solid block, from and to metres in the ego frame."""
    semantics = np.full(OCC3D_GRID.shape, FREE, np.uint8)
    first, last = np.round(OCC3D_GRID.to_voxels(np.array([low, high]))).astype(int)
    semantics[tuple(slice(a, b) for a, b in zip(first, last))] = label
    seen = np.ones(OCC3D_GRID.shape, np.uint8)
    return OccupancyLabels(semantics, seen, seen, OCC3D_GRID, np.eye(4))


ENCODER = Encoder((-40, -40, -5, 40, 40, 3), occupancy_grid=OCC3D_GRID)


@pytest.mark.parametrize("seed", range(4))
def test_labels_move_with_the_points_under_augmentation(seed):
    low, high = np.array([8, -6, 0.6]), np.array([13.2, -2, 3.4])
    frame = replace(make_frame(), occupancy=lambda: block(low, high))
    step = BEVAugmentation((-3, 3), (0.9, 1.1), (2, 2, 0.3), flip_x=True, flip_y=True)
    frame = step(frame, seed)
    targets = ENCODER(frame).occupancy
    cells = np.stack(np.meshgrid(*map(np.arange, OCC3D_GRID.shape), indexing="ij"), -1) + 0.5
    there = apply(inverse(frame.bev_from_ego), OCC3D_GRID.to_metres(cells))
    depth = np.minimum(there - low, high - there).min(-1)  # inside the block > 0
    filled = targets.semantics[0].numpy() == CAR
    assert filled[depth > 1e-6].all()
    assert not filled[depth < -1e-6].any()
    # What comes from outside the labels was observed by nobody.
    outside = ~((there > OCC3D_GRID.low) & (there < [40, 40, 5.4])).all(-1)
    assert not targets.mask_lidar[0].numpy()[outside].any()
    assert targets.mask_lidar[0].numpy()[~outside].mean() > 0.999


def test_labels_of_the_lidar_frame_land_in_the_ego_frame():
    """A block given on SurroundOcc's grid in the LiDAR's frame fills the same place."""
    lidar_from_ego = inverse(pose(0.9, 0, 1.8, -np.pi / 2))
    semantics = np.full(SURROUNDOCC_GRID.shape, FREE, np.uint8)
    cell = np.floor(SURROUNDOCC_GRID.to_voxels(apply(lidar_from_ego, np.array([10.1, 5.2, 0.7]))))
    semantics[tuple(cell.astype(int))] = CAR
    seen = np.ones_like(semantics)
    labels = OccupancyLabels(semantics, seen, seen, SURROUNDOCC_GRID, lidar_from_ego)
    moved = labels.on_grid(OCC3D_GRID, np.eye(4))
    found = OCC3D_GRID.to_metres(np.argwhere(moved.semantics == CAR) + 0.5)
    assert len(found) >= 1
    assert np.abs(found - [10.1, 5.2, 0.7]).max() < 0.5


def test_a_batch_of_labelled_and_unlabelled_samples():
    labelled = replace(make_frame("a"), occupancy=partial(block, [0, 0, 0.6], [4, 2, 2.2]))
    batch = collate([ENCODER(labelled), ENCODER(make_frame("b")), ENCODER(labelled)])
    assert batch.occupancy.valid.tolist() == [True, False, True]
    assert batch.occupancy.semantics.shape == (3, *OCC3D_GRID.shape)
    assert batch.occupancy.mask_camera.flatten(1).any(1).tolist() == [True, False, True]
    assert (batch.occupancy.semantics[1] == FREE).all()
    assert collate([ENCODER(make_frame("b"))]).occupancy is None


def test_labels_are_read_only_when_wanted():
    def read():
        raise AssertionError("read")

    frame = replace(make_frame(), occupancy=read)
    assert replace(ENCODER, occupancy_grid=None)(frame).occupancy is None


@pytest.fixture(scope="module")
def synthetic_reader(synthetic_root, tmp_path_factory):
    index_dir = tmp_path_factory.mktemp("index")
    build_index(synthetic_root, "v1.0-mini", index_dir=index_dir)
    folder = LabelFolder(synthetic_root / "gts")
    return partial(
        NuScenesReader, synthetic_root, "v1.0-mini", index_dir=index_dir, occupancy=folder
    )


def test_boxes_of_the_synthetic_world_fall_on_voxels_of_their_class(synthetic_reader):
    reader, hits, boxes = synthetic_reader(), 0, 0
    for i in range(len(reader)):
        frame = reader[i]
        labels = frame.occupancy()
        for center, size, category in zip(
            frame.annotations.boxes.center,
            frame.annotations.boxes.size,
            frame.annotations.category,
        ):
            cell = np.floor(OCC3D_GRID.to_voxels(center)).astype(int)
            if not ((cell > 4) & (cell < [196, 196, 12])).all() or size.min() < 0.4:
                continue
            reach = tuple(slice(c - 4, c + 5) for c in cell)
            hits += (labels.semantics[reach] == occupancy_class(category)).any()
            boxes += 1
    assert boxes > 20
    assert hits >= 0.97 * boxes


def test_the_lidar_frame_turns_the_labels_with_it(synthetic_reader):
    """LIDAR_TOP's x is the vehicle's right: what lies ahead lies along y there."""
    grid = VoxelGrid((-40, 40), (-40, 40), (-5, 3), 0.4)
    frame = synthetic_reader(frame="lidar")[0]
    targets = replace(ENCODER, occupancy_grid=grid)(frame).occupancy
    cells = np.argwhere(targets.semantics[0].numpy() != FREE)
    ego = apply(inverse(frame.bev_from_ego), grid.to_metres(cells + 0.5))
    original = frame.occupancy()
    voxel = np.floor(OCC3D_GRID.to_voxels(ego)).astype(int)
    assert np.array_equal(
        original.semantics[tuple(voxel.T)], targets.semantics[0].numpy()[tuple(cells.T)]
    )
    assert len(cells) > 10_000
