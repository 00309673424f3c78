"""Merged sweeps are where the devkit puts them, and what a sweep may hold is handled."""

from dataclasses import replace

import numpy as np
import pytest
from nuscenes_folder import START_US, ego_pose, matrix, write_folder

from bevstack.datasets.geometry import apply, inverse
from bevstack.datasets.nuscenes.index import build_index
from bevstack.datasets.nuscenes.reader import NuScenesReader
from bevstack.datasets.points import merge_sweeps


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    root = write_folder(tmp_path_factory.mktemp("nuscenes"))
    build_index(root, "v1.0-mini")
    return NuScenesReader(root, "v1.0-mini")


def with_points(frame, points):
    return replace(frame, sweeps=(replace(frame.sweeps[0], load=lambda: points),))


def test_every_sweep_lands_on_the_same_walls(reader):
    frame = reader[2]
    merged = merge_sweeps(frame)
    sweeps = [merged[merged[:, 4] == lag] for lag in np.unique(merged[:, 4])]
    assert len(sweeps) == 7
    for sweep in sweeps[1:]:
        # Without row 0: the return that moves with the vehicle.
        np.testing.assert_allclose(sweep[1:, :4], sweeps[0][1:, :4], atol=1e-4)


def test_points_are_in_the_ego_frame_at_the_key_time(reader):
    frame = reader[1]
    pose = matrix(*ego_pose(frame.timestamp_us - START_US))
    np.testing.assert_allclose(frame.global_from_ego, pose, atol=1e-12)
    walls = apply(pose, merge_sweeps(frame)[1:, :3].astype(float))
    assert np.all(np.linalg.norm(walls[:200, :2] - [411, 1180], axis=1) < 60)
    assert np.all((walls[:100, 2] > -0.01) & (walls[:100, 2] < 3.01))


def test_time_lag_is_positive_and_zero_for_the_key_sweep(reader):
    lags = np.unique(merge_sweeps(reader[1])[:, 4])
    np.testing.assert_allclose(lags, [0, 1 / 6, 1 / 3, 0.5], atol=1e-5)


def test_max_sweeps_counts_the_key_sweep(reader):
    assert set(merge_sweeps(reader[2], 1)[:, 4]) == {0}
    assert len(set(merge_sweeps(reader[2], 3)[:, 4])) == 3


def test_returns_from_the_vehicle_are_left_out(reader):
    frame = reader[0]
    assert len(merge_sweeps(frame)) == len(frame.sweeps[0].load()) - 1
    assert len(merge_sweeps(frame, vehicle_reach=0)) == len(frame.sweeps[0].load())
    assert 9 not in merge_sweeps(frame)[:1, 3]


def test_the_key_sweep_may_keep_returns_from_the_vehicle(reader):
    frame = reader[2]  # one such return in every sweep
    cleared, kept = merge_sweeps(frame), merge_sweeps(frame, clear_key_sweep=False)
    assert len(kept) == len(cleared) + 1
    key = kept[: len(frame.sweeps[0].load())]
    assert set(key[:, 4]) == {0}
    np.testing.assert_array_equal(kept[len(key) :], cleared[len(key) - 1 :])


def test_other_target_frame(reader):
    frame = reader[2]
    lidar_from_ego = inverse(frame.sweeps[0].ego_from_lidar)
    in_lidar = merge_sweeps(frame, 1, target_from_ego=lidar_from_ego)
    raw = frame.sweeps[0].load()[1:]
    np.testing.assert_allclose(in_lidar[:, :4], raw[:, :4], atol=1e-5)


def test_empty_cloud_and_no_sweep_are_legal(reader):
    frame = reader[0]
    assert merge_sweeps(with_points(frame, np.zeros((0, 5), np.float32))).shape == (0, 5)
    assert merge_sweeps(replace(frame, sweeps=())).shape == (0, 5)


def test_points_that_are_not_finite_are_left_out(reader):
    points = np.full((3, 5), 7, np.float32)
    points[0, 1], points[1, 2] = np.nan, np.inf
    assert merge_sweeps(with_points(reader[0], points)).shape == (1, 5)


def test_peer_bug_03_merging_leaves_its_inputs_alone(reader):
    frame = reader[0]
    points = frame.sweeps[0].load()
    before, pose = points.copy(), frame.global_from_ego.copy()
    merge_sweeps(with_points(frame, points), target_from_ego=np.diag([2.0, -2, 2, 1]))
    np.testing.assert_array_equal(points, before)
    np.testing.assert_array_equal(frame.global_from_ego, pose)


def test_peer_bug_17_lidar_mounted_at_another_angle_gives_the_same_points_and_boxes(tmp_path):
    frames = []
    for yaw in (0.0, -1.5, 2.7):
        root = write_folder(tmp_path / str(yaw), lidar_yaw=yaw)
        build_index(root, "v1.0-mini")
        frames.append(NuScenesReader(root, "v1.0-mini")[2])
    reference = merge_sweeps(frames[0])
    walls = reference[:, 3:] @ [1, 0] != 7
    for frame in frames[1:]:
        np.testing.assert_allclose(merge_sweeps(frame)[walls], reference[walls], atol=1e-4)
        np.testing.assert_array_equal(
            frame.annotations.boxes.center, frames[0].annotations.boxes.center
        )


def devkit_points(root, token, num_sweeps):
    nuscenes = pytest.importorskip("nuscenes")
    from nuscenes.utils.data_classes import LidarPointCloud

    devkit = nuscenes.NuScenes("v1.0-mini", str(root), verbose=False)
    cloud, times = LidarPointCloud.from_file_multisweep(
        devkit, devkit.get("sample", token), "LIDAR_TOP", "LIDAR_TOP", num_sweeps
    )
    return np.vstack([cloud.points, times]).T


@pytest.mark.parametrize("folder", ["handmade", "synthetic"])
def test_agrees_with_the_devkits_multisweep(reader, request, tmp_path, folder):
    if folder == "synthetic":
        root = request.getfixturevalue("synthetic_root")
        build_index(root, "v1.0-mini", index_dir=tmp_path)
        reader = NuScenesReader(root, "v1.0-mini", index_dir=tmp_path)
    frame = reader[2]
    ours = merge_sweeps(frame, 5, target_from_ego=inverse(frame.sweeps[0].ego_from_lidar))
    theirs = devkit_points(reader.root, frame.token, 5)
    assert ours.shape == theirs.shape
    # The devkit multiplies in float64 and rounds to float32, as we do; its lag is a difference
    # of seconds since 1970, which float64 resolves to 2.4e-7.
    np.testing.assert_allclose(ours, theirs, atol=2e-5)
