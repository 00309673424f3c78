"""Orders of an epoch and how they are dealt out to processes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from bevstack.datasets.sampling import (
    ClassBalanced,
    EpochSampler,
    InOrder,
    Shuffled,
    class_balanced_indices,
)


def rare_counts():
    """200 frames: class 0 in all, class 1 in 20, class 2 in 5, class 3 in none."""
    counts = np.zeros((200, 4), int)
    counts[:, 0] = 3
    counts[::10, 1] = 1
    counts[::40, 2] = 2
    return counts


def test_class_balanced_gives_every_present_class_its_share():
    counts = rare_counts()
    drawn = class_balanced_indices(counts, seed=0, epoch=0)
    assert len(drawn) == 225 // 3 * 3
    times = np.bincount(drawn, minlength=200)
    assert times[::40].sum() >= 75  # 5 frames that hold all three classes: 75 / 5 = 15 times each
    assert (times[::40] >= 15).all()
    presence = (counts[drawn] > 0).mean(0)
    assert presence[2] > 0.33 > 5 / 200
    assert presence[3] == 0


def test_class_balanced_is_a_function_of_seed_and_epoch():
    counts = rare_counts()
    first = class_balanced_indices(counts, 1, 2)
    assert (first == class_balanced_indices(counts, 1, 2)).all()
    assert (first != class_balanced_indices(counts, 1, 3)).any()
    assert (first != class_balanced_indices(counts, 2, 2)).any()
    assert len(class_balanced_indices(counts, 1, 2, num=50)) == 48


def test_class_balanced_without_boxes_is_refused():
    with pytest.raises(ValueError, match="no frame contains a box"):
        class_balanced_indices(np.zeros((5, 10), int), 0, 0)


orders = st.sampled_from([Shuffled(37, 5), InOrder(40), ClassBalanced(rare_counts(), 3)])


@given(orders, st.integers(1, 4), st.integers(1, 3), st.integers(0, 5), st.integers(0, 3))
def test_ranks_see_together_what_one_process_sees(order, world_size, per_rank, epoch, done_steps):
    step = world_size * per_rank
    alone = EpochSampler(order, global_batch_size=step)
    ranks = [EpochSampler(order, rank, world_size, step) for rank in range(world_size)]
    for sampler in (alone, *ranks):
        sampler.resume(epoch, done_steps * step)
    whole = list(alone)
    parts = [list(sampler) for sampler in ranks]
    assert len({len(part) for part in parts}) == 1
    for k in range(len(whole) // step):
        batch = {item for part in parts for item in part[k * per_rank : (k + 1) * per_rank]}
        assert batch == set(whole[k * step : (k + 1) * step])
    told = 0 if isinstance(order, InOrder) else epoch
    assert whole == [(told, int(i)) for i in order(epoch)][done_steps * step :][: len(whole)]
    assert len(alone) == len(order(epoch)) // step * step


def test_resumed_epoch_is_the_rest_of_it_and_the_next_is_whole():
    sampler = EpochSampler(Shuffled(10, 1))
    sampler.set_epoch(4)
    whole = list(sampler)
    sampler.resume(4, 6)
    assert list(sampler) == whole[6:]
    sampler.set_epoch(5)
    assert sorted(index for _, index in sampler) == list(range(10))


def test_evaluation_takes_every_frame_once_over_all_ranks():
    parts = [list(EpochSampler(InOrder(7), rank, 3)) for rank in range(3)]
    assert sorted(index for part in parts for _, index in part) == list(range(7))
    assert [len(EpochSampler(InOrder(7), rank, 3)) for rank in range(3)] == [3, 2, 2]


def test_evaluation_knows_no_epoch():
    sampler = EpochSampler(InOrder(3))
    sampler.set_epoch(7)
    assert list(sampler) == [(0, 0), (0, 1), (0, 2)]


def test_epochs_differ_and_lightning_finds_set_epoch():
    sampler = EpochSampler(Shuffled(20, 0), global_batch_size=4)
    loader = DataLoader(_Echo(), 4, sampler=sampler, collate_fn=list)
    assert len(loader) == 5
    first = [item for batch in loader for item in batch]
    loader.sampler.set_epoch(1)
    second = [item for batch in loader for item in batch]
    assert {epoch for epoch, _ in second} == {1}
    assert sorted(i for _, i in first) == sorted(i for _, i in second) == list(range(20))
    assert [i for _, i in first] != [i for _, i in second]


class _Echo:
    """A dataset whose samples are their indices."""

    def __getitem__(self, index):
        return index

    def __len__(self):
        return 20


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((InOrder(5), 2, 2), "rank is 2, expected 0 to 1"),
        ((InOrder(50), 0, 2, 5), "cannot be shared by 2"),
        ((InOrder(3), 0, 1, 4), "fewer than one step of 4"),
    ],
)
def test_wrong_numbers_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        EpochSampler(*arguments)
