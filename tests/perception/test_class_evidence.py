"""Class evidence: the formula by a loop, silence without evidence, and its place in the model."""

import math
from functools import partial

import pytest
import torch
from model_parts import make_batch, make_model

from bevstack.perception.encoders import ImageSemantics
from bevstack.perception.encoders.image_semantics import class_balance
from bevstack.perception.fusion import ClassEvidence


def test_evidence_is_the_log_of_the_share_in_each_window():
    evidence = ClassEvidence(3, windows=(1, 3))
    painted = torch.rand(2, 3, 5, 6)
    prior = evidence(painted)
    for b, k, x, y in [(0, 0, 0, 0), (0, 1, 2, 3), (1, 2, 4, 5)]:
        expected = 0.0
        for reach in (0, 1):
            part = painted[
                b, :, max(x - reach, 0) : x + reach + 1, max(y - reach, 0) : y + reach + 1
            ]
            total = part.sum((1, 2)) + 0.1
            expected += 0.25 * math.log(3 * total[k] / total.sum())
        assert prior[b, k, x, y].item() == pytest.approx(expected, abs=1e-5)


def test_where_nothing_is_painted_heatmaps_stay():
    evidence = ClassEvidence(10)
    torch.nn.init.normal_(evidence.weigh.weight)
    assert (evidence(torch.zeros(1, 10, 8, 8)).abs() < 1e-5).all()


def test_what_is_painted_moves_the_heatmap_towards_its_class():
    painted = torch.zeros(1, 10, 16, 16)
    painted[0, 3, 6:10, 8] = 0.5  # the side of a bus
    prior = ClassEvidence(10)(painted)[0, :, 8, 10]  # its centre, two cells beside
    assert prior.argmax() == 3
    assert prior[3] > 0 > prior[1]


def test_pixels_of_small_classes_count_more():
    in_box = torch.zeros(111, 3, dtype=torch.bool)
    in_box[:100, 0] = True
    in_box[100, 2] = True
    weight = class_balance(in_box)
    mean = 101 / 2
    assert weight[0].item() == pytest.approx(math.sqrt(mean / 100))
    assert weight[100].item() == pytest.approx(math.sqrt(mean))
    assert (weight[101:] == 1).all()


def test_model_adds_the_evidence_and_lives_without_images():
    torch.manual_seed(0)
    semantics = partial(ImageSemantics, paint=True)
    model = make_model(semantics=semantics, class_evidence=True).eval()
    batch = make_batch()
    with torch.no_grad():
        both = model(batch)["detection"].heatmap
        blind = model(batch, use_camera=False)["detection"].heatmap
        model.class_evidence.weigh.weight.zero_()
        torch.testing.assert_close(model(batch, use_camera=False)["detection"].heatmap, blind)
        assert not torch.equal(model(batch)["detection"].heatmap, both)


def test_evidence_without_paint_is_refused():
    with pytest.raises(ValueError, match="paint: true"):
        make_model(class_evidence=True)
