"""The imported models against a restatement of the published ones on their own tensor names."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mit_reference import Reference
from model_parts import make_boxes
from published import published_state

from bevstack.datasets.batch import Batch
from bevstack.datasets.dataset import FrameDataset
from bevstack.kernels.grid import BEVGrid
from bevstack.perception.commands.train import load_run
from bevstack.perception.encoders import (
    LSS,
    LSSFPN,
    CameraEncoder,
    DepthLSS,
    Swin,
    VoxelEncoder,
)
from bevstack.perception.encoders.camera import IMAGENET_MEAN, IMAGENET_STD
from bevstack.perception.fusion import ConvFuser
from bevstack.perception.heads import MapHead, TransFusionHead
from bevstack.perception.importing import import_checkpoint, translate_weights
from bevstack.perception.model import FusionModel
from bevstack.perception.necks import SECOND

pytestmark = pytest.mark.slow  # a dense restatement of the whole network

SIZE = (64, 128)  # of the images; the weights do not know
HALF, CELL = 4.8, 0.6  # metres; 16 x 16 cells


def small_model(task: str) -> FusionModel:
    """The published model on a small grid and small images, built by hand, not by its config."""
    grid = BEVGrid((-HALF, HALF), (-HALF, HALF), CELL)
    lift = DepthLSS if task == "det" else LSS
    map_grid = BEVGrid((-50, 50), (-50, 50), 0.5)
    heads = {
        "det": {"detection": partial(TransFusionHead, border_peaks=False, height_of="top")},
        "seg": {"map": partial(MapHead, map_grid=map_grid, channels=512, reduce=False, layers=2)},
    }
    return FusionModel(
        grid,
        fuser=partial(ConvFuser, out_channels=256),
        backbone=partial(
            *(SECOND,),
            channels=(128, 256),
            layers=(5, 5),
            up_channels=(256, 256),
            norm_eps=1e-3,
            norm_momentum=0.01,
        ),
        heads=heads[task],
        camera=partial(
            CameraEncoder,
            backbone=Swin(),
            fpn=LSSFPN,
            lift=partial(lift, truncate_cells=True),
        ),
        lidar=VoxelEncoder,
    ).eval()


def scene(seed: int = 0) -> SimpleNamespace:
    """Two cameras, points, and augmented matrices in the published convention."""
    g = torch.Generator().manual_seed(seed)
    camera2lidar, intrinsics, image_aug = [], [], []
    for yaw, scale, shift in ((0.3, 0.9, -3.0), (2.5, 1.2, 4.0)):
        c, s = np.cos(yaw), np.sin(yaw)
        matrix = np.eye(4)
        axes = np.array([[0, 0, 1], [-1, 0, 0], [0, -1, 0]])
        matrix[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ axes
        matrix[:3, 3] = [0.2, -0.1, 0.4]
        camera2lidar.append(matrix)
        k = np.eye(4)
        k[0, 0] = k[1, 1] = 90.0
        k[0, 2], k[1, 2] = 66.0, 30.0
        intrinsics.append(k)
        aug = np.eye(4)
        turn = np.deg2rad(4.0)
        aug[:2, :2] = scale * np.array(
            [[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]]
        )
        aug[:2, 3] = shift, -shift / 2
        image_aug.append(aug)
    lidar_aug = np.eye(4)
    lidar_aug[:3, :3] = 1.05 * np.array([[0.8, 0.6, 0], [-0.6, 0.8, 0], [0, 0, 1]])
    lidar_aug[:3, 3] = 0.3, -0.2, 0.1
    low, high = torch.tensor([-HALF, -HALF, -5, 0, 0]), torch.tensor([HALF, HALF, 3, 255, 0.5])
    points = torch.rand(900, 5, generator=g) * (high - low) + low
    points[:, 2] = points[:, 2] / 4  # most things are near the ground
    images = torch.randint(0, 256, (2, 3, *SIZE), generator=g, dtype=torch.uint8)
    named = {"camera2lidar": camera2lidar, "intrinsics": intrinsics, "image_aug": image_aug}
    matrices = {name: torch.tensor(np.array(part)) for name, part in named.items()}
    matrices["lidar_aug"] = torch.tensor(lidar_aug)
    return SimpleNamespace(images=images, points=points, matrices=matrices)


def as_batch(given: SimpleNamespace) -> Batch:
    """The scene as our data gives it: one matrix per image."""
    m = given.matrices
    pixel_aug = m["image_aug"].clone()  # acts on (u, v, depth); ours on (u d, v d, d, 1)
    pixel_aug[:, :2, 2], pixel_aug[:, :2, 3] = m["image_aug"][:, :2, 3], 0
    image_from_camera = pixel_aug @ m["intrinsics"]
    bev_from_image = m["lidar_aug"] @ m["camera2lidar"] @ torch.linalg.inv(image_from_camera)
    return Batch(
        tokens=("a",),
        images=given.images,
        image_sample=torch.zeros(2, dtype=torch.long),
        bev_from_image=bev_from_image.float(),
        points=given.points,
        point_sample=torch.zeros(len(given.points), dtype=torch.long),
        global_from_bev=torch.eye(4, dtype=torch.float64)[None],
        boxes=make_boxes([], []),
        box_valid=torch.tensor([False]),
        map_masks=None,
        map_valid=torch.tensor([False]),
    )


def published_tables(state, model):
    """The state with the tables of the small grid in place of the published one's."""
    from bevstack.perception.importing.bevfusion import grid_tables

    tables = grid_tables(model.camera.lift, torch.Size((118, SIZE[0] // 8, SIZE[1] // 8, 3)))
    return state | {f"encoders.camera.vtransform.{name}": t for name, t in tables.items()}


@pytest.fixture(scope="module", params=["det", "seg"])
def compared(request):
    """By part: what the restatement computes and what ours does, in one forward pass each."""
    task = request.param
    model, given = small_model(task), scene()
    state = published_tables(published_state(task), model)
    model.load_state_dict(translate_weights(state, "mit-bevfusion", model))
    reference = Reference(state, (-HALF, -HALF, -5.0), (HALF, HALF, 3.0), (0.075, 0.075, 0.2))
    ours, batch = {}, as_batch(given)
    for name in ("camera.backbone", "camera.fpn", "camera.lift", "lidar", "fuser", "backbone"):
        model.get_submodule(name).register_forward_hook(
            lambda _m, _i, output, name=name: ours.update({name: output})
        )
    with torch.no_grad():
        output = model(batch)
        mean, std = (torch.tensor(x).view(3, 1, 1) / 255 for x in (IMAGENET_MEAN, IMAGENET_STD))
        maps = reference.swin((given.images / 255 - mean) / std)
        features = reference.camera_neck(maps)
        bounds = torch.tensor([-HALF, -HALF, -10.0]), torch.tensor([0.3, 0.3, 20.0]), (32, 32, 1)
        matrices = {name: m.float() for name, m in given.matrices.items()}
        camera = reference.view_transform(
            features, given.points, matrices, SIZE, bounds, task == "det"
        )
        lidar = reference.lidar(given.points)
        fused = reference.blocks("fuser", (1,), torch.cat([camera, lidar], 1))
        bev = reference.decoder(fused)
        if task == "det":
            last = reference.object_head(bev, CELL)
        else:
            last = {"map": reference.map_head(bev, HALF)}
    theirs = {"camera.backbone": maps, "camera.fpn": features, "camera.lift": camera}
    theirs |= {"lidar": lidar, "fuser": fused, "backbone": bev}
    return SimpleNamespace(
        task=task, ours=ours, theirs=theirs, model=model, output=output, last=last, batch=batch
    )


@pytest.mark.parametrize(
    "part", ["camera.backbone", "camera.fpn", "camera.lift", "lidar", "fuser", "backbone"]
)
def test_imported_part_is_the_published_one(compared, part):
    ours, theirs = compared.ours[part], compared.theirs[part]
    ours = ours[0] if part == "camera.lift" else ours
    for mine, published in zip(*(x if isinstance(x, list) else [x] for x in (ours, theirs))):
        assert published.std() > 1e-3
        scale = published.abs().max()
        torch.testing.assert_close(mine / scale, published / scale, rtol=1e-4, atol=2e-5)


def test_imported_head_gives_the_published_result(compared):
    if compared.task == "seg":
        got = compared.model.decode(compared.output)["map"][0]
        assert compared.last["map"].std() > 1e-3
        torch.testing.assert_close(got, compared.last["map"], rtol=1e-3, atol=1e-4)
        return
    output, last = compared.output["detection"], compared.last
    torch.testing.assert_close(output.heatmap, last["dense"], rtol=1e-3, atol=1e-4)
    theirs = last["boxes"]
    yaw = -theirs[:, 6] - torch.pi / 2
    columns = [theirs[:, :3], theirs[:, [4, 3, 5]], yaw.sin()[:, None], yaw.cos()[:, None]]
    theirs = torch.cat([*columns, theirs[:, 7:], last["label"][:, None]], 1)
    mine = compared.model.heads["detection"].boxes(output)[0]
    columns = [mine[:, :6], mine[:, 6:7].sin(), mine[:, 6:7].cos(), mine[:, 7:]]
    mine = torch.cat([*columns, output.label[0, :, None]], 1)
    # Peaks that are equal but for rounding may come in another order.
    difference = (mine[:, None] - theirs).abs().amax(-1)
    assert difference.amin(0).max() < 1e-3
    assert difference.amin(1).max() < 1e-3
    found = compared.model.decode(compared.output, compared.batch)["detection"][0]
    score = last["score"].sort(descending=True).values.numpy()
    np.testing.assert_allclose(found.score, score, rtol=1e-3)


@pytest.mark.parametrize("task", ["det", "seg"])
def test_imported_model_runs_on_the_real_key_frame(task, shared_data, tmp_path):
    torch.save({"state_dict": published_state(task)}, tmp_path / "published.pth")
    import_checkpoint(tmp_path / "published.pth", tmp_path / "run", "mit-bevfusion", task)
    place = {"root": str(shared_data / "nuscenes-keyframe"), "version": "v1.0-mini"}
    place |= {"val_split": "mini_train", "index_dir": str(tmp_path / "index")}
    model, data, _ = load_run(tmp_path / "run", **place)
    data.prepare_data()
    batch = FrameDataset(data.reader("mini_train"), data.encoder, data.val_steps)[(0, 0)]
    assert isinstance(batch, Batch)
    assert batch.images.shape == (6, 3, 256, 704)
    with torch.no_grad():
        outputs = model.eval()(batch)
        result = model.decode(outputs, batch)
    if task == "seg":
        assert result["map"].shape == (1, 6, 200, 200)
        assert result["map"].isfinite().all()
    else:
        found = result["detection"][0]
        assert 0 < len(found) <= 200
        assert np.isfinite(found.boxes.center).all()
        assert (np.abs(found.boxes.center[:, :2]) <= 61.2).all()
