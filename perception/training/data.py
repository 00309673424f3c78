"""nuScenes folders as Lightning data: index, splits, sampling, loaders."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, Sampler

from ...datasets.augment import ObjectPaste
from ...datasets.batch import Batch
from ...datasets.dataset import (
    FirstEpochs,
    FrameDataset,
    FrameReader,
    Step,
    Unreadable,
    collate_counting,
    prepare_worker,
)
from ...datasets.encode import Encoder
from ...datasets.errors import DataError
from ...datasets.nuscenes.index import FrameIndex, build_index
from ...datasets.nuscenes.label_files import LabelFolder, LabelFormat
from ...datasets.nuscenes.maps import MapRasterizer
from ...datasets.nuscenes.reader import NuScenesReader
from ...datasets.objects.build import BankOptions, ensure_bank
from ...datasets.sampling import ClassBalanced, Clips, EpochSampler, InOrder, Order, Shuffled
from ..evaluation.ground_truth import GroundTruth, ground_truth


class NuScenesData(pl.LightningDataModule):
    """The training and validation frames of a nuScenes folder.

    A folder without an index is indexed first. Which samples an epoch has, their order and their
    augmentation depend on the seed and the epoch alone, not on workers or processes; a training
    resumed in the middle of an epoch goes on with the sample that would have come.

    Args:
        root: the folder that holds ``samples/``, ``sweeps/`` and ``<version>/``.
        version: for instance ``v1.0-trainval``.
        encoder: what the model needs of a frame; its map rasterizer is filled in from ``root``.
        train_split: name of the split to train on.
        val_split: name of the split to validate on; null for no validation.
        batch_size: samples per process and forward pass.
        val_batch_size: the same for validation; null for ``batch_size``.
        workers: data-loading processes per training process; 0 loads in the process itself.
        train_steps: augmentations of training frames, in order.
        val_steps: changes to validation frames (at least the resizing of images), in order.
        class_balanced: draw frames so that classes come equally often.
        samples_per_epoch: with ``class_balanced``, the length of an epoch; null for CBGS's own.
        frame: the BEV frame: ``ego``, or ``lidar`` as published models want it.
        seed: decides order and augmentation.
        on_error: ``raise`` stops at a frame that cannot be read; ``skip`` goes on without it.
        index_dir: folder of the index; null for its usual place, beside the tables.
        occupancy: folder of occupancy labels; null for ``gts`` in ``root``, where there is one.
        occupancy_format: layout of that folder.
        clip_length: train on this many consecutive frames of a scene at a time, as a model with
            memory wants; the batch size is a multiple of it.
    """

    def __init__(
        self,
        root: str,
        version: str,
        encoder: Encoder,
        train_split: str = "train",
        val_split: str | None = "val",
        batch_size: int = 4,
        val_batch_size: int | None = None,
        workers: int = 2,
        train_steps: Sequence[Step] = (),
        val_steps: Sequence[Step] = (),
        class_balanced: bool = False,
        samples_per_epoch: int | None = None,
        frame: Literal["ego", "lidar"] = "ego",
        seed: int = 0,
        on_error: Literal["raise", "skip"] = "raise",
        index_dir: str | None = None,
        occupancy: str | None = None,
        occupancy_format: LabelFormat = "occ3d",
        clip_length: int = 1,
    ) -> None:
        super().__init__()
        self.index_dir = index_dir
        self.occupancy = occupancy
        self.occupancy_format: LabelFormat = occupancy_format
        if batch_size < 1 or workers < 0:
            raise ValueError(f"batch_size is {batch_size}, workers {workers}; give 1, 0 or more")
        if clip_length < 1 or batch_size % clip_length:
            raise ValueError(
                f"batch_size is {batch_size}, clip_length {clip_length}; a batch must hold whole "
                "clips, so make it a multiple"
            )
        self.clip_length = clip_length
        self.root, self.version = str(root), version
        self.frame: Literal["ego", "lidar"] = frame
        self.on_error: Literal["raise", "skip"] = on_error
        self.train_split, self.val_split = train_split, val_split
        self.batch_size, self.val_batch_size = batch_size, val_batch_size or batch_size
        self.workers, self.class_balanced = workers, class_balanced
        self.samples_per_epoch, self.seed = samples_per_epoch, seed
        self.train_steps, self.val_steps = tuple(train_steps), tuple(val_steps)
        self._encoder = encoder
        self.skipped: dict[str, str] = {}  # token -> reason, of frames that could not be read
        self._truth: GroundTruth | None = None
        self._readers: dict[str, NuScenesReader] = {}
        # Epoch, and batches taken of it. Counted here, since Lightning's own counters are one off
        # in a training that was resumed between two epochs.
        self.position = (0, 0)
        self.epoch = 0  # of the batch that is trained on
        self._last_readable: Batch | None = None

    @property
    def encoder(self) -> Encoder:
        """The encoder, with the maps of ``root`` where it draws masks and the folder has maps."""
        draws = self._encoder.map_grid is not None and self._encoder.rasterizer is None
        if draws and MapRasterizer.is_available(self.root):
            return replace(self._encoder, rasterizer=MapRasterizer(self.root))
        return self._encoder

    def prepare_data(self) -> None:
        """Build the index and the object bank if there are none that fit.

        Lightning calls this on one process.
        """
        self._prepare_index()
        for step in self.train_steps:
            if (paste := _paste_of(step)) is not None and paste.folder is None:
                reader = self._opened(self.train_split, paste.bank.num_sweeps - 1)
                ensure_bank(reader, paste.bank, self._bank_folder(reader, paste.bank), print)

    def _prepare_index(self) -> None:
        needed = self._encoder.num_sweeps - 1
        try:
            if FrameIndex.open(self.root, self.version, self.index_dir).previous_sweeps >= needed:
                return
        except DataError as error:
            print(f"indexing {self.root} {self.version} ({error})", flush=True)
        sweeps = max(needed, 10)
        build_index(self.root, self.version, sweeps, print, self.index_dir)

    def setup(self, stage: str | None = None) -> None:
        """Open the splits."""
        self.reader(self.train_split)
        if self.val_split is not None:
            self.reader(self.val_split)

    def reader(self, split: str) -> NuScenesReader:
        """The frames of a split.

        Raises:
            DataError: if the split has no frame here.
        """
        if split not in self._readers:
            reader = self._opened(split, self._encoder.num_sweeps - 1)
            if not len(reader):
                raise DataError(
                    f"{self.root} {self.version} has no frame of split {split}; choose another "
                    "with data.train_split or data.val_split"
                )
            self._readers[split] = reader
        return self._readers[split]

    def _opened(self, split: str, previous_sweeps: int) -> NuScenesReader:
        return NuScenesReader(
            *(self.root, self.version, split, previous_sweeps, self.frame, self.index_dir),
            self.label_folder(),
        )

    def label_folder(self) -> LabelFolder | None:
        """The occupancy labels; None where they are not wanted or there are none."""
        given = Path(self.root) / "gts" if self.occupancy is None else Path(self.occupancy)
        wanted = self._encoder.occupancy_grid is not None
        if not wanted or (self.occupancy is None and not given.is_dir()):
            return None
        return LabelFolder(given, self.occupancy_format, Path(self.root) / self.version)

    def _bank_folder(self, reader: NuScenesReader, bank: BankOptions) -> Path:
        name = f"objects-{self.train_split}-{bank.num_sweeps}-{bank.min_points}"
        return reader.index.path.parent / name

    def _with_bank(self, step: Step, reader: NuScenesReader) -> Step:
        """The step, told where its object bank is if it has none of its own."""
        if isinstance(step, FirstEpochs):
            return replace(step, step=self._with_bank(step.step, reader))
        if isinstance(step, ObjectPaste) and step.folder is None:
            return replace(step, folder=self._bank_folder(reader, step.bank))
        return step

    def ground_truth(self) -> GroundTruth | None:
        """The validation split's annotations; None where it has none."""
        reader = self.reader(self.val_split) if self.val_split else None
        if reader is None or reader.global_annotations(0) is None:
            return None
        self._truth = self._truth or ground_truth(reader)
        return self._truth

    def train_dataloader(self) -> DataLoader:
        """Shuffled or class-balanced, augmented."""
        reader = self.reader(self.train_split)
        sampler = _GoingOn(self._sampler(self._order(reader), self._samples_per_step), self)
        steps = [self._with_bank(step, reader) for step in self.train_steps]
        return self._loader(reader, steps, sampler, self.batch_size)

    def val_dataloader(self) -> DataLoader | list:
        """Every frame once, in order."""
        if self.val_split is None:
            return []
        return self.in_order(self.reader(self.val_split), self.val_steps)

    def in_order(self, reader: FrameReader, steps: Sequence[Step]) -> DataLoader:
        """Every frame of a reader once, in order, after ``steps``."""
        sampler = self._sampler(InOrder(len(reader)), 1)
        return self._loader(reader, steps, sampler, self.val_batch_size)

    def _order(self, reader: NuScenesReader) -> Order:
        order: Order = Shuffled(len(reader), self.seed)
        if self.class_balanced:
            counts = reader.class_counts(self._encoder.count_radar)
            order = ClassBalanced(counts, self.seed, self.samples_per_epoch)
        if self.clip_length > 1:
            return Clips(order, reader.scene_numbers(), self.clip_length, self._processes)
        return order

    @property
    def _processes(self) -> int:
        return self.trainer.world_size if self.trainer else 1

    @property
    def _samples_per_step(self) -> int:
        return self.batch_size * self._processes

    def _sampler(self, order: Order, samples_per_step: int) -> EpochSampler:
        rank = self.trainer.global_rank if self.trainer else 0
        return EpochSampler(order, rank, self._processes, samples_per_step)

    def _loader(
        self, reader: FrameReader, steps: Sequence[Step], sampler: Sampler, batch_size: int
    ) -> DataLoader:
        return DataLoader(
            FrameDataset(reader, self.encoder, steps, self.seed, self.on_error),
            batch_size=batch_size,
            sampler=sampler,
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            collate_fn=collate_counting,
            worker_init_fn=prepare_worker,
            pin_memory=torch.cuda.is_available(),
            # A generator of its own: making an iterator must not advance the model's.
            generator=torch.Generator().manual_seed(self.seed),
        )

    def on_before_batch_transfer(
        self, batch: tuple[Batch | None, tuple[Unreadable, ...]] | Batch, dataloader_idx: int
    ) -> Batch | None:
        """Note the frames that could not be read, and pass on the batch of the others.

        In training the previous batch stands in for one of which nothing could be read: every
        process must take every step.

        Raises:
            DataError: if that was the first one.
        """
        if isinstance(batch, Batch):
            return batch
        readable, unreadable = batch
        self.skipped |= {frame.token: frame.reason for frame in unreadable}
        if self.trainer is None or not self.trainer.training:
            return readable
        self._advance(self.trainer.num_training_batches)
        self._last_readable = readable or self._last_readable
        if self._last_readable is None:
            raise DataError(f"no frame of the first batch can be read: {unreadable[0].reason}")
        return self._last_readable

    def _advance(self, batches_per_epoch: float) -> None:
        epoch, batches = self.position
        self.epoch = epoch
        self.position = (epoch, batches + 1)
        if batches + 1 >= batches_per_epoch:
            self.position = (epoch + 1, 0)

    def state_dict(self) -> dict[str, Any]:
        """The place in the data: epoch and batches done."""
        epoch, batches = self.position
        return {
            "epoch": epoch,
            "batches": batches,
            "samples_per_step": self._samples_per_step,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint.

        Raises:
            DataError: if a step had another number of samples then.
        """
        before, now = state_dict["samples_per_step"], self._samples_per_step
        if before != now:
            raise DataError(
                f"the checkpoint's training took {before} samples at a time, this one takes {now} "
                "(data.batch_size x processes); resume with the same"
            )
        self.position = (state_dict["epoch"], state_dict["batches"])


def _paste_of(step: Step) -> ObjectPaste | None:
    step = step.step if isinstance(step, FirstEpochs) else step
    return step if isinstance(step, ObjectPaste) else None


class _GoingOn(Sampler[tuple[int, int]]):
    """An ``EpochSampler`` whose every iteration starts at the data's position."""

    def __init__(self, sampler: EpochSampler, data: NuScenesData) -> None:
        self.sampler, self.data = sampler, data

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch, batches = self.data.position
        self.sampler.resume(epoch, batches * self.sampler.global_batch_size)
        return iter(self.sampler)

    def __len__(self) -> int:
        return len(self.sampler)


def epoch_of(trainer: pl.Trainer) -> int:
    """The epoch that is being trained, by the data's count where it has one."""
    return getattr(getattr(trainer, "datamodule", None), "epoch", trainer.current_epoch)


class ReportSkipped(pl.Callback):
    """Says at the end of every epoch how many frames could not be read so far."""

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Print, if there are any."""
        skipped = dict(getattr(getattr(trainer, "datamodule", None), "skipped", {}))
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            parts: list[Any] = [None] * torch.distributed.get_world_size()
            torch.distributed.all_gather_object(parts, skipped)
            skipped = {token: reason for part in parts for token, reason in part.items()}
        if skipped and trainer.is_global_zero:
            token, reason = next(iter(skipped.items()))
            print(
                f"epoch {epoch_of(trainer)}: skipped {len(skipped)} unreadable frames so far; "
                f"the first is {token}: {reason}",
                flush=True,
            )
