"""Evaluating a model end to end, the official devkit on the result, and real ground truth."""

from __future__ import annotations

import csv
import json
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
from evaluation_tables import (
    SPLIT,
    VERSION,
    Annotation,
    Sample,
    TinyDataset,
    random_results,
    random_samples,
)
from rich.console import Console

from bevstack.datasets.boxes import Detections
from bevstack.datasets.errors import DataError
from bevstack.datasets.geometry import inverse
from bevstack.datasets.nuscenes.index import build_index
from bevstack.datasets.nuscenes.reader import NuScenesReader
from bevstack.perception.evaluation.detection import evaluate_detections
from bevstack.perception.evaluation.evaluate import evaluate_model
from bevstack.perception.evaluation.ground_truth import ground_truth
from bevstack.perception.evaluation.official import official_detection
from bevstack.perception.evaluation.submission import (
    read_submission,
    submission_meta,
    write_submission,
)

torch = pytest.importorskip("torch")
pytest.importorskip("nuscenes")

MAP_SHAPE = (6, 5, 4)


def as_detections(annotations, score=1.0) -> Detections:
    """What a model that knows the truth would say."""
    known = annotations.boxes.label >= 0
    boxes = annotations.boxes[known]
    return Detections(boxes, np.full(len(boxes), score), annotations.attribute[known])


def make_batch(reader, indices, bev_from_ego=None):
    """A batch without sensor data."""
    from bevstack.datasets.batch import Batch, BoxTargets

    bev_from_ego = np.eye(4) if bev_from_ego is None else bev_from_ego
    poses = [reader[i].global_from_ego @ inverse(bev_from_ego) for i in indices]
    count, none, whole = len(indices), torch.zeros(0), torch.zeros(0, dtype=torch.int64)
    flat = torch.zeros(0, 3)
    return Batch(
        tokens=tuple(reader.tokens[i] for i in indices),
        images=torch.zeros(0, 3, 2, 2, dtype=torch.uint8),
        image_sample=whole,
        bev_from_image=torch.zeros(0, 4, 4),
        points=torch.zeros(0, 5),
        point_sample=whole,
        global_from_bev=torch.from_numpy(np.stack(poses)),
        boxes=BoxTargets(flat, flat, none, torch.zeros(0, 2), whole, whole, whole, whole),
        box_valid=torch.ones(count, dtype=torch.bool),
        map_masks=torch.ones(count, *MAP_SHAPE, dtype=torch.bool),
        map_valid=torch.ones(count, dtype=torch.bool),
    )


class Oracle(torch.nn.Module):
    """Answers with the truth, in the BEV frame, and remembers what it was asked."""

    def __init__(self, reader, tasks=("detection", "map"), bev_from_ego=None):
        super().__init__()
        self.reader, self.tasks, self.asked = reader, tasks, []
        self.bev_from_ego = np.eye(4) if bev_from_ego is None else bev_from_ego

    def forward(self, batch, use_camera=True, use_lidar=True):
        assert not self.training
        assert not torch.is_grad_enabled()
        self.asked.append((batch.tokens, use_camera, use_lidar))
        return dict.fromkeys(self.tasks, batch.tokens)

    def decode(self, outputs, batch):
        decoded = {}
        if "detection" in outputs:
            decoded["detection"] = [self.detections(token) for token in outputs["detection"]]
        if "map" in outputs:
            decoded["map"] = torch.full((batch.size, *MAP_SHAPE), 0.9, dtype=torch.bfloat16)
        return decoded

    def detections(self, token):
        found = as_detections(self.reader.annotations(self.reader.tokens.index(token)))
        return replace(found, boxes=found.boxes.transformed(self.bev_from_ego))


def indexed(data: TinyDataset) -> NuScenesReader:
    build_index(data.root, VERSION)
    return NuScenesReader(data.root, VERSION, SPLIT)


@pytest.fixture
def cars(tmp_path) -> TinyDataset:
    """Three frames with four cars each."""

    def car(i, j):
        return Annotation(
            [100.0 + 6 * i, 50.0 + 3 * j, 1.0], velocity=(1.0, 2.0), attribute="vehicle.moving"
        )

    samples = [Sample((100.0, 45.0), [car(i, j) for i in range(4)]) for j in range(3)]
    return TinyDataset(tmp_path / "data", samples)


def test_ground_truth_through_the_reader_gives_the_devkits_numbers(tmp_path):
    rng = np.random.default_rng(0)
    samples = random_samples(rng)
    for sample in samples:  # the reader's boxes are upright, as all of nuScenes' are
        for annotation in sample.annotations:
            annotation.rotation[1:3] = [0.0, 0.0]
    data = TinyDataset(tmp_path, samples)
    submission = data.submit(random_results(rng, data, 0.4))
    reader = indexed(data)
    truth = ground_truth(reader)
    assert set(truth.tokens) == set(data.tokens)
    ours = evaluate_detections(read_submission(submission, truth.tokens), truth)
    theirs = data.devkit(submission)
    assert ours.mean_ap == pytest.approx(theirs["mean_ap"], abs=1e-6)
    assert ours.nd_score == pytest.approx(theirs["nd_score"], abs=1e-6)
    assert ours.tp_errors == pytest.approx(theirs["tp_errors"], abs=1e-6)


def test_real_key_frame_copy_of_the_truth(shared_data, tmp_path):
    root = tmp_path / "nuscenes"
    shutil.copytree(shared_data / "nuscenes-keyframe", root)
    build_index(root, "v1.0-mini")
    reader = NuScenesReader(root, "v1.0-mini", "mini_train")
    path = tmp_path / "submission.json"
    found, pose = as_detections(reader.annotations(0)), reader[0].global_from_ego
    write_submission(path, reader.tokens, [found], pose[None], submission_meta(True, True))
    metrics = evaluate_detections(read_submission(path, reader.tokens), ground_truth(reader))
    assert round(metrics.mean_ap, 4) == 0.4943
    assert round(metrics.nd_score, 4) == 0.4291
    assert round(metrics.mean_dist_aps["pedestrian"], 3) == 0.943
    assert metrics.mean_dist_aps["car"] == pytest.approx(1.0)
    assert metrics.tp_errors["vel_err"] == 1.0
    official = official_detection(root, "v1.0-mini", "mini_train", path, tmp_path / "official")
    assert metrics.mean_ap == pytest.approx(official["mean_ap"], abs=1e-6)
    assert metrics.nd_score == pytest.approx(official["nd_score"], abs=1e-6)
    assert metrics.tp_errors == pytest.approx(official["tp_errors"], abs=1e-6)
    assert (tmp_path / "official/metrics_summary.json").exists()


def test_evaluation_leaves_its_results_in_the_run_folder(cars, tmp_path):
    reader = indexed(cars)
    model = Oracle(reader).train()
    seen = []
    loader = [make_batch(reader, [0, 1]), make_batch(reader, [2])]
    run = tmp_path / "run/evaluation"
    metrics = evaluate_model(
        model, loader, reader, run, progress=lambda done, total: seen.append((done, total))
    )
    assert model.training
    assert seen == [(2, 3), (3, 3)]
    assert metrics.skipped == ()
    assert metrics.detection.mean_dist_aps["car"] == pytest.approx(1.0)
    content = json.loads((run / "metrics.json").read_text())
    assert content["detection"]["mAP"] == pytest.approx(0.1)
    assert content["detection"]["NDS"] == metrics.detection.nd_score
    assert content["detection"]["label_tp_errors"]["traffic_cone"]["vel_err"] is None
    assert content["map"]["mIoU"] == pytest.approx(1.0)
    assert content["frames"] == {"total": 3, "skipped": []}
    rows = list(csv.reader((run / "detection.csv").open()))
    assert rows[1][0] == "car"
    assert float(rows[1][2]) == pytest.approx(1.0)
    assert rows[-1][0] == "mean"
    assert len(list(csv.reader((run / "detection_by_range.csv").open()))) == 12
    assert len(list(csv.reader((run / "map.csv").open()))) == 8
    assert not list(run.glob("*.partial"))
    official = official_detection(cars.root, VERSION, SPLIT, run / "submission.json", run)
    assert official["nd_score"] == pytest.approx(metrics.detection.nd_score, abs=1e-6)


def test_an_augmented_bev_frame_changes_nothing(cars, tmp_path):
    reader = indexed(cars)
    angle = 0.4
    bev_from_ego = np.eye(4)
    bev_from_ego[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    bev_from_ego = np.diag([1.1, -1.1, 1.1, 1.0]) @ bev_from_ego
    bev_from_ego[:3, 3] = [1.0, 2.0, 0.3]
    loader = [make_batch(reader, [0, 1, 2], bev_from_ego)]
    model = Oracle(reader, bev_from_ego=bev_from_ego)
    metrics = evaluate_model(model, loader, reader, tmp_path / "run")
    for error, value in metrics.detection.label_tp_errors["car"].items():
        assert value == pytest.approx(0.0, abs=1e-6), error


def test_skipped_frames_are_counted_and_have_an_empty_list(cars, tmp_path, capsys):
    reader = indexed(cars)
    # As collate_counting gives them: a frame read, a batch of which nothing could be read.
    loader = [(make_batch(reader, [1]), ()), (None, ("unreadable",))]
    metrics = evaluate_model(Oracle(reader), loader, reader, tmp_path)
    assert set(metrics.skipped) == {reader.tokens[0], reader.tokens[2]}
    results = json.loads((tmp_path / "submission.json").read_text())["results"]
    assert [len(results[token]) for token in reader.tokens] == [0, 4, 0]
    assert metrics.detection.label_aps["car"][2.0] < 0.5
    metrics.print(Console(width=200))
    assert "2 of 3 frames could not be read" in capsys.readouterr().out


def test_sensors_are_withheld_by_keyword(cars, tmp_path):
    reader = indexed(cars)
    model = Oracle(reader)
    loader = [make_batch(reader, [0, 1, 2])]
    evaluate_model(model, loader, reader, tmp_path, use_camera=False)
    assert [asked[1:] for asked in model.asked] == [(False, True)]
    meta = json.loads((tmp_path / "submission.json").read_text())["meta"]
    assert meta["use_camera"] is False
    assert meta["use_lidar"] is True


@pytest.mark.parametrize("task", ["detection", "map"])
def test_a_model_with_one_head_is_measured_on_its_task(cars, tmp_path, task):
    reader = indexed(cars)
    loader = [make_batch(reader, [0, 1, 2])]
    metrics = evaluate_model(Oracle(reader, (task,)), loader, reader, tmp_path)
    assert (metrics.detection is not None) == (task == "detection")
    assert (metrics.map is not None) == (task == "map")
    assert (task in json.loads((tmp_path / "metrics.json").read_text())) is True


def test_a_frame_that_a_sampler_repeats_counts_once(cars, tmp_path):
    reader = indexed(cars)
    loader = [make_batch(reader, [0, 1]), make_batch(reader, [2, 0])]
    metrics = evaluate_model(Oracle(reader), loader, reader, tmp_path)
    assert metrics.map.num_samples == 3


def test_foreign_and_absent_frames_are_refused(cars, tmp_path):
    reader = indexed(cars)
    foreign = replace(make_batch(reader, [0]), tokens=("foreign",))
    with pytest.raises(DataError, match="frame foreign is not among"):
        evaluate_model(Oracle(reader), [foreign], reader, tmp_path)
    with pytest.raises(DataError, match="no frame could be evaluated"):
        evaluate_model(Oracle(reader), [(None, ())], reader, tmp_path)


def test_official_names_the_package_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "nuscenes", None)
    with pytest.raises(DataError, match="pip install"):
        official_detection(tmp_path, VERSION, SPLIT, tmp_path / "s.json", tmp_path)


def test_official_says_why_it_refuses(cars, tmp_path):
    with pytest.raises(DataError, match="no box at all"):
        official_detection(cars.root, VERSION, SPLIT, cars.submit({}), tmp_path / "out")
    missing = tmp_path / "missing.json"
    with pytest.raises(DataError, match="refuses"):
        official_detection(cars.root, VERSION, SPLIT, missing, tmp_path / "out")
