"""Published image preparation: Pillow itself, and the published matrices, step by step."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bevstack.datasets.augment import PublishedImageAugmentation, PublishedResize
from bevstack.datasets.augment.bicubic import resize_bicubic
from bevstack.datasets.augment.published import PublishedImage, PublishedWindow, turned
from bevstack.datasets.camera_models import Pinhole
from bevstack.datasets.frame import Camera, Frame

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
