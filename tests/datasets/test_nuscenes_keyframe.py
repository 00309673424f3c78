"""One real key frame: the chain from bytes to pixels agrees with the unmodified devkit."""

import numpy as np
import pytest

from bevstack.datasets.geometry import apply, inverse
from bevstack.datasets.nuscenes.index import build_index
from bevstack.datasets.nuscenes.reader import NuScenesReader
from bevstack.datasets.points import merge_sweeps

VERSION = "v1.0-mini"
POINTS_IN_IMAGE = {  # from the data's README, counted by the devkit
    "CAM_FRONT": 3053,
    "CAM_FRONT_RIGHT": 3076,
    "CAM_BACK_RIGHT": 3369,
    "CAM_BACK": 4820,
    "CAM_BACK_LEFT": 4089,
    "CAM_FRONT_LEFT": 3696,
}
# Our corners (floor, then roof; counter-clockwise from front left) in the devkit's order.
DEVKIT_CORNER = [3, 7, 6, 2, 0, 4, 5, 1]
PIXELS = 1e-3


@pytest.fixture(scope="module")
def reader(shared_data, tmp_path_factory):
    root, index_dir = shared_data / "nuscenes-keyframe", tmp_path_factory.mktemp("index")
    build_index(root, VERSION, index_dir=index_dir)
    return NuScenesReader(root, VERSION, "mini_train", index_dir=index_dir)


@pytest.fixture(scope="module")
def devkit(reader):
    nuscenes = pytest.importorskip("nuscenes")
    return nuscenes.NuScenes(VERSION, str(reader.root), verbose=False)


def pixels(frame, camera, points_in_global):
    """(..., 3) u, v, depth of points in the global frame."""
    camera_from_global = inverse(camera.global_from_ego @ camera.ego_from_camera)
    return camera.model.project(apply(camera_from_global, points_in_global))


def inside(camera, uvz):
    """The devkit's rule: one metre away and more than one pixel inside."""
    u, v, z = np.nan_to_num(uvz, nan=-1).T
    return (
        (z > 1) & (u > 1) & (u < camera.model.width - 1) & (v > 1) & (v < camera.model.height - 1)
    )


def test_points_in_the_images_are_the_devkits(reader, devkit, monkeypatch):
    from nuscenes.utils.data_classes import LidarPointCloud

    # The devkit moves points in float32, through global coordinates of 1,180 m where that has
    # steps of 0.1 mm, which is up to 0.1 pixels; its code in float64 is what we compare with.
    read = LidarPointCloud.from_file.__func__
    wide = classmethod(lambda cls, path: cls(read(cls, path).points.astype(np.float64)))
    monkeypatch.setattr(LidarPointCloud, "from_file", wide)
    frame = reader[0]
    data = devkit.get("sample", frame.token)["data"]
    cloud = merge_sweeps(frame, vehicle_reach=0)[:, :3].astype(np.float64)
    for camera in frame.cameras:
        uvz = pixels(frame, camera, apply(frame.global_from_ego, cloud))
        theirs, depth, _ = devkit.explorer.map_pointcloud_to_image(
            data["LIDAR_TOP"], data[camera.name]
        )
        ours = uvz[inside(camera, uvz)]
        assert ours.shape[0] == theirs.shape[1]
        np.testing.assert_allclose(ours[:, :2], theirs[:2].T, atol=PIXELS)
        np.testing.assert_allclose(ours[:, 2], depth, atol=1e-4)


def test_number_of_points_in_each_image(reader):
    frame = reader[0]
    cloud = apply(frame.global_from_ego, merge_sweeps(frame, vehicle_reach=0)[:, :3].astype(float))
    count = {c.name: int(inside(c, pixels(frame, c, cloud)).sum()) for c in frame.cameras}
    assert count == POINTS_IN_IMAGE


def test_boxes_in_the_images_are_the_devkits(reader, devkit):
    from nuscenes.utils.geometry_utils import BoxVisibility, view_points

    frame = reader[0]
    data = devkit.get("sample", frame.token)["data"]
    corners = reader.global_annotations(0).boxes.corners()  # (M, 8, 3)
    compared = 0
    for camera in frame.cameras:
        _, boxes, intrinsic = devkit.get_sample_data(data[camera.name], BoxVisibility.NONE)
        ours = pixels(frame, camera, corners)
        for box, uvz in zip(boxes, ours, strict=True):
            theirs = box.corners()[:, DEVKIT_CORNER]
            ahead = theirs[2] > 0.5
            flat = view_points(theirs, intrinsic, normalize=True)[:2, ahead]
            np.testing.assert_allclose(uvz[ahead, :2], flat.T, atol=PIXELS)
            compared += ahead.sum()
    assert compared > 69 * 8


def test_every_box_holds_exactly_its_points(reader):
    frame, annotations = reader[0], reader.global_annotations(0)
    cloud = apply(frame.global_from_ego, merge_sweeps(frame, vehicle_reach=0)[:, :3].astype(float))
    boxes = annotations.boxes
    offset = cloud[None] - boxes.center[:, None]  # (M, P, 3)
    cos, sin = np.cos(boxes.yaw)[:, None], np.sin(boxes.yaw)[:, None]
    along = np.abs(offset[..., 0] * cos + offset[..., 1] * sin)
    across = np.abs(offset[..., 1] * cos - offset[..., 0] * sin)
    half = boxes.size[:, None] / 2
    count = (
        (along <= half[..., 0])
        & (across <= half[..., 1])
        & (np.abs(offset[..., 2]) <= half[..., 2])
    )
    np.testing.assert_array_equal(count.sum(1), annotations.num_lidar_points)


def test_each_camera_has_its_own_vehicle_pose(reader, devkit):
    frame = reader[0]
    data = devkit.get("sample", frame.token)["data"]
    for camera in frame.cameras:
        record = devkit.get("sample_data", data[camera.name])
        pose = devkit.get("ego_pose", record["ego_pose_token"])
        np.testing.assert_array_equal(camera.global_from_ego[:3, 3], pose["translation"])
        distance = np.linalg.norm(camera.global_from_ego[:3, 3] - frame.global_from_ego[:3, 3])
        assert 0.004 < distance < 0.41


@pytest.mark.parametrize("reduction", [1, 2, 4, 8])
def test_real_images_decode_at_every_size(reader, reduction):
    camera = reader[0].cameras[0]
    small = camera.load(reduction)
    assert small.shape == (-(-900 // reduction), 1600 // reduction, 3)
    rows = 900 // reduction
    whole = camera.load()[: rows * reduction].astype(float)
    blocks = whole.reshape(rows, reduction, 1600 // reduction, reduction, 3).mean((1, 3))
    assert np.abs(small[:rows] - blocks).mean() < 1.5
