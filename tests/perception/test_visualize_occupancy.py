"""Pictures of occupancy: what is in front hides what is behind, and slices show their heights."""

import numpy as np
import pytest

from bevstack.datasets.geometry import apply, inverse, quaternion_from_yaw, transform
from bevstack.datasets.nuscenes.classes import FREE, OCCUPANCY_CLASSES
from bevstack.datasets.occupancy import OccupancyLabels
from bevstack.kernels.voxel_grid import VoxelGrid
from bevstack.perception.visualize.occupancy import (
    Voxels,
    draw_occupancy,
    draw_occupancy_square,
    height_slices,
    voxel_view,
)
from bevstack.perception.visualize.style import DARK, OCCUPANCY_COLOURS

GRID = VoxelGrid((-8, 8), (-8, 8), (-1, 2.2), 0.4)
CAR, WALL = OCCUPANCY_CLASSES.index("car"), OCCUPANCY_CLASSES.index("manmade")


def looks_like(picture, label):
    """Pixels with the hue of a class, whatever its light."""
    colour = np.array(OCCUPANCY_COLOURS[label], float)
    pixel = picture.astype(float)
    unit = pixel / np.maximum(np.linalg.norm(pixel, axis=-1, keepdims=True), 1)
    return (unit @ (colour / np.linalg.norm(colour)) > 0.9995) & (pixel.max(-1) > 60)


def test_a_wall_before_a_car_hides_it():
    volume = np.full(GRID.shape, FREE, np.uint8)
    volume[25:27, 18:22, 0:2] = CAR
    assert looks_like(voxel_view(volume, 300), CAR).sum() > 50
    volume[20:22, 10:30, :] = WALL  # nearer to the eye, which is behind
    picture = voxel_view(volume, 300)
    assert looks_like(picture, CAR).sum() == 0
    assert looks_like(picture, WALL).sum() > 500


def test_ahead_is_up_and_left_is_left():
    volume = np.full(GRID.shape, FREE, np.uint8)
    volume[36:39, 36:39, 0:2] = CAR  # ahead, to the left
    rows, columns = np.nonzero(looks_like(voxel_view(volume, 200), CAR))
    assert rows.max() < 60
    assert columns.max() < 60
    slices = height_slices(volume, GRID, 200, 200)
    rows, columns = np.nonzero(looks_like(slices, CAR))
    assert rows.max() < 50
    assert columns.max() < 50


def test_slices_show_what_is_at_their_height():
    volume = np.full(GRID.shape, FREE, np.uint8)
    volume[:, :, 7] = WALL  # in the highest of four slices
    shown = looks_like(height_slices(volume, GRID, 200, 200), WALL)
    assert shown[100:, 100:].mean() > 0.5
    assert shown[:100].sum() == shown[:, :100].sum() == 0


def test_an_empty_volume_is_background_and_a_wrong_grid_is_refused():
    empty = np.full(GRID.shape, FREE, np.uint8)
    assert (voxel_view(empty, 100) == DARK.background).all()
    assert draw_occupancy(Voxels(empty, GRID), "truth", 400).shape[1:] == (400, 3)
    with pytest.raises(ValueError, match="grid"):
        Voxels(empty[:-1], GRID)


def test_the_square_picture_holds_view_and_slices():
    volume = np.full(GRID.shape, FREE, np.uint8)
    volume[:, :, 7] = WALL  # in the highest of four slices, which is the last of the row
    picture = draw_occupancy_square(Voxels(volume, GRID), "occupancy", 400)
    assert picture.shape == (400, 400, 3)
    shown = looks_like(picture, WALL)
    assert shown[:270].mean() > 0.5
    assert shown[310:, 310:390].mean() > 0.5
    assert not shown[310:, :290].any()


def test_voxels_of_another_frame_are_turned_into_the_vehicles():
    """In LIDAR_TOP's frame, whose x is the vehicle's right, ahead is along y."""
    grid = VoxelGrid((-40, 40), (-40, 40), (-5, 3), 0.4)
    lidar_from_ego = inverse(transform(quaternion_from_yaw(-np.pi / 2), [0, 0, 1.8]))
    semantics = np.full(grid.shape, FREE, np.uint8)
    ahead = np.floor(grid.to_voxels(apply(lidar_from_ego, np.array([10.1, 0.1, 1.1])))).astype(int)
    semantics[tuple(ahead)] = CAR
    seen = np.ones_like(semantics)
    voxels = Voxels.of(OccupancyLabels(semantics, seen, seen, grid, lidar_from_ego))
    place = voxels.grid.to_metres(np.argwhere(voxels.semantics == CAR) + 0.5)
    np.testing.assert_allclose(place.mean(0), [10.1, 0.1, 1.1], atol=0.4)
