"""The occupancy head, and the Lovász losses it trains with."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from model_parts import GRID, make_batch

from bevstack.datasets.batch import OccupancyTargets
from bevstack.datasets.nuscenes.classes import FREE, OCCUPANCY_CLASSES
from bevstack.kernels.voxel_grid import VoxelGrid
from bevstack.perception.decoding.occupancy import decode_occupancy
from bevstack.perception.heads import OccupancyHead, OccupancyOutput
from bevstack.perception.losses import lovasz_loss, lovasz_softmax_loss

VOXELS = VoxelGrid((-8.0, 8.0), (-6.4, 6.4), (-1.0, 1.4), 0.4)  # 40 x 32 x 6
K = len(OCCUPANCY_CLASSES)


def make_targets(size=2, seed=0) -> OccupancyTargets:
    g = torch.Generator().manual_seed(seed)
    shape = (size, *VOXELS.shape)
    semantics = torch.randint(0, K, shape, generator=g)
    semantics[torch.rand(shape, generator=g) < 0.8] = FREE
    lidar = torch.rand(shape, generator=g) < 0.5
    camera = lidar & (torch.rand(shape, generator=g) < 0.5)
    valid = torch.ones(size, dtype=torch.bool)
    return OccupancyTargets(semantics.to(torch.uint8), lidar, camera, valid)


def output_of(occupied: torch.Tensor, classes: torch.Tensor) -> OccupancyOutput:
    """An output from (B, X, Y, Z) and (B, X, Y, Z, K), so of a stride of 1."""
    return OccupancyOutput(
        occupied.permute(0, 3, 1, 2)[:, :, None, None], classes.permute(0, 3, 4, 1, 2)
    )


def certain(semantics: torch.Tensor, sure: float = 12.0) -> OccupancyOutput:
    """What a head says that knows the answer."""
    there = semantics != FREE
    label = semantics.long().clamp(max=K - 1)
    classes = torch.nn.functional.one_hot(label, K) * sure
    return output_of((there * 2 - 1) * sure, classes)


@pytest.mark.parametrize("stride", [1, 2, 4])
@pytest.mark.parametrize("refine", [0, 1])
def test_shapes_follow_the_grid(stride, refine):
    head = OccupancyHead(8, GRID, VOXELS, 8, stride, refine_layers=refine, refine_channels=4)
    output = head(torch.randn(2, 8, *GRID.shape))
    nx, ny, nz = VOXELS.shape
    cells = nx // stride, ny // stride
    assert output.occupied.shape == (2, nz, stride, stride, *cells)
    assert output.classes.shape == (2, nz, K, *cells)
    occupied, classes = output.by_voxel()
    assert classes.shape == (2, *cells, nz, K)
    assert occupied.shape == (2, nx, ny, nz)
    x, y, z, s = 13, 22, 4, stride
    assert occupied[1, x, y, z] == output.occupied[1, z, x % s, y % s, x // s, y // s]
    assert torch.equal(classes[1, x // s, y // s, z], output.classes[1, z, :, x // s, y // s])
    decoded = head.decode(output)
    assert decoded.semantics.dtype == torch.uint8
    assert decoded.semantics.shape == decoded.probability.shape == (2, nx, ny, nz)
    assert ((decoded.probability > 0) & (decoded.probability <= 1)).all()


@pytest.mark.parametrize("stride", [1, 2])
def test_a_column_of_the_map_makes_the_column_of_voxels_above_it(stride):
    """One cell of the map changes; without 3x3 convolutions only voxels over it may."""
    head = OccupancyHead(4, GRID, VOXELS, 8, stride, layers=0).eval()
    bev = torch.randn(1, 4, *GRID.shape)
    moved = bev.clone()
    i, j = 20, 9  # x 3.2..4.0, y -2.4..-1.6
    moved[:, :, i, j] += 3
    before, after = (head(each).by_voxel()[0][0] for each in (bev, moved))
    changed = (before != after).any(-1).nonzero()
    x, y = VOXELS.bev.to_metres(changed[:, 0] + 0.5, changed[:, 1] + 0.5)
    reach = 0.4 if stride == 2 else 1.2  # bilinear sampling reaches into the next cell
    assert (x - 3.6).abs().max() <= reach - 0.1
    assert (y + 2.0).abs().max() <= reach - 0.1


def test_cropping_equals_resampling():
    """Where cells of 0.8 m lie on cells of 0.8 m, the part is cut out instead."""
    head = OccupancyHead(4, GRID, VOXELS, 8, class_stride=2).eval()
    assert head.crop is not None
    bev = torch.randn(2, 4, *GRID.shape)
    cut = head(bev)
    head.crop = None
    resampled = head(bev)
    torch.testing.assert_close(cut.occupied, resampled.occupied, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(cut.classes, resampled.classes, rtol=1e-4, atol=1e-4)


def test_the_right_answer_costs_nothing_and_is_decoded():
    targets, head = make_targets(), OccupancyHead(4, GRID, VOXELS)
    output, batch = certain(targets.semantics), replace(make_batch(), occupancy=targets)
    terms = head.loss(output, batch)
    assert set(terms) == {"focal", "class", "lovasz"}
    assert all(term < 1e-3 for term in terms.values())
    assert torch.equal(head.decode(output).semantics, targets.semantics)
    wrong = certain(targets.semantics.roll(1, 1))
    assert all(term > 0.1 for term in head.loss(wrong, batch).values())


@pytest.mark.parametrize("stride", [1, 2, 4])
@pytest.mark.parametrize("threshold", [0.0, 0.4, 0.9])
def test_the_runtime_decodes_the_same(stride, threshold):
    head = OccupancyHead(4, GRID, VOXELS, class_stride=stride, threshold=threshold)
    nx, ny, nz = VOXELS.shape
    g = torch.Generator().manual_seed(stride)
    cells = nx // stride, ny // stride
    output = OccupancyOutput(
        3 * torch.randn(1, nz, stride, stride, *cells, generator=g),
        3 * torch.randn(1, nz, K, *cells, generator=g),
    )
    expected = head.decode(output)
    assert (expected.semantics != FREE).float().mean() > 0.05
    assert threshold == 0 or (expected.semantics == FREE).any()
    arrays = output.occupied[0].numpy(), output.classes[0].numpy()
    for threads in (1, 3):
        found = decode_occupancy(*arrays, threshold, threads)
        assert np.array_equal(found.semantics, expected.semantics[0])
        np.testing.assert_allclose(found.probability, expected.probability[0], atol=1e-6)


@pytest.mark.parametrize("mask", ["camera", "lidar", "none"])
def test_voxels_that_the_mask_hides_teach_nothing(mask):
    targets = make_targets()
    head = OccupancyHead(4, GRID, VOXELS, mask=mask)
    seen = {"camera": targets.mask_camera, "lidar": targets.mask_lidar}.get(
        mask, torch.ones_like(targets.mask_lidar)
    )
    logits = torch.zeros(seen.shape, requires_grad=True)
    classes = torch.zeros(*seen.shape, K, requires_grad=True)
    output = output_of(logits, classes)
    sum(head.loss(output, replace(make_batch(), occupancy=targets)).values()).backward()
    assert torch.equal(logits.grad != 0, seen)
    there = seen & (targets.semantics != FREE)
    assert torch.equal((classes.grad != 0).any(-1), there)


def test_hidden_voxels_may_count_a_little():
    targets = make_targets()
    head = OccupancyHead(4, GRID, VOXELS, hidden_weight=0.25, lovasz_weight=0.0)
    logits = torch.zeros(targets.mask_camera.shape, requires_grad=True)
    output = output_of(logits, torch.zeros(*logits.shape, K))
    head.loss(output, replace(make_batch(), occupancy=targets))["focal"].backward()
    size = logits.grad.abs()
    seen = targets.mask_camera
    ratio = size[~seen].mean() / size[seen].mean()
    assert ratio.item() == pytest.approx(0.25, rel=1e-4)


def test_the_loss_counts_labelled_samples_only():
    targets, head = make_targets(), OccupancyHead(4, GRID, VOXELS, 8).eval()
    output = head(torch.randn(2, 4, *GRID.shape))
    half = replace(targets, valid=torch.tensor([True, False]))
    first = OccupancyTargets(*(getattr(targets, name)[:1] for name in (
        "semantics", "mask_lidar", "mask_camera", "valid")))  # fmt: skip
    alone = head.loss(
        OccupancyOutput(output.occupied[:1], output.classes[:1]),
        replace(make_batch(), occupancy=first),
    )
    both = head.loss(output, replace(make_batch(), occupancy=half))
    for name, value in alone.items():
        torch.testing.assert_close(both[name], value)
    none = head.loss(output, replace(make_batch(), occupancy=None))
    assert all(value == 0 for value in none.values())
    assert none["focal"].requires_grad  # every process of a DDP training needs a gradient


def test_labels_on_another_grid_are_refused():
    head = OccupancyHead(4, GRID, replace(VOXELS, z_range=(-1.0, 1.0)))
    output = head(torch.randn(2, 4, *GRID.shape))
    with pytest.raises(ValueError, match="occupancy_grid"):
        head.loss(output, replace(make_batch(), occupancy=make_targets()))


def test_unknown_classes_and_masks_are_refused():
    with pytest.raises(ValueError, match="lorry"):
        OccupancyHead(4, GRID, VOXELS, class_weights={"lorry": 2.0})
    with pytest.raises(ValueError, match="mask is 'radar'"):
        OccupancyHead(4, GRID, VOXELS, mask="radar")


@pytest.mark.parametrize("refine", [0, 1])
def test_it_learns_two_samples_by_heart(refine):
    torch.manual_seed(0)
    head = OccupancyHead(
        16, GRID, VOXELS, 32, class_stride=1, refine_layers=refine, refine_channels=8
    )
    targets = make_targets()
    # Blocks of several voxels: nothing finer than the map can be learned from it.
    coarse = targets.semantics[:, ::4, ::4].repeat_interleave(4, 1).repeat_interleave(4, 2)
    batch = replace(make_batch(), occupancy=replace(targets, semantics=coarse))
    bev = torch.randn(2, 16, *GRID.shape)
    optimizer = torch.optim.Adam(head.parameters(), 0.01)

    def iou():
        found, counted = head.decode(head(bev)).semantics, targets.mask_camera
        hit = (found == coarse) & (coarse != FREE) & counted
        return hit.sum() / (((found != FREE) | (coarse != FREE)) & counted).sum()

    for _ in range(60):
        optimizer.zero_grad()
        sum(head.loss(head(bev), batch).values()).backward()
        optimizer.step()
    assert iou() > 0.6


def test_lovasz_is_the_jaccard_loss_at_hard_predictions():
    g = torch.Generator().manual_seed(0)
    for _ in range(20):
        target = torch.rand(50, generator=g) < 0.4
        found = torch.rand(50, generator=g) < 0.5
        iou = (target & found).sum() / (target | found).sum()
        torch.testing.assert_close(lovasz_loss(found.float(), target), 1 - iou)


def test_lovasz_softmax_is_the_mean_over_classes_that_occur():
    g = torch.Generator().manual_seed(0)
    probabilities = torch.randn(40, 5, generator=g).softmax(1)
    target = torch.randint(0, 3, (40,), generator=g)
    expected = sum(lovasz_loss(probabilities[:, k], target == k) for k in range(3)) / 3
    torch.testing.assert_close(lovasz_softmax_loss(probabilities, target), expected)
    assert lovasz_softmax_loss(probabilities[:0], target[:0]) == 0


@pytest.mark.parametrize("loss", ["binary", "softmax"])
def test_lovasz_gradients_follow_the_loss(loss):
    g = torch.Generator().manual_seed(1)
    logits = torch.randn(12, 3, generator=g, dtype=torch.float32, requires_grad=True)
    target = torch.randint(0, 3, (12,), generator=g)
    value = {
        "binary": lambda x: lovasz_loss(x[:, 0].sigmoid(), target == 0),
        "softmax": lambda x: lovasz_softmax_loss(x.softmax(1), target),
    }[loss]
    (gradient,) = torch.autograd.grad(value(logits), logits)
    step = partial(torch.zeros_like, logits)
    for i, j in ((0, 0), (5, 0), (7, 2)):
        bump = step()
        bump[i, j] = 1e-2
        with torch.no_grad():
            numeric = (value(logits + bump) - value(logits - bump)) / 2e-2
        torch.testing.assert_close(gradient[i, j], numeric, rtol=5e-2, atol=2e-3)
