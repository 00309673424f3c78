"""The synthetic world as others see it: through its files and the unmodified devkit."""

import hashlib
import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from bevstack.datasets.nuscenes.classes import CLASS_OF_CATEGORY, DETECTION_CLASSES
from bevstack.datasets.synthetic.camera import pixel_rays
from bevstack.datasets.synthetic.rig import CAMERAS
from bevstack.datasets.synthetic.world import ego_body
from bevstack.datasets.synthetic.write import synthesize

# facts of nuScenes' lidarseg challenge: index in category.json -> Occ3D class, 0 for the rest
OCCUPANCY_OF_LIDARSEG = {
    9: 1, 14: 2, 15: 3, 16: 3, 17: 4, 18: 5, 21: 6, 2: 7, 3: 7, 4: 7, 6: 7, 12: 8, 22: 9, 23: 10,
    24: 11, 25: 12, 26: 13, 27: 14, 28: 15, 30: 16,
}  # fmt: skip

FIELDS = {
    "category": "token name description index",
    "attribute": "token name description",
    "visibility": "token level description",
    "instance": "token category_token nbr_annotations first_annotation_token last_annotation_token",
    "sensor": "token channel modality",
    "calibrated_sensor": "token sensor_token translation rotation camera_intrinsic",
    "ego_pose": "token timestamp rotation translation",
    "log": "token logfile vehicle date_captured location",
    "scene": "token name description log_token nbr_samples first_sample_token last_sample_token",
    "sample": "token timestamp prev next scene_token",
    "sample_data": "token sample_token ego_pose_token calibrated_sensor_token timestamp fileformat "
    "is_key_frame height width filename prev next",
    "sample_annotation": "token sample_token instance_token visibility_token attribute_tokens "
    "translation size rotation prev next num_lidar_pts num_radar_pts",
    "map": "token filename category log_tokens",
    "lidarseg": "token sample_data_token filename",
}


@pytest.fixture(scope="module")
def nusc(synthetic_root):
    pytest.importorskip("nuscenes")
    from nuscenes import NuScenes

    return NuScenes("v1.0-mini", str(synthetic_root), verbose=False)


@pytest.mark.parametrize("table", FIELDS)
def test_every_table_has_every_field(synthetic_root, table):
    records = json.loads((synthetic_root / "v1.0-mini" / f"{table}.json").read_text())
    assert records
    for record in records:
        assert set(FIELDS[table].split()) <= set(record)
        assert None not in record.values()


def test_devkit_loads_it_with_lidarseg(nusc):
    assert [scene["name"] for scene in nusc.scene] == ["scene-0061", "scene-0103"]
    assert len(nusc.lidarseg) == len(nusc.sample)
    assert len(nusc.category) == 32
    for record in nusc.lidarseg:
        labels = np.fromfile(Path(nusc.dataroot) / record["filename"], np.uint8)
        assert len(labels) == len(_points(nusc, record["sample_data_token"]))
        assert labels.max() < 32


def test_annotations_of_an_instance_form_one_chain(nusc):
    for instance in nusc.instance:
        token, chain = instance["first_annotation_token"], []
        while token:
            chain.append(token)
            token = nusc.get("sample_annotation", token)["next"]
        assert len(chain) == instance["nbr_annotations"]
        assert chain[-1] == instance["last_annotation_token"]


def test_every_file_of_a_sensor_is_linked_in_time(nusc):
    for record in nusc.sample_data:
        assert (Path(nusc.dataroot) / record["filename"]).is_file()
        if record["next"]:
            after = nusc.get("sample_data", record["next"])
            assert after["prev"] == record["token"]
            assert after["timestamp"] > record["timestamp"]


def test_devkit_rasterises_the_map_under_the_vehicle(nusc):
    from nuscenes.map_expansion.map_api import NuScenesMap

    for scene in nusc.scene:
        location = nusc.get("log", scene["log_token"])["location"]
        sample = nusc.get("sample", scene["first_sample_token"])
        data = nusc.get("sample_data", sample["data"]["LIDAR_TOP"])
        x, y, _ = nusc.get("ego_pose", data["ego_pose_token"])["translation"]
        layers = ["drivable_area", "walkway", "lane"]
        world = NuScenesMap(nusc.dataroot, location)
        drivable, walkway, _ = world.get_map_mask((x, y, 100, 100), 0, layers, (200, 200))
        assert drivable[100, 100] == 1
        assert walkway.any()
        assert not walkway[100, 100]


def test_boxes_hold_as_many_points_as_they_say(nusc):
    from nuscenes.utils.geometry_utils import points_in_box

    for sample in nusc.sample:
        token = sample["data"]["LIDAR_TOP"]
        points = _points(nusc, token)[:, :3].T
        for box in nusc.get_sample_data(token)[1]:
            expected = nusc.get("sample_annotation", box.token)["num_lidar_pts"]
            assert points_in_box(box, points).sum() == expected


def test_a_copy_of_the_truth_scores_one_in_every_class_there_is(nusc, tmp_path):
    scores, present = _score_truth(nusc, "mini_val", tmp_path)
    assert {"car", "pedestrian"} <= present
    for name in present:
        assert scores[name] == pytest.approx(1.0), name


@pytest.mark.slow
def test_ten_scenes_show_every_class_in_both_splits(tmp_path):
    pytest.importorskip("nuscenes")
    from nuscenes import NuScenes

    root = tmp_path / "world"
    synthesize(root, scenes=10, frames=4, seed=0, image_size=(64, 36), camera_sweeps=False)
    nusc = NuScenes("v1.0-mini", str(root), verbose=False)
    for split in ("mini_train", "mini_val"):
        scores, present = _score_truth(nusc, split, tmp_path)
        assert present == set(DETECTION_CLASSES), split
        assert np.mean(list(scores.values())) == pytest.approx(1.0)


def test_the_lidar_sees_the_vehicle_itself_and_far_things(nusc):
    points = _points(nusc, nusc.sample[0]["data"]["LIDAR_TOP"])
    near = (np.abs(points[:, :2]) < 1).all(1)
    assert near.sum() > 10
    assert 60 < np.linalg.norm(points[:, :3], axis=1).max() < 101
    assert set(np.unique(points[:, 4])) <= set(range(32))
    assert points[:, 3].min() >= 0
    assert points[:, 3].max() <= 255


def test_sweeps_agree_in_the_global_frame_only(nusc):
    """Points are stored at their sweep's timestamp, the vehicle's motion undone."""
    from scipy.spatial import cKDTree

    key = max(
        (nusc.get("sample_data", s["data"]["LIDAR_TOP"]) for s in nusc.sample),
        key=lambda record: _travelled(nusc, record),
    )
    earlier = _back(nusc, key, 5)
    assert _travelled(nusc, key) > 0.5, "no scene moves; choose another seed for the fixture"
    raw = [_static_points(nusc, record) for record in (key, earlier)]
    moved = [_to_global(nusc, record, p) for record, p in zip((key, earlier), raw)]
    aligned = np.median(cKDTree(moved[0][:, :2]).query(moved[1][:, :2])[0])
    ignored = np.median(cKDTree(raw[0][:, :2]).query(raw[1][:, :2])[0])
    assert aligned < 0.15
    assert ignored > 1.5 * aligned


def test_occupancy_agrees_with_lidarseg(nusc):
    agreeing = total = 0
    for sample in nusc.sample:
        record = nusc.get("sample_data", sample["data"]["LIDAR_TOP"])
        labels = np.fromfile(
            Path(nusc.dataroot) / nusc.get("lidarseg", record["token"])["filename"], np.uint8
        )
        points = _to_ego(nusc, record, _points(nusc, record["token"])[:, :3])
        cell = np.floor((points - [-40, -40, -1]) / 0.4).astype(int)
        kept = ((cell >= 0) & (cell < [200, 200, 16])).all(1) & (labels != 31) & (labels != 0)
        occupancy = _occupancy(nusc, sample)["semantics"]
        found = occupancy[tuple(cell[kept].T)]
        expected = np.array([OCCUPANCY_OF_LIDARSEG.get(int(k), 0) for k in labels[kept]])
        agreeing, total = agreeing + (found == expected).sum(), total + kept.sum()
    # A voxel has one label where two surfaces meet, and 2 cm of noise crosses voxel borders.
    assert agreeing / total > 0.9


def test_occupancy_masks_are_nested_and_hold_free_and_occupied(nusc):
    for sample in nusc.sample:
        labels = _occupancy(nusc, sample)
        for name in ("semantics", "mask_lidar", "mask_camera"):
            assert labels[name].shape == (200, 200, 16)
            assert labels[name].dtype == np.uint8
        assert (labels["mask_camera"] <= labels["mask_lidar"]).all()
        seen = labels["semantics"][labels["mask_camera"] == 1]
        assert (seen == 17).any()
        assert (seen == 11).any()


def test_boxes_of_barriers_and_cones_lie_on_their_orange_pixels(nusc):
    hits, shifted_hits, count = 0, 0, 0
    for sample in nusc.sample:
        for channel, token in sample["data"].items():
            if channel == "LIDAR_TOP":
                continue
            path, boxes, intrinsic = nusc.get_sample_data(token)
            image = cv2.imread(path).astype(int)
            for box in boxes:
                annotation = nusc.get("sample_annotation", box.token)
                striped = box.name in ("movable_object.barrier", "movable_object.trafficcone")
                if not striped or annotation["visibility_token"] != "4" or box.center[2] > 25:
                    continue
                corners = box.corners()
                pixels = intrinsic @ corners / corners[2]
                (left, top), (right, bottom) = pixels[:2].min(1), pixels[:2].max(1)
                height, width = image.shape[:2]
                if corners[2].min() < 1 or left < 0 or top < 0 or right > width or bottom > height:
                    continue
                low, high = round(top), round(bottom) + 1
                count += 1
                hits += _orange(image[low:high, round(left) : round(right) + 1])
                shift = round(2 * (bottom - top)) + 4  # straight up: sky, walls, what is behind
                shifted_hits += _orange(
                    image[max(low - shift, 0) : max(high - shift, 0), round(left) : round(right)]
                )
    assert count >= 5, "the fixture shows too few barriers and cones"
    # Visibility is that of the nearest camera; in another one a few may be hidden.
    assert hits / count > 0.7
    assert shifted_hits / count < 0.3


@pytest.mark.parametrize("mount", CAMERAS, ids=lambda mount: mount.channel)
def test_no_camera_is_blinded_by_its_own_vehicle(mount):
    """CAM_BACK_LEFT once stood inside the roof rack: black in every frame, and no error."""
    o3d = pytest.importorskip("open3d")
    body = ego_body()
    scene = o3d.t.geometry.RaycastingScene(nthreads=1)
    scene.add_triangles(
        o3d.core.Tensor(body.vertices.astype(np.float32)),
        o3d.core.Tensor(body.faces.astype(np.uint32)),
    )
    directions = pixel_rays(mount, (400, 225)) @ mount.ego_from_camera[:3, :3].T
    origins = np.broadcast_to(mount.ego_from_camera[:3, 3], directions.shape)
    rays = np.concatenate([origins, directions], 1).astype(np.float32)
    assert not np.isfinite(scene.cast_rays(o3d.core.Tensor(rays))["t_hit"].numpy()).any()


def test_cameras_have_their_own_times_and_poses(nusc):
    sample = nusc.sample[0]
    records = [nusc.get("sample_data", token) for token in sample["data"].values()]
    assert len({record["timestamp"] for record in records}) == 7
    assert len({record["ego_pose_token"] for record in records}) == 7
    for record in records:
        assert abs(record["timestamp"] - sample["timestamp"]) <= 50_000


def test_bytes_do_not_depend_on_the_number_of_processes(tmp_path):
    digests = []
    for processes in (1, 2):
        root = tmp_path / str(processes)
        _write_tiny(root, seed=3, processes=processes)
        digests.append(_digests(root))
    assert digests[0] == digests[1]


def test_another_seed_makes_another_world(tmp_path):
    _write_tiny(tmp_path / "a", seed=3, processes=1)
    _write_tiny(tmp_path / "b", seed=4, processes=1)
    first, second = _digests(tmp_path / "a"), _digests(tmp_path / "b")
    table = "v1.0-mini/sample_annotation.json"
    assert first[table] != second[table]


def test_bad_arguments_are_refused(tmp_path):
    with pytest.raises(ValueError, match="scenes is 0"):
        synthesize(tmp_path / "a", scenes=0)
    with pytest.raises(ValueError, match="frames is 0"):
        synthesize(tmp_path / "a", frames=0)
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="not empty"):
        synthesize(tmp_path)


def _write_tiny(root: Path, seed: int, processes: int) -> None:
    synthesize(
        root, scenes=2, frames=1, seed=seed, image_size=(64, 36), camera_sweeps=False,
        processes=processes,
    )  # fmt: skip


def _digests(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def _orange(patch: np.ndarray) -> bool:
    """Whether a BGR patch shows saturated orange or red."""
    blue, green, red = np.moveaxis(patch, -1, 0) if patch.size else np.zeros((3, 1), int)
    return bool(((red > 1.35 * green + 10) & (red > 1.6 * blue + 10)).any())


def _points(nusc, token: str) -> np.ndarray:
    return np.fromfile(nusc.get_sample_data_path(token), np.float32).reshape(-1, 5)


def _occupancy(nusc, sample) -> dict[str, np.ndarray]:
    scene = nusc.get("scene", sample["scene_token"])["name"]
    path = Path(nusc.dataroot) / "gts" / scene / sample["token"] / "labels.npz"
    return dict(np.load(path, allow_pickle=False))


def _moved(record, points: np.ndarray) -> np.ndarray:
    from pyquaternion import Quaternion

    return points @ Quaternion(record["rotation"]).rotation_matrix.T + record["translation"]


def _to_ego(nusc, record, points: np.ndarray) -> np.ndarray:
    return _moved(nusc.get("calibrated_sensor", record["calibrated_sensor_token"]), points)


def _to_global(nusc, record, points: np.ndarray) -> np.ndarray:
    return _moved(nusc.get("ego_pose", record["ego_pose_token"]), _to_ego(nusc, record, points))


def _static_points(nusc, record) -> np.ndarray:
    """Points above the ground, near, and not of the vehicle itself."""
    points = _points(nusc, record["token"])[:, :3]
    distance = np.linalg.norm(points[:, :2], axis=1)
    return points[(points[:, 2] > -1.2) & (distance > 3) & (distance < 30)].astype(float)


def _back(nusc, record, count: int):
    for _ in range(count):
        record = nusc.get("sample_data", record["prev"])
    return record


def _travelled(nusc, record) -> float:
    ends = [
        nusc.get("ego_pose", r["ego_pose_token"])["translation"]
        for r in (record, _back(nusc, record, 5))
    ]
    return float(np.linalg.norm(np.subtract(*ends)))


def _score_truth(nusc, split: str, folder: Path) -> tuple[dict[str, float], set[str]]:
    """The devkit's AP of each class for a copy of the boxes with points; the classes in range."""
    from nuscenes.eval.common.config import config_factory
    from nuscenes.eval.detection.evaluate import DetectionEval
    from nuscenes.utils.splits import create_splits_scenes

    names, results = create_splits_scenes()[split], {}
    for sample in nusc.sample:
        if nusc.get("scene", sample["scene_token"])["name"] in names:
            records = [nusc.get("sample_annotation", token) for token in sample["anns"]]
            results[sample["token"]] = [
                _submitted(nusc, sample["token"], record)
                for record in records
                if record["num_lidar_pts"] > 0 and record["category_name"] in CLASS_OF_CATEGORY
            ]
    keys = ("use_camera", "use_lidar", "use_radar", "use_map", "use_external")
    path = folder / f"{split}.json"
    path.write_text(json.dumps({"meta": dict.fromkeys(keys, False), "results": results}))
    config = config_factory("detection_cvpr_2019")
    evaluation = DetectionEval(nusc, config, str(path), split, str(folder / split), verbose=False)
    present = {box.detection_name for box in evaluation.gt_boxes.all}
    metrics, _ = evaluation.evaluate()
    return dict(metrics.mean_dist_aps), present


def _submitted(nusc, sample_token: str, record) -> dict:
    attributes = [nusc.get("attribute", token)["name"] for token in record["attribute_tokens"]]
    velocity = np.nan_to_num(nusc.box_velocity(record["token"])[:2])
    return {
        "sample_token": sample_token,
        "translation": record["translation"],
        "size": record["size"],
        "rotation": record["rotation"],
        "velocity": velocity.tolist(),
        "detection_name": CLASS_OF_CATEGORY[record["category_name"]],
        "detection_score": 1.0,
        "attribute_name": attributes[0] if attributes else "",
    }
