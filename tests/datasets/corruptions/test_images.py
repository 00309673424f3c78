"""Corruptions of images against their formulas in float64, numpy's draws and the real key frame."""

from dataclasses import dataclass

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scenes import make_camera, make_frame, make_sweep

from bevstack.datasets.corruptions.byte_noise import (
    alias_table,
    draw_bytes,
    impulse_law,
    normal_law,
    poisson_normal_law,
    uniform_law,
)
from bevstack.datasets.corruptions.depth_fog import DepthFog, distance_map
from bevstack.datasets.corruptions.image_blur import DrivingBlur, LineBlur, line_blur, zoom_blur
from bevstack.datasets.corruptions.image_fog import HazeFog, PlasmaFog
from bevstack.datasets.corruptions.image_noise import Dark, PixelNoise
from bevstack.datasets.corruptions.image_rain import ImageRain
from bevstack.datasets.corruptions.image_snow import ImageSnow
from bevstack.datasets.corruptions.image_tone import Brighten, GreyVeil, Posterise, change_value
from bevstack.datasets.corruptions.plasma import plasma
from bevstack.datasets.corruptions.suites.imagecorruptions import SNOW
from bevstack.datasets.corruptions.sun import SunGlare
from bevstack.datasets.geometry import apply, inverse

SMALL = st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3))
LEVELS = np.arange(256) / 255
STEPS = (
    PixelNoise("normal", 0.08),
    PixelNoise("uniform", 0.08),
    PixelNoise("impulse", 0.03),
    Dark(0.6, 250, 0.008),
    Brighten(0.2),
    GreyVeil(0.3, 0.7),
    Posterise(4),
    LineBlur(15, 6),
    DrivingBlur(0.02, 16),
    PlasmaFog(2, 2),
    HazeFog(2, 0.0005),
    DepthFog(0.02),
    SNOW[0],
    ImageRain((0.01, 0.06)),
    SunGlare(50, 0.004),
)


@dataclass(frozen=True)
class Context:
    """Draws that a test chooses; nothing else of a frame."""

    seed: int = 0

    def random(self):
        return np.random.default_rng(self.seed)


def photo(height=90, width=160, seed=0):
    """A smooth picture with all values in it."""
    random = np.random.default_rng(seed)
    small = random.integers(0, 256, (6, 9, 3)).astype(np.uint8)
    picture = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
    picture[0, 0], picture[0, 1] = 0, 255
    return picture


@pytest.mark.parametrize("step", STEPS, ids=lambda step: type(step).__name__)
def test_images_keep_their_form_and_depend_on_seed_and_frame_alone(step):
    frame = make_frame(
        cameras=(make_camera("CAM_FRONT", photo()), make_camera("CAM_BACK", photo()))
    )
    before = [camera.load().copy() for camera in frame.cameras]
    first, second = step(frame, 7), step(frame, 7)
    images = [camera.load() for camera in first.cameras]
    again = [camera.load() for camera in reversed(second.cameras)][::-1]
    for clean, image, repeated, camera in zip(before, images, again, first.cameras):
        assert image.shape == clean.shape
        assert image.dtype == np.uint8
        np.testing.assert_array_equal(image, repeated)
        whole = image[:88].reshape(22, 4, 40, 4, 3).mean((1, 3))
        assert camera.load(4).shape == (23, 40, 3)
        assert np.abs(camera.load(4)[:22] - whole).max() <= 1
    assert any((image != clean).any() for image, clean in zip(images, before))
    for camera, clean in zip(frame.cameras, before):
        np.testing.assert_array_equal(camera.load(), clean)


@pytest.mark.parametrize(
    "step",
    [PixelNoise("normal", 0), Brighten(0), GreyVeil(0), Posterise(8), DrivingBlur(0, 0),
     DepthFog(0), PlasmaFog(0, 2)],
    ids=lambda step: type(step).__name__,
)  # fmt: skip
def test_no_strength_is_the_frame_itself(step):
    frame = make_frame()
    assert step(frame, 0) is frame


# --- Tone -----------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=50)
@given(arrays(np.uint8, SMALL), st.floats(-1, 1))
def test_brightness_is_an_offset_of_v_in_hsv(image, offset):
    x = image / 255
    value = x.max(-1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        saturation = np.where(value > 0, (value - x) / value, 0)  # how far each colour is below V
    expected = np.clip(value + offset, 0, 1) * (1 - saturation) * 255
    changed = change_value(image, LEVELS + offset)
    np.testing.assert_allclose(changed, expected, atol=0.5 + 1e-6)


def test_grey_veil_is_a_blend_and_an_exposure():
    image = photo()
    blend = np.round(0.7 * image + 0.3 * 128)
    np.testing.assert_array_equal(GreyVeil(0.3).corrupt(image, Context()), blend)
    exposed = GreyVeil(0.3, 0.7).corrupt(image, Context())
    assert np.abs(exposed - blend * (0.7 * 256 / blend.max())).max() <= 0.5 + 1e-6


@pytest.mark.parametrize("bits", [1, 2, 3, 4])
def test_posterise_keeps_the_highest_bits(bits):
    step = 2 ** (8 - bits)
    image = photo()
    np.testing.assert_array_equal(Posterise(bits).corrupt(image, Context()), image // step * step)


# --- Noise ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "law",
    [normal_law(LEVELS, 0.18), uniform_law(LEVELS, 0.12), impulse_law(0.27),
     poisson_normal_law(LEVELS, 50, 0.026)],
    ids=["normal", "uniform", "impulse", "dark"],
)  # fmt: skip
def test_alias_table_holds_the_law(law):
    table = alias_table(law)
    held = np.zeros((256, 256))
    keep = ((table >> 8) + (table >> 8 == 2**24 - 1)) / 2**24
    for row in range(256):
        held[row] += keep[row] / 256
        np.add.at(held[row], table[row] & 255, (1 - keep[row]) / 256)
    np.testing.assert_allclose(law.sum(1), 1, atol=1e-9)
    np.testing.assert_allclose(held, law, atol=1e-6)


def drawn_by_numpy(kind, value, random, count):
    """Bytes after noise, by numpy's generators."""
    x = np.full(count, value / 255)
    if kind == "normal":
        x += random.normal(0, 0.08, count)
    elif kind == "uniform":
        x += random.uniform(-0.38, 0.38, count)
    elif kind == "impulse":
        hit = random.random(count) < 0.09
        x[hit] = random.integers(0, 2, hit.sum())
    else:
        x = random.poisson(0.4 * x**2 * 120, count) / 120 + random.normal(0, 0.018, count)
    return np.round(np.clip(x, 0, 1) * 255).astype(np.uint8)


@pytest.mark.parametrize("value", [0, 40, 128, 250])
@pytest.mark.parametrize(
    ("kind", "law"),
    [("normal", normal_law(LEVELS, 0.08)), ("uniform", uniform_law(LEVELS, 0.38)),
     ("impulse", impulse_law(0.09)), ("dark", poisson_normal_law(0.4 * LEVELS**2, 120, 0.018))],
    ids=["normal", "uniform", "impulse", "dark"],
)  # fmt: skip
def test_noise_is_distributed_as_numpys(kind, law, value):
    count = 100_000
    ours = draw_bytes(np.full(count, value, np.uint8), alias_table(law), np.uint64(5))
    theirs = drawn_by_numpy(kind, value, np.random.default_rng(6), count)
    cumulative = [np.bincount(x, minlength=256).cumsum() / count for x in (ours, theirs)]
    # Kolmogorov-Smirnov; 0.0091 is passed once in 10,000 times.
    assert np.abs(cumulative[0] - cumulative[1]).max() < 0.0101


def test_noise_of_neighbours_and_of_cameras_is_independent():
    grey = np.full((400, 400, 3), 128, np.uint8)
    frame = make_frame(cameras=(make_camera("A", grey), make_camera("B", grey)))
    noisy = PixelNoise("normal", 0.1)(frame, 0)
    one, other = (camera.load().astype(float) - 128 for camera in noisy.cameras)
    for left, right in [(one, other), (one[1:], one[:-1]), (one[:, 1:], one[:, :-1]),
                        (one[..., 0], one[..., 1])]:  # fmt: skip
        assert abs(np.corrcoef(left.ravel(), right.ravel())[0, 1]) < 0.012


def test_dark_has_the_expected_values():
    image = photo()
    dark = [Dark(0.4, 120, 0.018).corrupt(image, Context(seed)) for seed in range(200)]
    expected = 0.4 * (image / 255) ** 2
    mean = np.mean(dark, 0) / 255
    away = expected > 0.08  # from black, where clipping moves the mean
    np.testing.assert_allclose(mean[away], expected[away], atol=0.02)


# --- Blur -----------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(arrays(np.uint8, SMALL), st.integers(0, 12), st.floats(1, 15), st.floats(-180, 180))
def test_line_blur_is_a_weighted_sum_of_moved_images(image, radius, sigma, degrees):
    height, width = image.shape[:2]
    expected, total = np.zeros(image.shape), 0.0
    for i in range(2 * radius + 1):
        weight = np.exp(-(i**2) / (2 * sigma**2))
        down = int(np.ceil(i * np.sin(np.deg2rad(degrees)) - 0.5))
        right = int(np.ceil(i * np.cos(np.deg2rad(degrees)) - 0.5))
        rows = np.clip(np.arange(height) + down, 0, height - 1)
        columns = np.clip(np.arange(width) + right, 0, width - 1)
        expected += weight * image[rows][:, columns]
        total += weight
    blurred = line_blur(image, radius, sigma, degrees)
    np.testing.assert_allclose(blurred, expected / total, atol=0.51)


def test_zoom_blur_keeps_the_middle_and_moves_the_edge():
    image = np.zeros((101, 201, 3), np.uint8)
    image[:, 100], image[:, 180] = 200, 200
    blurred = zoom_blur(image, 0.10)
    assert (blurred[50, 100] > 80).all()
    # The line at 80 columns from the middle is spread over 80 * (1 .. 1.1).
    assert (blurred[50, 180:189, 0] > 0).all()
    assert (blurred[50, 170:179] == 0).all()
    np.testing.assert_array_equal(zoom_blur(np.full((9, 9, 3), 77, np.uint8), 0.04), 77)


def test_driving_blur_zooms_in_the_middle_cameras_only():
    picture = photo()
    frame = make_frame(
        cameras=(make_camera("CAM_FRONT", picture), make_camera("CAM_LEFT", picture))
    )
    zoomed, lined = (camera.load() for camera in DrivingBlur(0.1, 160)(frame, 0).cameras)
    np.testing.assert_array_equal(zoomed, zoom_blur(picture, 0.1))
    np.testing.assert_array_equal(lined, cv2.blur(picture, (16, 1)))
    swapped, _ = (camera.load() for camera in DrivingBlur(0.1, 160, swapped=True)(frame, 0).cameras)
    np.testing.assert_array_equal(swapped, lined)


# --- Fog ------------------------------------------------------------------------------------------


def diamond_square(side, decay, random):
    """The map in float64, a square or diamond at a time."""
    cloud, step = np.zeros((1, 1)), 100.0
    while len(cloud) < side:
        n = len(cloud)
        noise = step * random.uniform(-step, step, (3, n, n))
        fine = np.empty((2 * n, 2 * n))
        fine[::2, ::2] = cloud
        for i in range(n):
            for j in range(n):
                around = [cloud[(i + a) % n, (j + b) % n] for a in (0, 1) for b in (0, 1)]
                fine[2 * i + 1, 2 * j + 1] = np.mean(around) + noise[0, i, j]
        for i in range(n):
            for j in range(n):
                above, left = fine[2 * i - 1, 2 * j + 1], fine[2 * i + 1, 2 * j - 1]
                here, middle = cloud[i, j], fine[2 * i + 1, 2 * j + 1]
                right, below = cloud[i, (j + 1) % n], cloud[(i + 1) % n, j]
                fine[2 * i, 2 * j + 1] = (here + right + above + middle) / 4 + noise[1, i, j]
                fine[2 * i + 1, 2 * j] = (here + below + left + middle) / 4 + noise[2, i, j]
        cloud, step = fine, step / decay
    cloud -= cloud.min()
    return cloud / cloud.max()


def roughness(cloud):
    """Mean square difference of points 1, 2, 4, ... apart."""
    gaps = 2 ** np.arange(5)
    return np.array([np.mean((cloud[gap:] - cloud[:-gap]) ** 2) for gap in gaps])


@pytest.mark.parametrize("decay", [1.4, 2.0])
def test_plasma_is_rough_at_every_scale_as_diamond_square(decay):
    random = np.random.default_rng(0)
    ours = np.mean([roughness(plasma(64, 64, decay, random)) for _ in range(200)], 0)
    theirs = np.mean([roughness(diamond_square(64, decay, random)) for _ in range(80)], 0)
    np.testing.assert_allclose(ours, theirs, rtol=0.12)


def test_plasma_window_lies_in_a_map_that_spans_the_range():
    for seed in range(5):
        cloud = plasma(64, 64, 1.7, np.random.default_rng(seed))
        assert cloud.min() == pytest.approx(0, abs=1e-6)
        assert cloud.max() == pytest.approx(1, abs=1e-6)
        window = plasma(40, 64, 1.7, np.random.default_rng(seed))
        assert window.shape == (40, 64)
        np.testing.assert_allclose(window, cloud[:40], atol=2e-3)


def test_haze_lies_between_its_formulas_bounds():
    height, width, haze = 225, 400, 0.002
    image = photo(height, width)
    hazed = HazeFog(0, haze).corrupt(image, Context()) / 255
    row, column = np.mgrid[:height, :width]
    down = np.maximum(np.maximum(0.65 * height - row, row - 0.99 * height), 0)
    aside = np.maximum(np.maximum(0.10 * width - column, column - 0.85 * width), 0)
    pixels, base = np.hypot(down, aside) * 4, np.sqrt(width * 4)  # of an image 1,600 wide
    least, most = (np.exp(-haze * (2 * pixels * k + base))[..., None] for k in (1.25, 1.0))
    ends = [image / 255 * seen + 0.5 * (1 - seen) for seen in (least, most)]
    assert (hazed >= np.minimum(*ends) - 0.003).all()
    assert (hazed <= np.maximum(*ends) + 0.003).all()


def test_fog_over_depth_is_koschmieders_law_on_a_plane():
    camera = make_camera(image=photo(450, 800), focal=600.0)
    u, v = np.meshgrid(np.arange(-40, 840, 4.0), np.arange(-40, 490, 4.0))
    in_camera = camera.model.unproject(np.stack([u, v, np.full_like(u, 20)], -1)).reshape(-1, 3)
    sweep = make_sweep(np.zeros((1, 5)))
    world = apply(camera.global_from_ego @ camera.ego_from_camera, in_camera)
    xyz = apply(inverse(sweep.global_from_ego @ sweep.ego_from_lidar), world)
    sweep = make_sweep(np.concatenate([xyz, np.zeros((len(xyz), 2))], 1))
    frame = make_frame(cameras=(camera,), sweeps=(sweep,))
    foggy = DepthFog(0.05, air=0.8)(frame, 0).cameras[0].load()
    rows, columns = np.mgrid[:450, :800]
    ray = camera.model.unproject(np.stack([columns, rows, np.ones_like(rows)], -1))
    seen = np.exp(-0.05 * 20 * np.linalg.norm(ray, axis=-1))[..., None]
    expected = camera.load() * seen + 0.8 * 255 * (1 - seen)
    assert np.abs(foggy - expected)[10:440, 10:790].max() <= 1.2


def test_fog_without_lidar_hides_the_sky_and_not_the_road():
    frame = make_frame(sweeps=())
    distance = distance_map(frame, frame.cameras[0])
    assert np.isinf(distance[0]).all()
    assert (distance[-1] < 30).all()


# --- Snow, rain, sun ------------------------------------------------------------------------------


def test_share_of_flakes_is_that_of_the_normal_law():
    snow = ImageSnow(mean=0.3, zoom=1, threshold=0.6, radius=0, sigma=1, mix=0.9)
    layer = snow.layer(600, 800, np.random.default_rng(0))
    assert (layer > 0).mean() == pytest.approx(0.1587, abs=0.003)  # one standard deviation
    assert layer[layer > 0].min() == 153


def test_snow_without_flakes_pales_the_image():
    image = photo()
    pale = ImageSnow(mean=-9, zoom=2, threshold=0.5, radius=3, sigma=2, mix=0.7, gain=0.9)
    x = image / 255
    grey = (x @ [0.299, 0.587, 0.114])[..., None]
    expected = 0.9 * (0.7 * x + 0.3 * np.maximum(x, 1.5 * grey + 0.5))
    changed = pale.corrupt(image, Context())
    np.testing.assert_allclose(changed, np.clip(expected, 0, 1) * 255, atol=0.51)


def test_rain_falls_along_its_angle_and_only_lightens_the_dark():
    dark = np.full((300, 400, 3), 40, np.uint8)
    rain = ImageRain((0.1, 0.1), degrees=(15, 15), speed=(0.1, 0.1))
    wet = rain.corrupt(dark, Context()).astype(float)
    assert wet.min() >= 40
    streaks = wet[..., 0] - wet[..., 0].mean()
    down, slope = 12, round(12 * np.tan(np.deg2rad(15)))
    along = (streaks[down:, : -slope or None] * streaks[:-down, slope:]).mean()
    against = (streaks[down:, slope:] * streaks[:-down, : -slope or None]).mean()
    assert along > 3 * abs(against)


def test_sun_blinds_where_it_shines_and_no_pixel_gets_darker():
    frame = make_frame(cameras=(make_camera(image=photo(900, 1600), focal=1200.0),))
    random = np.random.default_rng(1)
    cloud = random.uniform([-40, 0, -2, 0, 0], [40, 40, 6, 255, 31], (40_000, 5))
    frame = make_frame(cameras=frame.cameras, sweeps=(make_sweep(cloud),))
    sunny = SunGlare(70, 0.02)(frame, 3)
    image, glowing = frame.cameras[0].load(), sunny.cameras[0].load()
    assert (glowing >= image).all()
    white = (glowing == 255).all(-1) & (image.max(-1) < 200)
    assert white.sum() > 1000
    points = sunny.sweeps[0].load()
    lost = len(cloud) - len(points)
    assert 0 < lost < 0.1 * len(cloud)
    kept = set(map(bytes, points))
    gone = np.array([p for p in cloud.astype(np.float32) if bytes(p) not in kept])
    assert len(gone) - lost == round(0.02 * len(points))  # the ghosts


@pytest.fixture(scope="module")
def key_images(shared_data):
    files = sorted((shared_data / "nuscenes-keyframe" / "samples").glob("CAM*/*.jpg"))
    return [cv2.cvtColor(cv2.imread(str(file)), cv2.COLOR_BGR2RGB) for file in files]


def test_snow_brightens_the_key_frame_as_robobevs(key_images):
    mean = [
        np.mean([snow.corrupt(image, Context(i)).mean() for i, image in enumerate(key_images)])
        for snow in SNOW[:3]
    ]
    # RoboBEV was measured at 149, 176, 175; it takes blue for red in the grey of a pixel.
    np.testing.assert_allclose(mean, [149, 176, 175], atol=3)
