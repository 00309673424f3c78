"""Augmentation of images, of the BEV scene and of the set of sensors."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
from hand_made import Pixels, make_camera, make_frame
from hypothesis import given, settings
from hypothesis import strategies as st

from bevstack.datasets.augment.bev import BEVAugmentation
from bevstack.datasets.augment.color import ColorJitter, color_matrix
from bevstack.datasets.augment.dropout import SensorDropout
from bevstack.datasets.augment.image import (
    ImageAugmentation,
    ImageResize,
    WarpedImage,
    warp_camera,
    window_affine,
)

SIZE = (70, 26)
RANDOM = ImageAugmentation(SIZE, (0.9, 1.4), (0.0, 0.1), flip=True, rotation=(-0.1, 0.1))


def smooth_image(width, height):
    """An image whose colour tells the position: red u, green v, blue a slow wave."""
    u, v = np.meshgrid(np.arange(width), np.arange(height))
    wave = 127 + 100 * np.sin(u / width * 5) * np.cos(v / height * 4)
    return np.stack([u * 250 / width, v * 250 / height, wave], -1).round().astype(np.uint8)


def bilinear(image, u, v):
    """Colours at float positions, in float64; the definition."""
    i, j = np.floor(v).astype(int), np.floor(u).astype(int)
    a, b = (v - i)[..., None], (u - j)[..., None]
    image = image.astype(float)
    upper = image[i, j] * (1 - b) + image[i, j + 1] * b
    lower = image[i + 1, j] * (1 - b) + image[i + 1, j + 1] * b
    return upper * (1 - a) + lower * a


affines = st.builds(
    window_affine,
    st.sampled_from([(1600, 900), (320, 180), (161, 95)]),
    st.sampled_from([(64, 40), (200, 90), (704, 256)]),
    st.floats(0.8, 1.6),
    st.floats(0, 1),
    st.floats(0, 0.2),
    st.booleans(),
    st.floats(-0.2, 0.2),
)


@settings(max_examples=40, deadline=None)
@given(affines, st.sampled_from([(1600, 900), (320, 180)]))
def test_pixels_move_exactly_as_the_calibration_says(new_from_old, source):
    """A new pixel has the colour of its place in the old image, whatever was decoded."""
    image = smooth_image(*source)
    new = WarpedImage(Pixels(image), new_from_old, (120, 60))()
    v, u = np.mgrid[:60, :120]
    old = np.stack([u, v, np.ones_like(u)], -1) @ np.linalg.inv(new_from_old).T
    margin = 8  # decoded at 1/8, the border pixels mix with nothing
    inside = (old[..., 0] > margin) & (old[..., 0] < source[0] - 1 - margin)
    inside &= (old[..., 1] > margin) & (old[..., 1] < source[1] - 1 - margin)
    expected = bilinear(image, *np.moveaxis(old[inside], -1, 0)[:2])
    # Rounding of the image, of the reduced image and of OpenCV's weights (1/32 pixel).
    assert abs(new[inside] - expected).max(initial=0) < 2.5


def test_peer_bug_18_resize_semantics_are_pinned_by_golden_values():
    """Fixed pixels, fixed map: no library's own idea of a resize filter can leak in."""
    image = (np.arange(6 * 8 * 3).reshape(6, 8, 3) * 37 % 256).astype(np.uint8)
    matrix = window_affine((8, 6), (4, 3), 1.0, 0.5, 0.0)
    half = WarpedImage(Pixels(image), matrix, (4, 3))()
    blocks = image.reshape(3, 2, 4, 2, 3).mean((1, 3)).round()
    assert (half == blocks).all()  # scale 1/2 is the mean of 2 x 2 pixels, exactly
    larger = WarpedImage(Pixels(image), window_affine((8, 6), (16, 12), 1.0, 0.5, 0.0), (16, 12))()
    # New pixel 1 lies at old (1 + 0.5) / 2 - 0.5 = 0.25: three parts of pixel 0, one of pixel 1.
    expected = 0.75 * (0.75 * image[0, 0] + 0.25 * image[0, 1].astype(float))
    expected += 0.25 * (0.75 * image[1, 0] + 0.25 * image[1, 1].astype(float))
    assert abs(larger[1, 1] - expected).max() <= 1


def test_a_fine_pattern_does_not_alias():
    checkers = np.indices((900, 1600)).sum(0) % 2 * 255
    camera = make_camera(image=np.repeat(checkers[..., None], 3, -1).astype(np.uint8))
    image = ImageResize((704, 256))._resized(camera).load()
    assert abs(image[5:-5, 5:-5].astype(int) - 128).max() <= 1


@pytest.mark.parametrize("source", [(1600, 900), (400, 225), (160, 90)], ids=str)
def test_resize_keeps_the_bottom_and_does_not_depend_on_the_resolution(source):
    camera = make_camera(image=smooth_image(*source))
    frame = make_frame(cameras=(camera,))
    (resized,) = ImageResize((80, 32), resize=1.25)(frame, 0).cameras
    assert resized.load().shape == (32, 80, 3)
    assert (resized.model.width, resized.model.height) == (80, 32)
    matrix = resized.model.intrinsic @ np.linalg.inv(camera.model.intrinsic)
    width, height = source
    corners = np.array([[width * 0.1, height, 1], [width * 0.9, height, 1]]) - [0.5, 0.5, 0]
    # 1.25 times wider than the window: the middle 80 % remain, the lower edge on the lower edge.
    assert (corners @ matrix.T)[:, :2] == pytest.approx(np.array([[-0.5, 31.5], [79.5, 31.5]]))


def test_published_test_transform_is_a_config():
    """MIT BEVFusion: 1600 x 900 by 0.48, then 32 columns and 176 rows cut off."""
    matrix = window_affine((1600, 900), (704, 256), 0.48 * 1600 / 704, 0.5, 0.0)
    corner_convention = matrix @ [-0.5, -0.5, 1] + [0.5, 0.5, 0]
    assert corner_convention == pytest.approx([-32, -176, 1])
    assert matrix[:2, :2] == pytest.approx(0.48 * np.eye(2))


def test_a_projected_point_stays_on_what_it_shows():
    dot = np.zeros((180, 320, 3), np.uint8)
    camera = make_camera(image=dot)
    point = np.array([0.4, 0.1, 12.0])
    u, v, _ = camera.model.project(point)
    rows, columns = np.indices((180, 320))
    blob = 255 * np.exp(-((columns - u) ** 2 + (rows - v) ** 2) / 18)
    camera = replace(camera, load=Pixels(np.repeat(blob[..., None], 3, -1).astype(np.uint8)))
    seen = 0
    for seed in range(60):
        (moved,) = RANDOM(make_frame(cameras=(camera,)), seed).cameras
        light = moved.load()[..., 0].astype(float)
        new_u, new_v, depth = moved.model.project(point)
        assert depth == 12
        if not (8 < new_u < SIZE[0] - 9 and 8 < new_v < SIZE[1] - 9):
            continue
        rows, columns = np.indices(light.shape)
        found = np.array([(columns * light).sum(), (rows * light).sum()]) / light.sum()
        assert found == pytest.approx([new_u, new_v], abs=0.15)
        seen += 1
    assert seen >= 10


def test_cameras_are_drawn_apart_and_frames_repeat():
    frame = make_frame()
    first, again, other = RANDOM(frame, 1), RANDOM(frame, 1), RANDOM(frame, 2)
    affines = [
        new.model.intrinsic @ np.linalg.inv(old.model.intrinsic)
        for new, old in zip(first.cameras, frame.cameras)
    ]
    assert not np.allclose(*affines)
    for a, b, c in zip(first.cameras, again.cameras, other.cameras):
        assert (a.load() == b.load()).all()
        assert (a.model.intrinsic == b.model.intrinsic).all()
        assert (a.model.intrinsic != c.model.intrinsic).any()


def test_reduction_of_a_moved_image_means_what_the_protocol_says():
    camera = make_camera(image=smooth_image(320, 180))
    image = WarpedImage(camera.load, window_affine((320, 180), (161, 81), 1.0, 0.5, 0.0), (161, 81))
    half = image(2)
    assert half.shape == (41, 81, 3)
    full = image()[:80, :160].reshape(40, 2, 80, 2, 3).mean((1, 3))
    assert abs(half[1:40, 1:80] - full[1:, 1:]).max() <= 2


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"size": (0, 5)}, "size is"),
        ({"resize": (0.0, 1.0)}, "resize is"),
        ({"resize": (1.2, 1.0)}, "resize is"),
        ({"crop_bottom": (0.1, 1.0)}, "crop_bottom is"),
    ],
)
def test_impossible_windows_are_refused_before_any_data(values, message):
    with pytest.raises(ValueError, match=message):
        ImageAugmentation(**({"size": SIZE} | values))


def test_another_camera_model_is_refused_by_name():
    camera = replace(make_camera(), model=object())
    with pytest.raises(ValueError, match=r"CAM_FRONT is a object; .*Pinhole"):
        warp_camera(camera, np.eye(3), SIZE)


@pytest.mark.parametrize(
    "step", [RANDOM, ImageResize(SIZE), ColorJitter(), BEVAugmentation((-1, 1)), SensorDropout(1.0)]
)
def test_peer_bugs_3_and_4_a_step_leaves_its_input_alone(step):
    frame = make_frame()
    before = pickle.dumps(frame)
    for camera in step(frame, 3).cameras:
        camera.load()
    assert pickle.dumps(frame) == before


def test_color_matrix_does_what_its_names_say():
    color = np.array([200.0, 100.0, 50.0, 1.0])
    assert color_matrix(1, 1, 1) @ color == pytest.approx(color[:3])
    assert color_matrix(0.5, 1, 1) @ color == pytest.approx(color[:3] / 2)
    assert color_matrix(1, 0, 1) @ color == pytest.approx([127.5] * 3)
    grey = color_matrix(1, 1, 0) @ color
    assert grey == pytest.approx([200 * 0.299 + 100 * 0.587 + 50 * 0.114] * 3)


def test_color_jitter_changes_colours_only():
    frame = make_frame()
    jittered = ColorJitter()(frame, 0)
    for old, new in zip(frame.cameras, jittered.cameras):
        assert new.load().dtype == np.uint8
        assert new.load().shape == old.load().shape
        assert (new.load() != old.load()).any()
        assert new.model is old.model
    still = ColorJitter((1, 1), (1, 1), (1, 1))(frame, 0)
    assert (still.cameras[0].load() == frame.cameras[0].load()).all()


def test_bev_augmentation_stays_in_its_ranges():
    step = BEVAugmentation((-0.3, 0.5), (0.9, 1.2), (0.5, 0, 0), flip_x=True)
    matrices = np.stack(
        [step(make_frame(f"{i}", (), (), None), 0).bev_from_ego for i in range(300)]
    )
    scale = np.cbrt(abs(np.linalg.det(matrices[:, :3, :3])))
    assert scale.min() >= 0.9
    assert scale.max() <= 1.2
    mirrored = np.linalg.det(matrices[:, :3, :3]) < 0
    assert 0.4 < mirrored.mean() < 0.6
    yaw = np.arctan2(matrices[:, 1, 0], matrices[:, 0, 0])[~mirrored]
    assert yaw.min() >= -0.3
    assert yaw.max() <= 0.5
    assert np.ptp(yaw) > 0.6
    assert (matrices[:, 1:3, 3] == 0).all()
    assert 0.4 < (matrices[:, 0, 3] / scale).std() < 0.6


def test_bev_augmentation_multiplies_from_the_left():
    step = BEVAugmentation((0.2, 0.3))
    frame = make_frame()
    lidar_frame = replace(frame, bev_from_ego=np.diag([1.0, 1, 1, 1]) + np.eye(4, k=3) * 2)
    change = step(frame, 0).bev_from_ego
    assert step(lidar_frame, 0).bev_from_ego == pytest.approx(change @ lidar_frame.bev_from_ego)


@pytest.mark.parametrize("scale", [(0.0, 1.0), (1.2, 0.9)])
def test_bev_augmentation_refuses_a_bad_scale(scale):
    with pytest.raises(ValueError, match="give 0 < smallest <= largest"):
        BEVAugmentation(scale=scale)


def test_sensor_dropout_never_takes_both_sensors():
    step = SensorDropout(camera=0.3, lidar=0.2)
    frames = [step(make_frame(f"{i}"), 0) for i in range(300)]
    no_camera = np.mean([not frame.cameras for frame in frames])
    no_lidar = np.mean([not frame.sweeps for frame in frames])
    assert abs(no_camera - 0.3) < 0.08
    assert abs(no_lidar - 0.2) < 0.08
    assert all(frame.cameras or frame.sweeps for frame in frames)


def test_sensor_dropout_leaves_the_only_sensor():
    alone = make_frame(cameras=())
    assert SensorDropout(lidar=1.0)(alone, 0).sweeps == alone.sweeps
    with pytest.raises(ValueError, match="add up to at most 1"):
        SensorDropout(0.6, 0.6)
