"""Import of published models: every tensor of the manifests, and what the conversions mean."""

import pickle
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from published import published_state
from safetensors.torch import save_file

from bevstack.kernels.grid import BEVGrid
from bevstack.perception import cli
from bevstack.perception.commands.train import load_run, run_parser
from bevstack.perception.encoders.swin import PatchMerging
from bevstack.perception.heads.query_boxes import query_box_columns
from bevstack.perception.heads.transfusion import TransFusionOutput
from bevstack.perception.importing import read_published, translate_weights
from bevstack.perception.importing.bevfusion_rules import (
    heading_from_mit,
    patch_first,
    size_from_mit,
)
from bevstack.perception.training.state_file import CheckpointError

CONFIGS = Path(__file__).resolve().parents[2] / "configs" / "bevfusion"
FACTS = {  # section 4 of the facts: parameters of every part, constant tables included
    "camera.backbone": 27_520_506,
    "camera.fpn": 1_591_296,
    "lidar": 2_694_352,
    "fuser": 774_656,
    "backbone.stages": 4_280_832,
    "backbone.ups": 295_936,
}
TABLES = 118 * 32 * 88 * 3 + 9  # of the view transform: frustum, dx, bx, nx
OWN = {
    "det": {"camera.lift": 2_607_599 - TABLES, "heads.detection": 1_034_910},
    "seg": {"camera.lift": 1_221_039 - TABLES, "heads.map": 4_723_718},
}


def shipped_model(name: str):
    parser = run_parser()
    return parser.instantiate(parser.parse_args(["--config", str(CONFIGS / f"{name}.yaml")])).model


@pytest.fixture(scope="module")
def det_state():
    return published_state("det")


@pytest.fixture(scope="module")
def det_model():
    return shipped_model("det")


@pytest.mark.parametrize("task", ["det", "seg"])
def test_parts_have_the_published_number_of_parameters(task):
    model = shipped_model(task)
    for part, count in (FACTS | OWN[task]).items():
        assert sum(p.numel() for p in model.get_submodule(part).parameters()) == count, part


@pytest.mark.parametrize("task", ["det", "seg"])
def test_a_checkpoint_made_to_the_manifest_becomes_a_run_folder(task, tmp_path, capfd):
    state, out = published_state(task), tmp_path / "run"
    content = {"meta": {"epoch": 6, "CLASSES": ("car",)}, "state_dict": state}
    torch.save(content, tmp_path / "published.pth")
    given = [str(tmp_path / "published.pth"), str(out), "--from=mit-bevfusion", f"--task={task}"]
    cli.main(["import", *given])
    assert "taken over" in capfd.readouterr().out
    model, _, config = load_run(out)  # strict: refuses what is missing, unexpected, misshapen
    assert config.data.frame == "lidar"
    # Every published value is in the model once: the conversions only move and negate.
    kept = {n: t for n, t in state.items() if not re.search(r"\.(dx|bx|nx|frustum|\w+_index)$", n)}
    ours = model.state_dict()
    assert len(ours) == len(kept)
    assert sum(t.numel() for t in ours.values()) == sum(t.numel() for t in kept.values())
    sums = [
        Counter(f"{t.double().abs().sum():.6e}" for t in part.values()) for part in (kept, ours)
    ]
    assert sums[0] == sums[1]
    with pytest.raises(SystemExit):
        cli.main(["import", *given])
    assert "already holds a run" in capfd.readouterr().err


def test_import_of_safetensors_is_the_same(det_state, det_model, tmp_path):
    save_file(det_state, tmp_path / "published.safetensors")
    want = translate_weights(det_state, "mit-bevfusion", det_model)
    got = translate_weights(
        read_published(tmp_path / "published.safetensors"), "mit-bevfusion", det_model
    )
    assert want.keys() == got.keys()
    assert all(torch.equal(want[name], got[name]) for name in want)
    det_model.load_state_dict(got, strict=True)


def test_every_wrong_tensor_is_named_in_one_error(det_state, det_model):
    state = dict(det_state)
    state["heads.object.extra.weight"] = torch.zeros(3)
    del state["fuser.0.weight"]
    state["fuser.1.weight"] = torch.zeros(255)
    state["fuser.1.bias"] = torch.zeros(256, dtype=torch.int64)
    state["encoders.lidar.backbone.conv_input.0.weight"] = torch.zeros(16, 5)
    with pytest.raises(CheckpointError) as caught:
        translate_weights(state, "mit-bevfusion", det_model)
    message = str(caught.value)
    for part in (
        r"unknown heads\.object\.extra\.weight \(3,\)",
        r"missing fuser\.conv\.0\.weight",
        r"fuser\.1\.weight is \(255,\), .* the model's is \(256,\)",
        r"fuser\.1\.bias is torch\.int64",
        r"conv_input\.0\.weight is \(16, 5\): .*5 axes",
        r"5 tensors differ",
    ):
        assert re.search(part, message), (part, message)


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("encoders.camera.vtransform.dx", lambda t: t * 2),
        ("encoders.camera.vtransform.nx", lambda t: t + 1),
        ("encoders.camera.vtransform.frustum", lambda t: t + 0.01),
        ("encoders.camera.vtransform.frustum", lambda t: t[:, :, :-1]),
        (
            "encoders.camera.backbone.stages.2.blocks.5.attn.w_msa.relative_position_index",
            lambda t: t.T.contiguous(),
        ),
    ],
)
def test_constants_are_checked(name, change, det_state, det_model):
    with pytest.raises(CheckpointError, match=re.escape(name)):
        translate_weights(det_state | {name: change(det_state[name])}, "mit-bevfusion", det_model)


def test_missing_constant_is_named(det_state, det_model):
    state = {n: t for n, t in det_state.items() if not n.endswith(".bx")}
    with pytest.raises(CheckpointError, match=r"missing encoders\.camera\.vtransform\.bx"):
        translate_weights(state, "mit-bevfusion", det_model)


def test_detection_weights_are_refused_for_another_task(det_state):
    with pytest.raises(CheckpointError, match=r"unknown heads\.object\.shared_conv"):
        translate_weights(det_state, "mit-bevfusion", shipped_model("seg"))


def test_lidar_half_is_imported_alone(det_state, tmp_path):
    half = ("encoders.lidar.", "decoder.", "heads.")
    state = {n: t for n, t in det_state.items() if n.startswith(half)}
    torch.save({"state_dict": state}, tmp_path / "lidar.pth")
    options = [str(tmp_path / "lidar.pth"), str(tmp_path / "run"), "--from=mit-bevfusion"]
    cli.main(["import", *options, "--task=lidar_det"])
    model, _, _ = load_run(tmp_path / "run")
    assert len(model.state_dict()) == len(state)
    state["encoders.camera.vtransform.bx"] = torch.zeros(3)
    with pytest.raises(CheckpointError, match=r"encoders\.camera\.vtransform\.bx"):
        translate_weights(state, "mit-bevfusion", model)


# --- conversions ----------------------------------------------------------------------------------


def test_patch_merging_of_unfold_order():
    """mmdetection's layer: unfold, norm, linear; ours with the converted weights."""
    torch.manual_seed(0)
    C, H, W = 3, 6, 10
    norm, reduction = torch.nn.LayerNorm(4 * C), torch.nn.Linear(4 * C, 2 * C, bias=False)
    with torch.no_grad():
        norm.weight.normal_()
        norm.bias.normal_()
    image = torch.randn(2, C, H, W)
    unfolded = F.unfold(image, 2, stride=2).mT  # (N, L, 4 C), channels slowest
    want = reduction(norm(unfolded)).view(2, H // 2, W // 2, 2 * C)
    ours = PatchMerging(C)
    ours.load_state_dict(
        {
            "norm.weight": patch_first(norm.weight.detach()),
            "norm.bias": patch_first(norm.bias.detach()),
            "reduction.weight": patch_first(reduction.weight.detach()),
        }
    )
    got = ours(image.permute(0, 2, 3, 1))
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def mit_boxes(center, height, dim, rot, vel):
    """(Q, 9) x, y, z, w, l, h, yaw, vx, vy as MIT decodes them; z is the true middle."""
    w, length, h = np.exp(dim)
    yaw = np.arctan2(rot[0], rot[1])
    x, y = center * 0.6 - 54
    return np.stack([x, y, height[0] - h / 2, w, length, h, yaw, *vel], 1)


def corners_of_mit(box):
    """(4, 2) corners on the ground: w along the box's own x; yaw grows clockwise."""
    x, y, _, w, length, _, yaw = box[:7]
    signs = np.array([[1, 1], [1, -1], [-1, -1], [-1, 1]]) / 2
    a, b = signs[:, 0] * w, signs[:, 1] * length
    return np.stack(
        [x + a * np.cos(yaw) + b * np.sin(yaw), y - a * np.sin(yaw) + b * np.cos(yaw)], 1
    )


def test_converted_head_gives_the_same_boxes():
    """The same hidden features through MIT's last layers and through ours."""
    torch.manual_seed(0)
    hidden, count = torch.randn(8, 40), 40
    layers = {name: torch.nn.Linear(8, n) for name, n in (("dim", 3), ("rot", 2))}
    with torch.no_grad():
        theirs = {name: (layer(hidden.T)).T.numpy() for name, layer in layers.items()}
        for name, convert in (("dim", size_from_mit), ("rot", heading_from_mit)):
            layers[name].weight.copy_(convert(layers[name].weight.clone()))
            layers[name].bias.copy_(convert(layers[name].bias.clone()))
        ours = {name: layer(hidden.T).T[None] for name, layer in layers.items()}
    center, height = torch.rand(2, count) * 180, torch.randn(1, count)
    velocity = torch.randn(2, count)
    want = mit_boxes(center.numpy(), height.numpy(), theirs["dim"], theirs["rot"], velocity.numpy())
    unused = torch.zeros(0)
    output = TransFusionOutput(
        *(unused, unused, unused, unused),
        *(center[None], height[None], ours["dim"], ours["rot"], velocity[None]),
    )
    grid = BEVGrid((-54.0, 54.0), (-54.0, 54.0), 0.6)
    got = query_box_columns(output, grid, top=True)[0].numpy()
    np.testing.assert_allclose(got[:, :3], want[:, :3], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(got[:, 3:6], want[:, [4, 3, 5]], rtol=1e-5)
    np.testing.assert_allclose(got[:, 7:], want[:, 7:])
    turn = got[:, 6] - (-want[:, 6] - np.pi / 2)
    np.testing.assert_allclose(np.cos(turn), 1, atol=1e-6)
    for ours_row, theirs_row in zip(got, want):  # and the same footprint, whatever its order
        x, y, _, length, w, _, yaw = ours_row[:7]
        along, across = np.array([np.cos(yaw), np.sin(yaw)]), np.array([-np.sin(yaw), np.cos(yaw)])
        for corner in corners_of_mit(theirs_row) - (x, y):
            np.testing.assert_allclose(abs(corner @ along), length / 2, rtol=1e-3, atol=1e-3)
            np.testing.assert_allclose(abs(corner @ across), w / 2, rtol=1e-3, atol=1e-3)


# --- mmdetection3d --------------------------------------------------------------------------------

RENAMED = (  # section 8 of the facts
    (r"^encoders\.camera\.backbone\.", "img_backbone."),
    (r"^encoders\.camera\.neck\.", "img_neck."),
    (r"^encoders\.camera\.vtransform\.", "view_transform."),
    (r"^encoders\.lidar\.backbone\.", "pts_middle_encoder."),
    (r"^fuser\.", "fusion_layer."),
    (r"^decoder\.backbone\.", "pts_backbone."),
    (r"^decoder\.neck\.", "pts_neck."),
    (r"^heads\.object\.", "bbox_head."),
    (r"decoder\.0\.multihead_attn\.", "decoder.0.cross_attn.attn."),
    (r"decoder\.0\.self_attn\.", "decoder.0.self_attn.attn."),
    (r"decoder\.0\.linear1\.", "decoder.0.ffn.layers.0.0."),
    (r"decoder\.0\.linear2\.", "decoder.0.ffn.layers.1."),
)


def as_mmdetection3d(state, spconv2=True):
    renamed = {}
    for name, tensor in state.items():
        for theirs, new in RENAMED:
            name = re.sub(theirs, new, name)
        name = re.sub(r"decoder\.0\.norm(\d)", lambda m: f"decoder.0.norms.{int(m[1]) - 1}", name)
        if tensor.ndim == 5 and spconv2:
            tensor = tensor.permute(4, 0, 1, 2, 3).contiguous()
        renamed[name] = tensor
    return renamed


@pytest.mark.parametrize("spconv2", [False, True])
def test_mmdetection3d_differs_from_mit_in_boxes_alone(spconv2, det_state, det_model):
    theirs = translate_weights(as_mmdetection3d(det_state, spconv2), "mmdet3d", det_model)
    mit = translate_weights(det_state, "mit-bevfusion", det_model)
    differ = {name for name in mit if not torch.equal(mit[name], theirs[name])}
    layers = {f"heads.detection.prediction.{part}.3" for part in ("size", "heading")}
    assert differ == {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")}


def test_mmdetection3d_run_has_heights_of_middles(det_state, tmp_path, capfd):
    torch.save({"state_dict": as_mmdetection3d(det_state)}, tmp_path / "theirs.pth")
    options = [str(tmp_path / "theirs.pth"), str(tmp_path / "run"), "--from=mmdet3d"]
    cli.main(["import", *options])
    model, _, _ = load_run(tmp_path / "run")
    assert model.heads["detection"].height_of == "middle"
    with pytest.raises(SystemExit):
        cli.main(["import", *options, "--task=seg"])
    assert "no BEVFusion for seg" in capfd.readouterr().err


# --- files ----------------------------------------------------------------------------------------


class History:
    """An object of another library, as training logs in checkpoints are."""

    def __init__(self):
        self.values = np.arange(3.0)


class Harmful:
    def __reduce__(self):
        return print, ("code of the checkpoint ran",)


def test_objects_beside_the_weights_are_not_made_and_code_is_not_run(tmp_path, capfd):
    weights = {"module.a": torch.ones(2)}
    log = {"history": History(), "number": np.float64(1.5), "harm": Harmful()}
    torch.save({"state_dict": weights, "message_hub": log}, tmp_path / "a.pth")
    assert read_published(tmp_path / "a.pth")["a"].tolist() == [1, 1]
    assert "ran" not in capfd.readouterr().out


def test_files_of_torch_before_1_6_are_read(tmp_path):
    path, weights = tmp_path / "old.pth", {"a": torch.arange(3.0)}
    torch.save({"state_dict": weights}, path, _use_new_zipfile_serialization=False)
    assert read_published(path)["a"].tolist() == [0, 1, 2]
    torch.save({"harm": Harmful()}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match="damaged or not a checkpoint"):
        read_published(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "damaged"),
        (b"no checkpoint at all", "damaged"),
        (pickle.dumps({"a": Harmful()}, protocol=2), "damaged"),
        (3, "holds no state_dict"),
        ({"state_dict": {}}, "holds no state_dict"),
        ({"state_dict": {"a": 1}}, "'a' is a int"),
    ],
)
def test_unusable_files_are_refused(content, message, tmp_path, capfd):
    path = tmp_path / "a.pth"
    path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
    with pytest.raises(CheckpointError, match=message):
        read_published(path)
    assert "ran" not in capfd.readouterr().out
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        read_published(tmp_path / "b.pth")
    (tmp_path / "c.safetensors").write_bytes(b"1234")
    with pytest.raises(CheckpointError, match="damaged"):
        read_published(tmp_path / "c.safetensors")
