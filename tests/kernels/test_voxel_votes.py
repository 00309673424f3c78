"""Votes of points for voxels, against a loop in plain Python."""

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from bevstack.kernels.numba_voxel_votes import add_votes, most_voted

RANK = np.array([1, 1, 0, 0])


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_the_most_frequent_class_of_the_highest_rank_wins(seed):
    random = np.random.default_rng(seed)
    shape = (3, 2, 2)
    points = random.uniform(-1, 4, (60, 3)).astype(np.float32)
    label = random.integers(0, 4, 60).astype(np.uint8)
    matrix = np.eye(4)
    matrix[:3, :3] += random.normal(0, 0.2, (3, 3))
    matrix[:3, 3] = random.normal(0, 0.3, 3)
    votes = np.zeros((*shape, 4), np.int32)
    add_votes(votes, points, label, matrix)
    found = most_voted(votes, RANK, nothing=9)
    counts = Counter()
    for point, k in zip(points.astype(np.float64), label.tolist()):
        voxel = np.floor(matrix[:3, :3] @ point + matrix[:3, 3]).astype(int)
        if ((voxel >= 0) & (voxel < shape)).all():
            counts[(*voxel.tolist(), k)] += 1
    for voxel in np.ndindex(*shape):
        mine = [(RANK[k], counts[(*voxel, k)], -k) for k in range(4) if counts[(*voxel, k)]]
        assert found[voxel] == (-max(mine)[2] if mine else 9)


def test_points_that_are_not_finite_or_outside_do_not_vote():
    votes = np.zeros((2, 2, 2, 1), np.int32)
    points = np.array([[np.nan, 1, 1], [np.inf, 1, 1], [-0.5, 1, 1], [2, 1, 1]])
    add_votes(votes, points, np.zeros(4, np.uint8), np.eye(4))
    assert votes.sum() == 0
