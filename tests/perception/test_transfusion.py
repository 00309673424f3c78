"""TransFusion: attention, peaks, coding and matching against plain restatements."""

import math
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from model_parts import GRID, make_batch, make_boxes, make_model
from shapely import affinity
from shapely.geometry import box as rectangle

from bevstack.datasets.nuscenes.classes import ATTRIBUTES, DETECTION_CLASSES
from bevstack.perception.decoding.attributes import attribute_of_speed
from bevstack.perception.heads import TransFusionHead, TransFusionLoss
from bevstack.perception.heads.assignment import assign, matching_cost
from bevstack.perception.heads.box_proposals import proposal_loss
from bevstack.perception.heads.center_targets import PeakShape, draw_targets
from bevstack.perception.heads.query_boxes import (
    local_maxima,
    query_box_columns,
    wanted_of_boxes,
)
from bevstack.perception.heads.query_decoder import QueryDecoderLayer
from bevstack.perception.heads.transfusion import TransFusionOutput


def make_head(in_channels=16, **arguments) -> TransFusionHead:
    torch.manual_seed(0)
    return TransFusionHead(in_channels, GRID, channels=16, num_queries=20, num_heads=4, **arguments)


def bev(batch_size=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch_size, 16, *GRID.shape, generator=generator)


def naive_attention(layer, query, key):
    """One head at a time, from the packed weights: q, k, v; values are what keys are."""
    C, heads = query.shape[-1], layer.num_heads
    wq, wk, wv = layer.in_proj_weight.split(C)
    bq, bk, bv = layer.in_proj_bias.split(C)
    q, k, v = query @ wq.T + bq, key @ wk.T + bk, key @ wv.T + bv
    size = C // heads
    out = []
    for h in range(heads):
        part = slice(h * size, (h + 1) * size)
        weight = (q[..., part] @ k[..., part].mT / math.sqrt(size)).softmax(-1)
        out.append(weight @ v[..., part])
    return torch.cat(out, -1) @ layer.out_proj.weight.T + layer.out_proj.bias


def test_decoder_layer_is_the_written_out_one():
    torch.manual_seed(0)
    layer = QueryDecoderLayer(16, 4, 24, dropout=0.1).eval().double()
    query, cells = torch.randn(2, 5, 16).double(), torch.randn(2, 12, 16).double()
    position, centers = torch.rand(2, 5, 2).double() * 9, torch.rand(1, 12, 2).double() * 9
    got = layer(query, cells, position, centers)

    def embed(net, xy):
        conv1, norm, _, conv2 = net
        hidden = xy @ conv1.weight[..., 0].T + conv1.bias
        hidden = (hidden - norm.running_mean) / (norm.running_var + norm.eps).sqrt()
        hidden = (hidden * norm.weight + norm.bias).relu()
        return hidden @ conv2.weight[..., 0].T + conv2.bias

    at_query, at_cell = embed(layer.query_position, position), embed(layer.map_position, centers)
    near = query + at_query
    q = layer.norm1(query + naive_attention(layer.self_attention, near, near))
    q = layer.norm2(q + naive_attention(layer.cross_attention, q + at_query, cells + at_cell))
    want = layer.norm3(q + layer.linear2(layer.linear1(q).relu()))
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("border", [True, False])
def test_local_maxima_one_cell_at_a_time(border):
    score = torch.rand(1, 2, 6, 5, generator=torch.Generator().manual_seed(3)).round(decimals=1)
    got = local_maxima(score, torch.tensor([False, True]), border)
    assert torch.equal(got[0, 1], score[0, 1])  # every cell is a peak of its own
    for i in range(6):
        for j in range(5):
            inner = 0 < i < 5 and 0 < j < 4
            window = score[0, 0, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2]
            peak = score[0, 0, i, j] == window.max() and (border or inner)
            assert got[0, 0, i, j] == (score[0, 0, i, j] if peak else 0)


def perfect_output(batch, top=False) -> TransFusionOutput:
    """Queries that say exactly the boxes of each sample, in order."""
    wanted = wanted_of_boxes(batch.boxes, GRID, top)
    count = max(int(batch.boxes.sample.bincount(minlength=batch.size).max()), 1)
    rows = torch.zeros(batch.size, count, 10)
    logits = torch.full((batch.size, len(DETECTION_CLASSES), count), -20.0)
    label = torch.zeros(batch.size, count, dtype=torch.long)
    for b in range(batch.size):
        own = (batch.boxes.sample == b).nonzero()[:, 0]
        rows[b, : len(own)] = wanted[own].nan_to_num()
        label[b, : len(own)] = batch.boxes.label[own]
        logits[b, batch.boxes.label[own], torch.arange(len(own))] = 20.0
    center, height, size, heading, velocity = rows.mT.split([2, 1, 3, 2, 2], 1)
    heatmap = torch.zeros(batch.size, len(DETECTION_CLASSES), *GRID.shape)
    peak = torch.ones(batch.size, count)
    return TransFusionOutput(heatmap, label, peak, logits, center, height, size, heading, velocity)


@pytest.mark.parametrize("top", [True, False])
def test_boxes_come_back_from_what_queries_should_say(top):
    batch = make_batch()
    columns = query_box_columns(perfect_output(batch, top), GRID, top)
    for b in range(batch.size):
        own = (batch.boxes.sample == b).nonzero()[:, 0]
        boxes = batch.boxes
        got = columns[b, : len(own)]
        torch.testing.assert_close(got[:, :3], boxes.center[own], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(got[:, 3:6], boxes.size[own], rtol=1e-4, atol=1e-4)
        turn = (got[:, 6] - boxes.yaw[own] + math.pi) % (2 * math.pi) - math.pi
        torch.testing.assert_close(turn, torch.zeros(len(own)), rtol=0, atol=1e-4)


def test_perfect_queries_cost_nothing_but_the_heatmap():
    batch, head = make_batch(), make_head()
    terms = head.loss(perfect_output(batch), batch)
    assert terms["box"] < 1e-4
    assert terms["class"] < 1e-4
    assert terms["heatmap"] > 0
    detections = head.decode(perfect_output(batch))
    for b, found in enumerate(detections):
        own = batch.boxes.label[batch.boxes.sample == b]
        assert sorted(found.boxes.label[found.score > 0.5]) == sorted(own.tolist())


def test_samples_that_are_not_annotated_count_nothing():
    batch, head = make_batch(), make_head()
    head.train()
    output = head(bev())
    half = replace(batch, box_valid=torch.tensor([True, False]))
    boxes = batch.boxes
    first = boxes.sample == 0
    only = {name: getattr(boxes, name)[first] for name in vars(boxes)}
    alone = replace(half, boxes=type(boxes)(**only))
    for name, value in head.loss(output, half).items():
        assert torch.equal(value, head.loss(output, alone)[name]), name
    none = {name: getattr(boxes, name)[:0] for name in vars(boxes)}
    empty = replace(batch, boxes=type(boxes)(**none))
    terms = head.loss(output, empty)
    assert terms["box"] == 0
    sum(terms.values()).backward()
    assert all(p.grad.isfinite().all() for p in head.parameters() if p.grad is not None)


def iou_3d(a, b):
    """Of two boxes, by shapely."""

    def outline(x, y, length, width, yaw):
        shape = rectangle(-length / 2, -width / 2, length / 2, width / 2)
        return affinity.translate(affinity.rotate(shape, yaw, (0, 0), use_radians=True), x, y)

    shared = outline(a[0], a[1], a[3], a[4], a[6]).intersection(
        outline(b[0], b[1], b[3], b[4], b[6])
    )
    height = min(a[2] + a[5] / 2, b[2] + b[5] / 2) - max(a[2] - a[5] / 2, b[2] - b[5] / 2)
    overlap = shared.area * max(height, 0)
    return overlap / (a[3] * a[4] * a[5] + b[3] * b[4] * b[5] - overlap)


def test_matching_cost_is_the_three_costs_pair_by_pair():
    generator = torch.Generator().manual_seed(0)
    scale = torch.tensor([5.0, 5.0, 1.0, 4.0, 3.0, 2.0, 3.0])
    boxes, truth = (
        torch.rand(n, 7, generator=generator) * scale + torch.tensor([0, 0, 0, 1, 1, 1, 0])
        for n in (6, 4)
    )
    logits, labels = torch.randn(6, 3, generator=generator), torch.tensor([0, 2, 1, 1])
    cost = matching_cost(logits, boxes, labels, truth, (20.0, 10.0), 0.15, 0.25, 0.5)
    for q in range(6):
        for m in range(4):
            p = logits[q, labels[m]].sigmoid()
            rise = -0.25 * (1 - p) ** 2 * p.log() + 0.75 * p**2 * (1 - p).log()
            dx, dy = (boxes[q, :2] - truth[m, :2]).abs()
            want = 0.15 * rise + 0.25 * (dx / 20 + dy / 10)
            want -= 0.5 * iou_3d(boxes[q].tolist(), truth[m].tolist())
            torch.testing.assert_close(cost[q, m], want, rtol=1e-4, atol=1e-4)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 5), st.integers(0, 4), st.integers(0, 1000))
def test_assignment_is_the_cheapest_of_all(num_queries, num_boxes, seed):
    cost = torch.rand(num_queries, num_boxes, generator=torch.Generator().manual_seed(seed))
    query, box = assign(cost)
    assert len(query) == min(num_queries, num_boxes)
    wide = cost if num_queries >= num_boxes else cost.T
    every = (
        sum(wide[q, m].item() for m, q in enumerate(chosen))
        for chosen in permutations(range(wide.shape[0]), wide.shape[1])
    )
    assert cost[query, box].sum().item() == pytest.approx(min(every), abs=1e-5)


def test_assignment_survives_numbers_that_are_none():
    cost = torch.tensor([[float("nan"), 1.0], [2.0, float("inf")], [5.0, 7.0]])
    query, box = assign(cost)
    assert sorted(zip(query.tolist(), box.tolist())) == [(0, 1), (1, 0)]


def test_scores_are_products_and_labels_those_of_the_query():
    batch = make_batch(size=1)
    output = perfect_output(batch)
    count = output.label.shape[1]
    peak = torch.linspace(0.9, 0.1, count)[None]
    logits = torch.randn(output.logits.shape, generator=torch.Generator().manual_seed(2))
    found = make_head().decode(replace(output, peak=peak, logits=logits))[0]
    p = logits[0, output.label[0], torch.arange(count)].sigmoid() * peak[0]
    order = p.argsort(descending=True)
    torch.testing.assert_close(torch.tensor(found.score).float(), p[order])
    assert found.boxes.label.tolist() == output.label[0, order].tolist()


def test_boxes_outside_the_range_are_not_given():
    batch = make_batch()
    edge = 0.0
    head = make_head(center_range=(-100.0, -100.0, -10.0, edge, 100.0, 10.0))
    found = head.decode(perfect_output(batch))[0].boxes.center
    everything = make_head().decode(perfect_output(batch))[0].boxes.center
    assert len(found) == (everything[:, 0] <= edge).sum() < len(everything)


def test_attributes_follow_class_and_speed():
    label = np.array([DETECTION_CLASSES.index(c) for c in ("car", "bus", "bicycle", "barrier")])
    moving = attribute_of_speed(DETECTION_CLASSES, label, np.tile([0.3, 0.0], (4, 1)))
    still = attribute_of_speed(DETECTION_CLASSES, label, np.tile([0.1, 0.1], (4, 1)))
    names = [[ATTRIBUTES[i] if i >= 0 else "" for i in row.tolist()] for row in (moving, still)]
    assert names[0] == ["vehicle.moving", "vehicle.moving", "cycle.with_rider", ""]
    assert names[1] == ["vehicle.parked", "vehicle.stopped", "cycle.without_rider", ""]


def test_queries_that_refine_start_from_what_their_cell_proposes():
    output = make_head(refine=True)(bev())
    heatmap, proposals = output.heatmap.flatten(2), output.proposals.flatten(2)
    for b in range(2):
        for q, label in enumerate(output.label[b].tolist()):
            probability = heatmap[b, label].sigmoid()
            cell = int((probability - output.peak[b, q]).abs().argmin())
            i, j = divmod(cell, GRID.shape[1])
            torch.testing.assert_close(output.logits[b, :, q], heatmap[b, :, cell])
            middle = torch.tensor([i + 0.5, j + 0.5])
            torch.testing.assert_close(output.center[b, :, q], middle + proposals[b, :2, cell])
            rest = torch.cat(
                [getattr(output, n)[b, :, q] for n in ("height", "size", "heading", "velocity")]
            )
            torch.testing.assert_close(rest, proposals[b, 2:, cell])


def test_what_memory_says_of_motion_is_in_the_proposals_once():
    head, motion = make_head(refine=True).eval(), torch.randn(2, 2, *GRID.shape)
    still, moved = head(bev()), head(bev(), motion=motion)
    torch.testing.assert_close(moved.proposals[:, :8], still.proposals[:, :8])
    torch.testing.assert_close(moved.proposals[:, 8:], still.proposals[:, 8:] + motion)
    velocity = moved.proposals[:, 8:].flatten(2)
    for b in range(2):
        for q in range(20):
            distance = (velocity[b] - moved.velocity[b, :, q, None]).abs().sum(0)
            assert distance.min() < 1e-6
    assert not torch.allclose(moved.velocity, still.velocity)


def test_proposals_are_compared_with_the_box_of_every_cell_that_knows_one():
    boxes = make_boxes(
        [[3, 2, 1], [-5, 4, 1], [6, -3, 0.5]], [0, 8, 3], (6.0, 2.0, 1.5), [0, 0, 1],
        yaw=torch.tensor([0.4, -2.0, 3.0]),
        velocity=torch.tensor([[1.0, -2.0], [math.nan, math.nan], [0.0, 3.0]]),
    )  # fmt: skip
    batch = make_batch(boxes=boxes)
    proposals = torch.randn(2, 10, *GRID.shape, generator=torch.Generator().manual_seed(5))
    targets = draw_targets(batch, GRID, 10, PeakShape(elongation=0.15))
    want = 0.0
    for m, cell, weight in zip(targets.box, targets.cell, targets.weight):
        i, j = divmod(int(cell), GRID.shape[1])
        x, y = GRID.to_metres(i + 0.5, j + 0.5)
        dx, dy, z, *size, sin, cos, vx, vy = proposals[boxes.sample[m], :, i, j].tolist()
        right = [
            *((boxes.center[m, :2] - torch.tensor([x, y])) / GRID.cell_size).tolist(),
            *(boxes.center[m, 2], *boxes.size[m].log(), boxes.yaw[m].sin(), boxes.yaw[m].cos()),
        ]
        error = sum(abs(a - b) for a, b in zip([dx, dy, z, *size, sin, cos], right))
        if not boxes.velocity[m].isnan().any():
            error += 0.2 * (abs(vx - boxes.velocity[m, 0]) + abs(vy - boxes.velocity[m, 1]))
        want += weight * error
    assert len(targets.box) > 3 * len(boxes.label)
    got = proposal_loss(proposals, targets, batch, GRID, False, 0.2)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-4)


def test_queries_learn_from_their_loss_and_proposals_from_their_own():
    batch, head = make_batch(), make_head(refine=True, dropout=0.0)
    with torch.no_grad():  # past the start, where the last layers hide the others
        for branch in head.prediction.values():
            branch[-1].weight.normal_(std=0.1)
    terms = head.loss(head(bev()), batch)
    assert terms.keys() == {"class", "box", "heatmap", "proposal"}

    def learning(names):
        head.zero_grad()
        sum(terms[name] for name in names).backward(retain_graph=True)
        return {
            name.split(".")[0]
            for name, parameter in head.named_parameters()
            if parameter.grad is not None and parameter.grad.any()
        }

    assert "proposals" not in learning(("class", "box")) >= {"decoder", "prediction", "shared"}
    assert learning(("proposal",)) == {"proposals", "shared"}
    assert learning(("heatmap",)) == {"heatmap", "shared"}


@pytest.mark.parametrize("refine", [False, True])
def test_a_model_with_this_head_trains(refine):
    batch = make_batch()
    model = make_model()
    model.heads["detection"] = make_head(32, loss=TransFusionLoss(), dropout=0.0, refine=refine)
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    totals = []
    for _ in range(12):
        total = model.total_loss(model.loss(model(batch), batch))
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(total.item())
    assert totals[-1] < 0.7 * totals[0]


def test_two_runs_agree_bit_by_bit():
    batch = make_batch()
    grads = []
    for _ in range(2):
        head = make_head()
        torch.manual_seed(1)
        sum(head.loss(head(bev()), batch).values()).backward()
        grads.append([p.grad for p in head.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*grads) if a is not None)


def test_unknown_class_names_are_refused():
    with pytest.raises(ValueError, match="tram"):
        make_head(single_cell_classes=("tram",))
