"""Voxelization on the CPU, against the definition and against what published models do."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_cases import TOLERANCE
from torch.utils._python_dispatch import TorchDispatchMode

from bevstack.kernels import pillar_max, scatter_to_bev, voxelize
from bevstack.kernels.numba_voxelize import voxelize_points
from bevstack.kernels.voxelize import (
    _voxel_max,
    _voxelize,
    group_points_on_device,
    group_points_reference,
    voxel_max_reference,
    voxel_mean_reference,
)

# Sides of 8, 14 and 12 cells: a mix-up of two axes shows.
RANGE, SIZE = (-2.0, -1.0, -3.0, 2.0, 2.5, 3.0), (0.5, 0.25, 0.5)
PILLAR = (0.5, 0.25, 6.0)


def make_points(num_points, num_channels=5, batch_size=3, seed=0, on_edges=False):
    random = torch.Generator().manual_seed(seed)
    points = torch.randn(num_points, num_channels, generator=random) * 2
    if on_edges:
        points[:, :3] = (points[:, :3] * 2).round() / 2
    return points, torch.randint(0, batch_size, (num_points,), generator=random)


clouds = st.builds(
    make_points,
    num_points=st.integers(0, 200),
    num_channels=st.integers(3, 18),
    seed=st.integers(0, 2**31),
    on_edges=st.booleans(),
)
caps = st.one_of(st.none(), st.integers(1, 6))


@settings(max_examples=100, deadline=None)
@given(clouds, st.sampled_from([SIZE, PILLAR]), caps, caps)
def test_same_voxels_as_the_reference(cloud, size, max_points, max_voxels):
    voxels = voxelize(*cloud, 3, RANGE, size, max_points, max_voxels)
    expected = group_points_reference(*cloud, 3, RANGE, size, voxels.shape, max_points, max_voxels)
    on_device = group_points_on_device(*cloud, 3, RANGE, size, voxels.shape, max_points, max_voxels)
    on_cpu = voxels.coordinates, voxels.num_points, voxels.point_voxel
    for ours, theirs, want in zip(on_cpu, on_device, expected):
        assert torch.equal(ours, want)
        assert torch.equal(theirs, want)


class Waits(TorchDispatchMode):
    """Lists the operations for which a host waits for a device."""

    WAITING = "_local_scalar_dense", "nonzero", "masked_select", "unique", "lift_fresh", "bincount"

    def __init__(self):
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        mask = func is torch.ops.aten.index.Tensor and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        if mask or any(name in func.name() for name in self.WAITING):
            self.found.append(func.name())
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("caps", [(None, None), (3, None), (None, 7), (3, 7)])
def test_grouping_on_a_device_waits_for_it_once(caps):
    cloud = make_points(300)
    with Waits() as waits:
        group_points_on_device(*cloud, 3, RANGE, SIZE, (8, 14, 12), *caps)
    assert waits.found == ["aten::_local_scalar_dense"]
    with Waits() as waits:
        group_points_reference(*cloud, 3, RANGE, SIZE, (8, 14, 12), *caps)
    assert len(waits.found) > 2


@settings(max_examples=50, deadline=None)
@given(clouds)
def test_every_point_inside_is_in_the_voxel_that_holds_it(cloud):
    points, batch = cloud
    voxels = voxelize(points, batch, 3, RANGE, SIZE)
    xyz = points[:, :3].double().numpy()
    inside = ((xyz >= RANGE[:3]) & (xyz < RANGE[3:])).all(1)
    assert (voxels.point_voxel.numpy() >= 0).tolist() == inside.tolist()
    own = voxels.coordinates[voxels.point_voxel[inside]].numpy()
    assert (own[:, 0] == batch[inside].numpy()).all()
    assert (own[:, 1:] == np.floor((xyz[inside] - RANGE[:3]) / SIZE)).all()


@settings(max_examples=50, deadline=None)
@given(clouds)
def test_voxels_are_sorted_counted_and_unique(cloud):
    voxels = voxelize(*cloud, 3, RANGE, SIZE)
    rows = voxels.coordinates.tolist()
    assert rows == sorted(map(list, set(map(tuple, rows))))
    inside = voxels.point_voxel[voxels.point_voxel >= 0]
    assert torch.equal(inside.bincount(minlength=len(rows)), voxels.num_points)
    assert (voxels.num_points > 0).all()


def test_points_kept_under_caps_are_the_first_as_published():
    # A plain loop over the points, as hard voxelization is defined (Yan et al., SECOND).
    points, batch = make_points(400, batch_size=2, seed=3)
    voxels = voxelize(points, batch, 2, RANGE, SIZE, max_points=2, max_voxels=40)
    coordinates, members = [], []
    for sample in range(2):
        cells, groups = [], []
        for p in (batch == sample).nonzero().squeeze(1).tolist():
            cell = np.floor((points[p, :3].numpy() - RANGE[:3]) / SIZE).astype(int)
            if (cell < 0).any() or (cell >= (8, 14, 12)).any():
                continue
            if (row := [sample, *cell.tolist()]) not in cells:
                if len(cells) == 40:
                    continue
                cells.append(row)
                groups.append([])
            group = groups[cells.index(row)]
            if len(group) < 2:
                group.append(p)
        order = sorted(range(len(cells)), key=cells.__getitem__)
        coordinates += [cells[i] for i in order]
        members += [groups[i] for i in order]
    assert voxels.coordinates.tolist() == coordinates
    assert voxels.num_points.tolist() == [len(group) for group in members]
    means = torch.stack([points[group].mean(0) for group in members])
    torch.testing.assert_close(voxels.features, means)


def test_same_voxels_and_means_as_spconv():
    utils = pytest.importorskip("spconv.pytorch.utils")
    points, _ = make_points(3000, batch_size=1)
    batch = torch.zeros(3000, dtype=torch.int64)
    spconv = utils.PointToVoxel(list(SIZE), list(RANGE), 5, 300, 4)
    values, zyx, counts = spconv(points)
    voxels = voxelize(points, batch, 1, RANGE, SIZE, max_points=4, max_voxels=300)
    order = sorted(range(len(zyx)), key=lambda v: zyx[v].tolist()[::-1])  # theirs: by first point
    assert len(zyx) == 300
    assert voxels.coordinates[:, [3, 2, 1]].tolist() == zyx[order].tolist()
    assert voxels.num_points.tolist() == counts[order].tolist()
    torch.testing.assert_close(voxels.features, (values.sum(1) / counts.unsqueeze(1))[order])


@pytest.mark.parametrize("num_points", [0, 5])
def test_batch_size_is_what_was_said_when_samples_are_empty(num_points):
    # Peer bug 7: inferred from the last coordinate.
    points, _ = make_points(num_points)
    points = points * 0.1
    voxels = voxelize(points, torch.zeros(num_points, dtype=torch.int64), 4, RANGE, PILLAR)
    assert voxels.batch_size == 4
    assert voxels.features.shape == (len(voxels.coordinates), 5)
    canvas = scatter_to_bev(voxels.features, voxels.coordinates, 4, voxels.shape[:2])
    assert canvas.shape == (4, 5, 8, 14)
    assert not canvas[1:].any()
    assert canvas[0].any() == (num_points > 0)
    assert pillar_max(points, voxels.point_voxel, len(voxels.coordinates)).shape[1] == 5


def test_lower_edge_is_inside_upper_edge_and_no_numbers_are_outside():
    low, high = torch.tensor(RANGE[:3]), torch.tensor(RANGE[3:])
    below = low - torch.tensor([0.01, 0, 0])  # peer bug 5: truncation puts it into cell 0
    middle = (low + high) / 2
    rows = [low, high, below, middle.where(torch.tensor([True, True, False]), high)]
    rows += [middle.where(torch.tensor([True, False, True]), torch.tensor(torch.nan))]
    voxels = voxelize(torch.stack(rows), torch.zeros(5, dtype=torch.int64), 1, RANGE, SIZE)
    assert voxels.point_voxel.tolist() == [0, -1, -1, -1, -1]
    assert voxels.coordinates.tolist() == [[0, 0, 0, 0]]


@pytest.mark.parametrize("cells", [1440, 1000])
def test_point_just_below_the_upper_edge_stays_on_the_grid(cells):
    high = np.nextafter(np.float32(cells * 0.075 / 2), np.float32(-np.inf))
    edge = cells * 0.075 / 2
    points = torch.tensor([[float(high), 0.0, 0.0]])
    bounds = (-edge, -edge, -1, edge, edge, 1)
    voxels = voxelize(points, torch.zeros(1, dtype=torch.int64), 1, bounds, (0.075, 0.075, 2.0))
    assert voxels.shape == (cells, cells, 1)
    assert int(voxels.coordinates[0, 1]) == cells - 1


def test_points_of_no_sample_are_in_no_voxel():
    points = torch.zeros(3, 4)
    voxels = voxelize(points, torch.tensor([-1, 0, 2]), 2, RANGE, SIZE)
    assert voxels.point_voxel.tolist() == [-1, 0, -1]


def test_a_view_of_wider_points_is_taken_as_it_is():
    random = np.random.default_rng(0)
    wide = random.uniform(-1, 1, (500, 7)).astype(np.float32)
    args = np.zeros(500, np.int64), 1, (-1, -1, -1, 1, 1, 1), (0.5, 0.5, 0.5), (4, 4, 4)
    for view in (wide[:, :5], wide[:, 1:6], wide[::2, :3]):
        batch, *others = args
        given = batch[: len(view)], *others
        for found, expected in zip(
            voxelize_points(view, *given), voxelize_points(view.copy(), *given)
        ):
            assert np.array_equal(found, expected)


def test_huge_grid_gives_the_same_voxels():
    # More cells than are numbered as they are: those that hold points are found by sorting.
    points, batch = make_points(300)
    points[:, :3] *= 50
    bounds, size = (-200, -200, -200, 200, 200, 200), (0.1, 0.1, 0.1)
    voxels = voxelize(points, batch, 3, bounds, size)
    expected = group_points_reference(points, batch, 3, bounds, size, voxels.shape)
    assert torch.equal(voxels.coordinates, expected[0])
    assert torch.equal(voxels.point_voxel, expected[2])
    means = voxel_mean_reference(points, expected[2], expected[1])
    torch.testing.assert_close(voxels.features, means)
    nothing = voxelize(points + 1e4, batch, 3, bounds, size)
    assert nothing.features.shape == (0, 5)
    assert (nothing.point_voxel == -1).all()


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_means_and_their_gradients_match_the_float64_reference(dtype):
    points, batch = make_points(500)
    points = points.to(dtype).requires_grad_()
    voxels = voxelize(points, batch, 3, RANGE, SIZE)
    exact = points.detach().double().requires_grad_()
    expected = voxel_mean_reference(exact, voxels.point_voxel, voxels.num_points)
    grad = torch.randn_like(expected).to(dtype)
    tolerance = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype]}
    assert voxels.features.dtype == dtype
    torch.testing.assert_close(voxels.features.double(), expected, **tolerance)
    (ours,) = torch.autograd.grad(voxels.features, points, grad)
    (want,) = torch.autograd.grad(expected, exact, grad.double())
    torch.testing.assert_close(ours.double(), want, **tolerance)


@settings(max_examples=50, deadline=None)
@given(clouds)
def test_maximum_and_its_gradient_match_the_reference(cloud):
    points, batch = cloud
    values = points.clone().requires_grad_()
    voxels = voxelize(points, batch, 3, RANGE, PILLAR)
    num_voxels = len(voxels.num_points) + 2  # two that no point is in
    ours = pillar_max(values, voxels.point_voxel, num_voxels)
    expected = voxel_max_reference(values, voxels.point_voxel, num_voxels)
    assert torch.equal(ours, expected)
    assert not ours[-2:].any()
    grad = torch.rand_like(expected)
    (got,) = torch.autograd.grad(ours, values, grad)
    (want,) = torch.autograd.grad(expected, values, grad)
    # The reference shares the gradient among equals; the sum per voxel is the same.
    torch.testing.assert_close(got.sum(0), want.sum(0), rtol=1e-4, atol=1e-4)


def test_first_of_equal_maxima_gets_the_gradient():
    values = torch.tensor([[1.0], [3.0], [3.0], [-5.0]], requires_grad=True)
    pillar_max(values, torch.tensor([0, 0, 0, 1]), 2).sum().backward()
    assert values.grad.tolist() == [[0], [1], [0], [1]]


def test_gradients_by_finite_differences():
    points, batch = make_points(12, batch_size=1, seed=2)
    points = points.double().mul(0.4).requires_grad_()
    voxels = voxelize(points, batch, 1, RANGE, PILLAR)
    index, V = voxels.point_voxel, len(voxels.num_points)
    assert torch.autograd.gradcheck(lambda p: voxelize(p, batch, 1, RANGE, PILLAR).features, points)
    assert torch.autograd.gradcheck(lambda p: pillar_max(p, index, V), points)
    shape = voxels.shape[:2]
    assert torch.autograd.gradcheck(
        lambda f: scatter_to_bev(f, voxels.coordinates, 1, shape),
        voxels.features.detach().requires_grad_(),
    )


def test_scatter_puts_each_pillar_on_its_cell_of_a_rectangular_map():
    features = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    coordinates = torch.tensor([[0, 3, 1, 0], [1, 0, 2, 0]])
    canvas = scatter_to_bev(features, coordinates, 2, (4, 3))
    assert canvas.shape == (2, 2, 4, 3)
    assert canvas[0, :, 3, 1].tolist() == [1, 2]
    assert canvas[1, :, 0, 2].tolist() == [3, 4]
    assert canvas.abs().sum() == 10


@pytest.mark.parametrize("caps", [(None, None), (2, None), (None, 5000), (3, 4000)], ids=str)
def test_same_voxels_as_the_reference_when_threads_share_the_work(caps):
    points, batch = make_points(60_000)
    points, bounds, size = points * 10, (-20, -20, -20, 20, 20, 20), (0.5, 0.25, 0.5)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        voxels = voxelize(points, batch, 3, bounds, size, *caps)
    finally:
        torch.set_num_threads(before)
    expected = group_points_reference(points, batch, 3, bounds, size, voxels.shape, *caps)
    ours = voxels.coordinates, voxels.num_points, voxels.point_voxel
    assert all(torch.equal(a, b) for a, b in zip(ours, expected))
    means = voxel_mean_reference(points.double(), voxels.point_voxel, voxels.num_points)
    torch.testing.assert_close(voxels.features.double(), means, rtol=1e-5, atol=1e-5)


def test_same_input_gives_the_same_bits_on_any_number_of_threads():
    points, batch = make_points(30_000)
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2, 3, 3):
            torch.set_num_threads(threads)
            voxels = voxelize(points, batch, 3, RANGE, SIZE, max_points=20)
            greatest = pillar_max(points, voxels.point_voxel, len(voxels.num_points))
            results.append((voxels.coordinates, voxels.features, voxels.point_voxel, greatest))
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other))


def test_inputs_stay_as_they_were():
    # Peer bugs 3 and 4.
    points, batch = make_points(100)
    copies = points.clone(), batch.clone()
    voxelize(points, batch, 3, RANGE, SIZE, max_points=2, max_voxels=5)
    assert torch.equal(points, copies[0])
    assert torch.equal(batch, copies[1])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"points": torch.zeros(4, 2)}, "expected points"),
        ({"batch_index": torch.zeros(3, dtype=torch.int64)}, "expected points"),
        ({"voxel_size": (0.3, 0.5, 0.5)}, "along x spans 4 m"),
        ({"max_points": 0}, "max_points is 0"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    named = {
        "points": torch.zeros(4, 3),
        "batch_index": torch.zeros(4, dtype=torch.int64),
        "batch_size": 1,
        "point_range": RANGE,
        "voxel_size": SIZE,
    }
    with pytest.raises(ValueError, match=message):
        voxelize(**{**named, **change})


def test_operators_are_registered_as_torch_wants_them():
    points, batch = make_points(50)
    voxels = voxelize(points, batch, 3, RANGE, SIZE)
    bounds = list(RANGE), list(SIZE), list(voxels.shape)
    points.requires_grad_()
    torch.library.opcheck(_voxelize, (points, batch, 3, *bounds, None, None))
    torch.library.opcheck(_voxel_max, (points, voxels.point_voxel, len(voxels.num_points)))


class Pillars(torch.nn.Module):
    def forward(self, points, batch):
        voxels = voxelize(points, batch, 3, RANGE, PILLAR)
        greatest = pillar_max(points.sin(), voxels.point_voxel, voxels.num_points.shape[0])
        return scatter_to_bev(greatest + voxels.features, voxels.coordinates, 3, voxels.shape[:2])


def test_compiles_into_one_graph_with_gradients():
    points, batch = make_points(60)
    points.requires_grad_()
    torch._dynamo.reset()
    compiled = torch.compile(Pillars(), backend="aot_eager", fullgraph=True)
    expected, ours = Pillars()(points, batch), compiled(points, batch)
    torch.testing.assert_close(ours, expected)
    gradients = [torch.autograd.grad(x.square().sum(), points)[0] for x in (ours, expected)]
    torch.testing.assert_close(*gradients)


def test_exports():
    points, batch = make_points(60)
    program = torch.export.export(Pillars(), (points, batch))
    other = make_points(60, seed=1)
    torch.testing.assert_close(program.module()(*other), Pillars()(*other))
