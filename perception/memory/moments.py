"""Earlier moments of a drive: which of them a sample may look back at, and where they lie."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...datasets.batch import Batch
from .warp import relative_transform


@dataclass(frozen=True)
class Moments:
    """Fused maps of R moments: the state of a stream, given to a step and got from it."""

    map: Tensor  # (R, C, X, Y) fused map, in the BEV frame of its moment
    global_from_bev: Tensor  # (R, 4, 4) float64, undoes that moment's augmentation too
    scene: Tensor  # (R,) int64, number of the drive
    timestamp_us: Tensor  # (R,) int64
    valid: Tensor  # (R,) bool: is there such a moment?

    @staticmethod
    def of_batch(fused: Tensor, batch: Batch) -> Moments:
        """The moments of a batch.

        Raises:
            ValueError: if the batch does not say its scenes and times.
        """
        if batch.scene is None or batch.timestamp_us is None:
            raise ValueError(
                "a model with memory needs Batch.scene and Batch.timestamp_us, which encode gives"
            )
        valid = torch.ones_like(batch.scene, dtype=torch.bool)
        return Moments(fused, batch.global_from_bev, batch.scene, batch.timestamp_us, valid)

    def joined(self, other: Moments) -> Moments:
        """These moments, then the others."""
        pairs = zip(self._columns(), other._columns())
        return Moments(*(torch.cat([a, b.to(a.device)]) for a, b in pairs))

    def latest(self, count: int) -> Moments:
        """The last ``count``, without a gradient."""
        return Moments(*(column[-count:].detach() for column in self._columns()))

    def _columns(self) -> tuple[Tensor, ...]:
        return self.map, self.global_from_bev, self.scene, self.timestamp_us, self.valid


@dataclass(frozen=True)
class Past:
    """What B samples look back at: K moments each, the latest first."""

    map: Tensor  # (B, K, C, X, Y)
    moment_from_bev: Tensor  # (B, K, 4, 4) float32: the moment's BEV frame from the sample's
    age: Tensor  # (B, K) seconds
    valid: Tensor  # (B, K) bool; what is not valid counts nothing

    @staticmethod
    def nothing(fused: Tensor, count: int) -> Past:
        """No moment at all, for maps (B, C, X, Y)."""
        B = len(fused)
        return Past(
            fused.new_zeros(B, count, *fused.shape[1:]),
            torch.eye(4, device=fused.device).expand(B, count, 4, 4),
            torch.zeros(B, count, device=fused.device),
            torch.zeros(B, count, dtype=torch.bool, device=fused.device),
        )


def recall(now: Moments, known: Moments, count: int, max_age: float) -> Past:
    """Of the moments that are known, the latest before each sample in the same scene.

    Which those are follows from scenes and times alone, so it is the same whether moments come in
    one batch or one by one; a scene's first frame has none, and a frame that is missing makes the
    one before it older.

    Args:
        now: the samples, B of them.
        known: R moments, the samples may be among them.
        count: K, the most that a sample looks back at.
        max_age: seconds; older moments are forgotten.
    """
    age = (now.timestamp_us[:, None] - known.timestamp_us[None]).double() / 1e6  # (B, R)
    fits = (now.scene[:, None] == known.scene[None]) & known.valid[None]
    fits = fits & (age > 0) & (age <= max_age)
    far = age.where(fits, torch.inf)
    if (missing := count - far.shape[1]) > 0:
        far = torch.nn.functional.pad(far, (0, missing), value=torch.inf)
    age, chosen = far.sort(dim=1, stable=True)
    age, chosen = age[:, :count], chosen[:, :count].clamp(max=len(known.scene) - 1)
    valid = age.isfinite()
    chosen = chosen.where(valid, 0)
    maps = known.map[chosen] * valid[..., None, None, None].to(known.map.dtype)
    transform = relative_transform(now.global_from_bev[:, None], known.global_from_bev[chosen])
    transform = torch.where(valid[..., None, None], transform, torch.eye(4, device=age.device))
    return Past(maps, transform, age.where(valid, 0).float(), valid)
