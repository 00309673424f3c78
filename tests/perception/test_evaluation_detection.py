"""Our nuScenes detection metrics against the unmodified devkit's."""

from __future__ import annotations

import math

import numpy as np
import pytest
from evaluation_tables import Annotation, Sample, TinyDataset, random_results, random_samples

from bevstack.datasets.errors import DataError
from bevstack.datasets.nuscenes.classes import CLASS_OF_CATEGORY
from bevstack.perception.evaluation.boxes import GlobalBoxes
from bevstack.perception.evaluation.detection import evaluate_detections
from bevstack.perception.evaluation.ground_truth import BIKE_RACK, GroundTruth
from bevstack.perception.evaluation.submission import read_submission

pytest.importorskip("nuscenes")

MOVING = {"vehicle.": "vehicle.moving", "human.": "pedestrian.moving"}


def assert_equal_to_devkit(data: TinyDataset, results: dict[str, list[dict]]) -> dict:
    """Every number of the summary agrees to 1e-6; gives the devkit's."""
    submission = data.submit(results)
    ours = evaluate_detections(read_submission(submission, data.tokens), data.truth()).to_json()
    theirs = data.devkit(submission)
    for name in ("mean_ap", "nd_score"):
        assert ours[name] == pytest.approx(theirs[name], abs=1e-6), name
    for name in ("tp_errors", "tp_scores", "mean_dist_aps"):
        assert ours[name] == pytest.approx(dict(theirs[name]), abs=1e-6), name
    for name, aps in theirs["label_aps"].items():
        expected = {str(threshold): ap for threshold, ap in aps.items()}
        assert ours["label_aps"][name] == pytest.approx(expected, abs=1e-6), name
    for name, errors in theirs["label_tp_errors"].items():
        mine = {k: math.nan if v is None else v for k, v in ours["label_tp_errors"][name].items()}
        assert mine == pytest.approx(dict(errors), abs=1e-6, nan_ok=True), name
    return theirs


def copies(data: TinyDataset, **changes) -> dict[str, list[dict]]:
    """A submission that repeats the ground truth."""
    return {
        token: [
            sample.box(token, a, **changes)
            for a in sample.annotations
            if a.category in CLASS_OF_CATEGORY
        ]
        for token, sample in zip(data.tokens, data.samples, strict=True)
    }


def all_classes(offset: float = 0.0) -> Sample:
    """A moving object of every class near the vehicle."""
    annotations = []
    for number, (category, name) in enumerate(CLASS_OF_CATEGORY.items()):
        still = name in ("barrier", "traffic_cone")
        prefix = category.split(".")[0] + "."
        attribute = "" if still else MOVING[prefix]
        if name in ("bicycle", "motorcycle"):
            attribute = "cycle.with_rider"
        position = [600.0 + 2.5 * number, 900.0 + offset, 1.0]
        annotations.append(Annotation(position, category, velocity=(1.0, 0.5), attribute=attribute))
    return Sample((610.0, 905.0), annotations)


def one(*annotations: Annotation) -> list[Sample]:
    """A single sample with the vehicle at the origin."""
    return [Sample((0.0, 0.0), list(annotations))]


def test_perfect_submission_scores_one(tmp_path):
    data = TinyDataset(tmp_path, [all_classes(), all_classes(4.0)])
    theirs = assert_equal_to_devkit(data, copies(data))
    assert theirs["mean_ap"] == pytest.approx(1.0)
    assert theirs["nd_score"] == pytest.approx(1.0)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("noise", [0.1, 0.6])
def test_perturbed_submissions_equal_the_devkit(tmp_path, seed, noise):
    rng = np.random.default_rng(seed)
    data = TinyDataset(tmp_path, random_samples(rng))
    theirs = assert_equal_to_devkit(data, random_results(rng, data, noise))
    assert theirs["mean_ap"] > 0


@pytest.mark.parametrize("levels", [1, 2, 5])
@pytest.mark.parametrize("seed", range(3))
def test_ties_are_broken_as_in_the_devkit(tmp_path, seed, levels):
    # levels = 1: all scores are exactly zero, where the devkit sets every error to 1.
    rng = np.random.default_rng(100 + seed)
    data = TinyDataset(tmp_path, random_samples(rng))
    assert_equal_to_devkit(data, random_results(rng, data, 0.5, levels))


def test_scores_above_one_are_accepted(tmp_path):
    rng = np.random.default_rng(7)
    data = TinyDataset(tmp_path, random_samples(rng))
    results = random_results(rng, data, 0.3)
    for boxes in results.values():
        for box in boxes:
            box["detection_score"] *= 6
    assert_equal_to_devkit(data, results)


def test_negative_scores_are_accepted_where_the_devkit_takes_them(tmp_path):
    # Where recall 1 is not reached the devkit stops with an AssertionError.
    data = TinyDataset(tmp_path, [all_classes()])
    assert_equal_to_devkit(data, copies(data, detection_score=-2.0))


def test_all_scores_zero_leaves_ap_and_sets_errors_to_one(tmp_path):
    data = TinyDataset(tmp_path, [all_classes()])
    theirs = assert_equal_to_devkit(data, copies(data, detection_score=0.0))
    assert theirs["mean_ap"] == pytest.approx(1.0)
    assert set(theirs["tp_errors"].values()) == {1.0}


def test_missing_classes_count_as_zero(tmp_path):
    data = TinyDataset(tmp_path, one(Annotation([5.0, 0.0, 1.0])))
    theirs = assert_equal_to_devkit(data, copies(data))
    assert theirs["mean_ap"] == pytest.approx(0.1)


def test_boxes_listed_twice_halve_precision(tmp_path):
    data = TinyDataset(tmp_path, one(*[Annotation([2.0 * i, 9.0, 1.0]) for i in range(20)]))
    results = {
        token: [box for box in boxes for _ in range(2)] for token, boxes in copies(data).items()
    }
    theirs = assert_equal_to_devkit(data, results)
    assert 0.4 < theirs["label_aps"]["car"][0.5] < 0.6


@pytest.mark.parametrize(
    "category",
    ["vehicle.car", "human.pedestrian.adult", "movable_object.trafficcone", "vehicle.bicycle"],
)
def test_range_is_strictly_below(tmp_path, category):
    # 30 m: 18-24-30; 40 m: 24-32-40; 50 m: 30-40-50; a hair less is inside.
    far = [(18.0, 24.0), (24.0, 32.0), (30.0, 40.0)]
    edge = [Annotation([x * f, y * f, 1.0], category) for x, y in far for f in (1.0, 0.999, 1.001)]
    data = TinyDataset(tmp_path, one(*edge, Annotation([3.0, 1.0, 0.0], category)))
    assert_equal_to_devkit(data, copies(data))
    truth = data.truth()
    metrics = evaluate_detections(read_submission(data.submit({}), data.tokens), truth)
    name = CLASS_OF_CATEGORY[category]
    inside = {"car": 8, "pedestrian": 5, "bicycle": 5, "traffic_cone": 2}[name]
    assert metrics.num_truth[name] == inside


def test_height_costs_nothing(tmp_path):
    data = TinyDataset(tmp_path, one(Annotation([5.0, 0.0, 1.0])))
    results = copies(data, translation=[5.0, 0.0, 40.0])
    assert assert_equal_to_devkit(data, results)["mean_ap"] == pytest.approx(0.1)


def test_hit_is_strictly_below_the_threshold(tmp_path):
    cars = [Annotation([10.0 * i - 20, 8.0, 1.0]) for i in range(4)]
    data = TinyDataset(tmp_path, one(*cars))
    boxes = [
        data.samples[0].box(data.tokens[0], car, translation=[car.translation[0] + d, 8.0, 1.0])
        for car, d in zip(cars, (0.5, 1.0, 2.0, 4.0), strict=True)
    ]
    assert_equal_to_devkit(data, {data.tokens[0]: boxes})


def test_ground_truth_without_points_makes_its_copy_a_false_positive(tmp_path):
    cars = [Annotation([5.0 * i, 9.0, 1.0], num_points=i % 3) for i in range(6)]
    data = TinyDataset(tmp_path, one(*cars))
    theirs = assert_equal_to_devkit(data, copies(data))
    assert 0 < theirs["label_aps"]["car"][0.5] < 1


def test_predictions_that_say_they_have_no_points_are_dropped(tmp_path):
    data = TinyDataset(tmp_path, one(*[Annotation([6.0 * i, 9.0, 1.0]) for i in range(4)]))
    results = copies(data)
    results[data.tokens[0]][1]["num_pts"] = 0
    results[data.tokens[0]][2]["num_pts"] = 3
    assert_equal_to_devkit(data, results)


def test_bicycles_and_motorcycles_in_a_bike_rack_do_not_count(tmp_path):
    half = math.radians(30) / 2
    rack = Annotation(
        [10.0, 0.0, 1.0],
        BIKE_RACK,
        [2.0, 8.0, 2.0],
        [math.cos(half), 0.0, 0.0, math.sin(half)],
    )
    direction = np.array([math.cos(2 * half), math.sin(2 * half)])
    parked = [
        Annotation([10.0 + s * direction[0], s * direction[1], z], category)
        for s in (-4.1, -3.9, 0.0, 3.9, 4.1)
        for z in (-0.1, 0.1, 1.9, 2.1)
        for category in ("vehicle.bicycle", "vehicle.motorcycle", "vehicle.car")
    ]
    data = TinyDataset(tmp_path, [*one(rack, *parked), Sample((0.0, 0.0), parked[:9])])
    assert_equal_to_devkit(data, copies(data))
    metrics = evaluate_detections(read_submission(data.submit({}), data.tokens), data.truth())
    assert metrics.num_truth["bicycle"] == 20 - 6 + 3
    assert metrics.num_truth["car"] == 20 + 3


@pytest.mark.parametrize("share", [0.5, 1.0])
def test_nan_velocities_are_skipped(tmp_path, share):
    data = TinyDataset(tmp_path, [all_classes(), all_classes(3.0)])
    results = copies(data, velocity=[0.0, 0.0])
    rng = np.random.default_rng(3)
    for boxes in results.values():
        for box in boxes:
            if rng.random() < share:
                box["velocity"] = [math.nan, math.nan]
    theirs = assert_equal_to_devkit(data, results)
    assert (theirs["tp_errors"]["vel_err"] == 1.0) == (share == 1.0)


def test_unknown_true_velocity_and_attribute_are_skipped(tmp_path):
    cars = [
        Annotation([5.0 * i, 9.0, 1.0], attribute="vehicle.moving" if i % 2 else "")
        for i in range(6)
    ]
    data = TinyDataset(tmp_path, one(*cars))
    assert_equal_to_devkit(data, copies(data, attribute_name="vehicle.parked", velocity=[1.0, 0]))


@pytest.mark.parametrize("category", ["movable_object.barrier", "vehicle.car"])
def test_headings_differ_modulo_a_turn_and_half_a_turn_for_barriers(tmp_path, category):
    things = [Annotation([3.0 * i - 20, 9.0, 1.0], category) for i in range(13)]
    data = TinyDataset(tmp_path, one(*things))
    boxes = [
        data.samples[0].box(
            data.tokens[0],
            thing,
            rotation=[math.cos(i * math.pi / 12), 0.0, 0.0, math.sin(i * math.pi / 12)],
            detection_score=1 - i / 20,
        )
        for i, thing in enumerate(things)
    ]
    assert_equal_to_devkit(data, {data.tokens[0]: boxes})


def test_no_hit_at_all(tmp_path):
    data = TinyDataset(tmp_path, [all_classes()])
    boxes = copies(data)[data.tokens[0]]
    for box in boxes:
        box["translation"] = [box["translation"][0], box["translation"][1] + 20, 0.0]
    theirs = assert_equal_to_devkit(data, {data.tokens[0]: boxes})
    assert theirs["mean_ap"] == 0
    assert theirs["nd_score"] == 0


def test_empty_submission_scores_zero(tmp_path):
    # The devkit refuses a submission without a single box; one out of range is as good as none.
    data = TinyDataset(tmp_path, [all_classes()])
    far = data.samples[0].box(data.tokens[0], Annotation([0.0, 0.0, 0.0]))
    theirs = assert_equal_to_devkit(data, {data.tokens[0]: [far]})
    ours = evaluate_detections(read_submission(data.submit({}), data.tokens), data.truth())
    assert ours.mean_ap == theirs["mean_ap"] == 0
    assert ours.nd_score == theirs["nd_score"] == 0
    assert ours.tp_errors == theirs["tp_errors"]


def test_nothing_annotated_and_nothing_found_is_legal():
    truth = GroundTruth(("a",), np.zeros((1, 2)), GlobalBoxes.empty(), GlobalBoxes.empty())
    metrics = evaluate_detections(GlobalBoxes.empty(), truth)
    assert metrics.mean_ap == 0
    assert math.isnan(metrics.range_aps[0].mean_ap)


def test_size_of_zero_is_refused_by_name(tmp_path):
    data = TinyDataset(tmp_path, [all_classes()])
    predictions = read_submission(data.submit(copies(data, size=[0.0, 1.0, 1.0])), data.tokens)
    with pytest.raises(DataError, match="predicted box"):
        evaluate_detections(predictions, data.truth())


def test_bands_of_distance_are_measured_apart(tmp_path):
    near, far = Annotation([5.0, 0.0, 1.0]), Annotation([45.0, 0.0, 1.0])
    data = TinyDataset(tmp_path, one(near, far))
    found = [data.samples[0].box(data.tokens[0], near)]
    metrics = evaluate_detections(
        read_submission(data.submit({data.tokens[0]: found}), data.tokens), data.truth()
    )
    aps = [band.label_aps["car"] for band in metrics.range_aps]
    assert aps[0] == pytest.approx(1.0)
    assert math.isnan(aps[1])
    assert math.isnan(aps[2])
    assert aps[3] == 0.0


def test_nds_of_a_band_is_that_of_a_data_set_with_nothing_else_in_it(tmp_path):
    near, far = Annotation([5.0, 0.0, 1.0]), Annotation([45.0, 0.0, 1.0])
    data = TinyDataset(tmp_path, one(near, far))
    found = [
        data.samples[0].box(data.tokens[0], a, translation=[a.translation[0] + 0.7, 0.0, 1.0])
        for a in (near, far)
    ]
    metrics = evaluate_detections(
        read_submission(data.submit({data.tokens[0]: found}), data.tokens), data.truth()
    )
    scores = [band.nd_score for band in metrics.range_aps]
    errors = metrics.label_tp_errors["car"]
    assert metrics.range_aps[3].label_tp_errors["car"] == pytest.approx(errors)
    by_hand = 5 * 0.75 + sum(1 - error for error in errors.values())  # missed at 0.5 m alone
    assert [scores[0], scores[3]] == pytest.approx([by_hand / 10] * 2)
    assert math.isnan(scores[1])
    assert math.isnan(scores[2])


def test_velocity_error_of_moving_objects_is_that_of_a_data_set_with_no_others(tmp_path):
    cars = [
        Annotation([6.0 * i - 20, 8.0, 1.0], velocity=(2.0 * (i % 2), 0.0), attribute="")
        for i in range(7)
    ]
    sides = [np.random.default_rng(i).uniform(-1, 1, 2) for i in range(7)]

    def measured(folder, chosen):
        data = TinyDataset(folder, one(*(cars[i] for i in chosen)))
        token, sample = data.tokens[0], data.samples[0]
        found = [
            sample.box(
                token,
                cars[i],
                detection_score=0.9 - 0.1 * i,
                velocity=[*(sides[i] + cars[i].velocity)],
            )
            for i in chosen
        ]
        # And one that finds nothing.
        found.append(
            sample.box(token, cars[0], detection_score=0.75, translation=[0.0, -20.0, 1.0])
        )
        submission = data.submit({token: found})
        return evaluate_detections(read_submission(submission, data.tokens), data.truth())

    everything, moving = (
        measured(tmp_path / "all", range(7)),
        measured(tmp_path / "moving", (1, 3, 5)),
    )
    error = moving.label_tp_errors["car"]["vel_err"]
    assert everything.moving_vel_errors["car"] == pytest.approx(error)
    assert everything.label_tp_errors["car"]["vel_err"] != pytest.approx(error)
    assert math.isnan(everything.moving_vel_errors["truck"])
    assert everything.moving_vel_err == pytest.approx(error)
    assert everything.to_json()["moving_vel_errors"]["barrier"] is None
