"""The index and the reader: right records, clear errors."""

import json
import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
from nuscenes_folder import START_US, ego_pose, matrix, write_folder

from bevstack.datasets.errors import DataError
from bevstack.datasets.geometry import apply
from bevstack.datasets.nuscenes import frame_index
from bevstack.datasets.nuscenes.classes import DETECTION_CLASSES
from bevstack.datasets.nuscenes.frame_index import FrameIndex, numbers
from bevstack.datasets.nuscenes.index import build_index
from bevstack.datasets.nuscenes.reader import NuScenesReader
from bevstack.datasets.points import merge_sweeps

VERSION = "v1.0-mini"


@pytest.fixture
def root(tmp_path) -> Path:
    return write_folder(tmp_path / "nuscenes")


@pytest.fixture
def reader(root) -> NuScenesReader:
    build_index(root, VERSION)
    return NuScenesReader(root, VERSION)


def edit(root: Path, table: str, change) -> None:
    """Change a table's records by a function."""
    path = root / VERSION / f"{table}.json"
    records = json.loads(path.read_text())
    change(records)
    path.write_text(json.dumps(records, indent=0))


# ---- what is read


def test_frames_hold_what_the_tables_say(reader):
    frame = reader[1]
    assert (len(reader), reader.tokens, frame.token) == (3, ("k0", "k1", "k2"), "k1")
    assert (frame.scene, frame.location) == ("scene-0061", "boston-seaport")
    assert [camera.name for camera in frame.cameras] == ["CAM_BACK", "CAM_FRONT"]
    assert [len(reader[i].sweeps) for i in range(3)] == [1, 4, 7]
    assert frame.timestamp_us == frame.sweeps[0].timestamp_us
    for camera in frame.cameras:  # each with the pose at its own time
        pose = matrix(*ego_pose(camera.timestamp_us - START_US))
        np.testing.assert_allclose(camera.global_from_ego, pose, atol=1e-12)
        assert camera.model.intrinsic[0, 2] == 31.5


def test_annotations_hold_what_the_tables_say(reader):
    annotations = reader[0].annotations
    assert annotations.instance == ("mover", "once", "hidden")
    assert annotations.category == ("vehicle.car", "human.pedestrian.adult", "animal")
    labels = [DETECTION_CLASSES.index("car"), DETECTION_CLASSES.index("pedestrian"), -1]
    assert annotations.boxes.label.tolist() == labels
    assert annotations.visibility.tolist() == [1, 0, 3]
    assert annotations.num_lidar_points.tolist() == [0, 1, 2]
    assert annotations.attribute.tolist() == [5, -1, -1]
    np.testing.assert_allclose(annotations.boxes.size[0], [4.5, 1.9, 1.6])


def test_class_counts_leave_out_boxes_without_points(reader):
    counts = reader.class_counts()
    assert counts.shape == (3, len(DETECTION_CLASSES))
    assert counts[:, DETECTION_CLASSES.index("pedestrian")].tolist() == [1, 0, 0]
    assert counts[:, DETECTION_CLASSES.index("car")].tolist() == [0, 1, 1]  # 'late', not 'mover'


@pytest.mark.parametrize("folder", ["handmade", "synthetic"])
def test_velocity_is_the_devkits(reader, request, tmp_path, folder):
    nuscenes = pytest.importorskip("nuscenes")
    if folder == "synthetic":
        root = request.getfixturevalue("synthetic_root")
        build_index(root, VERSION, index_dir=tmp_path / "index")
        reader = NuScenesReader(root, VERSION, index_dir=tmp_path / "index")
    devkit = nuscenes.NuScenes(VERSION, str(reader.root), verbose=False)
    for i, token in enumerate(reader.tokens):
        theirs = [devkit.box_velocity(a) for a in devkit.get("sample", token)["anns"]]
        ours = reader.global_annotations(i).boxes.velocity
        np.testing.assert_allclose(ours, np.reshape(theirs, (-1, 3))[:, :2], atol=1e-6)


@pytest.mark.parametrize("folder", ["handmade", "synthetic"])
def test_peer_bug_11_box_centre_makes_the_round_trip_with_the_devkit(
    reader, request, tmp_path, folder
):
    nuscenes = pytest.importorskip("nuscenes")
    if folder == "synthetic":
        root = request.getfixturevalue("synthetic_root")
        build_index(root, VERSION, index_dir=tmp_path / "index")
        reader = NuScenesReader(root, VERSION, index_dir=tmp_path / "index")
    devkit = nuscenes.NuScenes(VERSION, str(reader.root), verbose=False)
    for i, token in enumerate(reader.tokens):
        theirs = [devkit.get_box(a) for a in devkit.get("sample", token)["anns"]]
        ours = reader.annotations(i).boxes
        center = apply(reader[i].global_from_ego, ours.center)
        np.testing.assert_allclose(center, [box.center for box in theirs], atol=1e-9)
        np.testing.assert_allclose(ours.size[:, [1, 0, 2]], [box.wlh for box in theirs])
        yaw = [box.orientation.yaw_pitch_roll[0] for box in theirs]
        found = reader.global_annotations(i).boxes.yaw
        np.testing.assert_allclose(np.exp(1j * found), np.exp(1j * np.array(yaw)), atol=1e-9)


def test_index_of_finds_tokens(reader):
    assert [reader.index_of(token) for token in reader.tokens] == [0, 1, 2]
    with pytest.raises(DataError, match="sample nothing is not in"):
        reader.index_of("nothing")


def test_split_selects_by_scene_name(reader):
    assert len(NuScenesReader(reader.root, VERSION, "mini_train")) == 3
    assert len(NuScenesReader(reader.root, VERSION, "mini_val")) == 0


def test_lidar_frame_is_the_key_sensors(reader):
    frame = NuScenesReader(reader.root, VERSION, frame="lidar")[2]
    np.testing.assert_allclose(
        frame.bev_from_ego @ frame.sweeps[0].ego_from_lidar, np.eye(4), atol=1e-12
    )


def test_dataset_without_annotations_has_none(tmp_path):
    root = write_folder(tmp_path, annotated=False)
    build_index(root, VERSION)
    reader = NuScenesReader(root, VERSION)
    assert reader[0].annotations is None
    assert reader.annotations(0) is None
    assert reader.class_counts().sum() == 0


def test_number_of_sweeps_is_a_limit(reader):
    assert len(NuScenesReader(reader.root, VERSION, previous_sweeps=2)[2].sweeps) == 3
    with pytest.raises(DataError, match="previous_sweeps=20"):
        NuScenesReader(reader.root, VERSION, previous_sweeps=20)


def test_reader_is_pickled_by_name_and_its_index_is_mapped(reader):
    content = pickle.dumps(reader)
    assert len(content) < 1000
    np.testing.assert_array_equal(
        pickle.loads(content)[2].annotations.boxes.center,  # noqa: S301 our own bytes
        reader[2].annotations.boxes.center,
    )
    yaw = numbers(reader.index.boxes.rows.field("yaw"), slice(0, 3))
    assert not yaw.flags.owndata
    assert not yaw.flags.writeable


def test_moved_dataset_needs_no_new_index(reader, tmp_path):
    moved = reader.root.rename(tmp_path / "moved")
    frame = NuScenesReader(moved, VERSION)[1]
    assert frame.cameras[0].load().shape == (36, 64, 3)


@pytest.mark.parametrize(
    ("sensors", "num_cameras", "num_sweeps"),
    [
        ({"radar": False}, 2, 7),
        ({"cameras": ("CAM_FRONT",)}, 1, 7),
        ({"cameras": tuple(f"CAM_{i}" for i in range(9))}, 9, 7),
        ({"cameras": ()}, 0, 7),
        ({"lidar": False}, 2, 0),
    ],
)
def test_peer_bug_16_dataset_without_some_sensor(tmp_path, sensors, num_cameras, num_sweeps):
    root = write_folder(tmp_path, **sensors)
    build_index(root, VERSION)
    frame = NuScenesReader(root, VERSION)[2]
    assert (len(frame.cameras), len(frame.sweeps)) == (num_cameras, num_sweeps)
    assert len(frame.annotations) == 3
    assert np.isfinite(merge_sweeps(frame)).all()


def test_lidar_frame_needs_a_lidar(tmp_path):
    root = write_folder(tmp_path, lidar=False)
    build_index(root, VERSION)
    with pytest.raises(DataError, match="has no LiDAR sweep"):
        NuScenesReader(root, VERSION, frame="lidar")[0]


# ---- images


@pytest.mark.parametrize("reduction", [1, 2, 4, 8])
def test_reduced_pixel_covers_its_square(tmp_path, reduction):
    from bevstack.datasets.nuscenes.sensor_files import ImageFile

    rows, columns = np.mgrid[0:90, 0:161]
    smooth = np.stack([rows * 2, columns, 255 - columns], -1).astype(np.uint8)
    path = tmp_path / "x.jpg"
    cv2.imwrite(str(path), smooth[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 100])
    pixels = ImageFile(path, 161, 90)(reduction)
    assert pixels.shape == (-(-90 // reduction), -(-161 // reduction), 3)
    whole = smooth[: 90 // reduction * reduction, : 161 // reduction * reduction].astype(float)
    blocks = whole.reshape(90 // reduction, reduction, 161 // reduction, reduction, 3).mean((1, 3))
    assert np.abs(pixels[: len(blocks), : blocks.shape[1]] - blocks).max() < 4


def test_orientation_tag_is_ignored(reader):
    path = reader[0].cameras[0].load.path
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    tag = b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif
    content = path.read_bytes()
    path.write_bytes(content[:2] + tag + content[2:])
    assert cv2.imread(str(path)).shape == (64, 36, 3)  # the tag is understood, and turns it
    assert reader[0].cameras[0].load().shape == (36, 64, 3)


# ---- bad input


def test_truncated_sweep(reader):
    path = reader[0].sweeps[0].load.path
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(DataError, match=r"\.pcd\.bin is cut off: .*copy the file again"):
        merge_sweeps(reader[0])


def test_missing_sweep(reader):
    reader[0].sweeps[0].load.path.unlink()
    with pytest.raises(DataError, match=r"\.pcd\.bin is missing"):
        merge_sweeps(reader[0])


def test_empty_cloud_is_legal(reader):
    reader[0].sweeps[0].load.path.write_bytes(b"")
    assert merge_sweeps(reader[0]).shape == (0, 5)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda jpeg: jpeg[: len(jpeg) // 2], "is a JPEG that is cut off"),
        (lambda jpeg: jpeg[:-2], "is a JPEG that is cut off"),
        (lambda jpeg: b"", r"\(0 bytes\) is not an image"),
        (lambda jpeg: b"not an image at all", "is not an image"),
        (lambda jpeg: jpeg[:30] + jpeg[-2:], "is not an image"),
    ],
)
def test_broken_image(reader, damage, said):
    path = reader[0].cameras[0].load.path
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=rf"{path.name}.*{said}.*copy the file again"):
        reader[0].cameras[0].load()


def test_missing_image_and_image_of_another_size(reader):
    path = reader[0].cameras[0].load.path
    cv2.imwrite(str(path), np.zeros((10, 20, 3), np.uint8))
    with pytest.raises(DataError, match="has 20 x 10 pixels"):
        reader[0].cameras[0].load()
    path.unlink()
    with pytest.raises(DataError, match=r"\.jpg is missing"):
        reader[0].cameras[0].load(2)


@pytest.mark.parametrize(
    ("table", "row", "field", "value"),
    [
        ("calibrated_sensor", 1, "translation", [0.0, float("nan"), 0.0]),
        ("calibrated_sensor", 1, "rotation", [float("nan")] * 4),
        ("calibrated_sensor", 2, "rotation", [0.0, 0.0, 0.0, 0.0]),
        ("ego_pose", 0, "rotation", [1.0, float("inf"), 0.0, 0.0]),
    ],
)
def test_calibration_or_pose_that_is_not_finite_names_its_record(root, table, row, field, value):
    token = json.loads((root / VERSION / f"{table}.json").read_text())[row]["token"]
    edit(root, table, lambda records: records[row].update({field: value}))
    with pytest.warns(UserWarning, match=rf"{table}\.json: record {token}"):
        build_index(root, VERSION)
    with pytest.raises(DataError, match=rf"{table}\.json: record {token} has NaN"):
        NuScenesReader(root, VERSION)[0]


def test_intrinsic_that_is_not_finite_names_its_record(root):
    edit(
        root,
        "calibrated_sensor",
        lambda r: r[0]["camera_intrinsic"][1].__setitem__(1, float("nan")),
    )
    build_index(root, VERSION)
    with pytest.raises(DataError, match="record cal-CAM_FRONT has NaN"):
        NuScenesReader(root, VERSION)[0]


def test_camera_without_intrinsic_names_its_record(root):
    edit(root, "calibrated_sensor", lambda r: r[0].update(camera_intrinsic=[]))
    with pytest.raises(DataError, match="camera_intrinsic of record cal-CAM_FRONT has 0 entries"):
        build_index(root, VERSION)


def test_token_that_leads_nowhere_is_named(root):
    edit(root, "sample_data", lambda r: r[0].update(ego_pose_token="gone"))
    with pytest.raises(DataError, match="refers to ego_pose gone"):
        build_index(root, VERSION)


def test_missing_table(root):
    (root / VERSION / "ego_pose.json").unlink()
    with pytest.raises(DataError, match=r"ego_pose\.json is missing"):
        build_index(root, VERSION)


def test_folder_that_is_not_nuscenes(tmp_path):
    with pytest.raises(DataError, match="is not a nuScenes folder"):
        NuScenesReader(tmp_path, VERSION)


def test_index_that_is_not_built_names_the_command(root):
    with pytest.raises(DataError, match=rf"run `bevstack index {root} --version {VERSION}`"):
        FrameIndex.open(root, VERSION)


def test_index_of_another_format(root, monkeypatch):
    monkeypatch.setattr(frame_index, "FORMAT", 0)
    build_index(root, VERSION)
    monkeypatch.undo()
    with pytest.raises(DataError, match=r"has format 0, .*build it again"):
        FrameIndex.open(root, VERSION)


def test_index_of_older_tables(root):
    build_index(root, VERSION)
    edit(root, "scene", lambda records: records[0].update(description="longer than before, much"))
    with pytest.raises(DataError, match=r"changed since .*build it again"):
        FrameIndex.open(root, VERSION)


def test_broken_index(root):
    path = build_index(root, VERSION)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DataError, match=r"cannot be read .*build it again"):
        FrameIndex.open(root, VERSION)


def test_folder_that_cannot_be_written_gets_its_index_in_the_cache(root, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (root / VERSION / ".bevstack").write_text("in the way")  # root may write anywhere
    path = build_index(root, VERSION)
    assert path.is_relative_to(tmp_path / "cache")
    assert len(NuScenesReader(root, VERSION)) == 3


def test_the_key_frame_before_is_that_of_the_same_scene(tmp_path):
    write_folder(tmp_path)
    build_index(tmp_path, "v1.0-mini")
    reader = NuScenesReader(tmp_path, "v1.0-mini")
    assert reader[0].previous() is None
    before = reader[2].previous()
    assert before.token == reader.tokens[1]
    np.testing.assert_array_equal(before.cameras[0].load(), reader[1].cameras[0].load())
    assert before.previous().token == reader.tokens[0]
