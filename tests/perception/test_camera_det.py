"""MIT BEVFusion's camera-only detector: its decoder and centre head beside plain restatements."""

from functools import partial

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from bevstack.kernels.grid import BEVGrid
from bevstack.perception.commands.train import load_run
from bevstack.perception.heads import CenterHead
from bevstack.perception.heads.center_targets import gaussian_radius
from bevstack.perception.importing import import_checkpoint
from bevstack.perception.importing.bevfusion_rules import rules_of
from bevstack.perception.importing.rules import translate
from bevstack.perception.necks import BEVResNet

from model_parts import make_batch, make_boxes  # isort: skip
from published import published_state  # isort: skip

GRID = BEVGrid((-12.8, 12.8), (-9.6, 9.6), 0.8)  # 32 x 24 cells
GROUPS = [["car", "truck"], ["pedestrian"]]
CLASSES = ["car", "truck", "pedestrian"]
STAGES = [(8, 2), (8, 2), (12, 1)]  # channels, stride


class Published:
    """Tensors by published names, made when they are first asked for; and layers that use them."""

    def __init__(self, stages=STAGES, out=16, groups=GROUPS):
        self.state, self.random = {}, torch.Generator().manual_seed(0)
        self.stages, self.out, self.groups = stages, out, groups

    def weight(self, name, *shape):
        fan = int(np.prod(shape[1:])) if len(shape) > 1 else 4
        made = torch.randn(shape, generator=self.random, dtype=torch.float64) / fan**0.5
        return self.state.setdefault(name, made)

    def conv(self, name, x, out, kernel=3, stride=1, bias=False):
        weight = self.weight(f"{name}.weight", out, x.shape[1], kernel, kernel)
        offset = self.weight(f"{name}.bias", out) if bias else None
        return F.conv2d(x, weight, offset, stride, kernel // 2)

    def norm(self, name, x):
        n = x.shape[1]
        mean, scale, shift = (
            self.weight(f"{name}.{part}", n) for part in ("running_mean", "weight", "bias")
        )
        self.weight(f"{name}.running_var", n)
        self.state[f"{name}.running_var"] = var = self.state[f"{name}.running_var"].abs() + 0.5
        self.state[f"{name}.num_batches_tracked"] = torch.tensor(7)
        x = (x - mean.view(1, -1, 1, 1)) / (var + 1e-5).sqrt().view(1, -1, 1, 1)
        return x * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1)

    def resized(self, x, size):
        """Bilinear with corners on corners, as two products with matrices."""

        def matrix(new, old):
            place = torch.arange(new, dtype=torch.float64) * (old - 1) / (new - 1)
            return (1 - (place[:, None] - torch.arange(old)).abs()).clamp(min=0)

        return matrix(size[0], x.shape[2]) @ x @ matrix(size[1], x.shape[3]).T

    def decoder(self, bev):
        x, levels = bev, []
        for s, (out, stride) in enumerate(self.stages):
            for b in range(2):
                name, first = f"decoder.backbone.{s}.{b}", b == 0
                step = stride if first else 1
                hidden = self.norm(f"{name}.bn1", self.conv(f"{name}.conv1", x, out, 3, step))
                hidden = self.norm(f"{name}.bn2", self.conv(f"{name}.conv2", hidden.relu(), out))
                if first and (step != 1 or x.shape[1] != out):
                    x = self.conv(f"{name}.downsample.0", x, out, 1, step)
                    x = self.norm(f"{name}.downsample.1", x)
                x = (hidden + x).relu()
            levels.append(x)
        x = torch.cat([self.resized(levels[-1], levels[0].shape[2:]), levels[0]], 1)
        x = self.norm(
            "decoder.neck.fuse.1", self.conv("decoder.neck.fuse.0", x, self.out, 1)
        ).relu()
        x = self.norm("decoder.neck.fuse.4", self.conv("decoder.neck.fuse.3", x, self.out)).relu()
        x = self.resized(x, (2 * x.shape[2], 2 * x.shape[3]))
        x = self.conv("decoder.neck.upsample.1", x, self.out)
        return self.norm("decoder.neck.upsample.2", x).relu()

    def head(self, bev):
        x = self.conv("heads.object.shared_conv.conv", bev, 64)
        x = self.norm("heads.object.shared_conv.bn", x).relu()
        widths = {"reg": 2, "height": 1, "dim": 3, "rot": 2, "vel": 2}
        tasks = []
        for t, group in enumerate(self.groups):
            found = {}
            for name, out in {**widths, "heatmap": len(group)}.items():
                branch = f"heads.object.task_heads.{t}.{name}"
                hidden = self.norm(f"{branch}.0.bn", self.conv(f"{branch}.0.conv", x, 64)).relu()
                found[name] = self.conv(f"{branch}.1", hidden, out, bias=True)
            tasks.append(found)
        return tasks


@pytest.fixture(scope="module")
def both():
    published = Published()
    bev = torch.randn(1, 5, *GRID.shape, generator=published.random, dtype=torch.float64)
    middle = published.decoder(bev)
    tasks = published.head(middle)
    parts = torch.nn.ModuleDict(
        {
            "backbone": BEVResNet(5, GRID, (8, 8, 12), (2, 2, 1), out_channels=16),
            "heads": torch.nn.ModuleDict(
                {
                    "detection": CenterHead(
                        *(16, GRID, CLASSES, GROUPS), separate=True, height_of="top"
                    )
                }
            ),
        }
    ).double()
    ours = translate(published.state, rules_of("mit-bevfusion"), parts.state_dict())
    parts.load_state_dict(ours)
    return published, bev, middle, tasks, parts.eval()


def test_imported_decoder_is_the_written_out_one(both):
    _, bev, middle, _, parts = both
    torch.testing.assert_close(parts["backbone"](bev), middle)


def test_imported_head_gives_the_published_boxes(both):
    _, _, middle, tasks, parts = both
    head = parts["heads"]["detection"]
    output = head(middle)
    torch.testing.assert_close(output.heatmap[:, :2], tasks[0]["heatmap"])
    torch.testing.assert_close(output.heatmap[:, 2:], tasks[1]["heatmap"])
    found = head.decode(output)[0]
    assert len(found) > 20
    ny = GRID.shape[1]
    for m in range(len(found)):
        box, task = found.boxes[np.array([m])], tasks[0 if found.boxes.label[m] < 2 else 1]
        values = {name: maps[0].flatten(1).T.numpy() for name, maps in task.items()}
        cells = np.arange(GRID.num_cells)
        x = (cells // ny + values["reg"][:, 0]) * 0.8 - 12.8
        y = (cells % ny + values["reg"][:, 1]) * 0.8 - 9.6
        at = np.argmin(np.hypot(x - box.center[0, 0], y - box.center[0, 1]))
        assert [x[at], y[at]] == pytest.approx(box.center[0, :2].tolist(), abs=1e-6)
        width, length, height = np.exp(values["dim"][at])
        assert box.size[0].tolist() == pytest.approx([length, width, height])
        assert box.center[0, 2] == pytest.approx(values["height"][at, 0] - height / 2)
        yaw = -np.arctan2(*values["rot"][at]) - np.pi / 2  # theirs grows clockwise
        assert np.cos(yaw - box.yaw[0]) == pytest.approx(1)


def test_a_whole_checkpoint_becomes_a_run_folder(tmp_path):
    """Its camera branch is that of the published map model; no tensor is missing or left over."""
    camera = {n: t for n, t in published_state("seg").items() if n.startswith("encoders.camera.")}
    groups = [["car"], ["truck", "construction_vehicle"], ["bus", "trailer"], ["barrier"]]
    groups += [["motorcycle", "bicycle"], ["pedestrian", "traffic_cone"]]
    published = Published([(128, 2), (256, 2), (512, 1)], 256, groups)
    published.head(published.decoder(torch.zeros(1, 80, 16, 16, dtype=torch.float64)))
    others = {n: t.float() if t.is_floating_point() else t for n, t in published.state.items()}
    torch.save({"state_dict": camera | others}, tmp_path / "camera.pth")
    count = import_checkpoint(
        tmp_path / "camera.pth", tmp_path / "run", "mit-bevfusion", "camera_det"
    )
    constants = ("dx", "bx", "nx", "frustum", "relative_position_index")
    kept = [t for n, t in (camera | others).items() if not n.endswith(constants)]
    assert count == sum(t.numel() for t in kept)
    model, _, _ = load_run(tmp_path / "run")
    expected = others["decoder.backbone.1.0.downsample.0.weight"]
    assert torch.equal(model.state_dict()["backbone.stages.1.0.shortcut.0.weight"], expected)


def test_a_head_of_tops_learns_heights_of_tops():
    boxes = make_boxes([[3.0, 2.0, 1.0]], [0], size=(4.0, 2.0, 1.5))
    batch = make_batch(size=1, boxes=boxes)
    for top, height in ((True, 1.75), (False, 1.0)):
        head = CenterHead(4, GRID, separate=True, height_of="top" if top else "middle")
        output = head(torch.randn(1, 4, *GRID.shape))
        regression = torch.zeros_like(output.regression)
        regression[:, :, 2] = height
        terms = head.loss(type(output)(output.heatmap, regression), batch)
        assert terms["height"].item() == 0
        assert "attribute" not in terms


def test_published_radius_is_corner_nets_first_formula():
    for a, b in ((8.0, 3.0), (1.2, 1.1), (20.0, 5.0)):
        m = 0.1
        b1, c1 = a + b, a * b * (1 - m) / (1 + m)
        b2, c2 = 2 * (a + b), (1 - m) * a * b
        b3, c3 = -2 * m * (a + b), (m - 1) * a * b
        expected = min(
            (b1 + (b1**2 - 4 * c1) ** 0.5) / 2,
            (b2 + (b2**2 - 16 * c2) ** 0.5) / 2,
            (b3 + (b3**2 - 16 * m * c3) ** 0.5) / 2,
        )
        found = gaussian_radius(torch.tensor([a]), torch.tensor([b]), m, as_published=True)
        assert found.item() == pytest.approx(expected, rel=1e-5)


def test_decoder_refuses_shapes_that_cannot_be_brought_back():
    odd = BEVGrid((-12.4, 12.4), (-9.6, 9.6), 0.8)  # 31 cells
    with pytest.raises(ValueError, match="does not divide the grid's 31 x 24 cells"):
        BEVResNet(4, odd)
    with pytest.raises(ValueError, match="one entry per stage"):
        BEVResNet(4, GRID, (8, 8), (2, 2, 1))
    same = partial(BEVResNet, 4, odd, (8, 8), (1, 2), (1, 1), 6)
    assert same().eval()(torch.zeros(1, 4, 31, 24)).shape == (1, 6, 31, 24)
