"""The torch dataset: the same bytes everywhere, epochs that reach workers, unreadable frames."""

import pickle
from dataclasses import fields

import pytest
import torch
from hand_made import Reader
from torch.utils.data import DataLoader

from bevstack.datasets.augment.bev import BEVAugmentation
from bevstack.datasets.augment.color import ColorJitter
from bevstack.datasets.augment.dropout import SensorDropout
from bevstack.datasets.augment.image import ImageAugmentation, ImageResize
from bevstack.datasets.batch import collate
from bevstack.datasets.dataset import (
    FrameDataset,
    Unreadable,
    collate_counting,
    epoch_seed,
    prepare_worker,
)
from bevstack.datasets.encode import Encoder
from bevstack.datasets.errors import DataError
from bevstack.datasets.sampling import EpochSampler, InOrder, Shuffled

ENCODER = Encoder((-40, -30, -5, 40, 30, 3), (64, 40))
STEPS = (
    SensorDropout(0.1, 0.1),
    ImageAugmentation((64, 40), (1.0, 1.3), (0, 0.1), flip=True, rotation=(-0.1, 0.1)),
    ColorJitter(),
    BEVAugmentation((-0.5, 0.5), (0.9, 1.1), (0.5, 0.5, 0.5), flip_x=True, flip_y=True),
)


def content(batch):
    """All bytes of a batch, comparable."""
    if isinstance(batch, torch.Tensor):
        return batch.shape, batch.numpy().tobytes()
    if hasattr(batch, "__dataclass_fields__"):
        return tuple(content(getattr(batch, f.name)) for f in fields(batch))
    return batch


def loader(dataset, workers=0, sampler=None, **options):
    options = {"collate_fn": collate, "persistent_workers": workers > 0} | options
    return DataLoader(
        dataset, 2, sampler=sampler, num_workers=workers, worker_init_fn=prepare_worker, **options
    )


def test_a_sample_depends_on_seed_epoch_and_frame_alone():
    dataset, again = (FrameDataset(Reader(), ENCODER, STEPS, seed=7) for _ in range(2))
    again[5], again[0]  # what was read before must not matter
    assert content(dataset[3]) == content(again[3]) == content(dataset[0, 3])
    assert content(dataset[3]) != content(dataset[1, 3])
    assert content(dataset[3]) != content(FrameDataset(Reader(), ENCODER, STEPS, seed=8)[3])
    dataset.set_epoch(1)
    assert content(dataset[3]) == content(again[1, 3])
    assert len({epoch_seed(s, e) for s in range(10) for e in range(10)}) == 100


@pytest.mark.parametrize("workers", [1, 2])
def test_any_number_of_workers_gives_the_same_bytes_in_every_epoch(workers):
    dataset = FrameDataset(Reader(), ENCODER, STEPS)
    sampler, other = EpochSampler(Shuffled(6, 1)), EpochSampler(Shuffled(6, 1))
    here, there = loader(dataset, 0, sampler), loader(dataset, workers, other)
    seen = []
    for epoch in range(3):  # the workers persist
        sampler.set_epoch(epoch)
        other.set_epoch(epoch)
        batches = [content(batch) for batch in here]
        assert [content(batch) for batch in there] == batches
        seen.append(batches)
    assert seen[0] != seen[1] != seen[2]


def test_set_epoch_reaches_persistent_workers():
    dataset = FrameDataset(Reader(), ENCODER, STEPS)
    there = loader(dataset, 1)
    for epoch in (0, 3):
        dataset.set_epoch(epoch)
        expected = [content(collate([dataset[epoch, i], dataset[epoch, i + 1]])) for i in (0, 2, 4)]
        assert [content(batch) for batch in there] == expected


def test_peer_bug_2_training_and_evaluation_share_the_encoder():
    train = FrameDataset(Reader(), ENCODER, STEPS)
    test = FrameDataset(Reader(), ENCODER, [ImageResize((64, 40))])
    assert train.encoder is test.encoder
    assert content(test[0, 3]) == content(test[5, 3])  # evaluation knows no epoch


def test_an_unreadable_frame_is_raised_by_name():
    dataset = FrameDataset(Reader(broken=[2]), ENCODER, STEPS[1:])
    with pytest.raises(
        DataError, match=r"frame frame2 cannot be read: samples/frame2.jpg is trunc"
    ):
        dataset[2]


def test_unreadable_frames_are_skipped_and_counted_when_told_to():
    reader = Reader(broken=[0, 1, 4])
    dataset = FrameDataset(reader, ENCODER, STEPS[1:], on_error="skip")
    loaded = list(loader(dataset, 1, EpochSampler(InOrder(6)), collate_fn=collate_counting))
    assert [batch and batch.tokens for batch, _ in loaded] == [
        None,
        ("frame2", "frame3"),
        ("frame5",),
    ]
    names = [bad.token for _, skipped in loaded for bad in skipped]
    assert names == ["frame0", "frame1", "frame4"]
    assert isinstance(dataset[4], Unreadable)
    assert "frame4.jpg is truncated" in dataset[4].reason


def test_a_missing_file_counts_as_unreadable():
    def missing(frame, seed):
        raise FileNotFoundError(2, "No such file or directory", "samples/a.jpg")

    with pytest.raises(DataError, match=r"frame frame0 cannot be read: .*samples/a.jpg"):
        FrameDataset(Reader(), ENCODER, [missing])[0]


def test_a_mistake_in_the_config_is_not_skipped():
    dataset = FrameDataset(Reader(), ENCODER, on_error="skip")  # images are not resized
    with pytest.raises(ValueError, match="add ImageResize") as caught:
        dataset[0]
    assert not isinstance(caught.value, DataError)
    with pytest.raises(ValueError, match='on_error is "ignore"'):
        FrameDataset(Reader(), ENCODER, on_error="ignore")


def test_a_dataset_can_be_sent_to_another_process():
    dataset = FrameDataset(Reader(), ENCODER, STEPS)
    assert content(pickle.loads(pickle.dumps(dataset))[2]) == content(dataset[2])  # noqa: S301
