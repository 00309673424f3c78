"""The synthetic dataset through reader, augmentation, encoder and loader, with its maps."""

import numpy as np
import pytest
import torch
from map_files import devkit_masks
from torch.utils.data import DataLoader

from bevstack.datasets.augment.bev import BEVAugmentation
from bevstack.datasets.augment.image import ImageAugmentation
from bevstack.datasets.batch import collate
from bevstack.datasets.dataset import FrameDataset, prepare_worker
from bevstack.datasets.encode import Encoder
from bevstack.datasets.geometry import yaw_of
from bevstack.datasets.nuscenes.index import build_index
from bevstack.datasets.nuscenes.maps import MapRasterizer
from bevstack.datasets.nuscenes.reader import NuScenesReader
from bevstack.datasets.sampling import ClassBalanced, EpochSampler
from bevstack.kernels.grid import BEVGrid

GRID = BEVGrid((-40, 40), (-30, 30), 0.5)
SYMMETRIC = BEVGrid((-50, 50), (-50, 50), 0.5)  # the devkit knows no other


@pytest.fixture(scope="module")
def reader(synthetic_root, tmp_path_factory):
    index_dir = tmp_path_factory.mktemp("index")
    build_index(synthetic_root, "v1.0-mini", index_dir=index_dir)
    return NuScenesReader(synthetic_root, "v1.0-mini", index_dir=index_dir)


@pytest.fixture(scope="module")
def dataset(synthetic_root, reader):
    encoder = Encoder(
        (-40, -30, -5, 40, 30, 3), (176, 64), GRID, rasterizer=MapRasterizer(synthetic_root)
    )
    steps = [
        ImageAugmentation((176, 64), (0.9, 1.2), flip=True, rotation=(-0.05, 0.05)),
        BEVAugmentation((-0.3, 0.3), (0.95, 1.05), (0.5, 0.5, 0.2), flip_y=True),
    ]
    return FrameDataset(reader, encoder, steps)


def test_a_class_balanced_epoch_loads_with_workers(dataset, reader):
    sampler = EpochSampler(ClassBalanced(reader.class_counts(), num=40), global_batch_size=2)
    loader = DataLoader(
        dataset,
        2,
        sampler=sampler,
        num_workers=2,
        collate_fn=collate,
        worker_init_fn=prepare_worker,
    )
    batches = list(loader)
    assert len(batches) == len(sampler) // 2
    for batch in batches:
        assert batch.images.shape == (12, 3, 64, 176)
        assert batch.map_masks.shape == (2, 6, 160, 120)
        assert batch.map_valid.all()
        assert len(batch.points) > 1000
        assert batch.bev_from_image.isfinite().all()
    assert sum(len(batch.boxes.label) for batch in batches) > 0


def test_vehicles_stand_on_the_drivable_area_in_every_augmentation(dataset):
    """Map, boxes and augmentation agree: cars are where the map says cars may be."""
    on_road = []
    for epoch in range(4):
        for index in range(len(dataset)):
            batch = dataset[epoch, index]
            centers = batch.boxes.center[batch.boxes.label <= 4]
            cell = GRID.flat_cell(centers[:, 0], centers[:, 1])
            drivable = batch.map_masks[0, 0] | batch.map_masks[0, 4]  # or in a car park
            on_road += drivable.flatten()[cell[cell >= 0]].tolist()
    assert len(on_road) >= 20
    assert np.mean(on_road) > 0.85


def test_epochs_differ_and_repeat(dataset):
    first, again, other = dataset[0, 1], dataset[0, 1], dataset[1, 1]
    assert torch.equal(first.points, again.points)
    assert torch.equal(first.map_masks, again.map_masks)
    assert not torch.equal(first.bev_from_image, other.bev_from_image)
    assert not torch.equal(first.map_masks, other.map_masks)


def test_map_masks_equal_the_devkit(synthetic_root, reader):
    for index in range(0, len(reader), 3):
        frame = reader[index]
        x, y, yaw = *frame.global_from_ego[:2, 3], yaw_of(frame.global_from_ego)
        theirs = devkit_masks(synthetic_root, frame.location, x, y, yaw, SYMMETRIC)
        ours = MapRasterizer(synthetic_root).masks(frame.location, frame.global_from_ego, SYMMETRIC)
        assert theirs[0].any()
        for a, b in zip(ours, theirs):
            assert (a & b).sum() >= 0.98 * (a | b).sum()
