"""Data that tests share."""

from pathlib import Path

import pytest

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real sensor data that lies beside the checkout under its own licence."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"needs real test data in {SHARED_DATA}")
    return SHARED_DATA


@pytest.fixture(scope="session")
def synthetic_root(tmp_path_factory) -> Path:
    """A tiny synthetic dataset, v1.0-mini: one scene of mini_train and one of mini_val."""
    pytest.importorskip("open3d")
    from bevstack.datasets.synthetic.write import synthesize

    root = tmp_path_factory.mktemp("synthetic")
    synthesize(
        root, scenes=2, frames=4, seed=0, image_size=(400, 225), camera_sweeps=False, processes=1
    )
    return root
