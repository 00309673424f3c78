"""Occupancy labels from accumulated LiDAR, against closed forms and the synthetic world's own."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hand_made import make_annotations, make_camera, make_frame, make_sweep, pose

from bevstack.datasets.errors import DataError
from bevstack.datasets.geometry import apply
from bevstack.datasets.nuscenes.classes import FREE, OCCUPANCY_CLASSES, occupancy_class
from bevstack.datasets.nuscenes.index import build_index
from bevstack.datasets.nuscenes.label_files import LabelFolder
from bevstack.datasets.nuscenes.reader import NuScenesReader
from bevstack.datasets.objects.build import to_box_axes
from bevstack.datasets.occupancy_labels import accumulate, label_frame
from bevstack.datasets.occupancy_labels.write import RECORD, LabelJob, write_labels
from bevstack.kernels.voxel_grid import OCC3D_GRID, VoxelGrid

CAR, DRIVEABLE, MANMADE = map(OCCUPANCY_CLASSES.index, ("car", "driveable_surface", "manmade"))
GRID = VoxelGrid((-8, 16), (-8, 8), (-1, 3.8), 0.4)
LIDAR = pose(0, 0, 1.8)
WALL = 12.1  # global x, in the middle of a layer of voxels at the first key frame
CAR_SIZE = np.array([4.0, 2.0, 1.6])


def car_center(time):
    """It drives from right to left through what the vehicle sees."""
    return np.array([6.0, -4 + 8 * time, 0.8])


def ego_pose(time):
    return pose(0.8 * time, 0, 0)  # whole voxels from key frame to key frame


def cast(time):
    """Points in the sensor's frame: the nearest of ground, wall and car on each ray."""
    azimuth, pitch = np.meshgrid(np.linspace(-0.9, 0.9, 700), np.linspace(-0.6, 0.12, 90))
    flat = np.cos(pitch)
    rays = np.stack([flat * np.cos(azimuth), flat * np.sin(azimuth), np.sin(pitch)], -1)
    rays = rays.reshape(-1, 3)
    origin = apply(ego_pose(time) @ LIDAR, np.zeros(3))
    with np.errstate(divide="ignore"):
        ground = np.where(rays[:, 2] < 0, -origin[2] / rays[:, 2], np.inf)
        wall = (WALL - origin[0]) / rays[:, 0]
        # The car drives along y: length and width change places.
        half = CAR_SIZE[[1, 0, 2]] / 2
        near, far = (car_center(time) + sign * half - origin for sign in (-1, 1))
        entered = np.minimum(near / rays, far / rays).max(1)
        left = np.maximum(near / rays, far / rays).min(1)
    car = np.where(entered < left, entered, np.inf)
    high = origin[2] + wall * rays[:, 2] > 3
    distance = np.minimum(np.minimum(ground, np.where(high, np.inf, wall)), car)
    hit = np.isfinite(distance)
    points = rays[hit] * distance[hit, None]
    return np.hstack([points, np.zeros((hit.sum(), 2))])


def scene(times=(0.0, 0.5, 1.0), between=4):
    frames, annotations = [], []
    for time in times:
        moments = [time - lag * 0.5 / between for lag in range(between)]
        sweeps = tuple(
            replace(
                make_sweep(cast(moment)), ego_from_lidar=LIDAR, global_from_ego=ego_pose(moment),
                timestamp_us=1_000_000 + round(moment * 1e6),
            )
            for moment in moments
        )  # fmt: skip
        camera = replace(
            make_camera("CAM_FRONT", np.zeros((90, 160, 3), np.uint8), focal=80.0),
            global_from_ego=ego_pose(time),
        )
        made = make_annotations(car_center(time)[None], CAR_SIZE[None], np.array([np.pi / 2]))
        annotations.append(replace(made, instance=("car",), category=("vehicle.car",)))
        frames.append(
            replace(
                make_frame(f"k{time}", (camera,), sweeps, made), global_from_ego=ego_pose(time),
                timestamp_us=1_000_000 + round(time * 1e6),
            )
        )  # fmt: skip
    return frames, annotations


@pytest.fixture(scope="module")
def wall_and_car():
    frames, annotations = scene()
    cloud = accumulate(frames, annotations)
    return frames, [label_frame(cloud, frame, GRID) for frame in frames]


def voxel_middles():
    cells = np.stack(np.meshgrid(*map(np.arange, GRID.shape), indexing="ij"), -1)
    return GRID.to_metres(cells + 0.5)


@pytest.mark.parametrize("key", [0, 1, 2])
def test_wall_ground_and_moving_car_are_where_they_are_at_the_key_time(wall_and_car, key):
    _, labels = wall_and_car
    time, semantics = key * 0.5, labels[key].semantics
    middle = apply(ego_pose(time), voxel_middles())
    half = GRID.voxel_size / 2
    outside = np.abs(middle - car_center(time)) - CAR_SIZE[[1, 0, 2]] / 2  # per axis, metres
    touched, inside = (outside < half + 1e-6).all(-1), (outside < -half - 1e-6).all(-1)
    at_wall = np.abs(middle[..., 0] - WALL) < half
    on_ground = np.abs(middle[..., 2]) < half
    assert (touched[semantics == CAR]).all()
    assert ((semantics == MANMADE) <= at_wall).all()
    assert ((semantics == DRIVEABLE) <= on_ground).all()
    assert set(np.unique(semantics)) == {CAR, DRIVEABLE, MANMADE, FREE}
    # Nothing of the car is left where it was at other times, and its inside is empty.
    assert (semantics[inside & ~on_ground] == FREE).all()
    # All of the wall but its lowest row, which is one with the road, and its edges.
    wall = at_wall & (np.abs(middle[..., 1]) < 7) & (middle[..., 2] > 0.3) & (middle[..., 2] < 2.7)
    assert (semantics[wall] == MANMADE).mean() > 0.98
    # The side that the car turns to the sensor.
    front = touched & (np.abs(middle[..., 0] - 5.0) < half)
    front &= (np.abs(outside[..., 1]) > half) & (middle[..., 2] > 0.3) & (middle[..., 2] < 1.4)
    assert (semantics[front & (outside < -0.1)[..., 1]] == CAR).all()


def test_what_no_ray_crosses_is_not_observed(wall_and_car):
    _, labels = wall_and_car
    for key, made in enumerate(labels):
        time = key * 0.5
        middle = apply(ego_pose(time), voxel_middles())
        behind = middle[..., 0] > WALL + 0.25
        behind &= middle[..., 2] < 2.5  # rays above the wall pass it
        assert not made.mask_lidar[behind].any()
        # Within the car nothing is known, though rays pass there before it comes and after.
        outside = np.abs(middle - car_center(time)) - CAR_SIZE[[1, 0, 2]] / 2
        assert not made.mask_lidar[(outside < -0.25).all(-1)].any()
        # But around it all is seen that the sensor has in view.
        ahead = (middle[..., 0] > 3) & (np.abs(outside).max(-1) > 0.5) & (middle[..., 0] < WALL)
        ahead &= (np.abs(middle[..., 1]) < 2) & (middle[..., 2] > 0.3) & (middle[..., 2] < 1.5)
        ahead &= (outside > 0.3).any(-1)
        assert made.mask_lidar[ahead].mean() > 0.99
        assert (made.mask_camera <= made.mask_lidar).all()
        assert made.mask_lidar[made.semantics != FREE].all()


def test_a_camera_sees_the_first_filled_voxel_and_what_lies_before(wall_and_car):
    frames, labels = wall_and_car
    made, frame = labels[1], frames[1]  # the car is straight ahead
    shot = frame.cameras[0]
    origin = apply(shot.ego_from_camera, np.zeros(3))
    car = np.floor(GRID.to_voxels(np.array([6.0 - 0.4 - 0.9, 0.0, 0.8]))).astype(int)
    assert made.semantics[tuple(car)] == CAR
    before, behind = voxel_middles()[..., 0] < 4.2, voxel_middles()[..., 0] > 7.0
    # On the line from the camera to the middle of the car.
    line = origin + np.linspace(0, 1, 200)[:, None] * (np.array([11.0, 0.0, 0.3]) - origin)
    cells = np.unique(np.floor(GRID.to_voxels(line)).astype(int), axis=0)
    seen = made.mask_camera[tuple(cells.T)]
    assert seen[before[tuple(cells.T)]].all()
    assert not seen[behind[tuple(cells.T)]].any()
    assert made.mask_lidar[tuple(cells[behind[tuple(cells.T)]].T)].any()  # at other times


def test_lidarseg_gives_classes_to_key_sweeps_and_to_others_from_nearby():
    frames, annotations = scene()
    terrain, vegetation = map(OCCUPANCY_CLASSES.index, ("terrain", "vegetation"))

    def labels(key, count):
        points = frames[key].sweeps[0].load()
        assert len(points) == count
        up = apply(LIDAR, points[:, :3])[:, 2]
        return np.where(up < 0.01, terrain, vegetation).astype(np.uint8)

    cloud = accumulate(frames, annotations, labels)
    found = np.concatenate([c.label[c.track == -1] for c in cloud.clouds])
    assert set(np.unique(found)) == {terrain, vegetation}
    semantics = label_frame(cloud, frames[1], GRID).semantics
    assert {terrain, vegetation, CAR} <= set(np.unique(semantics))


def agreement(pairs):
    """mIoU and IoU of occupied voxels over those that both masks trust."""
    counts = np.zeros((FREE + 1, FREE + 1), np.int64)
    for made, truth in pairs:
        both = (made.mask_lidar > 0) & (truth.mask_lidar > 0)
        np.add.at(counts, (truth.semantics[both], made.semantics[both]), 1)
    right, true, found = np.diag(counts)[:FREE], counts.sum(1)[:FREE], counts.sum(0)[:FREE]
    present = true > 0
    occupied = counts[:FREE, :FREE].sum()
    all_occupied = counts.sum() - counts[FREE, FREE]
    return (right / np.maximum(true + found - right, 1))[present].mean(), occupied / all_occupied


@pytest.fixture(scope="module")
def made_labels(synthetic_root, tmp_path_factory):
    """Labels by one worker, and what they are made from."""
    folder = tmp_path_factory.mktemp("labels")
    build_index(synthetic_root, "v1.0-mini", index_dir=folder / "index")
    job = LabelJob(synthetic_root, folder / "gts", "v1.0-mini", index_dir=folder / "index")
    told = []
    outcome = write_labels(job, progress=lambda done, total: told.append((done, total)))
    assert (outcome.written, outcome.present, outcome.failed) == (8, 0, {})
    assert told[-1] == (8, 8)
    return job


def readers(job, *folders: Path):
    return [
        NuScenesReader(job.root, job.version, previous_sweeps=0, index_dir=job.index_dir,
                       occupancy=LabelFolder(folder))
        for folder in folders
    ]  # fmt: skip


def test_they_agree_with_the_synthetic_worlds_own_labels(made_labels):
    """Measured: mIoU 0.732, IoU of occupied voxels 0.805, on scenes of four key frames.

    Ours have the sensor's noise and holes where no ray ended.
    """
    made, truth = readers(made_labels, made_labels.out, made_labels.root / "gts")
    pairs = [(made[i].occupancy(), truth[i].occupancy()) for i in range(len(made))]
    mean_iou, occupied_iou = agreement(pairs)
    assert mean_iou > 0.7
    assert occupied_iou > 0.78


@pytest.mark.slow
def test_two_workers_write_the_same_bytes_and_a_second_run_nothing(made_labels, tmp_path):
    other = replace(made_labels, out=tmp_path / "gts")
    assert write_labels(other, workers=2).written == 8
    files = sorted(made_labels.out.glob("*/*/labels.npz"))
    assert len(files) == 8
    for file in files:
        assert file.read_bytes() == (other.out / file.relative_to(made_labels.out)).read_bytes()
    files[3].unlink()
    outcome = write_labels(made_labels)
    assert (outcome.written, outcome.present) == (1, 7)
    twin = other.out / files[3].relative_to(made_labels.out)
    assert files[3].read_bytes() == twin.read_bytes()


def test_folders_of_other_origin_are_left_alone(made_labels, tmp_path):
    with pytest.raises(DataError, match="another origin"):
        write_labels(replace(made_labels, out=made_labels.root / "gts"))
    with pytest.raises(DataError, match="were made from"):
        write_labels(replace(made_labels, lidarseg=False))
    with pytest.raises(DataError, match="no scene scene-9999"):
        write_labels(replace(made_labels, out=tmp_path / "x"), scenes=["scene-9999"])
    assert (made_labels.out / RECORD).is_file()


def test_the_real_key_frame_alone_gives_voxels_to_its_objects(shared_data, tmp_path):
    """One sweep without lidarseg and map; the label file in the shared data is of another scene."""
    root = shared_data / "nuscenes-keyframe"
    build_index(root, "v1.0-mini", index_dir=tmp_path / "index")
    job = LabelJob(root, tmp_path / "gts", "v1.0-mini", index_dir=tmp_path / "index")
    assert write_labels(job).written == 1
    (reader,) = readers(job, job.out)
    frame = reader[0]
    labels, annotations = frame.occupancy(), frame.annotations
    boxes = annotations.boxes
    middle = OCC3D_GRID.to_metres(np.argwhere(labels.semantics != FREE) + 0.5)
    found = labels.semantics[labels.semantics != FREE]
    well_seen = (annotations.num_lidar_points >= 6) & (np.abs(boxes.center[:, :2]) < 38).all(1)
    assert well_seen.sum() >= 10
    for m in np.flatnonzero(well_seen):
        local = to_box_axes(middle, boxes.center[m], boxes.yaw[m])
        inside = (np.abs(local) < boxes.size[m] / 2 + 0.3).all(1)
        assert (found[inside] == occupancy_class(annotations.category[m])).any()
    # Measured: 144,599 and 154,102 of 640,000, on an open junction.
    assert 100_000 < labels.mask_camera.sum() < labels.mask_lidar.sum() < 200_000
    road = labels.semantics == DRIVEABLE
    assert road[:, :, 1:4].sum() > 0.9 * road.sum() > 1000
