"""Pictures: things are where they should be, and odd input is drawn too."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest

from bevstack.datasets.boxes import Boxes3D, Detections
from bevstack.datasets.camera_models import Pinhole
from bevstack.datasets.frame import Annotations, Camera, Frame, LidarSweep
from bevstack.datasets.geometry import apply, inverse, transform
from bevstack.kernels.grid import BEVGrid
from bevstack.perception.visualize.bev import BEVView, draw_bev
from bevstack.perception.visualize.cameras import clip_near, columns_for, draw_camera, draw_cameras
from bevstack.perception.visualize.canvas import Canvas, clip_segments, dashes
from bevstack.perception.visualize.overview import draw_overview, save_image
from bevstack.perception.visualize.scene import camera_from_bev, key_points, truth_of
from bevstack.perception.visualize.style import DARK, LIGHT

GRID = BEVGrid((-20.0, 40.0), (-15.0, 15.0), 0.5)
OPTICAL = np.array([[0, 0, 1], [-1, 0, 0], [0, -1, 0]], float)  # ego from camera axes
# The camera saw the scene a moment before the key time, 0.4 m further back, on a turned street.
STREET = transform([0.9, 0.0, 0.1, np.sqrt(1 - 0.82)], [600.0, 1200.0, 0.5])


def black_camera(name="CAM_FRONT", ego_yaw=0.0) -> Camera:
    turn = transform([np.cos(ego_yaw / 2), 0, 0, np.sin(ego_yaw / 2)], [1.5, 0.1, 1.5])
    intrinsic = np.array([[500.0, 0, 319.5], [0, 500.0, 179.5], [0, 0, 1]])
    return Camera(
        name,
        lambda reduction=1: np.zeros((-(-360 // reduction), -(-640 // reduction), 3), np.uint8),
        Pinhole(intrinsic, 640, 360),
        turn @ transform(OPTICAL, np.zeros(3)),
        STREET @ transform(np.eye(3), [-0.4, 0, 0]),
        0,
    )


def boxes(*rows) -> Boxes3D:
    """Rows of x, y, z, length, width, height, yaw, label."""
    data = np.array(rows, float).reshape(-1, 8)
    velocity = np.tile([3.0, np.nan], (len(data), 1))
    return Boxes3D(data[:, :3], data[:, 3:6], data[:, 6], velocity, data[:, 7].astype(np.int64))


CAR = (15.0, 2.0, 0.8, 4.5, 2.0, 1.6, 0.4, 0)


def frame(cameras=(), truth=None, sweep=True) -> Frame:
    points = np.random.default_rng(0).uniform(-20, 20, (500, 5)).astype(np.float32)
    lidar = transform(np.array([[0, 1, 0], [-1, 0, 0], [0, 0, 1.0]]), [0.9, 0, 1.8])
    sweeps = (LidarSweep(lambda: points, lidar, STREET, 0),) if sweep else ()
    annotations = None
    if truth is not None:
        count, zeros = len(truth), np.zeros(len(truth), np.int64)
        annotations = Annotations(
            truth, zeros - 1, ("",) * count, zeros, zeros, zeros, ("vehicle.car",) * count
        )
    return Frame("token", "scene-0001", "here", 0, STREET, cameras, sweeps, annotations)


def lit(image: np.ndarray, colour, within: float = 60.0) -> np.ndarray:
    """(H, W) which pixels are near a colour."""
    return np.linalg.norm(image.astype(float) - colour, axis=-1) < within


def digest(*arrays: np.ndarray) -> list[str]:
    return [hashlib.sha256(array.tobytes()).hexdigest() for array in arrays]


@pytest.mark.parametrize("width", [640, 320, 500])
@pytest.mark.parametrize("corner", range(8))
def test_a_box_corner_is_drawn_at_its_projection(width, corner):
    camera, car = black_camera(), boxes(CAR)
    scene = frame((camera,))
    # Independent of the drawing code: the chain by hand, one matrix product after the other.
    point = np.append(car.corners()[0, corner], 1.0)
    world = STREET @ point
    at_camera = inverse(camera.ego_from_camera) @ inverse(camera.global_from_ego) @ world
    u, v = 500 * at_camera[:2] / at_camera[2] + [319.5, 179.5]
    u, v = (np.array([u, v]) + 0.5) * width / 640 - 0.5
    image = draw_camera(scene, camera, car, width=width, labels=False)
    without = draw_camera(scene, camera, width=width)
    changed = (image != without).any(-1)
    rows, columns = np.nonzero(changed)
    assert np.hypot(columns - u, rows - v).min() < 1.0
    near = np.hypot(columns - u, rows - v) < 2
    assert image[rows[near], columns[near]].max(0)[0] > 150  # a car is orange


def test_boxes_in_an_augmented_bev_frame_land_on_the_same_pixels():
    camera, car = black_camera(), boxes(CAR)
    plain = draw_camera(frame((camera,)), camera, car, labels=False)
    turned = transform([0.8, 0, 0, 0.6], [3.0, -2.0, 0.1])
    scene = replace(frame((camera,)), bev_from_ego=turned)
    again = draw_camera(scene, camera, car.transformed(turned), labels=False)
    assert np.abs(plain.astype(int) - again).mean() < 0.05


def test_truth_of_moves_boxes_into_the_bev_frame_and_drops_other_categories():
    stroller = (*CAR[:7], -1)
    mirrored = np.diag([1.0, -1.0, 1.0, 1.0])
    scene = replace(frame(truth=boxes(CAR, stroller)), bev_from_ego=mirrored)
    truth = truth_of(scene)
    assert len(truth) == 1
    np.testing.assert_allclose(truth.center[0], [15, -2, 0.8])


def test_key_points_are_in_the_bev_frame_without_the_vehicle_itself():
    scene = frame()
    points = key_points(scene)
    raw = scene.sweeps[0].load()
    ego = apply(scene.sweeps[0].ego_from_lidar, raw[:, :3].astype(float))
    own = (ego[:, 0] > -1.1) & (ego[:, 0] < 3.1) & (abs(ego[:, 1]) < 0.95)
    assert own.any()
    np.testing.assert_allclose(points[:, :3], ego[~own], atol=1e-4)


def test_near_clipping_cuts_at_the_plane_and_keeps_the_rest():
    lines = np.array(
        [
            [[0, 0, -1.0], [0, 0, 3.0]],  # through the plane
            [[0, 0, 2.0], [4, 0, -2.0]],  # the other way
            [[1, 1, 1.0], [2, 2, 2.0]],  # in front
            [[0, 0, -2.0], [1, 1, -1.0]],  # behind
        ]
    )
    before = lines.copy()
    clipped = clip_near(lines, near=0.5)
    np.testing.assert_array_equal(lines, before)
    assert len(clipped) == 3
    np.testing.assert_allclose(clipped[0], [[0, 0, 0.5], [0, 0, 3]])
    np.testing.assert_allclose(clipped[1], [[0, 0, 2], [1.5, 0, 0.5]])
    np.testing.assert_allclose(clipped[2], lines[2])


def test_a_box_partly_behind_the_camera_is_drawn_on_its_own_side_only():
    camera = black_camera()
    # Along the left of the car, from far behind the camera to 6 m ahead of it.
    long_bus = boxes((-2.0, 3.0, 1.5, 16.0, 2.0, 3.0, 0.0, 3))
    image = draw_camera(frame((camera,)), camera, long_bus, labels=False)
    drawn = (image != draw_camera(frame((camera,)), camera)).any(-1)
    assert drawn[:, :320].any()
    assert not drawn[:, 325:].any()


def test_a_box_behind_the_camera_is_not_drawn():
    camera = black_camera()
    behind = boxes((-15.0, 0.0, 1.0, 4.0, 2.0, 2.0, 0.0, 0))
    scene = frame((camera,))
    image = draw_camera(scene, camera, behind)
    np.testing.assert_array_equal(image, draw_camera(scene, camera))


def test_bev_has_x_up_and_y_left():
    ahead_left = boxes((30.0, 8.0, 0.8, 4.0, 2.0, 1.6, 0.0, 8))
    image = draw_bev(boxes=ahead_left, grid=GRID, size_px=600)
    assert image.shape == (600, 300, 3)
    rows, columns = np.nonzero(lit(image, DARK.of_class(8)))
    assert abs(rows.mean() - (40 - 30) * 10) < 10
    assert abs(columns.mean() - (15 - 8) * 10) < 5


def test_bev_map_cell_is_drawn_where_the_view_says():
    masks = np.zeros((6, *GRID.shape), bool)
    masks[1, 100:108, 10:16] = True  # x 30..34, y -10..-7
    image = draw_bev(map_layers=masks, grid=GRID, size_px=600, theme=LIGHT)
    plain = draw_bev(grid=GRID, size_px=600, theme=LIGHT)
    rows, columns = np.nonzero((image != plain).any(-1))
    top_left = BEVView(GRID, 600).pixels((34.0, -7.0)) + 0.5
    np.testing.assert_allclose([columns.min(), rows.min()], top_left, atol=3)
    assert rows.max() - rows.min() == pytest.approx(40, abs=6)
    assert columns.max() - columns.min() == pytest.approx(30, abs=6)


def test_bev_map_may_lie_on_another_grid_than_the_view():
    masks = np.zeros((6, 60, 60), bool)
    masks[0, :, :30] = True  # y below zero: to the right
    map_grid = BEVGrid((-15, 15), (-15, 15), 0.5)
    image = draw_bev(map_layers=masks, grid=GRID, map_grid=map_grid, size_px=600)
    changed = (image != draw_bev(grid=GRID, size_px=600)).any(-1)
    rows, columns = np.nonzero(changed)
    assert columns.min() >= 148
    assert abs(rows.min() - 250) < 5
    assert abs(rows.max() - 550) < 5


def test_a_map_of_another_size_is_refused():
    with pytest.raises(ValueError, match="grid"):
        draw_bev(map_layers=np.zeros((6, 3, 3)), grid=GRID)


def test_a_surer_prediction_stands_out_more():
    def brightness(score: float) -> float:
        one = boxes((20.0, -5.0, 0.8, 4.0, 2.0, 1.6, 0.0, 0))
        found = Detections(one, np.array([score]), np.array([-1]))
        image = draw_bev(boxes=found, grid=GRID, size_px=600).astype(float)
        return float((image - draw_bev(grid=GRID, size_px=600)).sum())

    assert brightness(0.05) == 0  # below the least score to be shown
    assert 0 < brightness(0.3) < brightness(0.9)


def test_drawing_leaves_its_inputs_alone():
    camera, truth = black_camera(), boxes(CAR, (5.0, -3.0, 0.9, 0.7, 0.7, 1.8, 2.0, 8))
    found = Detections(truth, np.array([0.4, 0.9]), np.array([-1, -1]))
    scene = frame((camera,), truth)
    image = np.full((360, 640, 3), 90, np.uint8)
    scene = replace(scene, cameras=(replace(camera, load=lambda reduction=1: image),))
    points, masks = key_points(scene), np.random.default_rng(0).uniform(size=(6, *GRID.shape))
    held = (image, points, masks, truth.center, truth.velocity, truth.yaw, found.score)
    held = (*held, scene.sweeps[0].load())
    before = digest(*held)
    draw_bev(points, found, truth, masks, grid=GRID, size_px=300)
    draw_cameras(scene, found, truth, draw_points=True, tile_width=640)
    draw_camera(scene, scene.cameras[0], found, truth, width=1280)
    draw_overview(scene, found, masks, masks > 0.5, grid=GRID, width=600)
    assert digest(*held) == before


def test_nothing_at_all_can_be_drawn():
    empty = frame(sweep=False)
    assert draw_cameras(empty).ndim == 3
    assert draw_bev(grid=GRID, size_px=200).shape == (200, 100, 3)
    assert draw_bev(np.zeros((0, 5)), Boxes3D.empty(), Boxes3D.empty(), grid=GRID).ndim == 3
    assert draw_overview(empty, grid=GRID, width=400).shape[1] == 400


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5, 6, 7, 11])
def test_any_number_of_cameras(count):
    cameras = tuple(black_camera(f"CAM_{k}", k) for k in range(count))
    image = draw_cameras(frame(cameras), boxes(CAR), tile_width=160)
    columns = columns_for(count)
    assert image.shape == (90 * -(-count // columns) + 4 * (-(-count // columns) - 1),
                           160 * columns + 4 * (columns - 1), 3)  # fmt: skip


def test_nuscenes_cameras_are_in_its_order():
    def marked(name: str, grey: int) -> Camera:
        return replace(black_camera(name), load=lambda r=1: np.full((360, 640, 3), grey, np.uint8))

    names = ["BACK", "BACK_LEFT", "BACK_RIGHT", "FRONT", "FRONT_LEFT", "FRONT_RIGHT"]
    cameras = tuple(marked(f"CAM_{name}", 40 * k + 20) for k, name in enumerate(names))
    image = draw_cameras(frame(cameras), tile_width=160)
    middle = [[image[45 + 94 * row, 80 + 164 * column, 0] for column in range(3)] for row in (0, 1)]
    order = [[names[(grey - 20) // 40] for grey in row] for row in middle]
    assert order == [["FRONT_LEFT", "FRONT", "FRONT_RIGHT"], ["BACK_LEFT", "BACK", "BACK_RIGHT"]]


def test_camera_from_bev_takes_each_pose_at_its_own_time():
    camera = black_camera()
    at_camera = apply(camera_from_bev(frame((camera,)), camera), np.array([10.0, 0.1, 1.5]))
    # 0.4 m back, mounted 1.5 m ahead of the origin: 10 + 0.4 - 1.5 m along the optical axis.
    np.testing.assert_allclose(at_camera, [0, 0, 8.9], atol=1e-9)


def test_segments_are_clipped_to_the_picture():
    segments = np.array([[[-1e9, 5], [1e9, 5]], [[0, -5], [9, -5]], [[2, 2], [np.nan, 3]]])
    clipped = clip_segments(segments, 10, 10)
    np.testing.assert_allclose(clipped, [[[-0.5, 5], [9.5, 5]]], atol=1e-6)


def test_dashes_begin_and_end_at_the_corners():
    cut = dashes(np.array([[[0.0, 0.0], [50.0, 0.0]]]), 4)
    np.testing.assert_allclose([cut[0, 0], cut[-1, 1]], [[0, 0], [50, 0]])
    assert np.linalg.norm(cut[:, 1] - cut[:, 0], axis=1).sum() < 30


def test_canvas_blends_by_opacity():
    canvas = Canvas.blank(20, 20, (0, 0, 0))
    canvas.polygon([(2, 2), (17, 2), (17, 17), (2, 17)], (200, 100, 0), 0.5)
    np.testing.assert_allclose(canvas.finish()[10, 10], [100, 50, 0], atol=1)


def test_pictures_are_saved_as_rgb(tmp_path):
    import cv2

    image = np.zeros((8, 8, 3), np.uint8)
    image[..., 0] = 255  # red
    save_image(tmp_path / "folder" / "red.png", image)
    assert cv2.imread(str(tmp_path / "folder" / "red.png"))[0, 0].tolist() == [0, 0, 255]


def test_the_real_frames_truck_is_drawn_where_it_stands(shared_data, tmp_path):
    from bevstack.datasets.nuscenes.index import build_index
    from bevstack.datasets.nuscenes.reader import NuScenesReader

    root = shared_data / "nuscenes-keyframe"
    build_index(root, "v1.0-mini", index_dir=tmp_path)
    scene = NuScenesReader(root, "v1.0-mini", "mini_train", index_dir=tmp_path)[0]
    front = next(camera for camera in scene.cameras if camera.name == "CAM_FRONT")
    truth = truth_of(scene)
    image = draw_camera(scene, front, truth[truth.label == 1], labels=False, width=1600)
    plain = draw_camera(scene, front, width=1600)
    columns = np.nonzero((image != plain).any((0, 2)))[0]
    assert 30 < columns.min() < 130  # the parked truck on the left
    assert columns[columns < 800].max() < 660


def test_a_submission_is_drawn_in_the_frame_of_its_sample():
    from bevstack.datasets.geometry import quaternion_from_yaw
    from bevstack.perception.evaluation.boxes import GlobalBoxes, upright_in_global
    from bevstack.perception.visualize.submission import detections_of

    car = boxes(CAR, (*CAR[:6], -2.0, 3))
    scene = replace(frame(), bev_from_ego=transform([0.8, 0, 0, 0.6], [1.0, 2.0, 0.0]))
    world = upright_in_global(car, scene.global_from_ego @ inverse(scene.bev_from_ego))
    submitted = GlobalBoxes(
        sample=np.array([4, 4]), translation=world.center, size=world.size[:, [1, 0, 2]],
        rotation=quaternion_from_yaw(world.yaw), velocity=world.velocity, label=world.label,
        score=np.array([0.2, 0.7]), attribute=np.array([-1, -1]), num_points=np.array([-1, -1]),
    )  # fmt: skip
    found = detections_of(submitted, 4, scene)
    assert found.score.tolist() == [0.7, 0.2]
    assert found.boxes.label.tolist() == [3, 0]
    np.testing.assert_allclose(found.boxes.center, car.center[::-1], atol=1e-9)
    np.testing.assert_allclose(found.boxes.size, car.size[::-1])
    np.testing.assert_allclose(found.boxes.yaw, car.yaw[::-1], atol=1e-9)
    assert len(detections_of(submitted, 3, scene)) == 0
