"""Map IoU in MIT BEVFusion's protocol, against the plain definition."""

from __future__ import annotations

import numpy as np
import pytest

from bevstack.datasets.nuscenes.classes import MAP_CLASSES
from bevstack.perception.evaluation.map import MAP_THRESHOLDS, MapIoU


def iou_by_definition(probabilities, masks):
    """(K, 7): every threshold compared cell by cell."""
    thresholds = np.array(MAP_THRESHOLDS, probabilities.dtype)
    predicted = probabilities[:, :, None] >= thresholds[:, None, None]
    true = masks[:, :, None]
    axes = (0, 3, 4)
    hit = (predicted & true).sum(axes)
    return hit / (hit + (predicted & ~true).sum(axes) + (~predicted & true).sum(axes) + 1e-7)


def table(metrics):
    return np.array([list(row.values()) for row in metrics.ious.values()])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("seed", range(3))
def test_equals_the_definition_with_sums_over_batches(seed, dtype):
    rng = np.random.default_rng(seed)
    probabilities = rng.random((5, 6, 13, 7)).astype(dtype)
    # Plenty of cells exactly at a threshold, and just below.
    exact = rng.choice(np.array(MAP_THRESHOLDS, dtype), probabilities.shape)
    probabilities = np.where(rng.random(probabilities.shape) < 0.5, exact, probabilities)
    below = np.nextafter(exact, dtype(0))
    probabilities = np.where(rng.random(probabilities.shape) < 0.2, below, probabilities)
    masks = rng.random(probabilities.shape) < 0.4
    metric = MapIoU(6)
    metric.update(probabilities[:2], masks[:2])
    metric.update(probabilities[2:], masks[2:])
    metrics, expected = metric.compute(), iou_by_definition(probabilities, masks)
    np.testing.assert_allclose(table(metrics), expected, rtol=0, atol=1e-12)
    assert metrics.mean_iou == pytest.approx(expected.max(axis=1).mean())
    assert tuple(metrics.ious) == MAP_CLASSES
    assert metrics.num_samples == 5


def test_equals_the_plain_formula_in_torch():
    torch = pytest.importorskip("torch")
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.rand(2, 6, 9, 8, generator=generator)
    masks = torch.rand(2, 6, 9, 8, generator=generator) < 0.5
    metric = MapIoU()
    metric.update(probabilities.numpy(), masks.numpy())
    for t, threshold in enumerate(MAP_THRESHOLDS):
        predicted = probabilities >= threshold
        hit = (predicted & masks).sum((0, 2, 3))
        union = (predicted | masks).sum((0, 2, 3))
        np.testing.assert_allclose(table(metric.compute())[:, t], hit / (union + 1e-7), atol=1e-6)


def test_samples_without_labels_do_not_count():
    rng = np.random.default_rng(0)
    probabilities, masks = rng.random((3, 6, 4, 5)), rng.random((3, 6, 4, 5)) < 0.5
    some, rest = MapIoU(6), MapIoU(6)
    some.update(probabilities, masks, valid=np.array([True, False, True]))
    rest.update(probabilities[[0, 2]], masks[[0, 2]])
    assert some.compute() == rest.compute()


def test_each_class_takes_its_own_best_threshold():
    probabilities = np.full((1, 2, 1, 4), 0.2)
    masks = np.zeros((1, 2, 1, 4), bool)
    probabilities[0, 0, 0, :2], masks[0, 0, 0, :1] = (0.62, 0.58), True
    probabilities[0, 1, 0, :2], masks[0, 1, 0, :2] = (0.36, 0.9), True
    metric = MapIoU(2, names=("a", "b"))
    metric.update(probabilities, masks)
    metrics = metric.compute()
    assert metrics.best_thresholds == {"a": 0.6, "b": 0.35}
    assert metrics.mean_iou == pytest.approx(1.0)


def test_class_without_a_cell_counts_zero():
    metric = MapIoU(6)
    metric.update(np.zeros((1, 6, 3, 3)), np.zeros((1, 6, 3, 3), bool))
    assert metric.compute().mean_iou == 0.0
    assert MapIoU(6).compute().mean_iou == 0.0


def test_counts_of_two_processes_add_up():
    rng = np.random.default_rng(1)
    probabilities, masks = rng.random((2, 6, 4, 5)), rng.random((2, 6, 4, 5)) < 0.5
    whole, first, second = MapIoU(6), MapIoU(6), MapIoU(6)
    whole.update(probabilities, masks)
    first.update(probabilities[:1], masks[:1])
    second.update(probabilities[1:], masks[1:])
    first.counts += second.counts
    first.num_samples += second.num_samples
    assert first.compute() == whole.compute()


@pytest.mark.parametrize(
    ("shape", "mask_shape"),
    [((1, 6, 4, 5), (1, 6, 5, 4)), ((6, 4, 5), (6, 4, 5)), ((1, 5, 4, 5), (1, 5, 4, 5))],
)
def test_shapes_that_do_not_fit_are_refused(shape, mask_shape):
    with pytest.raises(ValueError, match="map"):
        MapIoU(6).update(np.zeros(shape), np.zeros(mask_shape, bool))


def test_nan_is_refused():
    with pytest.raises(ValueError, match="NaN"):
        MapIoU(6).update(np.full((1, 6, 2, 2), np.nan), np.zeros((1, 6, 2, 2), bool))


def test_json_holds_the_figure_and_the_classes():
    metric = MapIoU(6)
    metric.update(np.ones((1, 6, 2, 2)), np.ones((1, 6, 2, 2), bool))
    content = metric.compute().to_json()
    assert content["mIoU"] == pytest.approx(1.0)
    assert set(content["label_ious"]) == set(MAP_CLASSES)
    assert next(iter(content["ious"]["divider"])) == "0.35"
