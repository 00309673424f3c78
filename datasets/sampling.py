"""Which frames an epoch takes, and in which order.

An order is a function of the epoch alone; a sampler deals it out to processes. So an epoch can be
made again anywhere: in a resumed run, or by another number of processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from .seeding import generator

Order = Callable[[int], NDArray[np.int64]]


def class_balanced_indices(
    counts: NDArray[np.integer], seed: int, epoch: int, num: int | None = None
) -> NDArray[np.int64]:
    """Draw frames so that every class appears about equally often.

    As in CBGS (Zhu et al. 2019): each class present in the data is given the same share of the
    epoch, filled from the frames that contain it. Within a class, every frame is drawn as often as
    any other, give or take one.

    Args:
        counts: (F, K) boxes of each class in each frame.
        seed: the run's seed.
        epoch: the draw differs from epoch to epoch.
        num: frames in the epoch, rounded down to a multiple of the classes present; the default
            is CBGS's own, the sum over classes of the frames that contain the class.

    Returns:
        indices into the frames, shuffled; int64.

    Raises:
        ValueError: if no frame contains any box.
    """
    frames_of_class = [np.flatnonzero(column) for column in np.asarray(counts).T]
    frames_of_class = [frames for frames in frames_of_class if len(frames)]
    if not frames_of_class:
        raise ValueError("no frame contains a box of any class; use shuffled frames instead")
    total = sum(map(len, frames_of_class)) if num is None else num
    share = total // len(frames_of_class)
    random = generator(seed, str(epoch), "class_balanced_indices")
    drawn = np.concatenate([_draw(frames, share, random) for frames in frames_of_class])
    return random.permutation(drawn).astype(np.int64)


def _draw(frames: NDArray, num: int, random: np.random.Generator) -> NDArray:
    rounds = -(-num // len(frames))
    return np.concatenate([random.permutation(frames) for _ in range(rounds)] or [frames])[:num]


@dataclass(frozen=True)
class ClassBalanced:
    """The order of :func:`class_balanced_indices`."""

    counts: NDArray[np.integer]  # (F, K)
    seed: int = 0
    num: int | None = None

    def __call__(self, epoch: int) -> NDArray[np.int64]:
        """Indices of an epoch."""
        return class_balanced_indices(self.counts, self.seed, epoch, self.num)


@dataclass(frozen=True)
class Shuffled:
    """Every frame once, in another order each epoch."""

    num_frames: int
    seed: int = 0

    def __call__(self, epoch: int) -> NDArray[np.int64]:
        """Indices of an epoch."""
        return generator(self.seed, str(epoch), "shuffled").permutation(self.num_frames)


@dataclass(frozen=True)
class InOrder:
    """Every frame once, as they come: the order of evaluation, to which all epochs are epoch 0.

    So random steps (corruptions, for instance) do the same in every validation of a training and
    in the evaluation of its checkpoint.
    """

    num_frames: int

    def __call__(self, epoch: int) -> NDArray[np.int64]:
        """Indices of an epoch."""
        return np.arange(self.num_frames, dtype=np.int64)


@dataclass(frozen=True)
class Clips:
    """Another order's frames, each within a clip of consecutive frames of its scene, in order.

    A clip ends with the frame that the order names, or begins with its scene where that has too
    few frames before. An epoch has as many frames as the other order's, rounded down.

    Args:
        order: which frames to make clips of; the first of an epoch are taken.
        scene_of_frame: (F,) number of the scene of each frame; frames are by scene and time.
        length: frames of a clip.
        world_size: processes that an ``EpochSampler`` deals frames out to in turn; each shall get
            whole clips.

    Raises:
        ValueError: if no scene has as many frames, or the order names too few.
    """

    order: Order
    scene_of_frame: NDArray[np.integer]
    length: int
    world_size: int = 1

    def __post_init__(self) -> None:
        _, _, size = self._scenes()
        if not (size >= self.length).any():
            raise ValueError(
                f"no scene has {self.length} frames, the longest {size.max(initial=0)}; lower "
                "clip_length"
            )
        if not len(self(0)):
            raise ValueError("the epoch has fewer frames than one clip per process")

    def _scenes(self) -> tuple[NDArray, NDArray, NDArray]:
        """Of each frame its scene's place among the scenes; of each of those first frame, size."""
        change = np.flatnonzero(np.diff(self.scene_of_frame)) + 1
        first = np.concatenate([[0], change])
        size = np.diff(np.append(first, len(self.scene_of_frame)))
        return np.repeat(np.arange(len(first)), size), first, size

    def __call__(self, epoch: int) -> NDArray[np.int64]:
        """Indices of an epoch."""
        place, first, size = self._scenes()
        named = self.order(epoch)
        scene = place[named]
        long_enough = size[scene] >= self.length
        # By the full order, not what is left of it: epochs must be of one length.
        count = len(named) // self.length // self.world_size * self.world_size
        named, scene = named[long_enough], scene[long_enough]
        named, scene = np.resize(named, count), np.resize(scene, count)
        start = np.maximum(named - self.length + 1, first[scene])
        clips = start[:, None] + np.arange(self.length)
        # Frame by frame of world_size clips, since frames go to the processes in turn.
        clips = clips.reshape(-1, self.world_size, self.length).swapaxes(1, 2)
        return clips.reshape(-1).astype(np.int64)


class EpochSampler(Sampler[tuple[int, int]]):
    """Deals an epoch's order out to ``world_size`` processes.

    Rank r takes the positions r, r + world_size, ... of the order, so that the batches of all
    ranks at one step are together the batch that one process would take. It yields
    ``(epoch, index)``: the epoch travels with the index to the workers, however long they live.

    Args:
        order: epoch -> indices; all epochs of one length.
        rank: which process this is.
        world_size: how many there are.
        global_batch_size: samples of one step on all ranks together; the tail of the order that
            does not fill a step is left out. 1 leaves nothing out (evaluation; the ranks may then
            differ by one sample).

    Raises:
        ValueError: if ranks could not share a step equally.
    """

    def __init__(
        self, order: Order, rank: int = 0, world_size: int = 1, global_batch_size: int = 1
    ) -> None:
        if not 0 <= rank < world_size:
            raise ValueError(f"rank is {rank}, expected 0 to {world_size - 1}")
        if global_batch_size != 1 and global_batch_size % world_size:
            raise ValueError(
                f"a global batch of {global_batch_size} cannot be shared by {world_size} "
                "processes; make it a multiple"
            )
        self.order, self.rank, self.world_size = order, rank, world_size
        self.global_batch_size = global_batch_size
        self.epoch = 0
        self._resume = (0, 0)
        num = len(order(0))
        self._num = num - num % global_batch_size
        if num and not self._num:
            raise ValueError(
                f"an epoch has {num} samples, fewer than one step of {global_batch_size}; lower "
                "the batch size"
            )

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch that the next iteration gives (Lightning calls this by itself)."""
        self.epoch = epoch

    def resume(self, epoch: int, num_done: int) -> None:
        """Let iterations of ``epoch`` leave out the first ``num_done`` samples of all ranks."""
        self.epoch, self._resume = epoch, (epoch, num_done)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """(epoch, index) of this rank's samples."""
        epoch = 0 if isinstance(self.order, InOrder) else self.epoch
        start = self._resume[1] if self.epoch == self._resume[0] else 0
        for index in self.order(epoch)[start : self._num][self.rank :: self.world_size]:
            yield epoch, int(index)

    def __len__(self) -> int:
        """Samples of this rank in a whole epoch, also while one is resumed."""
        return len(range(self.rank, self._num, self.world_size))
