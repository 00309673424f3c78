"""Frames as a torch dataset: read, corrupt or augment, encode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import cv2
import torch
from threadpoolctl import threadpool_limits
from torch.utils.data import Dataset

from .batch import Batch, collate
from .encode import Encoder
from .errors import DataError
from .frame import Frame
from .seeding import epoch_seed


class FrameReader(Protocol):
    """Gives frames; see ``nuscenes.reader.NuScenesReader``."""

    @property
    def tokens(self) -> Sequence[str]:
        """The sample token of every frame."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Frame: ...


class Step(Protocol):
    """A corruption or augmentation. It leaves its input alone."""

    def __call__(self, frame: Frame, seed: int) -> Frame:
        """A new frame; the same for the same frame and seed."""
        ...


@dataclass(frozen=True)
class FirstEpochs:
    """A step that is left out from an epoch on, as augmentations that fade at a training's end are.

    Args:
        step: the step.
        epochs: how many epochs have it.
    """

    step: Step
    epochs: int

    def __call__(self, frame: Frame, seed: int) -> Frame:
        """The step itself; :class:`FrameDataset` knows the epoch and calls it or not."""
        return self.step(frame, seed)


@dataclass(frozen=True)
class Unreadable:
    """Stands for a frame that could not be read."""

    token: str
    reason: str


class FrameDataset(Dataset[Batch | Unreadable]):
    """Encoded samples of a reader's frames.

    A sample depends on the seed, the epoch and the frame, on nothing else.

    Args:
        reader: gives the frames.
        encoder: shared by the training and the evaluation data.
        steps: applied in this order before encoding.
        seed: the run's seed.
        on_error: what to do with a frame that cannot be read: ``"raise"`` a DataError that names
            it, or ``"skip"`` it: the sample is then an :class:`Unreadable`, which
            :func:`collate_counting` keeps apart.
    """

    def __init__(
        self,
        reader: FrameReader,
        encoder: Encoder,
        steps: Sequence[Step] = (),
        seed: int = 0,
        on_error: Literal["raise", "skip"] = "raise",
    ) -> None:
        if on_error not in ("raise", "skip"):
            raise ValueError(f'on_error is "{on_error}", expected "raise" or "skip"')
        self.reader, self.encoder, self.steps = reader, encoder, tuple(steps)
        self.seed, self.on_error = seed, on_error
        # Shared memory, so that workers that outlive an epoch see it change.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """The epoch of plain indices, in all workers; an ``EpochSampler`` sends its own."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        """Number of frames."""
        return len(self.reader)

    def __getitem__(self, index: int | tuple[int, int]) -> Batch | Unreadable:
        """A batch of one.

        Args:
            index: of the frame, or (epoch, index) as an ``EpochSampler`` gives it.

        Raises:
            DataError: for an unreadable frame, unless it is to be skipped.
        """
        epoch, index = index if isinstance(index, tuple) else (int(self._epoch), index)
        try:
            return self.encoder(self.frame(index, epoch))
        except (DataError, OSError) as error:
            token = self.reader.tokens[index]
            if self.on_error == "skip":
                return Unreadable(token, str(error))
            raise DataError(f"frame {token} cannot be read: {error}") from error

    def frame(self, index: int, epoch: int = 0) -> Frame:
        """The frame as it will be encoded in that epoch."""
        frame, seed = self.reader[index], epoch_seed(self.seed, epoch)
        for step in self.steps:
            if not (isinstance(step, FirstEpochs) and epoch >= step.epochs):
                frame = step(frame, seed)
        return frame


def collate_counting(
    samples: Sequence[Batch | Unreadable],
) -> tuple[Batch | None, tuple[Unreadable, ...]]:
    """Collate for ``on_error="skip"``: the batch of what could be read, and what could not.

    The batch is None if nothing could be read.
    """
    skipped = tuple(sample for sample in samples if isinstance(sample, Unreadable))
    readable = [sample for sample in samples if not isinstance(sample, Unreadable)]
    return (collate(readable) if readable else None), skipped


def prepare_worker(worker: int) -> None:
    """``worker_init_fn`` of data loaders: one thread per worker.

    Of the BLAS too: a 4x4 inverse takes microseconds, or, shared among busy cores, a millisecond.
    """
    threadpool_limits(1)
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
