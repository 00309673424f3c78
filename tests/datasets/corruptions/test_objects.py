"""Corruptions inside annotated boxes: counts, closed forms, agreement of LiDAR and cameras."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
from scenes import make_annotations, make_camera, make_frame, make_sweep

from bevstack.datasets.boxes import Boxes3D
from bevstack.datasets.corruptions.object_images import BlurObjects, ObjectWarp
from bevstack.datasets.corruptions.object_points import ObjectNoise, SplitObjects, ThinObjects
from bevstack.datasets.corruptions.object_shapes import (
    DeformObjects,
    Scale,
    Shear,
    Turn,
    box_axes,
)
from bevstack.datasets.corruptions.regions import boxes_at, key_ego_from_lidar, object_of_points
from bevstack.datasets.corruptions.sensors import CameraContext
from bevstack.datasets.geometry import apply, inverse
from bevstack.datasets.nuscenes.index import build_index
from bevstack.datasets.nuscenes.reader import NuScenesReader

STEPS = (
    ThinObjects(0.3),
    ThinObjects(0.5, "patch"),
    ObjectNoise("normal", 0.1),
    ObjectNoise("uniform", 0.1),
    ObjectNoise("impulse", 0.1, 0.1),
    SplitObjects(0.6),
    DeformObjects(Scale(0.2), cameras=False),
    DeformObjects(Turn(9), cameras=False),
    DeformObjects(Shear(0.25), cameras=False),
)


def objects_frame(num_points=400, seed=0):
    """Three boxes with many points each, and points around them; the key sweep and another."""
    random = np.random.default_rng(seed)
    center = np.array([[12.0, 2, 0.9], [20, -6, 1.4], [-9, 5, 0.8]])
    size = np.array([[4.5, 1.9, 1.6], [9.0, 2.6, 3.0], [0.8, 0.7, 1.8]])
    truth = make_annotations(center, size, [0.3, -2.0, 1.2])
    sweeps = []
    for lag_us in (0, 50_000):
        frame = make_frame(sweeps=(make_sweep(np.zeros((0, 5)), lag_us),), annotations=truth)
        boxes = boxes_at(frame, frame.sweeps[0])
        local = random.uniform(-0.499, 0.499, (3, num_points, 3)) * size[:, None]
        inside = np.einsum("mij,mpj->mpi", box_axes(boxes), local) + boxes.center[:, None]
        ego = np.concatenate([inside.reshape(-1, 3), random.uniform(-30, 30, (500, 3))])
        lidar = apply(inverse(key_ego_from_lidar(frame, frame.sweeps[0])), ego)
        rest = random.integers(0, [256, 32], (len(lidar), 2))
        sweeps.append(make_sweep(np.concatenate([lidar, rest], 1), lag_us))
    return make_frame(sweeps=tuple(sweeps), annotations=truth)


def owners(frame, i=0, points=None):
    sweep = frame.sweeps[i]
    return object_of_points(sweep.load() if points is None else points, frame, sweep)


def local_points(frame, points, owner, i=0):
    """Points in the axes of the boxes that owned them."""
    sweep = frame.sweeps[i]
    boxes = boxes_at(frame, sweep)
    ego = apply(key_ego_from_lidar(frame, sweep), points[:, :3].astype(float))
    return np.einsum("pij,pi->pj", box_axes(boxes)[owner], ego - boxes.center[owner])


@pytest.mark.parametrize("step", STEPS, ids=repr)
def test_only_points_of_objects_change_in_every_sweep_and_the_truth_stays(step):
    frame = objects_frame()
    corrupted = step(frame, 3)
    assert corrupted.annotations is frame.annotations
    for i in (0, 1):
        clean, points = frame.sweeps[i].load(), corrupted.sweeps[i].load()
        outside = owners(frame, i) < 0
        kept = set(map(bytes, points))
        assert all(bytes(point) in kept for point in clean[outside])
        assert sum(bytes(point) not in kept for point in clean[~outside]) > 0
        np.testing.assert_array_equal(points, step(frame, 3).sweeps[i].load())


@pytest.mark.parametrize("step", STEPS, ids=repr)
def test_no_object_no_point_and_no_annotation_are_legal(step):
    empty = make_sweep(np.zeros((0, 5)))
    frame = replace(objects_frame(), sweeps=(empty,))
    assert step(frame, 0).sweeps[0].load().shape == (0, 5)
    blind = replace(objects_frame(), annotations=None)
    np.testing.assert_array_equal(step(blind, 0).sweeps[0].load(), blind.sweeps[0].load())
    none = replace(objects_frame(), annotations=make_annotations([], [], []))
    np.testing.assert_array_equal(step(none, 0).sweeps[0].load(), none.sweeps[0].load())


@pytest.mark.parametrize("choice", ["random", "patch"])
def test_thinned_objects_lose_their_share_each(choice):
    frame = objects_frame()
    points = ThinObjects(0.3, choice)(frame, 0).sweeps[0].load()
    before, after = (np.bincount(o[o >= 0]) for o in (owners(frame), owners(frame, points=points)))
    np.testing.assert_array_equal(before - after, np.floor(before * 0.3 + 1e-9))


def test_a_patch_is_what_is_nearest_to_one_of_the_objects_points():
    frame = objects_frame()
    clean, owner = frame.sweeps[0].load(), owners(frame)
    points = ThinObjects(0.5, "patch")(frame, 0).sweeps[0].load()
    kept = set(map(bytes, points))
    for m in range(3):
        mine = clean[owner == m]
        lost = np.array([bytes(point) not in kept for point in mine])
        distance = np.linalg.norm(mine[:, None, :3] - mine[None, :, :3], axis=2)
        # Some lost point is nearer to all the lost ones than to any that is left.
        assert any(row[lost].max() <= row[~lost].min() for row in distance[lost])


def test_noise_on_objects_has_its_law():
    frame = objects_frame(num_points=4000)
    clean, inside = frame.sweeps[0].load(), owners(frame) >= 0
    change = {
        law: (ObjectNoise(law, 0.1)(frame, 1).sweeps[0].load() - clean)[inside]
        for law in ("normal", "uniform", "impulse")
    }
    assert all(np.abs(noise[:, 3:]).max() == 0 for noise in change.values())
    assert change["normal"][:, :3].std() == pytest.approx(0.1, rel=0.02)
    assert change["uniform"][:, :3].std() == pytest.approx(0.1 / np.sqrt(3), rel=0.02)
    assert np.abs(change["uniform"]).max() == pytest.approx(0.1, rel=0.01)
    np.testing.assert_allclose(np.abs(change["impulse"][:, :3]), 0.1, atol=1e-5)
    some = ObjectNoise("impulse", 0.1, 0.1, columns=5)(frame, 1).sweeps[0].load() - clean
    assert (some[inside] != 0).any(1).mean() == pytest.approx(0.1, rel=0.02)
    assert (some[:, 4] != 0).any()


def test_split_objects_move_along_their_axis_by_the_whole_or_half():
    frame = objects_frame()
    owner = owners(frame)
    inside = owner >= 0
    before, after = (
        local_points(frame, cloud[inside], owner[inside])
        for cloud in (frame.sweeps[0].load(), SplitObjects(0.6)(frame, 0).sweeps[0].load())
    )
    length = frame.annotations.boxes.size[owner[inside], 0]
    step = np.where(before[:, 0] < -length / 6, 0.3, 0.6)
    np.testing.assert_allclose(after - before, np.stack([step, 0 * step, 0 * step], 1), atol=1e-4)


def deformed(frame, deformation):
    """Local coordinates of the key sweep's object points before and after, and the owners."""
    owner = owners(frame)
    inside = owner >= 0
    corrupted = DeformObjects(deformation, cameras=False)(frame, 5)
    clouds = (frame.sweeps[0].load(), corrupted.sweeps[0].load())
    return [local_points(frame, c[inside], owner[inside]) for c in clouds], owner[inside]


def test_scaled_objects_stay_on_the_ground():
    frame = objects_frame()
    (before, after), owner = deformed(frame, Scale(0.2, all_axes=True))
    floor = -frame.annotations.boxes.size[owner, 2] / 2
    for column, origin in ((0, 0), (1, 0), (2, floor)):
        ratio = (after[:, column] - origin) / (before[:, column] - origin)
        near = np.abs(before[:, column] - origin) > 0.1
        factor = np.where(ratio[near] > 1, 1.2, 0.8)
        np.testing.assert_allclose(ratio[near], factor, atol=1e-3)
    (before, after), owner = deformed(frame, Scale(0.2))
    changed = np.abs(after - before).max(0) > 1e-4
    for m in range(3):
        assert (np.abs(after - before)[owner == m].max(0) > 1e-4).sum() == 1, changed


def test_turned_objects_are_rigid():
    frame = objects_frame()
    (before, after), owner = deformed(frame, Turn(9, 1))
    for m in range(3):
        a, b = before[owner == m], after[owner == m]
        np.testing.assert_allclose(np.linalg.norm(a, axis=1), np.linalg.norm(b, axis=1), atol=1e-4)
        angle = np.angle((b[:, 0] + 1j * b[:, 1]) / (a[:, 0] + 1j * a[:, 1]), deg=True)
        far = np.hypot(a[:, 0], a[:, 1]) > 0.2
        assert np.ptp(angle[far]) < 0.1
        assert 8 <= abs(np.median(angle)) <= 10
        np.testing.assert_allclose(a[:, 2], b[:, 2], atol=1e-4)


def test_sheared_objects_stay_in_their_boxes():
    frame = objects_frame()
    (before, after), owner = deformed(frame, Shear(0.25))
    half = frame.annotations.boxes.size[owner] / 2
    assert (np.abs(after) <= half + 1e-3).all()
    assert np.abs(after - before).mean() > 0.05


def board_frame():
    """A textured box straight ahead of a camera, and nothing else."""
    random = np.random.default_rng(0)
    image = cv2.resize(random.integers(0, 256, (30, 50, 3)).astype(np.uint8), (800, 480))
    camera = make_camera(image=image, focal=500.0)
    world = camera.global_from_ego @ camera.ego_from_camera
    frame = make_frame(cameras=(camera,), sweeps=())
    middle = apply(inverse(frame.global_from_ego) @ world, np.array([[0.3, 0.2, 12.0]]))
    ahead = (inverse(frame.global_from_ego) @ world)[:3, 2]
    yaw = np.arctan2(ahead[1], ahead[0]) + 0.4
    truth = make_annotations(middle, [[4.0, 2.0, 2.0]], [yaw])
    still = replace(truth.boxes, velocity=np.zeros((1, 2)))
    return replace(frame, annotations=replace(truth, boxes=still))


def corners_in(frame, boxes: Boxes3D):
    camera = frame.cameras[0]
    world = frame.global_from_ego
    matrix = inverse(camera.global_from_ego @ camera.ego_from_camera) @ world
    return camera.model.project(apply(matrix, boxes.corners()))[..., :2]


def warped(frame, maps):
    context = CameraContext(frame, frame.cameras[0], 0, "")
    return ObjectWarp(maps).corrupt(frame.cameras[0].load(), context)


def test_image_of_an_object_that_does_not_change_stays():
    frame = board_frame()
    same = warped(frame, np.eye(3, 4)[None])
    assert np.abs(same.astype(int) - frame.cameras[0].load()).mean() < 0.3


def test_image_of_a_moved_object_is_where_the_box_would_be():
    frame = board_frame()
    shift = np.eye(3, 4)[None].copy()
    shift[0, 0, 3], shift[0, 2, 3] = 0.7, 0.4
    image = warped(frame, shift)
    boxes = frame.annotations.boxes
    cos, sin = np.cos(boxes.yaw[0]), np.sin(boxes.yaw[0])
    moved = replace(boxes, center=boxes.center + np.array([0.7 * cos, 0.7 * sin, 0.4]))
    before, after = corners_in(frame, boxes)[0], corners_in(frame, moved)[0]
    face = [1, 5, 6, 2]  # the rear, towards the camera
    source = before[face].mean(0), after[face].mean(0)
    original = frame.cameras[0].load()
    (u0, v0), (u1, v1) = np.round(source).astype(int)
    one, other = original[v0 - 6 : v0 + 7, u0 - 6 : u0 + 7], image[v1 - 6 : v1 + 7, u1 - 6 : u1 + 7]
    assert np.abs(one.astype(int) - other).mean() < 12  # of about 85 for unrelated patches
    hull = cv2.convexHull(np.concatenate([before, after]).astype(np.float32))
    mask = cv2.fillConvexPoly(np.zeros(image.shape[:2]), np.round(hull).astype(np.int32), 1)
    outside = cv2.dilate(mask, np.ones((5, 5))) == 0
    np.testing.assert_array_equal(image[outside], original[outside])


def test_blur_stays_inside_the_outlines():
    frame = board_frame()
    blurred = BlurObjects(0.1, 80)(frame, 0).cameras[0].load()
    original = frame.cameras[0].load()
    hull = cv2.convexHull(corners_in(frame, frame.annotations.boxes)[0].astype(np.float32))
    mask = cv2.fillConvexPoly(np.zeros(original.shape[:2]), np.round(hull).astype(np.int32), 1)
    changed = (blurred != original).any(-1)
    assert changed[cv2.erode(mask, np.ones((5, 5))) == 1].mean() > 0.9
    assert not changed[cv2.dilate(mask, np.ones((5, 5))) == 0].any()


def test_points_and_image_of_an_object_turn_alike():
    frame = board_frame()
    boxes = frame.annotations.boxes
    # A point on the upper left corner of the face towards the camera, just inside.
    sweep = make_sweep(np.zeros((1, 5)))
    corner = boxes.corners()[0, 5] * 0.99 + boxes.center[0] * 0.01
    lidar = apply(inverse(key_ego_from_lidar(frame, sweep)), corner[None])
    frame = replace(frame, sweeps=(make_sweep(np.concatenate([lidar, [[9, 3]]], 1)),))
    turned = DeformObjects(Turn(20, 1))(frame, 11)
    moved = apply(key_ego_from_lidar(frame, frame.sweeps[0]), turned.sweeps[0].load()[:, :3])
    camera = frame.cameras[0]
    matrix = inverse(camera.global_from_ego @ camera.ego_from_camera) @ frame.global_from_ego
    u, v, _ = camera.model.project(apply(matrix, moved))[0]
    difference = np.abs(turned.cameras[0].load().astype(int) - camera.load()).sum(-1)
    rows, columns = np.nonzero(difference > 30)
    # The pasted face ends in that corner: the picture changes inwards of it and not beyond.
    assert rows.min() == pytest.approx(v, abs=4) or rows.min() < v
    distance = np.hypot(rows - v, columns - u)
    assert distance.min() < 12


@pytest.fixture(scope="module")
def key_frame(shared_data, tmp_path_factory):
    root, index_dir = shared_data / "nuscenes-keyframe", tmp_path_factory.mktemp("index")
    build_index(root, "v1.0-mini", index_dir=index_dir)
    return NuScenesReader(root, "v1.0-mini", "mini_train", index_dir=index_dir)[0]


def test_key_frame_has_the_annotated_object_points(key_frame):
    inside = owners(key_frame) >= 0
    # 1,009 are annotated, in boxes that are upright in the world and not in the vehicle.
    assert 980 <= inside.sum() <= 1009
    for share in (0.1, 0.5):
        lost = len(inside) - len(ThinObjects(share)(key_frame, 0).sweeps[0].load())
        assert share * inside.sum() - 69 < lost <= share * inside.sum()
