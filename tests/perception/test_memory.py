"""Memory: maps warped by ego motion, scenes, missing frames, clips and streams."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bevstack.datasets.augment import BEVAugmentation
from bevstack.datasets.batch import collate
from bevstack.datasets.sampling import Clips, EpochSampler, InOrder, Shuffled
from bevstack.kernels.grid import BEVGrid
from bevstack.perception.heads import CenterHead, TransFusionHead
from bevstack.perception.memory import (
    BEVMemory,
    Moments,
    MotionMatch,
    Past,
    Stream,
    correlation,
    patch_correlation,
    recall,
    warp,
)
from bevstack.perception.memory.warp import relative_transform

from model_parts import GRID, fingerprint, make_batch, make_model  # isort: skip


def pose(x=0.0, y=0.0, yaw=0.0, flips=(1, 1), scale=1.0):
    """(4, 4) float64, with mirroring and scale applied first, as an augmentation's inverse is."""
    c, s = np.cos(yaw), np.sin(yaw)
    matrix = np.eye(4)
    matrix[:2, :2] = np.array([[c, -s], [s, c]]) @ np.diag(flips) * scale
    matrix[2, 2] = scale
    matrix[:3, 3] = x, y, 0.3
    return torch.from_numpy(matrix)


def landscape(xy):
    """Smooth values of (..., 2) global points, which all frames see."""
    return torch.sin(0.21 * xy[..., 0] + 0.3) * torch.cos(0.17 * xy[..., 1]) + 0.02 * xy[..., 0]


def drawn(global_from_bev, grid):
    """(1, 1, X, Y): the landscape as a map in a BEV frame."""
    i, j = torch.meshgrid(*(torch.arange(n) + 0.5 for n in grid.shape), indexing="ij")
    x, y = grid.to_metres(i.double(), j.double())
    points = torch.stack([x, y, torch.zeros_like(x), torch.ones_like(x)], -1)
    return landscape((points @ global_from_bev.T)[..., :2])[None, None].float()


motions = st.builds(
    pose,
    x=st.floats(-3, 3),
    y=st.floats(-3, 3),
    yaw=st.floats(-3.1, 3.1),
    flips=st.tuples(*[st.sampled_from([-1, 1])] * 2),
    scale=st.floats(0.9, 1.1),
)


@settings(max_examples=50, deadline=None)
@given(motions, motions)
def test_a_warped_map_is_the_map_drawn_in_the_other_frame(before, now):
    # Kilometres from the origin, as maps of cities are: float32 would be off by decimetres.
    far = pose(x=600_123.4, y=-3_021.7)
    grid = GRID
    moved, seen = warp(drawn(before, grid), relative_transform(far @ now, far @ before)[None], grid)
    full = seen > 0.999
    assert full.any()
    # Bilinear on cells of 0.8 m: second derivative 0.06 times 0.8 ** 2 / 4.
    torch.testing.assert_close(moved[full], drawn(now, grid)[full], rtol=0, atol=2e-2)


def test_a_cell_moves_by_the_ego_motion():
    bev = torch.zeros(1, 1, *GRID.shape)
    bev[0, 0, 20, 12] = 1.0
    # The vehicle drove 2 cells on and half a cell to the left: the world comes 2 cells nearer,
    # and half a cell to the right, shared by two cells.
    now = pose(x=2 * 0.8, y=0.5 * 0.8)
    moved, _ = warp(bev, relative_transform(now, pose())[None], GRID)
    expected = torch.zeros_like(bev)
    expected[0, 0, 18, 11] = expected[0, 0, 18, 12] = 0.5
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-5)
    mirrored, _ = warp(bev, relative_transform(pose(flips=(1, -1)), pose())[None], GRID)
    assert mirrored[0, 0].argmax() == 20 * 24 + (24 - 1 - 12)
    turned, _ = warp(bev, relative_transform(pose(yaw=np.pi / 2), pose())[None], GRID)
    # The cell's centre, (3.6, 0.4), lies at (0.4, -3.6) of a vehicle that turned left.
    i, j = GRID.to_cells(0.4, -3.6)
    assert turned[0, 0].argmax() == int(i) * 24 + int(j)


def test_what_was_not_seen_is_zero_and_said():
    bev = torch.ones(1, 1, *GRID.shape)
    moved, seen = warp(bev, relative_transform(pose(x=4 * 0.8), pose())[None], GRID)
    assert torch.equal(moved, seen)
    assert torch.allclose(seen[0, 0, :-4], torch.ones(()), atol=1e-5)
    assert not seen[0, 0, -4:].any()


def moments(scene, seconds, **given):
    scene = torch.tensor(scene)
    timestamp_us = (torch.tensor(seconds, dtype=torch.float64) * 1e6).round().long()
    maps = torch.arange(len(scene)).float().view(-1, 1, 1, 1) + torch.ones(1, 2, 3, 4)
    return Moments(
        given.get("map", maps),
        torch.stack([pose(x=s) for s in seconds]),
        scene,
        timestamp_us,
        torch.ones(len(scene), dtype=torch.bool),
    )


def test_a_sample_looks_back_at_the_latest_moments_of_its_scene():
    drive = moments([7, 7, 7, 9], [0.0, 0.5, 1.0, 1.5])
    past = recall(drive, drive, 2, 1.6)
    assert past.valid.tolist() == [[False, False], [True, False], [True, True], [False, False]]
    assert past.map[2, :, 0, 0, 0].tolist() == [2, 1]  # moments 1 and 0
    torch.testing.assert_close(past.age[2], torch.tensor([0.5, 1.0]))
    assert not past.map[~past.valid].any()
    # The vehicle is half a metre on: what lies at 0 now lay at 0.5 then.
    assert past.moment_from_bev[1, 0, 0, 3] == pytest.approx(0.5)


def test_a_missing_frame_makes_the_one_before_it_older_and_the_old_are_forgotten():
    drive = moments([7, 7, 7], [0.0, 1.0, 4.0])
    past = recall(drive, drive, 1, 1.6)
    assert past.valid[:, 0].tolist() == [False, True, False]
    assert past.age[1, 0] == pytest.approx(1.0)


def test_order_within_a_batch_is_of_no_account():
    drive, order = moments([7, 7, 9, 7], [0.0, 0.5, 0.5, 1.0]), torch.tensor([3, 0, 2, 1])
    shuffled = Moments(*(getattr(drive, f)[order] for f in drive.__dataclass_fields__))
    past, other = recall(drive, drive, 2, 1.6), recall(shuffled, shuffled, 2, 1.6)
    for name in past.__dataclass_fields__:
        assert torch.equal(getattr(past, name)[order], getattr(other, name))


# --- The model ------------------------------------------------------------------------------------


def make_clip(size, scene=1, start=0.0, seed=0):
    """Frames of one drive, half a second and a metre apart."""
    batch = make_batch(size, seed=seed)
    seconds = torch.arange(size) * 0.5 + start
    return replace(
        batch,
        tokens=tuple(f"{scene}-{i}-{start}" for i in range(size)),
        scene=torch.full((size,), scene),
        timestamp_us=(seconds * 1e6).long(),
        global_from_bev=torch.stack([pose(x=float(s) * 2, yaw=0.02 * float(s)) for s in seconds]),
    )


@pytest.fixture
def model():
    torch.manual_seed(0)
    model = make_model()
    model.memory = BEVMemory(16, GRID, moments=2, width=8)
    with torch.no_grad():
        # What is merged begins at nothing, and normalisation at the identity.
        torch.nn.init.normal_(model.memory.merge[-1].weight, std=0.1)
        model(make_clip(3))
    return model.eval()


def one_by_one(batch):
    """The samples of a batch as batches of one."""
    return [take(batch, i) for i in range(batch.size)]


def take(batch, i):
    images, points = batch.image_sample == i, batch.point_sample == i
    boxes = batch.boxes.sample == i
    of_boxes = {f: getattr(batch.boxes, f)[boxes] for f in batch.boxes.__dataclass_fields__}
    of_boxes["sample"] = of_boxes["sample"] * 0
    rows = "global_from_bev", "box_valid", "map_masks", "map_valid", "scene", "timestamp_us"
    return replace(
        batch,
        tokens=batch.tokens[i : i + 1],
        images=batch.images[images],
        image_sample=batch.image_sample[images] * 0,
        bev_from_image=batch.bev_from_image[images],
        points=batch.points[points],
        point_sample=batch.point_sample[points] * 0,
        boxes=type(batch.boxes)(**of_boxes),
        **{name: getattr(batch, name)[i : i + 1] for name in rows},
    )


@torch.no_grad()
def test_a_stream_gives_what_a_clip_gives(model):
    clips = collate([make_clip(4), make_clip(2, scene=2, start=9.0, seed=1)])
    whole = model(clips)["detection"].heatmap
    stream = Stream(model)
    single = [stream(sample)["detection"].heatmap for sample in one_by_one(clips)]
    torch.testing.assert_close(torch.cat(single), whole, rtol=1e-4, atol=1e-4)
    assert stream.state is not None
    assert len(stream.state.map) == 2  # no longer than what is looked at


@torch.no_grad()
def test_memory_changes_later_frames_and_not_the_first_of_a_scene(model):
    clip, other = make_clip(3), make_clip(1, scene=2, start=1.5, seed=3)
    stream = Stream(model)
    seen = [stream(sample)["detection"].heatmap for sample in (*one_by_one(clip), other)]
    alone = [model(sample)["detection"].heatmap for sample in (*one_by_one(clip), other)]
    assert torch.equal(seen[0], alone[0])
    assert not torch.allclose(seen[1], alone[1])
    assert not torch.allclose(seen[2], alone[2])
    assert torch.equal(seen[3], alone[3])  # the scene before it is not looked at


@torch.no_grad()
def test_inputs_and_state_stay_as_they_were(model):
    clip = make_clip(3)
    first, second, _ = one_by_one(clip)
    _, state = model.step(first, None)
    before = fingerprint(state), fingerprint(second)
    model.step(second, state)
    assert before == (fingerprint(state), fingerprint(second))


def test_a_batch_without_times_is_refused(model):
    with pytest.raises(ValueError, match=r"Batch\.scene"):
        model(make_batch(2))


def test_a_model_without_memory_has_no_state():
    outputs, state = make_model().eval().step(make_batch(1), None)
    assert state is None
    assert "detection" in outputs


def test_a_step_on_a_clip_trains_the_memory_through_the_earlier_frame(model):
    model.train()
    clip = make_clip(2)
    model.total_loss(model.loss(model(clip), clip)).backward()
    gradients = [parameter.grad for parameter in model.memory.parameters()]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
    assert any(gradient.abs().sum() > 0 for gradient in gradients)


@torch.no_grad()
def test_a_new_memory_leaves_the_map_as_it_is():
    fused, memory = torch.randn(2, 4, *GRID.shape), BEVMemory(4, GRID).eval()
    past = replace(Past.nothing(fused, 1), map=torch.randn(2, 1, 4, *GRID.shape))
    past = replace(past, valid=torch.tensor([[True], [False]]), age=torch.full((2, 1), 0.5))
    merged, velocity = memory(fused, past)
    assert torch.equal(merged, fused)
    assert velocity[0].any()
    assert not velocity[1].any()


# --- Motion ---------------------------------------------------------------------------------------


def test_correlation_is_the_products_with_displaced_cells():
    now, past = torch.randn(2, 1, 3, 6, 5, dtype=torch.float64).unbind()
    found = correlation(now, past, 2).view(5, 5, 6, 5)
    for di, dj, i, j in np.ndindex(5, 5, 6, 5):
        at = i - (di - 2), j - (dj - 2)
        inside = 0 <= at[0] < 6 and 0 <= at[1] < 5
        expected = now[0, :, i, j] @ past[0, :, *at] if inside else 0.0
        assert float(found[di, dj, i, j]) == pytest.approx(float(expected), abs=1e-12)


def test_patches_are_compared_by_normalized_cross_correlation():
    now, past = torch.randn(2, 1, 3, 7, 7, dtype=torch.float64).unbind()
    found = patch_correlation(now, past, 1).view(3, 3, 7, 7)
    for di, dj in np.ndindex(3, 3):
        a, b = now[0, :, 2:5, 2:5], past[0, :, 3 - di : 6 - di, 3 - dj : 6 - dj]
        expected = (a * b).sum() / (a.norm() * b.norm())
        assert float(found[di, dj, 3, 3]) == pytest.approx(float(expected), abs=1e-3)


@pytest.mark.parametrize("cells", [(0, 0), (2, -4), (-6, 8)])
@torch.no_grad()
def test_what_moved_is_found_again_without_training(cells):
    torch.manual_seed(0)
    match, past = MotionMatch(16, GRID), torch.randn(1, 16, *GRID.shape)
    velocity, weight = match(past.roll(cells, (2, 3)), past, torch.tensor([0.5]))
    inner = velocity[0, :, 5:-5, 5:-5]  # roll comes in again at the other end
    expected = torch.tensor(cells).view(2, 1, 1) * GRID.cell_size / 0.5
    torch.testing.assert_close(inner, expected.expand_as(inner), rtol=0, atol=0.05)
    assert torch.allclose(weight.sum(1), torch.ones(()), atol=1e-5)
    slower, _ = match(past.roll(cells, (2, 3)), past, torch.tensor([1.0]))
    torch.testing.assert_close(slower, velocity / 2)


@pytest.mark.slow
def test_matching_learns_what_to_look_for():
    # A dot somewhere among noise; only where it was before tells its velocity.
    torch.manual_seed(0)
    match = MotionMatch(4, BEVGrid((-16, 16), (-16, 16), 1.0))
    optimizer = torch.optim.Adam(match.parameters(), lr=1e-2)
    random, losses, speeds = torch.Generator().manual_seed(1), [], []
    for _ in range(60):
        at = torch.randint(10, 22, (8, 2), generator=random)
        moved = torch.randint(-6, 7, (8,), generator=random)
        now, before = 0.5 * torch.randn(2, 8, 4, 32, 32, generator=random)
        rows = torch.arange(8)
        now[rows, 0, at[:, 0], at[:, 1]] = 6.0
        before[rows, 0, at[:, 0] - moved, at[:, 1]] = 6.0
        found = match(now, before, torch.full((8,), 0.5))[0][rows, :, at[:, 0] // 2, at[:, 1] // 2]
        loss = (found[:, 0] - moved / 0.5).abs().mean() + found[:, 1].abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        speeds.append(float(moved.abs().float().mean()) / 0.5)
    assert np.mean(losses[-10:]) < 0.5 * np.mean(speeds)


@torch.no_grad()
def test_motion_is_added_to_the_velocity_that_a_centre_head_regresses():
    head = CenterHead(8, GRID).eval()
    bev, motion = torch.randn(2, 8, *GRID.shape), torch.randn(2, 2, *GRID.shape)
    without, told = head(bev), head(bev, motion=motion)
    added = dict(zip(head.widths, (told.regression - without.regression).split(
        [*head.widths.values()], 2)))  # fmt: skip
    torch.testing.assert_close(added.pop("velocity")[:, 0], motion, rtol=1e-4, atol=1e-5)
    assert not any(difference.any() for difference in added.values())
    assert torch.equal(told.heatmap, without.heatmap)


@torch.no_grad()
def test_motion_is_added_to_the_velocity_of_the_query_at_its_cell():
    head = TransFusionHead(8, GRID, channels=16, num_queries=20, num_heads=2).eval()
    [*head.prediction["center"].children()][-1].weight.zero_()
    [*head.prediction["center"].children()][-1].bias.zero_()
    bev, motion = torch.randn(2, 8, *GRID.shape), torch.randn(2, 2, *GRID.shape)
    without, told = head(bev), head(bev, motion=motion)
    cell = head.cell_centers[0]
    for sample in range(2):
        at = (without.center[sample].T[:, None] - cell).norm(dim=-1).argmin(1)
        expected = motion[sample].flatten(1)[:, at]
        torch.testing.assert_close((told.velocity - without.velocity)[sample], expected)
    assert torch.equal(told.center, without.center)


# --- Clips ----------------------------------------------------------------------------------------

SCENES = np.repeat([3, 1, 5], [6, 2, 4])


@pytest.mark.parametrize("world_size", [1, 2])
def test_each_process_gets_whole_clips_of_consecutive_frames_of_a_scene(world_size):
    clips = Clips(Shuffled(12, seed=4), SCENES, 3, world_size)
    for epoch in range(3):
        for rank in range(world_size):
            sampler = EpochSampler(clips, rank, world_size, 3 * world_size)
            sampler.set_epoch(epoch)
            frames = np.array([index for _, index in sampler]).reshape(-1, 3)
            assert len(frames) == (4 if world_size == 1 else 2)
            assert (np.diff(frames, axis=1) == 1).all()
            assert (SCENES[frames] == SCENES[frames[:, :1]]).all()


def test_a_clip_ends_with_the_frame_that_was_drawn_or_begins_with_its_scene():
    frames = Clips(InOrder(12), SCENES, 2)(0).reshape(-1, 2)
    assert frames.tolist() == [[0, 1], [0, 1], [1, 2], [2, 3], [3, 4], [4, 5]]


def test_scenes_that_are_too_short_for_any_clip_are_one_sentence():
    with pytest.raises(ValueError, match="lower clip_length"):
        Clips(InOrder(12), SCENES, 7)


def test_augmentation_that_differs_within_a_clip_is_undone_by_the_warp():
    random = np.random.default_rng(0)
    augment = BEVAugmentation((-0.5, 0.5), (0.9, 1.1), (0.5, 0.5, 0.1), flip_x=True, flip_y=True)
    frames = [pose(x=1.0 * k, yaw=0.1 * k) @ torch.linalg.inv(torch.from_numpy(
        augment._draw(random))) for k in range(2)]  # fmt: skip
    moved, seen = warp(drawn(frames[0], GRID), relative_transform(frames[1], frames[0])[None], GRID)
    full = seen > 0.999
    torch.testing.assert_close(moved[full], drawn(frames[1], GRID)[full], rtol=0, atol=2e-2)


def test_options_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match=r"memory\.moments"):
        partial(BEVMemory, moments=0)(8, GRID)
    with pytest.raises(ValueError, match="multiples of 2"):
        BEVMemory(8, BEVGrid((0, 5), (0, 5), 1.0))
