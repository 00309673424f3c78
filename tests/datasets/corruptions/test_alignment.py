"""Stale data, lost sensors and wrong calibration: what changes, by formula, and what stays."""

from dataclasses import replace

import numpy as np
import pytest
from scenes import street_frame

from bevstack.datasets.corruptions.calibration import (
    CalibrationDrift,
    ProjectionNoise,
    rotation_of_vector,
)
from bevstack.datasets.corruptions.motion_compensation import (
    MotionCompensationError,
    interpolated,
    sweep_motion,
)
from bevstack.datasets.corruptions.sensor_loss import CrashCameras, LoseImages, LoseSensors
from bevstack.datasets.corruptions.stale import LateSensors, StaleImages, StaleSweeps
from bevstack.datasets.geometry import inverse


def images(frame):
    return [camera.load() for camera in frame.cameras]


def clouds(frame):
    return [sweep.load() for sweep in frame.sweeps]


def same(first, second):
    return len(first) == len(second) and all(map(np.array_equal, first, second))


def six_cameras(token="frame0", scene="scene-0001"):
    frame = street_frame(token)
    cameras = tuple(replace(frame.cameras[0], name=f"CAM_{i}") for i in range(6))
    return replace(frame, cameras=cameras, scene=scene)


# --- Stale data -----------------------------------------------------------------------------------


def test_stale_data_are_those_of_the_frame_before_and_nothing_else_is():
    frame = street_frame()
    before = frame.previous()
    stale = StaleSweeps(1.0)(StaleImages(1.0)(frame, 0), 0)
    assert same(images(stale), images(before))
    assert same(clouds(stale), clouds(before))
    for now, was in zip((*stale.cameras, *stale.sweeps), (*frame.cameras, *frame.sweeps)):
        assert now.timestamp_us == was.timestamp_us
        assert now.global_from_ego is was.global_from_ego
    assert stale.annotations is frame.annotations
    assert stale.cameras[0].load(4).shape == frame.cameras[0].load(4).shape


def test_a_scene_starts_with_new_data():
    first = replace(street_frame(), previous=lambda: None)
    for step in (StaleImages(1.0), StaleSweeps(1.0)):
        assert same(images(step(first, 0)), images(first))
        assert same(clouds(step(first, 0)), clouds(first))


def test_coins_are_tossed_for_each_camera_and_for_the_lidar_as_a_whole():
    stale = np.zeros((400, 3))
    clean = street_frame()
    for i in range(400):
        frame = replace(clean, token=f"frame{i}")
        late = StaleSweeps(0.4)(StaleImages(0.4)(frame, 1), 1)
        stale[i, :2] = [a.load is not b.load for a, b in zip(late.cameras, frame.cameras)]
        old = {a.load is not b.load for a, b in zip(late.sweeps, frame.sweeps)}
        assert len(old) == 1
        stale[i, 2] = old.pop()
    np.testing.assert_allclose(stale.mean(0), 0.4, atol=0.1)
    assert np.abs(np.corrcoef(stale.T)[np.triu_indices(3, 1)]).max() < 0.2


@pytest.mark.parametrize("count", [1, 2, 4, 8])
def test_late_sweeps_are_that_many_recordings_old(count):
    frame = street_frame()
    recorded, source = [], frame
    while source is not None:
        recorded += source.sweeps
        source = source.previous()
    late = LateSensors(count, 0)(frame, 0)
    assert same(clouds(late), [sweep.load() for sweep in recorded[count : count + 3]])
    assert [s.timestamp_us for s in late.sweeps] == [s.timestamp_us for s in frame.sweeps]
    assert len(LateSensors(count, 0, single=True)(frame, 0).sweeps) == 1


def test_late_images_are_of_the_right_age_on_average():
    frame = street_frame()
    ages, source = {}, frame
    for age in range(4):
        ages[images(source)[0].tobytes()] = age
        source = source.previous()
    found = [
        ages[LateSensors(0, 8)(replace(frame, token=f"{i}"), 0).cameras[0].load().tobytes()]
        for i in range(300)
    ]
    assert set(found) == {1, 2}
    assert np.mean(found) == pytest.approx(8 / 6, abs=0.1)


# --- Lost sensors ---------------------------------------------------------------------------------


def black(frame):
    return [not image.any() for image in images(frame)]


def test_lost_images_are_black_or_gone_as_often_as_asked():
    lost = [sum(black(LoseImages(1 / 3)(six_cameras(f"{i}"), 0))) for i in range(60)]
    assert np.mean(lost) == pytest.approx(2, abs=0.45)
    gone = LoseImages(1 / 3, absent=True)(six_cameras(), 0)
    dark = black(LoseImages(1 / 3)(six_cameras(), 0))
    assert len(gone.cameras) == 6 - sum(dark)
    frame = LoseImages(1.0)(six_cameras(), 0)
    assert frame.cameras[0].load(4).shape == six_cameras().cameras[0].load(4).shape


def test_crashed_cameras_are_dead_throughout_a_scene():
    names = [
        [b for b, dead in enumerate(black(CrashCameras(4)(six_cameras(f"{i}", scene), 3))) if dead]
        for scene in ("scene-0001", "scene-0002", "scene-0003")
        for i in range(2)
    ]
    assert {len(dead) for dead in names} == {4}
    assert all(names[i] == names[i + 1] for i in (0, 2, 4))
    assert len({tuple(dead) for dead in names}) > 1
    published = CrashCameras(5, with_replacement=True, same_everywhere=True)
    counts = [sum(black(published(six_cameras(), seed))) for seed in range(80)]
    assert np.mean(counts) == pytest.approx(3.59, abs=0.25)  # the benchmark's, by simulation
    assert black(published(six_cameras("a"), 0)) == black(published(six_cameras("b", "z"), 0))


def test_named_sensors_are_lost():
    frame = LoseSensors(cameras=("CAM_0", "CAM_5"), lidar=True)(six_cameras(), 0)
    assert black(frame) == [True, False, False, False, False, True]
    assert frame.sweeps == ()
    absent = LoseSensors(cameras=("CAM_0",), absent=True)(six_cameras(), 0)
    assert [camera.name for camera in absent.cameras] == [f"CAM_{i}" for i in range(1, 6)]


# --- Calibration ----------------------------------------------------------------------------------


@pytest.mark.parametrize("sensors", ["cameras", "lidar", "all"])
def test_drift_is_rigid_of_the_given_size_and_leaves_the_truth(sensors):
    drifts = []
    clean = street_frame()
    for i in range(200):
        frame = CalibrationDrift(0.02, 0.2, sensors)(replace(clean, token=f"{i}"), 0)
        assert frame.annotations is clean.annotations
        assert np.array_equal(frame.global_from_ego, clean.global_from_ego)
        camera = inverse(clean.cameras[0].ego_from_camera) @ frame.cameras[0].ego_from_camera
        lidar = [
            inverse(a.ego_from_lidar) @ b.ego_from_lidar for a, b in zip(clean.sweeps, frame.sweeps)
        ]
        np.testing.assert_allclose(lidar[0], lidar[2], atol=1e-12)
        assert (np.abs(camera - np.eye(4)).max() > 1e-9) == (sensors != "lidar")
        assert (np.abs(lidar[0] - np.eye(4)).max() > 1e-9) == (sensors != "cameras")
        drifts.append(lidar[0] if sensors == "lidar" else camera)
    drifts = np.array(drifts)
    unit = drifts[:, :3, :3] @ drifts[:, :3, :3].transpose(0, 2, 1)
    np.testing.assert_allclose(unit, np.tile(np.eye(3), (200, 1, 1)), atol=1e-12)
    assert drifts[:, :3, 3].std() == pytest.approx(0.2, rel=0.1)
    assert drifts[:, [2, 0, 1], [1, 2, 0]].std() == pytest.approx(0.02, rel=0.1)


def test_drift_may_last_a_scene():
    drift = CalibrationDrift(0.02, 0.2, scope="scene")
    a, b = (drift(replace(street_frame(), token=token), 0).cameras[0] for token in "ab")
    np.testing.assert_array_equal(a.ego_from_camera, b.ego_from_camera)
    other = drift(replace(street_frame(), scene="scene-0002"), 0).cameras[0]
    assert not np.array_equal(a.ego_from_camera, other.ego_from_camera)


def lidar_to_image(frame, camera):
    """(3, 4) the matrix nuScenes-C adds noise to."""
    sweep = frame.sweeps[0]
    world_from_lidar = sweep.global_from_ego @ sweep.ego_from_lidar
    camera_from_lidar = inverse(camera.global_from_ego @ camera.ego_from_camera) @ world_from_lidar
    return camera.model.intrinsic @ camera_from_lidar[:3]


def test_published_noise_is_on_the_entries_of_the_lidar_to_image_matrix():
    clean, noise = street_frame(), []
    for i in range(200):
        frame = ProjectionNoise(0.02, 0.2)(replace(clean, token=f"{i}"), 0)
        noise.append(
            lidar_to_image(frame, frame.cameras[0]) - lidar_to_image(clean, clean.cameras[0])
        )
    noise = np.array(noise)
    np.testing.assert_allclose(noise[:, :, :3].std(0), 0.02, rtol=0.25)
    np.testing.assert_allclose(noise[:, :, 3].std(0), 0.2, rtol=0.25)


def test_rotation_of_a_vector_is_the_matrix_exponential():
    from scipy.linalg import expm

    for vector in np.random.default_rng(0).normal(0, 1, (5, 3)):
        x, y, z = vector
        cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
        np.testing.assert_allclose(rotation_of_vector(vector), expm(cross), atol=1e-12)
    np.testing.assert_array_equal(rotation_of_vector(np.zeros(3)), np.eye(3))


# --- Motion compensation --------------------------------------------------------------------------


def test_interpolated_poses_go_from_one_to_the_other():
    from scipy.linalg import expm, logm

    first, second = street_frame().sweeps[0].ego_from_lidar, np.eye(4)
    second[:3, :3] = first[:3, :3] @ rotation_of_vector(np.array([0.01, -0.02, 0.3]))
    second[:3, 3] = [1, 2, 3]
    poses = interpolated(first, second, 10)
    np.testing.assert_allclose(poses[0], first, atol=1e-12)
    third = first[:3, :3] @ expm(0.3 * logm(first[:3, :3].T @ second[:3, :3]).real)
    np.testing.assert_allclose(poses[3, :3, :3], third, atol=1e-9)
    np.testing.assert_allclose(poses[3, :3, 3], 0.7 * first[:3, 3] + [0.3, 0.6, 0.9], atol=1e-12)


def test_slices_move_as_a_whole_and_farther_points_more():
    frame = street_frame()
    clean = clouds(frame)[0][:, :3].astype(float)
    moved = MotionCompensationError(0.1, 0.01)(frame, 0).sweeps[0].load()[:, :3] - clean
    slices = ((np.arctan2(clean[:, 1], clean[:, 0]) + np.pi) / (2 * np.pi) * 100).astype(int)
    for k in range(0, 100, 9):
        one = slices.clip(0, 99) == k
        terms = np.concatenate([clean[one], np.ones((one.sum(), 1))], 1)
        fit = terms @ np.linalg.lstsq(terms, moved[one], rcond=None)[0]
        np.testing.assert_allclose(fit, moved[one], atol=1e-4)
    distance = np.linalg.norm(clean, axis=1)
    expected = np.sqrt(0.1**2 + (0.01 * distance) ** 2)
    for low, high in ((0, 8), (20, 60)):
        band = (distance > low) & (distance < high)
        size = np.sqrt((moved[band] ** 2).mean() / (expected[band] ** 2).mean())
        assert size == pytest.approx(1, abs=0.25)


def test_motion_of_a_sweep_is_that_since_the_sweep_before():
    frame = street_frame()
    motion = sweep_motion(frame, frame.sweeps[0])
    world = [s.global_from_ego @ s.ego_from_lidar for s in frame.sweeps]
    np.testing.assert_allclose(world[1] @ motion, world[0], atol=1e-9)
    np.testing.assert_allclose(world[2] @ sweep_motion(frame, frame.sweeps[2]), world[1], atol=1e-9)
