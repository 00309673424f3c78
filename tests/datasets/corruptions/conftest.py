"""Real data for the corruptions' figures."""

import pytest

from bevstack.datasets.nuscenes.index import build_index
from bevstack.datasets.nuscenes.reader import NuScenesReader


@pytest.fixture(scope="session")
def key_frame(shared_data, tmp_path_factory):
    """The real key frame; its cloud has 34,688 points."""
    root, folder = shared_data / "nuscenes-keyframe", tmp_path_factory.mktemp("index")
    build_index(root, "v1.0-mini", index_dir=folder)
    return NuScenesReader(root, "v1.0-mini", index_dir=folder)[0]
