"""Published image preparation: Pillow itself, and the published matrices, step by step."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bevstack.datasets.augment import PublishedImageAugmentation, PublishedResize
from bevstack.datasets.augment.bicubic import resize_bicubic
from bevstack.datasets.augment.published import PublishedImage, PublishedWindow, turned
from bevstack.datasets.camera_models import Pinhole
from bevstack.datasets.encode import Encoder
from bevstack.datasets.frame import Camera, Frame
from bevstack.datasets.nuscenes.index import build_index
from bevstack.datasets.nuscenes.reader import NuScenesReader

Image = pytest.importorskip("PIL.Image")


def random_image(height, width, seed=0):
    """Noise with sharp edges, where a filter over- and undershoots."""
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    image[: height // 2, : width // 2] = 255
    image[height // 3 : height // 2] = 0
    return image


@settings(max_examples=40, deadline=None)
@given(
    old=st.tuples(st.integers(3, 40), st.integers(3, 40)),
    new=st.tuples(st.integers(1, 50), st.integers(1, 50)),
    corner=st.tuples(st.integers(-5, 20), st.integers(-5, 20)),
)
def test_resize_and_crop_are_pillows_bit_by_bit(old, new, corner):
    image = random_image(*old)
    window = (*corner, corner[0] + 12, corner[1] + 9)
    # In two steps: today's Pillow sometimes does the rows first, which 8.4 never did.
    steps = Image.fromarray(image).resize((new[0], old[0]), Image.Resampling.BICUBIC)
    want = np.asarray(steps.resize(new, Image.Resampling.BICUBIC).crop(window))
    assert np.array_equal(resize_bicubic(image, new, window), want)


@settings(max_examples=30, deadline=None)
@given(degrees=st.floats(-10, 10), size=st.tuples(st.integers(2, 40), st.integers(2, 40)))
def test_turn_is_pillows(degrees, size):
    image = random_image(*size)
    want = np.asarray(Image.fromarray(image).rotate(degrees))
    # Pillow rounds its matrix to 15 digits: a pixel exactly between two may be the other one.
    assert (turned(image, degrees) != want).any(-1).mean() < 0.01


def camera(image) -> Camera:
    intrinsic = np.array([[90.0, 0, 80], [0, 90, 45], [0, 0, 1]])
    model = Pinhole(intrinsic, image.shape[1], image.shape[0])
    return Camera("CAM", lambda reduction=1: image, model, np.eye(4), np.eye(4), 0)


def frame(*cameras) -> Frame:
    return Frame("token", "scene", "place", 0, np.eye(4), cameras, (), None)


def published_matrix(window: PublishedWindow, height: int) -> np.ndarray:
    """Rotation and translation, one operation after the other, as the facts have them."""
    rotation, translation = np.eye(2), np.zeros(2)
    rotation = rotation * window.resize
    translation = translation - (window.left, int(height * window.resize) - window.size[1])
    if window.flip:
        mirror = np.diag([-1.0, 1.0])
        rotation, translation = mirror @ rotation, mirror @ translation + (window.size[0], 0)
    a = np.deg2rad(window.degrees)
    turn = np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]])
    middle = np.array(window.size) / 2
    rotation, translation = turn @ rotation, turn @ translation + middle - turn @ middle
    matrix = np.eye(3)
    matrix[:2, :2], matrix[:2, 2] = rotation, translation
    return matrix


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("degrees", [0.0, -4.3])
def test_window_is_pillows_steps_and_the_published_matrix(flip, degrees):
    window = PublishedWindow((64, 24), 0.55, 7, flip, degrees)
    image = random_image(90, 160)
    steps = Image.fromarray(image).resize((88, 49), Image.Resampling.BICUBIC)
    steps = steps.crop((7, 49 - 24, 7 + 64, 49))
    if flip:
        steps = steps.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    want = np.asarray(steps.rotate(degrees))
    got = PublishedImage(lambda reduction=1: image, window)()
    assert (got != want).any(-1).mean() < 0.01 * (degrees != 0) + 1e-9
    np.testing.assert_allclose(window.new_from_old(90), published_matrix(window, 90), atol=1e-12)


def test_evaluation_cuts_the_middle_of_the_lower_edge():
    image = random_image(900, 1600)
    given = frame(camera(image))
    prepared = PublishedResize()(given, 0).cameras[0]
    steps = Image.fromarray(image).resize((768, 432), Image.Resampling.BICUBIC)
    assert np.array_equal(prepared.load(), np.asarray(steps.crop((32, 176, 736, 432))))
    assert isinstance(prepared.model, Pinhole)
    want = np.array([[0.48, 0, -32], [0, 0.48, -176], [0, 0, 1]]) @ given.cameras[0].model.intrinsic
    np.testing.assert_allclose(prepared.model.intrinsic, want)
    assert (prepared.model.width, prepared.model.height) == (704, 256)
    assert prepared.load(2).shape == (128, 352, 3)


def test_training_draws_within_the_limits_and_repeats():
    step, image = PublishedImageAugmentation((64, 24), (0.3, 0.55)), random_image(90, 160)
    cameras = [replace(camera(image), name=f"CAM{i}") for i in range(60)]
    given = frame(*cameras)
    first, again = step(given, 3), step(given, 3)
    windows = [c.load.window for c in first.cameras]
    assert windows == [c.load.window for c in again.cameras]
    assert windows != [c.load.window for c in step(given, 4).cameras]
    for window in windows:
        excess = max(0, int(160 * window.resize) - 64)
        assert 0.3 <= window.resize <= 0.55
        assert 0 <= window.left <= excess
        assert abs(window.degrees) <= 5.4
    assert 10 < sum(window.flip for window in windows) < 50
    assert all(c.load().shape == (24, 64, 3) for c in first.cameras[:3])


# --- The real key frame ---------------------------------------------------------------------------


def rigid(record) -> np.ndarray:
    """(4, 4) of a nuScenes record; its quaternion is w, x, y, z."""
    w, x, y, z = record["rotation"]
    matrix = np.eye(4)
    matrix[:3, :3] = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    matrix[:3, 3] = record["translation"]
    return matrix


def published_lidar2image(root) -> dict[str, np.ndarray]:
    """By camera (4, 4): LiDAR -> ego -> global -> ego at the image's time -> camera -> pixels."""
    tables = {
        name: {
            record["token"]: record for record in json.loads((root / f"{name}.json").read_text())
        }
        for name in ("sample_data", "calibrated_sensor", "ego_pose", "sensor")
    }
    found, places = {}, {}
    for data in tables["sample_data"].values():
        mounting = tables["calibrated_sensor"][data["calibrated_sensor_token"]]
        channel = tables["sensor"][mounting["sensor_token"]]["channel"]
        pose = rigid(tables["ego_pose"][data["ego_pose_token"]])
        places[channel] = pose @ rigid(mounting), mounting
    global_from_lidar = places["LIDAR_TOP"][0]
    for channel, (global_from_camera, mounting) in places.items():
        if mounting["camera_intrinsic"]:
            k = np.eye(4)
            k[:3, :3] = mounting["camera_intrinsic"]
            found[channel] = k @ np.linalg.inv(global_from_camera) @ global_from_lidar
    return found


def test_points_of_the_key_frame_fall_on_the_published_pixels(shared_data, tmp_path):
    root = shared_data / "nuscenes-keyframe"
    build_index(root, "v1.0-mini", index_dir=tmp_path)
    reader = NuScenesReader(root, "v1.0-mini", None, 0, "lidar", tmp_path)
    points = (-54.0, -54.0, -5.0, 54.0, 54.0, 3.0)
    encoder = Encoder(points, (704, 256), num_sweeps=1, clear_key_sweep=False)
    batch = encoder(PublishedResize()(reader[0], 0))
    # Every return of the sensor in range, the vehicle's own too, in the sensor's own coordinates.
    raw = reader[0].sweeps[0].load()
    inside = ((raw[:, :3] > points[:3]) & (raw[:, :3] < points[3:])).all(1)
    np.testing.assert_allclose(batch.points[:, :4], raw[inside, :4], atol=2e-5)
    matrices = published_lidar2image(root / "v1.0-mini")
    aug = np.array([[0.48, 0, -32], [0, 0.48, -176], [0, 0, 1]])
    position = np.pad(batch.points[:, :3].double().numpy(), ((0, 0), (0, 1)), constant_values=1)
    for camera, bev_from_image in zip(reader[0].cameras, batch.bev_from_image):
        c = (position @ matrices[camera.name].T)[:, :3]
        ahead = c[:, 2] > 1
        uv = (c[ahead, :2] / c[ahead, 2:]) @ aug[:2, :2].T + aug[:2, 2]
        ours = position[ahead] @ np.linalg.inv(bev_from_image.double().numpy()).T
        near = np.abs(uv).max(1) < 1000
        np.testing.assert_allclose(ours[near, :2] / ours[near, 2:3], uv[near], atol=0.02)
        np.testing.assert_allclose(ours[near, 2], c[ahead, 2][near], atol=1e-3)
