"""The object bank, and pasting its objects into frames."""

import pickle
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hand_made import Reader, make_annotations, make_frame, make_sweep, pose

from bevstack.datasets.augment.paste import ObjectPaste
from bevstack.datasets.dataset import FirstEpochs, FrameDataset
from bevstack.datasets.encode import Encoder
from bevstack.datasets.errors import DataError
from bevstack.datasets.geometry import apply, inverse
from bevstack.datasets.nuscenes.classes import DETECTION_CLASSES
from bevstack.datasets.nuscenes.index import build_index
from bevstack.datasets.nuscenes.reader import NuScenesReader
from bevstack.datasets.objects.bank import POINTS, ObjectBank
from bevstack.datasets.objects.build import BankOptions, build_bank, cut_objects, ensure_bank
from bevstack.datasets.points import merge_sweeps

SWEEPS = BankOptions(num_sweeps=3, min_points=3)
PASTE = ObjectPaste(dict.fromkeys(DETECTION_CLASSES, 4), SWEEPS)


@pytest.fixture(scope="module")
def reader(synthetic_root):
    build_index(synthetic_root, "v1.0-mini", previous_sweeps=4)
    return NuScenesReader(synthetic_root, "v1.0-mini", "mini_train", 2)


@pytest.fixture(scope="module")
def bank(reader, tmp_path_factory):
    return build_bank(reader, SWEEPS, tmp_path_factory.mktemp("bank") / "objects")


@pytest.fixture(scope="module")
def paste(bank):
    return replace(PASTE, folder=bank.folder)


def moved_frame(velocity):
    """A car of known velocity with three points on it, seen by two sweeps of a driving vehicle."""
    truth = make_annotations([[10.0, 4.0, 1.0]], [[4.0, 2.0, 1.6]], [0.3])
    truth = replace(truth, boxes=replace(truth.boxes, velocity=np.array([velocity])))
    on_car = np.array([[0.5, 0.2, 0.1], [-1.5, -0.4, -0.5], [1.9, 0.9, 0.7]])
    cos, sin = np.cos(0.3), np.sin(0.3)
    turn = np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
    sweeps = []
    for lag_us in (0, 50_000):
        shift = np.nan_to_num(np.array([*velocity, 0.0])) * lag_us * 1e-6
        position = on_car @ turn.T + truth.boxes.center[0] - shift
        sweep = make_sweep(np.zeros((0, 5)), lag_us)
        lidar_from_key = inverse(sweep.global_from_ego @ sweep.ego_from_lidar) @ pose(
            600, 900, 0, 0.7
        )
        points = np.hstack([apply(lidar_from_key, position), np.full((3, 2), [77.0, 5.0])])
        far = np.array([[-20.0, 3, 0, 1, 1]])
        sweeps.append(make_sweep(np.vstack([points, far]), lag_us))
    return make_frame("moved", (), sweeps, truth), on_car


@pytest.mark.parametrize("velocity", [(12.0, -3.0), (0.0, 0.0), (np.nan, np.nan)])
def test_points_are_cut_where_the_object_was(velocity):
    frame, on_car = moved_frame(velocity)
    ((row, points),) = cut_objects(frame, np.array([0]), BankOptions(2, min_points=3))
    assert row["num_points"] == [3, 3]
    np.testing.assert_allclose(points[0][:, :3], on_car, atol=1e-4)
    assert (points[0][:, 3:] == [77, 5]).all()
    # In the axes of the box at the key time: a moving object leaves a trail behind it.
    back = -0.05 * np.nan_to_num(np.array(velocity))
    cos, sin = np.cos(0.3), np.sin(0.3)
    trail = [cos * back[0] + sin * back[1], cos * back[1] - sin * back[0], 0]
    np.testing.assert_allclose(points[1][:, :3], on_car + trail, atol=1e-4)
    assert cut_objects(frame, np.array([0]), BankOptions(2, min_points=4)) == []


def test_bank_holds_what_the_annotations_count(reader, bank):
    expected = Counter()
    for i in range(len(reader)):
        truth = reader.global_annotations(i)
        for row in np.flatnonzero((truth.num_lidar_points >= 3) & (truth.boxes.label >= 0)):
            expected[reader.tokens[i], truth.instance[row]] = truth.num_lidar_points[row]
    found = {(bank[i].token, bank[i].instance): len(bank[i].points[0]) for i in range(len(bank))}
    assert len(bank) > 20
    assert found == dict(expected)  # the synthetic world counts points in boxes as we do
    for i in range(len(bank)):
        local = bank[i].points[0][:, :3]
        assert (np.abs(local) <= bank[i].size / 2 + 1e-3).all()


def test_bank_reopens_and_travels_by_its_path(bank):
    for other in (ObjectBank(bank.folder), pickle.loads(pickle.dumps(bank))):  # noqa: S301 as workers get it
        assert len(pickle.dumps(bank)) < 500
        np.testing.assert_array_equal(other[7].points[1], bank[7].points[1])
        assert (other[7].token, other[7].category) == (bank[7].token, bank[7].category)


def test_bank_is_built_again_for_other_options_only(reader, tmp_path):
    ensure_bank(reader, SWEEPS, tmp_path / "objects")
    lines = []
    ensure_bank(reader, SWEEPS, tmp_path / "objects", lines.append)
    assert lines == []
    few = ensure_bank(reader, replace(SWEEPS, max_per_class=1), tmp_path / "objects", lines.append)
    assert lines
    assert max(Counter(few.label.tolist()).values()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["objects"]


def test_a_bank_cut_off_is_refused(reader, tmp_path):
    build_bank(reader, SWEEPS, tmp_path / "objects")
    with (tmp_path / "objects" / POINTS).open("r+b") as file:
        file.truncate(40)
    with pytest.raises(DataError, match="cut off; remove the folder"):
        ObjectBank(tmp_path / "objects")
    with pytest.raises(DataError, match="no object bank"):
        ObjectBank(tmp_path)


def open_ground():
    """A frame with points and no object, in which all objects of the small world find room."""
    return make_frame(cameras=(), annotations=make_annotations([], [], []))


def pasted(before, after):
    return after.annotations[np.arange(len(before.annotations), len(after.annotations))]


def test_pasting_is_repeatable_and_leaves_the_frame_alone(paste):
    frame = open_ground()
    points = frame.sweeps[0].load().copy()
    one, two = paste(frame, 5), paste(frame, 5)
    assert len(pasted(frame, one)) > 3
    np.testing.assert_array_equal(one.annotations.boxes.center, two.annotations.boxes.center)
    for a, b in zip(one.sweeps, two.sweeps):
        np.testing.assert_array_equal(a.load(), b.load())
    np.testing.assert_array_equal(frame.sweeps[0].load(), points)
    other = paste(frame, 6)
    assert other.annotations.instance != one.annotations.instance


def test_pasted_objects_stand_where_their_boxes_are_and_nothing_else_does(paste, bank):
    frame = open_ground()
    after = paste(frame, 1)
    new = pasted(frame, after)
    merged = merge_sweeps(after, 3, vehicle_reach=0)
    by_instance = {(b.instance, tuple(b.center)): b for b in (bank[i] for i in range(len(bank)))}
    assert len(new) > 3
    for m in range(len(new)):
        stored = by_instance[new.instance[m].removeprefix("pasted/"), tuple(new.boxes.center[m])]
        cos, sin = np.cos(stored.yaw), np.sin(stored.yaw)
        local = merged[:, :3] - stored.center
        local = local @ np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1]])
        key = merged[:, 4] == 0
        inside = (np.abs(local) <= stored.size / 2 + 1e-6).all(1) & key
        expected = stored.points[0][:, :3].astype(float)
        # Points on the surface may fall either way in float32.
        assert abs(inside.sum() - len(expected)) <= max(2, 0.1 * len(expected))
        gap = np.abs(local[key][:, None] - expected).max(2).min(0)
        assert gap.max() < 1e-3
        assert new.num_lidar_points[m] == len(expected)


def test_pasted_objects_overlap_with_none_and_fill_classes_up(reader, paste):
    shapely = pytest.importorskip("shapely.geometry")
    for frame in (open_ground(), *(reader[i] for i in range(len(reader)))):
        after = paste(frame, 3)
        corners = after.annotations.boxes.corners()[:, :4, :2]
        ground = [shapely.Polygon(c) for c in corners]
        first = len(frame.annotations)
        for m in range(first, len(ground)):
            assert all(ground[m].intersection(g).area < 1e-6 for g in ground[:m])
        before = Counter(frame.annotations.boxes.label.tolist())
        count = Counter(after.annotations.boxes.label.tolist())
        assert all(count[k] <= max(4, before[k]) for k in range(10))


def test_frames_without_labels_or_points_are_left_alone(paste):
    frame = make_frame()
    for bare in (replace(frame, annotations=None), replace(frame, sweeps=())):
        assert paste(bare, 0) is bare
    with pytest.raises(ValueError, match="no bank"):
        PASTE(frame, 0)
    with pytest.raises(ValueError, match="names \\['lorry'\\]"):
        ObjectPaste({"lorry": 2})


class OpenGround(Reader):
    """Frames in which there is room."""

    def __init__(self):
        super().__init__(2)
        self.frames = [replace(open_ground(), token=token) for token in self.tokens]


def test_a_step_of_the_first_epochs_fades(paste):
    reader = OpenGround()
    encoder = Encoder((-51.2, -51.2, -5.0, 51.2, 51.2, 3.0), num_sweeps=3)
    faded = FrameDataset(reader, encoder, [FirstEpochs(paste, 2)])
    plain = FrameDataset(reader, encoder)
    for epoch in (0, 1):
        assert len(faded[epoch, 1].boxes.center) > len(plain[epoch, 1].boxes.center)
    assert torch.equal(faded[2, 1].points, plain[2, 1].points)


def test_data_builds_the_bank_beside_its_index_once(synthetic_root, tmp_path, capsys):
    from bevstack.perception.training.data import NuScenesData

    encoder = Encoder((-51.2, -51.2, -5.0, 51.2, 51.2, 3.0), num_sweeps=3)

    def data(*steps):
        made = NuScenesData(
            *(str(synthetic_root), "v1.0-mini", encoder, "mini_train", None, 2),
            workers=0,
            train_steps=steps,
            index_dir=str(tmp_path),
        )
        made.prepare_data()
        return made

    boxes = [
        sum(len(batch.boxes.center) for batch, _ in data(*steps).train_dataloader())
        for steps in ([], [FirstEpochs(PASTE, 5)], [PASTE])
    ]
    assert boxes[1] == boxes[2] > boxes[0]
    assert capsys.readouterr().out.count("object bank:") == 1
    assert (tmp_path / "v1.0-mini" / "objects-mini_train-3-3" / POINTS).is_file()
