"""Splits are nuScenes' own, or those of splits.json."""

import json

import pytest

from bevstack.datasets.errors import DataError
from bevstack.datasets.nuscenes.splits import SPLITS, scenes_of_split


def test_splits_are_the_devkits():
    official = pytest.importorskip("nuscenes.utils.splits").create_splits_scenes()
    assert {name: list(scenes) for name, scenes in SPLITS.items()} == official


def test_sizes_are_the_published_ones():
    assert [len(SPLITS[name]) for name in ("train", "val", "test")] == [700, 150, 150]
    assert not set(SPLITS["train"]) & set(SPLITS["val"])


def test_custom_split_comes_from_the_file(tmp_path):
    (tmp_path / "v1.0-mine").mkdir()
    (tmp_path / "v1.0-mine/splits.json").write_text(json.dumps({"rain": ["scene-0001"]}))
    assert scenes_of_split(tmp_path, "v1.0-mine", "rain") == ("scene-0001",)


@pytest.mark.parametrize(
    ("version", "split", "said"),
    [
        (
            "v1.0-mini",
            "val",
            "choose one of them, or a version folder whose name ends in 'trainval'",
        ),
        ("v1.0-trainval", "mini_val", "ends in 'mini'"),
        ("v1.0-mini", "rain", "splits.json"),
    ],
)
def test_split_that_does_not_fit_says_which_do(tmp_path, version, split, said):
    with pytest.raises(DataError, match=r"mini_train|train, ") as error:
        scenes_of_split(tmp_path, version, split)
    assert said in str(error.value)


def test_broken_splits_file_is_named(tmp_path):
    (tmp_path / "v1.0-mini").mkdir()
    (tmp_path / "v1.0-mini/splits.json").write_text("[1, 2]")
    with pytest.raises(DataError, match=r"splits\.json is not a JSON object"):
        scenes_of_split(tmp_path, "v1.0-mini", "rain")
