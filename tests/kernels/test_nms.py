"""Suppression against the greedy loop in plain Python."""

import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("shapely")
from box_cases import random_boxes, rectangles

from bevstack.kernels import box_iou_bev, circle_nms, nms
from bevstack.kernels.nms import circle_nms_reference, nms_reference


def greedy(near, scores, labels, samples, max_kept):
    """The plain loop; ``near(i, j)`` tells whether one suppresses the other."""
    kept = []
    for sample in sorted(set(samples)):
        rows = [i for i in range(len(scores)) if samples[i] == sample]
        best = []
        for i in sorted(rows, key=lambda i: (-scores[i], i)):
            if not any(labels[i] == labels[j] and near(j, i) for j in best):
                best.append(i)
        kept += best[:max_kept]
    return kept


cases = st.tuples(
    st.integers(0, 10**6), st.integers(0, 60), st.sampled_from([1, 3]), st.sampled_from([1, 3])
)
caps = st.sampled_from([None, 0, 1, 5])


def make(seed, count, num_labels, num_samples):
    random = np.random.default_rng(seed)
    boxes = random_boxes(count, 5, seed=seed)
    scores = torch.from_numpy(random.integers(0, 12, count) / 12)  # with ties
    labels = torch.from_numpy(random.integers(-1, num_labels - 1, count))
    samples = torch.from_numpy(random.integers(0, num_samples, count) * 7)  # with gaps
    return boxes, scores, labels, samples


@settings(max_examples=60, deadline=None)
@given(cases, caps, st.sampled_from([0.05, 0.2, 0.5]))
def test_nms_is_the_greedy_loop_over_shapely(case, max_kept, threshold):
    boxes, scores, labels, samples = make(*case)
    polygons = rectangles(boxes)

    def near(i, j):
        shared = polygons[i].intersection(polygons[j]).area
        return shared / (polygons[i].area + polygons[j].area - shared) > threshold

    args = boxes, scores, threshold, labels, samples, max_kept
    expected = greedy(near, scores.tolist(), labels.tolist(), samples.tolist(), max_kept)
    assert nms(*args).tolist() == expected
    assert nms_reference(*args).tolist() == expected


@settings(max_examples=60, deadline=None)
@given(cases, caps, st.booleans())
def test_circle_nms_is_the_greedy_loop(case, max_kept, own_radii):
    boxes, scores, labels, samples = make(*case)
    radii = boxes[:, 4] if own_radii else torch.full((len(boxes),), 2.5, dtype=torch.float64)

    def near(i, j):
        return math.dist(boxes[i, :2], boxes[j, :2]) <= (radii[i] + radii[j]) / 2

    rest = labels, samples, max_kept
    expected = greedy(near, scores.tolist(), labels.tolist(), samples.tolist(), max_kept)
    assert circle_nms(boxes, scores, radii if own_radii else 2.5, *rest).tolist() == expected
    assert circle_nms_reference(boxes, scores, radii, *rest).tolist() == expected


def test_without_labels_all_boxes_see_each_other():
    boxes, scores, _, _ = make(0, 50, 1, 1)
    one = torch.zeros(50, dtype=torch.int64)
    assert nms(boxes, scores, 0.1).tolist() == nms(boxes, scores, 0.1, one, one).tolist()
    assert nms(boxes, scores, 0.1, max_kept=4).tolist() == nms(boxes, scores, 0.1).tolist()[:4]


def test_labels_and_samples_may_be_large():
    """A key made as label + box coordinate, or sample * classes + label, would mix these up."""
    boxes = random_boxes(1).repeat(4, 1)
    labels = torch.tensor([0, 2**62, 0, 2**62])
    samples = torch.tensor([-(2**62), 0, 0, 2**62])
    assert nms(boxes, torch.ones(4), 0.5, labels, samples).tolist() == [0, 1, 2, 3]


def test_first_of_equal_scores_stays():
    boxes = random_boxes(1).repeat(5, 1)
    scores = torch.tensor([0.1, 0.5, 0.5, 0.5, 0.2])
    assert nms(boxes, scores, 0.5).tolist() == [1]
    assert circle_nms(boxes, scores, 0.0).tolist() == [1]


def test_what_is_suppressed_suppresses_nothing():
    boxes = random_boxes(1).repeat(3, 1)
    boxes[:, 0] = torch.tensor([0.0, 1.0, 2.0])
    assert circle_nms(boxes, torch.tensor([3.0, 2.0, 1.0]), 1.5).tolist() == [0, 2]


def test_thresholds_are_met_as_documented():
    """IoU must be greater, distance may be equal."""
    boxes = torch.tensor([[0.0, 0, 0, 2.5, 1, 1, 0], [1.5, 0, 0, 2.5, 1, 1, 0]])
    scores = torch.tensor([1.0, 0.5])
    assert box_iou_bev(boxes, boxes)[0, 1].item() == 0.25
    assert nms(boxes, scores, 0.25).tolist() == [0, 1]
    assert nms(boxes, scores, math.nextafter(0.25, 0)).tolist() == [0]
    assert circle_nms(boxes, scores, 1.5).tolist() == [0]
    assert circle_nms(boxes, scores, 1.499).tolist() == [0, 1]


def test_no_box():
    for scores in (torch.zeros(0), torch.zeros(0, dtype=torch.float64)):
        kept = nms(random_boxes(0), scores, 0.5)
        assert (kept.dtype, kept.tolist()) == (torch.int64, [])
        assert circle_nms(random_boxes(0), scores, 1.0, scores.long(), scores.long()).tolist() == []


def test_what_is_no_number_comes_last_and_suppresses_nothing():
    boxes = random_boxes(1).repeat(3, 1)
    boxes[1, 0] = torch.nan
    scores = torch.tensor([0.1, 0.9, torch.nan])
    assert nms(boxes, scores, 0.5).tolist() == [1, 0]
    assert circle_nms(boxes, scores, 1.0).tolist() == [1, 0]
    assert nms(boxes[[1, 1]], scores[1:], 0.5).tolist() == [0, 1]


@pytest.mark.parametrize(
    "call",
    [
        lambda b: nms(b[:, :5], b[:, 0], 0.5),
        lambda b: nms(b, b[:2, 0], 0.5),
        lambda b: nms(b, b[:, 0], 1.5),
        lambda b: nms(b, b[:, 0], math.nan),
        lambda b: nms(b, b[:, 0], 0.5, labels=torch.zeros(1)),
        lambda b: nms(b, b[:, 0], 0.5, max_kept=-1),
        lambda b: circle_nms(b[:, :1], b[:, 0], 1.0),
        lambda b: circle_nms(b, b[:, 0], b[:2, 0]),
    ],
)
def test_bad_input_is_told(call):
    with pytest.raises(ValueError, match=r"expected|must (not )?be"):
        call(random_boxes(3))


def test_registration():
    boxes, scores, labels, samples = make(0, 20, 3, 2)
    ops = torch.ops.bevstack
    torch.library.opcheck(ops.nms.default, (boxes, scores, 0.2, labels, samples, None))
    torch.library.opcheck(ops.circle_nms.default, (boxes, scores, scores, None, samples, 3))


def test_a_runtime_without_torch_suppresses_and_counts():
    code = """
import sys
sys.modules["torch"] = sys.modules["triton"] = None  # importing them fails
import numpy as np
from bevstack.kernels.numba_nms import circle_nms, nms
from bevstack.kernels.numba_points_in_boxes import count_points_in_boxes
boxes = np.array([[0, 0, 0, 4, 2, 1, 0], [0.5, 0, 0, 4, 2, 1, 0], [9, 0, 0, 4, 2, 1, 0]])
print(nms(boxes, np.array([0.1, 0.2, 0.3]), 0.5), circle_nms(boxes, np.array([3, 2, 1]), 1.0))
print(count_points_in_boxes(np.zeros((4, 3), np.float32), boxes))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split("\n") == ["[2 1] [0 2]", "[4 4 0]", ""], done.stderr
