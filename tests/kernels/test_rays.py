"""Rays through volumes, against a brute-force caster that sorts all crossings of a ray."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bevstack.kernels.numba_rays import first_hits, mark_crossed, mark_visible

FREE = 17


def stretches(origin, direction, shape, limit=np.inf):
    """The voxels of a ray in order, each with where it is left: all crossings, sorted."""
    with np.errstate(divide="ignore", invalid="ignore"):
        crossings = np.concatenate(
            [(np.arange(n + 1) - o) / d for n, o, d in zip(shape, origin, direction) if d != 0]
        )
    t = np.unique(np.concatenate([[0.0], crossings[(crossings > 0) & np.isfinite(crossings)]]))
    for a, b in pairwise(t):
        if a > limit:
            return
        voxel = np.floor(origin + (a + b) / 2 * direction).astype(int)
        if ((voxel >= 0) & (voxel < shape)).all():
            yield tuple(voxel), b


def brute_force(volume, origin, direction):
    left = 0.0
    for voxel, left in stretches(origin, direction, volume.shape):
        if volume[voxel] != FREE:
            return volume[voxel], left
    return FREE, left


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), filled=st.sampled_from([0.0, 0.02, 0.3]))
def test_first_hits_equal_the_brute_force_caster(seed, filled):
    random = np.random.default_rng(seed)
    shape = tuple(random.integers(2, 14, 3))
    volume = np.full(shape, FREE, np.uint8)
    there = random.random(shape) < filled
    volume[there] = random.integers(0, FREE, there.sum())
    origins = random.uniform(0.01, 0.99, (3, 3)) * shape
    directions = unit(random.normal(size=(20, 3)))
    label, depth = first_hits(volume, FREE, origins, directions, num_threads=1)
    for o, origin in enumerate(origins):
        for r, direction in enumerate(directions):
            expected_label, expected_depth = brute_force(volume, origin, direction)
            assert label[o, r] == expected_label
            assert depth[o, r] == pytest.approx(expected_depth, abs=1e-9)


def test_axis_parallel_rays():
    volume = np.full((8, 4, 4), FREE, np.uint8)
    volume[6, 1, 1] = 4
    origin, directions = np.array([[1.5, 1.5, 1.5]]), np.array([[1.0, 0, 0], [-1, 0, 0], [0, 0, 1]])
    label, depth = first_hits(volume, FREE, origin, directions)
    assert label.tolist() == [[4, FREE, FREE]]
    # To where the voxel is left, and to the border.
    assert depth.tolist() == [[5.5, 1.5, 2.5]]


def test_rays_that_start_outside_or_are_not_wanted_see_nothing():
    volume = np.zeros((4, 4, 4), np.uint8)
    origins, up = np.array([[-1.0, 2, 2], [2, 2, 2]]), np.array([[0.0, 0, 1]])
    label, depth = first_hits(volume, FREE, origins, up)
    assert label.tolist() == [[FREE], [0]]
    assert depth.tolist() == [[0], [1]]
    label, _ = first_hits(volume, FREE, origins, up, wanted=np.zeros((2, 1), bool))
    assert (label == FREE).all()


def test_threads_give_the_same():
    random = np.random.default_rng(0)
    volume = np.where(random.random((40, 40, 8)) < 0.01, 3, FREE).astype(np.uint8)
    origins = random.uniform(5, 35, (4, 3)) * [1, 1, 0.2]
    directions = unit(random.normal(size=(1000, 3)))
    alone = first_hits(volume, FREE, origins, directions, num_threads=1)
    many = first_hits(volume, FREE, origins, directions, num_threads=3)
    assert all(np.array_equal(a, b) for a, b in zip(alone, many))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_crossed_voxels_equal_the_brute_force_caster(seed):
    random = np.random.default_rng(seed)
    shape = tuple(random.integers(2, 10, 3))
    origin = random.uniform(-0.3, 1.3, 3) * shape
    ends = random.uniform(-0.5, 1.5, (5, 3)) * shape
    seen, expected = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
    mark_crossed(seen, origin, ends)
    for end in ends:
        length = np.linalg.norm(end - origin)
        for voxel, _ in stretches(origin, (end - origin) / length, shape, length + 0.05):
            expected[voxel] = 1
    assert np.array_equal(seen, expected)


def test_rays_without_an_end_cross_nothing():
    seen = np.zeros((3, 3, 3), np.uint8)
    mark_crossed(seen, np.ones(3), np.array([[np.inf, 0, 0], [np.nan, 1, 1], [1, 1, 1]]))
    assert not seen.any()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_without_its_end_a_ray_marks_what_it_leaves_before(seed):
    random = np.random.default_rng(seed)
    shape = tuple(random.integers(2, 10, 3))
    origin = random.uniform(-0.3, 1.3, 3) * shape
    end = random.uniform(-0.5, 1.5, 3) * shape
    seen, expected = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
    mark_crossed(seen, origin, end[None], with_end=False)
    length = np.linalg.norm(end - origin)
    for voxel, left in stretches(origin, (end - origin) / length, shape, length):
        expected[voxel] = left < length
    assert np.array_equal(seen, expected)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), filled=st.sampled_from([0.0, 0.05, 0.3]))
def test_visible_voxels_end_with_the_first_filled_one(seed, filled):
    random = np.random.default_rng(seed)
    shape = tuple(random.integers(2, 10, 3))
    volume = np.where(random.random(shape) < filled, 3, FREE).astype(np.uint8)
    origin = random.uniform(-0.3, 1.3, 3) * shape
    directions = random.normal(size=(6, 3))
    seen, expected = np.zeros(shape, np.uint8), np.zeros(shape, np.uint8)
    mark_visible(seen, volume, FREE, origin, directions)
    for direction in unit(directions):
        for voxel, _ in stretches(origin, direction, shape):
            expected[voxel] = 1
            if volume[voxel] != FREE:
                break
    assert np.array_equal(seen, expected)
