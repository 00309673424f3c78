"""Lost and displaced points: laws, shares, and what the originals left of the real key frame."""

from dataclasses import replace

import numpy as np
import pytest
from scenes import street_cloud, street_frame

from bevstack.datasets.corruptions import SUITES
from bevstack.datasets.corruptions.lidar_drop import Cutout, LoseRings, random_subset
from bevstack.datasets.corruptions.lidar_noise import PointNoise, RigidOffset


@pytest.mark.parametrize(
    ("suite", "name", "left"),  # points that the original's code left of 34,688
    [
        ("robo3d", "cross_sensor", (13_008, 8_672, 4_336)),
        ("robo3d", "incomplete_echo", (34_268, 34_212, 34_156)),
        ("nuscenes_c", "fov_lost", (17_547, 14_578, 11_860, 9_069, 6_669)),
        ("multicorrupt", "pointsreducing", (10_406, 6_938, 3_469)),
        ("multicorrupt", "beamsreducing", (17_344, 8_672, 4_336)),
    ],
)
def test_as_many_points_are_left_as_by_the_original(key_frame, suite, name, left):
    entry = SUITES[suite][name]
    found = [
        len(entry.at(severity)(key_frame, 0).sweeps[0].load())
        for severity in range(1, entry.severities + 1)
    ]
    assert found == pytest.approx(left, abs=2)


def test_rings_drawn_with_replacement_are_as_few_as_published():
    frame = street_frame()
    clean = [replace(frame, token=f"frame{i}") for i in range(60)]
    for count, distinct in ((8, 7.0), (16, 12.2), (24, 16.1)):
        lost = [
            32 - len(np.unique(LoseRings(count, 2, 28, True)(f, 0).sweeps[0].load()[:, 4]))
            for f in clean
        ]
        assert np.mean(lost) == pytest.approx(distinct, abs=0.5)
        left = LoseRings(count, 2, 28)(clean[0], 0).sweeps[0].load()[:, 4]
        assert len(np.unique(left)) == 32 - count
        assert np.isin([0, 1, 29, 30, 31], left).all()


def test_all_sweeps_lose_the_same_rings():
    sweeps = LoseRings(8)(street_frame(), 0).sweeps
    rings = [set(np.unique(sweep.load()[:, 4])) for sweep in sweeps]
    assert rings[0] == rings[1] == rings[2]


def test_cutout_takes_the_nearest_points_of_a_point():
    clean = street_frame()
    points = clean.sweeps[0].load()
    left = Cutout(1, 0.1)(clean, 0).sweeps[0].load()
    lost = points[~np.isin(points.view("V20").ravel(), left.view("V20").ravel())][:, :3]
    assert len(lost) == round(0.1 * len(points))
    # Some lost point is nearer to every other lost one than to any that is left.
    reach = np.linalg.norm(lost[:, None] - lost[None], axis=2).max(1)
    nearest_left = np.linalg.norm(lost[:, None] - left[None, :, :3], axis=2).min(1)
    assert (reach <= nearest_left + 1e-4).any()


@pytest.mark.parametrize(
    ("law", "sd", "largest"), [("normal", 1.0, np.inf), ("uniform", 3**-0.5, 1), ("impulse", 1, 1)]
)
def test_noise_has_its_law_on_its_share(law, sd, largest):
    clean = street_frame()
    points = clean.sweeps[0].load()
    noisy = PointNoise(law, (0.1, 0.2, 0.0, 0.0), 0.25)(clean, 0).sweeps[0].load()
    change = noisy.astype(np.float64) - points
    moved = change[:, 0] != 0
    assert moved.mean() == pytest.approx(0.25, abs=0.002)
    assert change[moved, :2].std(0) == pytest.approx([0.1 * sd, 0.2 * sd], rel=0.07)
    assert np.abs(change[:, :2]).max() <= 0.2 * largest + 1e-4
    assert not change[:, 2:].any()


def test_noise_is_clipped_and_intensity_stays_in_range():
    noisy = PointNoise("normal", (5, 5, 5, 500), clip=8)(street_frame(), 0).sweeps[0].load()
    assert np.abs(noisy[:, :3] - street_cloud()[:, :3]).max() <= 8 + 1e-4
    assert 0 <= noisy[:, 3].min() <= noisy[:, 3].max() <= 255


def test_offset_is_one_for_all_sweeps_unless_each_draws():
    clean = street_frame()
    for per_sweep in (False, True):
        step = RigidOffset(translation_std=0.5, per_sweep=per_sweep)
        shifts = [
            np.mean(after.load()[:, :3].astype(np.float64) - before.load()[:, :3], axis=0)
            for before, after in zip(clean.sweeps, step(clean, 0).sweeps)
        ]
        assert np.allclose(shifts[0], shifts[1], atol=1e-4) != per_sweep


def test_offset_turns_axes_by_x_then_y_then_z():
    step = RigidOffset((0.0, 0.0, 90.0), (2.0, 0.0, 0.0))
    moved = step(street_frame(), 0).sweeps[0].load()
    x, y, z = street_cloud()[:, :3].T
    assert np.allclose(moved[:, :3], np.stack([y + 2, -x, z], 1), atol=1e-4)


def test_misalignment_comes_as_often_as_it_says():
    frame = street_frame()
    clean = [replace(frame, token=f"frame{i}") for i in range(150)]
    entry, points = SUITES["multicorrupt"]["spatialmisalignment"], street_cloud()
    for severity, share in ((1, 0.2), (2, 0.4), (3, 0.6)):
        step = entry.at(severity)
        moved = [not np.array_equal(step(f, 0).sweeps[0].load(), points) for f in clean]
        assert np.mean(moved) == pytest.approx(share, abs=0.12)


def test_subset_is_ascending_and_of_the_wanted_size():
    random = np.random.default_rng(0)
    for share in (0.0, 0.1, 0.5, 0.9, 1.0):
        chosen = random_subset(1001, share, random)
        assert len(chosen) == round(1001 * share)
        assert (np.diff(chosen) > 0).all()
