"""The pinhole camera against its formula."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bevstack.datasets.camera_models import Pinhole

CAMERA = Pinhole(np.array([[1266.4, 0, 816.3], [0, 1266.4, 491.5], [0, 0, 1]]), 1600, 900)


@given(st.floats(-50, 1650), st.floats(-50, 950), st.floats(0.1, 100))
def test_unprojecting_undoes_projecting(u, v, depth):
    pixel = np.array([u, v, depth])
    np.testing.assert_allclose(CAMERA.project(CAMERA.unproject(pixel)), pixel, atol=1e-7)


def test_the_optical_axis_meets_the_principal_point():
    assert CAMERA.project(np.array([0.0, 0, 7])) == pytest.approx([816.3, 491.5, 7])


def test_points_behind_the_camera_have_no_pixel():
    projected = CAMERA.project(np.array([[1.0, 2, -3], [1.0, 2, 0]]))
    assert np.isnan(projected[:, :2]).all()


def test_resampling_moves_pixels_by_the_given_map():
    half = np.array([[0.5, 0, -0.25], [0, 0.5, -0.25], [0, 0, 1]])
    point = np.array([1.0, -2, 15])
    before, after = CAMERA.project(point), CAMERA.resampled(half, 800, 450).project(point)
    assert after[:2] == pytest.approx(before[:2] * 0.5 - 0.25)
