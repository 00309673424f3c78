"""NuScenesData on a folder: index, splits, maps, samplers."""

import shutil

import pytest

from bevstack.datasets.augment.image import ImageAugmentation, ImageResize
from bevstack.datasets.encode import Encoder
from bevstack.datasets.errors import DataError
from bevstack.kernels.grid import BEVGrid
from bevstack.perception.training.checkpoint import load_weights
from bevstack.perception.training.data import NuScenesData

from model_parts import make_model  # isort: skip
from training_parts import MadeUpData, run  # isort: skip

SIZE = (96, 48)
RANGE = (-12.8, -9.6, -3.0, 12.8, 9.6, 5.0)
MAP_GRID = BEVGrid((-10.0, 10.0), (-8.0, 8.0), 0.5)


def nuscenes(root, **changes) -> NuScenesData:
    options = {
        "encoder": Encoder(RANGE, SIZE, MAP_GRID),
        "train_split": "mini_train",
        "val_split": "mini_val",
        "batch_size": 1,
        "workers": 0,
        "train_steps": [ImageAugmentation(SIZE)],
        "val_steps": [ImageResize(SIZE)],
    }
    return NuScenesData(str(root), "v1.0-mini", **(options | changes))


@pytest.fixture
def key_frame(shared_data, tmp_path):
    """A copy of the real key frame, since the index is written beside the tables."""
    return shutil.copytree(shared_data / "nuscenes-keyframe", tmp_path / "nuscenes")


def test_a_folder_without_an_index_is_indexed_with_a_message(key_frame, capsys):
    data = nuscenes(key_frame, val_split="mini_train")
    data.prepare_data()
    assert f"indexing {key_frame} v1.0-mini" in capsys.readouterr().out
    data.prepare_data()
    assert capsys.readouterr().out == ""
    data.setup()
    batch, unreadable = next(iter(data.train_dataloader()))
    assert batch.size == 1
    assert not unreadable
    assert tuple(batch.images.shape) == (6, 3, 48, 96)
    assert batch.map_masks is None  # the folder has no map expansion
    assert len(data.ground_truth().boxes) > 50


def test_a_split_without_frames_is_one_sentence(key_frame):
    data = nuscenes(key_frame)
    data.prepare_data()
    with pytest.raises(DataError, match=r"mini_val"):
        data.setup()


def test_a_folder_that_is_not_nuscenes_is_one_sentence(tmp_path):
    with pytest.raises(DataError, match=str(tmp_path)):
        nuscenes(tmp_path).prepare_data()


def test_the_fusion_model_trains_on_the_real_key_frame(key_frame, tmp_path):
    data = nuscenes(key_frame, val_split="mini_train")
    folder = tmp_path / "run"
    _, result = run(folder, data, make_model(), max_steps=2, lr_batch=1, lr=1e-3, validate_every=1)
    assert {"detection/mAP", "detection/NDS"} <= result.metrics.keys()
    assert load_weights(make_model(), result.last) == []


@pytest.mark.slow
def test_the_fusion_model_trains_on_the_synthetic_world(synthetic_root, tmp_path):
    _, result = run(
        tmp_path, nuscenes(synthetic_root, workers=1), make_model(), max_steps=4, validate_every=1
    )
    assert {"detection/NDS", "map/mIoU"} <= result.metrics.keys()


def test_a_validation_split_may_be_absent(tmp_path):
    _, result = run(tmp_path, MadeUpData(val_split=None), max_steps=5, validate_every=1)
    assert result.metrics == {}


def test_too_few_frames_for_a_step_are_one_sentence(tmp_path):
    with pytest.raises(ValueError, match="fewer than one step"):
        run(tmp_path, MadeUpData(num_frames=3))
