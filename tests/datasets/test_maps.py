"""Map masks: against the devkit, under augmentation, at borders and holes, and bad files."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from map_files import MapFile, devkit_masks, random_map, rectangle

from bevstack.datasets.errors import DataError
from bevstack.datasets.geometry import quaternion_from_yaw, transform
from bevstack.datasets.nuscenes.classes import MAP_CLASSES
from bevstack.datasets.nuscenes.maps import MapRasterizer
from bevstack.kernels.grid import BEVGrid

MIT_GRID = BEVGrid((-50, 50), (-50, 50), 0.5)
WIDE_GRID = BEVGrid((-20, 60), (-30, 30), 0.5)


def pose(x, y, yaw):
    return transform(quaternion_from_yaw(yaw), [x, y, 0])


def iou(a, b):
    return (a & b).sum() / max((a | b).sum(), 1)


@pytest.fixture(scope="module")
def city(tmp_path_factory):
    return random_map(0).write(tmp_path_factory.mktemp("city"))


@pytest.mark.parametrize(
    "grid", [MIT_GRID, BEVGrid((-40, 40), (-25, 25), 0.4)], ids=["mit", "wide"]
)
def test_equals_the_devkit(city, grid):
    ours, theirs = [], []
    for seed in range(12):
        x, y, yaw = np.random.default_rng(seed).uniform([100, 100, -3], [500, 500, 3])
        ours.append(MapRasterizer(city).masks("boston-seaport", pose(x, y, yaw), grid))
        theirs.append(devkit_masks(city, "boston-seaport", x, y, yaw, grid))
    ours, theirs = np.stack(ours, 1), np.stack(theirs, 1)
    assert theirs.any((1, 2, 3)).all()
    for name, a, b in zip(MAP_CLASSES[:5], ours, theirs):
        assert (a == b).all(), name
    # Lines meet the far border at 200 cells less or more 1e-13, and are then truncated.
    assert iou(ours[5], theirs[5]) > 0.99


def test_devkit_layout_x_first_and_rows_from_the_lower_edge(tmp_path):
    file = MapFile()  # 5..10 m to the right and 20..30 m ahead of a LiDAR whose x axis is right
    file.polygon("carpark_area", rectangle(5, 20, 10, 30))
    masks = MapRasterizer(file.write(tmp_path)).masks("boston-seaport", np.eye(4), MIT_GRID)
    filled = np.argwhere(masks[MAP_CLASSES.index("carpark_area")])
    assert filled.min(0).tolist() == [110, 140]
    assert filled.max(0).tolist() == [120, 160]
    assert masks.sum() == 11 * 21


bev_poses = st.builds(
    lambda x, y, yaw, scale, flips: (
        pose(x, y, yaw) @ np.diag([*(np.array(flips) * scale), scale, 1])
    ),
    st.floats(-40, 40),
    st.floats(-40, 40),
    st.floats(-4, 4),
    st.floats(0.5, 2),
    st.tuples(st.sampled_from([-1, 1]), st.sampled_from([-1, 1])),
)


@pytest.fixture(scope="module")
def yard(tmp_path_factory):
    """A square of 60 m with a hole of 20 m inside, a second square in the hole, one line."""
    file = MapFile()
    file.polygon("walkway", rectangle(-5, -5, 5, 5))
    file.polygon("walkway", rectangle(-30, -30, 30, 30), [rectangle(-10, -10, 10, 10)])
    file.line("road_divider", [(-200, 7), (200, 7)])
    return MapRasterizer(file.write(tmp_path_factory.mktemp("yard")))


@settings(max_examples=60, deadline=None)
@given(bev_poses)
def test_any_pose_draws_what_lies_under_the_cells(yard, global_from_bev):
    masks = yard.masks("boston-seaport", global_from_bev, WIDE_GRID)
    i, j = np.meshgrid(*map(np.arange, WIDE_GRID.shape), indexing="ij")
    bev = np.stack([*WIDE_GRID.to_metres(i + 0.5, j + 0.5), 0 * i, 0 * i + 1], -1)
    x, y = np.moveaxis(bev @ global_from_bev.T, -1, 0)[:2]
    # Rounding to the cell moves an outline by up to one cell in i and in j, and drawing by half.
    slack = 2 * 0.5 * np.cbrt(abs(np.linalg.det(global_from_bev[:3, :3])))
    ring = np.maximum(abs(x), abs(y))  # distance from the middle, in the squares' own norm
    clear = np.min([abs(ring - edge) for edge in (5, 10, 30)], 0) > slack
    walkway = masks[MAP_CLASSES.index("walkway")]
    assert (walkway == ((ring < 5) | ((ring > 10) & (ring < 30))))[clear].all()
    divider = masks[MAP_CLASSES.index("divider")]
    assert divider[abs(y - 7) < 0.15 * slack].all()
    assert not divider[abs(y - 7) > 2 * slack].any()


def test_a_shape_cut_twice_by_the_border_leaves_no_line_along_it(tmp_path):
    file = MapFile()  # a U open to the right, its back 10 m beyond the lower x edge
    file.polygon(
        "walkway",
        [(-60, -20), (0, -20), (0, -10), (-55, -10), (-55, 10), (0, 10), (0, 20), (-60, 20)],
    )
    mask = MapRasterizer(file.write(tmp_path)).masks("boston-seaport", np.eye(4), MIT_GRID)[2]
    assert mask[0, 62:80].all()
    assert not mask[0, 82:119].any()


def test_a_hole_does_not_erase_another_polygon(yard):
    mask = yard.masks("boston-seaport", np.eye(4), MIT_GRID)[MAP_CLASSES.index("walkway")]
    assert mask[95:105, 95:105].all()
    assert not mask[85, 100]


def test_tilt_is_left_out(yard):
    tilted = pose(3, 4, 1.0)
    tilted[:3, :3] = tilted[:3, :3] @ np.array([[0.8, 0, 0.6], [0, 1, 0], [-0.6, 0, 0.8]])
    flat = yard.masks("boston-seaport", pose(3, 4, 1.0), WIDE_GRID)
    assert (yard.masks("boston-seaport", tilted, WIDE_GRID) == flat).all()


def test_far_from_everything_is_empty(yard):
    assert not yard.masks("boston-seaport", pose(1e6, -1e6, 0), WIDE_GRID).any()


def test_a_missing_map_is_one_clear_error(tmp_path):
    assert not MapRasterizer.is_available(tmp_path)
    with pytest.raises(DataError, match=r"nowhere\.json is missing; unpack nuScenes-map-expansion"):
        MapRasterizer(tmp_path).masks("nowhere", np.eye(4), MIT_GRID)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": "1.2"}, "version 1.2, expected 1.3"),
        ({"stop_line": None}, "not a complete map expansion"),
        ({"walkway": [{"token": "a", "polygon_token": "gone"}]}, "'gone' is missing"),
    ],
)
def test_a_wrong_map_is_one_clear_error(tmp_path, change, message):
    path = MapFile().write(tmp_path) / "maps" / "expansion" / "boston-seaport.json"
    assert MapRasterizer.is_available(tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DataError, match=message):
        MapRasterizer(tmp_path).masks("boston-seaport", np.eye(4), MIT_GRID)
    path.write_text("{ broken")
    with pytest.raises(DataError, match="cannot be read"):
        MapRasterizer(tmp_path).masks("boston-seaport", np.eye(4), MIT_GRID)
