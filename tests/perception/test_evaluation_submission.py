"""Submissions: what is written is what the devkit reads, and bad files are named."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from evaluation_tables import Annotation, Sample, TinyDataset
from hypothesis import given, settings
from hypothesis import strategies as st

from bevstack.datasets.boxes import Boxes3D, Detections
from bevstack.datasets.errors import DataError
from bevstack.datasets.geometry import inverse, rotation_from_quaternion, transform
from bevstack.datasets.nuscenes.classes import ATTRIBUTES, DETECTION_CLASSES
from bevstack.perception.evaluation.boxes import GlobalBoxes, upright_in_global
from bevstack.perception.evaluation.submission import (
    MAX_BOXES,
    read_submission,
    submission_meta,
    write_submission,
)

META = submission_meta(use_camera=True, use_lidar=False)
TILTED = [0.85, 0.03, -0.02, 0.5]  # a vehicle on a slope, 4 degrees off level


def some_boxes(rng: np.random.Generator, count: int) -> Boxes3D:
    return Boxes3D(
        center=rng.uniform(-50, 50, (count, 3)),
        size=rng.uniform(0.5, 10, (count, 3)),
        yaw=rng.uniform(-np.pi, np.pi, count),
        velocity=rng.normal(0, 5, (count, 2)),
        label=rng.integers(0, len(DETECTION_CLASSES), count),
    )


def detections(boxes: Boxes3D, score=None, attribute: int = -1) -> Detections:
    count = len(boxes)
    score = np.linspace(0.9, 0.1, count) if score is None else np.asarray(score)
    return Detections(boxes, score, np.full(count, attribute, np.int64))


def written(tmp_path, tokens, found, transforms=None):
    path = tmp_path / "submission.json"
    transforms = np.stack([np.eye(4)] * len(tokens)) if transforms is None else transforms
    write_submission(path, tokens, found, transforms, META)
    return path


def submitted_box(**changes) -> dict:
    return Sample((0.0, 0.0), []).box("a", Annotation([1.0, 2.0, 3.0]), **changes)


def bad_file(tmp_path, *boxes, results=None):
    path = tmp_path / "bad.json"
    results = {"a": list(boxes)} if results is None else results
    path.write_text(json.dumps({"meta": META, "results": results}))
    return path


@pytest.mark.parametrize("mirror", [False, True])
def test_boxes_come_back_where_they_stood_in_the_global_frame(tmp_path, mirror):
    # The vehicle is tilted, and augmentation has turned, moved, scaled and mirrored its frame.
    rng = np.random.default_rng(0)
    stood = some_boxes(rng, 20)
    global_from_ego = transform(TILTED, [400.0, 1100.0, 2.0])
    bev_from_ego = transform([0.9, 0, 0, 0.3], [1.0, -2.0, 0.1])
    bev_from_ego[:3, :3] *= 1.07
    if mirror:
        bev_from_ego = np.diag([1.0, -1.0, 1.0, 1.0]) @ bev_from_ego
    bev_from_global = bev_from_ego @ inverse(global_from_ego)
    seen = stood.transformed(bev_from_global)
    path = written(tmp_path, ["a"], [detections(seen)], inverse(bev_from_global)[None])
    back = read_submission(path, ["a"])
    np.testing.assert_allclose(back.translation, stood.center, atol=1e-9)
    np.testing.assert_allclose(back.size, stood.size[:, [1, 0, 2]], atol=1e-9)
    np.testing.assert_allclose(np.exp(1j * back.yaw), np.exp(1j * stood.yaw), atol=1e-9)
    np.testing.assert_allclose(back.velocity, stood.velocity, atol=1e-9)
    np.testing.assert_array_equal(back.label, stood.label)


def test_bug_11_round_trip_through_devkit_boxes_keeps_centre_and_corners(tmp_path):
    data_classes = pytest.importorskip("nuscenes.utils.data_classes")
    from pyquaternion import Quaternion

    boxes = some_boxes(np.random.default_rng(1), 10)
    global_from_ego = transform(Quaternion(axis=[0, 0, 1], radians=0.7).elements, [9.0, 8.0, 0.0])
    path = written(tmp_path, ["a"], [detections(boxes)], global_from_ego[None])
    records = json.loads(path.read_text())["results"]["a"]
    for i, record in enumerate(records):
        box = data_classes.Box(
            record["translation"], record["size"], Quaternion(record["rotation"])
        )
        box.translate(-global_from_ego[:3, 3])
        box.rotate(Quaternion(axis=[0, 0, 1], radians=-0.7))
        np.testing.assert_allclose(box.center, boxes.center[i], atol=1e-9)
        theirs, ours = box.corners().T, boxes.corners()[i]
        distance = np.linalg.norm(theirs[:, None] - ours[None], axis=2)
        assert (distance.min(axis=1) < 1e-9).all()


@settings(max_examples=50, deadline=None)
@given(
    roll=st.floats(-0.3, 0.3),
    pitch=st.floats(-0.3, 0.3),
    heading=st.floats(-3.1, 3.1),
    yaw=st.floats(-3.1, 3.1),
)
def test_upright_in_global_undoes_transformed(roll, pitch, heading, yaw):
    tilt = rotation_from_quaternion([1.0, roll / 2, pitch / 2, 0.0])
    turn = rotation_from_quaternion([math.cos(heading / 2), 0, 0, math.sin(heading / 2)])
    global_from_ego = transform(turn @ tilt, [100.0, -20.0, 3.0])
    box = Boxes3D(
        np.array([[3.0, 4.0, 1.0]]),
        np.array([[4.0, 2.0, 1.5]]),
        np.array([yaw]),
        np.array([[1.0, np.nan]]),
        np.array([0]),
    )
    back = upright_in_global(box.transformed(inverse(global_from_ego)), global_from_ego)
    np.testing.assert_allclose(back.center, box.center, atol=1e-9)
    np.testing.assert_allclose(np.exp(1j * back.yaw), np.exp(1j * box.yaw), atol=1e-9)


def test_devkit_loads_what_we_write(tmp_path):
    loaders = pytest.importorskip("nuscenes.eval.common.loaders")
    from nuscenes.eval.detection.data_classes import DetectionBox

    boxes = some_boxes(np.random.default_rng(2), 5)
    path = written(tmp_path, ["a", "b"], [detections(boxes, attribute=5), detections(boxes[:0])])
    loaded, meta = loaders.load_prediction(str(path), 500, DetectionBox)
    assert meta["use_camera"] is True
    assert meta["use_lidar"] is False
    assert loaded.sample_tokens == ["a", "b"]
    assert [box.attribute_name for box in loaded["a"]] == [ATTRIBUTES[5]] * 5
    np.testing.assert_array_equal([box.translation for box in loaded["a"]], boxes.center)


def test_the_best_500_boxes_stay(tmp_path):
    boxes = some_boxes(np.random.default_rng(3), 600)
    score = np.random.default_rng(4).random(600)
    back = read_submission(written(tmp_path, ["a"], [detections(boxes, score)]), ["a"])
    np.testing.assert_array_equal(back.score, np.sort(score)[::-1][:MAX_BOXES])


def test_every_token_is_present_and_an_empty_set_is_legal(tmp_path):
    nothing = detections(Boxes3D.empty())
    path = written(tmp_path, ["a", "b"], [nothing, nothing])
    assert json.loads(path.read_text())["results"] == {"a": [], "b": []}
    back = read_submission(path, ["b", "a"])
    assert len(back) == 0
    assert isinstance(back, GlobalBoxes)


def test_unknown_velocity_survives(tmp_path):
    box = some_boxes(np.random.default_rng(5), 1)
    box.velocity[:] = np.nan
    assert np.isnan(
        read_submission(written(tmp_path, ["a"], [detections(box)]), ["a"]).velocity
    ).all()


def test_input_boxes_are_left_alone(tmp_path):
    boxes = some_boxes(np.random.default_rng(6), 4)
    before = boxes.center.copy(), boxes.yaw.copy()
    written(tmp_path, ["a"], [detections(boxes)], transform(TILTED, [1.0, 2.0, 3.0])[None])
    np.testing.assert_array_equal(boxes.center, before[0])
    np.testing.assert_array_equal(boxes.yaw, before[1])


@pytest.mark.parametrize("name", ["center", "size", "yaw"])
def test_a_detection_with_nan_is_not_written(tmp_path, name):
    boxes = some_boxes(np.random.default_rng(7), 2)
    getattr(boxes, name)[1] = np.nan
    with pytest.raises(ValueError, match=f"sample a has a {name} that is not finite"):
        written(tmp_path, ["a"], [detections(boxes)])
    assert not (tmp_path / "submission.json").exists()


def test_counts_that_differ_are_refused(tmp_path):
    with pytest.raises(ValueError, match="2 tokens, 1 sets"):
        written(tmp_path, ["a", "b"], [detections(Boxes3D.empty())])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"detection_name": "tank"}, "unknown detection_name 'tank'"),
        ({"attribute_name": "car.flying"}, "unknown attribute_name"),
        ({"translation": [math.nan, 0.0, 0.0]}, "translation that is not finite"),
        ({"size": [math.nan, 1.0, 1.0]}, "size that is not finite"),
        ({"rotation": [math.nan, 0.0, 0.0, 0.0]}, "rotation that is not finite"),
        ({"detection_score": math.nan}, "detection_score that is not finite"),
        ({"velocity": [None, None]}, "numbers that are not"),
        ({"velocity": None}, "numbers that are not"),
        ({"translation": [1.0, 2.0]}, "numbers that are not"),
        ({"detection_score": "high"}, "numbers that are not"),
        ({"detection_name": ["car"]}, "unknown detection_name"),
        ({"sample_token": "b"}, "another sample"),
    ],
)
def test_a_bad_box_is_refused_by_name(tmp_path, changes, message):
    path = bad_file(tmp_path, submitted_box(), submitted_box(**changes))
    with pytest.raises(DataError, match=message) as error:
        read_submission(path, ["a"])
    assert "bad.json" in str(error.value)


@pytest.mark.parametrize("field", ["translation", "detection_name", "attribute_name", "velocity"])
def test_a_missing_field_is_named(tmp_path, field):
    box = submitted_box()
    del box[field]
    with pytest.raises(DataError, match=f"lacks `{field}`"):
        read_submission(bad_file(tmp_path, box), ["a"])


def test_missing_and_extra_samples_are_refused(tmp_path):
    path = bad_file(tmp_path, results={"a": [], "x": []})
    with pytest.raises(DataError, match=r"2 missing, 1 too many \(`b` is missing\)"):
        read_submission(path, ["a", "b", "c"])
    with pytest.raises(DataError, match=r"0 missing, 1 too many \(`x` is not in it\)"):
        read_submission(path, ["a"])


def test_more_than_500_boxes_are_refused(tmp_path):
    read_submission(bad_file(tmp_path, *[submitted_box()] * 500), ["a"])
    with pytest.raises(DataError, match="sample a has 501 boxes"):
        read_submission(bad_file(tmp_path, *[submitted_box()] * 501), ["a"])


def test_a_sample_that_comes_twice_is_refused(tmp_path):
    path, box = tmp_path / "twice.json", json.dumps(submitted_box())
    path.write_text(f'{{"meta": {{}}, "results": {{"a": [{box}], "a": [{box}]}}}}')
    with pytest.raises(DataError, match="comes twice"):
        read_submission(path, ["a"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not a JSON file"),
        ('{"meta": {}, "results": {"a": [', "not a JSON file"),
        ("[]", "needs the fields"),
        ('{"results": {"a": []}}', "needs the fields"),
        ('{"meta": {}, "results": []}', "needs the fields"),
        ('{"meta": {}, "results": {"a": null}}', "no list of boxes"),
        ('{"meta": {}, "results": {"a": [1]}}', "a box"),
    ],
)
def test_a_file_that_is_no_submission_is_refused(tmp_path, text, message):
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_submission(path, ["a"])


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere\.json: cannot read"):
        read_submission(tmp_path / "nowhere.json", ["a"])


def test_tiny_dataset_speaks_the_same_format(tmp_path):
    pytest.importorskip("nuscenes")
    data = TinyDataset(tmp_path, [Sample((0.0, 0.0), [Annotation([5.0, 1.0, 1.0])])])
    token = data.tokens[0]
    path = data.submit({token: [data.samples[0].box(token, data.samples[0].annotations[0])]})
    assert len(read_submission(path, data.tokens)) == 1
