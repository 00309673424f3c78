"""What a model was given: proof that it was not clean data, and a measure of the change.

Robustness scores of clean data have been published by mistake, so every cell keeps a digest of
each frame's encoded inputs; a table shows only cells whose inputs differ from the clean ones.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...datasets.batch import Batch
from ...datasets.frame import Frame
from ...datasets.geometry import inverse


class Watched:
    """A loader that remembers a digest of every frame it gives."""

    def __init__(self, loader: Iterable) -> None:
        self.loader = loader
        self.digests: dict[str, str] = {}  # by token

    def __iter__(self) -> Iterator[Any]:
        for item in self.loader:
            batch = item[0] if isinstance(item, tuple) else item
            if batch is not None:
                self.digests |= input_digests(batch)
            yield item


def input_digests(batch: Batch) -> dict[str, str]:
    """By token: a digest of the frame's images, points and calibration, as the model has them."""
    images, points = batch.images.cpu().numpy(), batch.points.cpu().numpy()
    matrices = batch.bev_from_image.cpu().numpy()
    camera_of, point_of = batch.image_sample.cpu().numpy(), batch.point_sample.cpu().numpy()
    found = {}
    for number, token in enumerate(batch.tokens):
        digest = hashlib.blake2b(digest_size=8)
        for part in (images[camera_of == number], matrices[camera_of == number]):
            digest.update(str(part.shape).encode() + np.ascontiguousarray(part).tobytes())
        digest.update(np.ascontiguousarray(points[point_of == number]).tobytes())
        found[token] = digest.hexdigest()
    return found


@dataclass(frozen=True)
class Damage:
    """How much of the inputs a corruption changed, on average over some frames.

    NaN where there is nothing to compare: no camera, no point.
    """

    cameras_lost: float  # share of the cameras that are absent or black
    pixel_change: float  # mean absolute difference of the others' pixels, of 255
    psnr_db: float  # of the same; infinite where they are equal
    points_lost: float  # share of the points; negative where there are more than before
    points_altered: float  # share of the clean points that are not there as they were
    rotation_deg: float  # of the sensor's mounting that turned most
    shift_m: float  # of the sensor's mounting that moved most

    def to_json(self) -> dict[str, float | None]:
        """By name; what is not a finite number is None."""
        return {k: v if math.isfinite(v) else None for k, v in vars(self).items()}


@dataclass(frozen=True)
class Seen:
    """A frame and what the model is given of it (a batch of one)."""

    frame: Frame
    batch: Batch


def damage(pairs: Sequence[tuple[Seen, Seen]]) -> Damage:
    """Compare frames with their clean selves: pairs of clean and changed."""
    rows = [_damage(clean, changed) for clean, changed in pairs]
    columns = {name: np.array([row[name] for row in rows], np.float64) for name in rows[0]}
    means = {k: float(np.mean(v[known])) if (known := ~np.isnan(v)).any() else math.nan
             for k, v in columns.items()}  # fmt: skip
    square = means.pop("square")
    # Of the mean square error over the frames, so that equal frames do not make it infinite.
    psnr = math.inf if square == 0 else 10 * math.log10(255**2 / square)
    return Damage(psnr_db=psnr, **means)


def _damage(clean: Seen, changed: Seen) -> dict[str, float]:
    images, lost = _images(clean), 0
    after = _images(changed)
    differences = []
    for name, image in images.items():
        if name not in after or (image.any() and not after[name].any()):
            lost += 1
        else:
            differences.append(np.abs(image.astype(np.int16) - after[name]))
    difference = np.array(differences, np.float64)
    cloud, cloud_after = clean.batch.points.numpy(), changed.batch.points.numpy()
    known = len(cloud) > 0
    rotation, shift = _calibration_change(clean.frame, changed.frame)
    return {
        "cameras_lost": lost / len(images) if images else math.nan,
        "pixel_change": float(difference.mean()) if differences else math.nan,
        "square": float((difference**2).mean()) if differences else math.nan,
        "points_lost": 1 - len(cloud_after) / len(cloud) if known else math.nan,
        "points_altered": 1 - _share_kept(cloud, cloud_after) if known else math.nan,
        "rotation_deg": rotation,
        "shift_m": shift,
    }


def _images(seen: Seen) -> dict[str, NDArray[np.uint8]]:
    """The encoded images by channel; none of a model without cameras."""
    return {c.name: image for c, image in zip(seen.frame.cameras, seen.batch.images.numpy())}


def _share_kept(clean: NDArray, changed: NDArray) -> float:
    def rows(cloud: NDArray) -> NDArray:
        return np.ascontiguousarray(cloud).view(f"V{cloud.strides[0]}").ravel()

    return float(np.isin(rows(clean), rows(changed)).mean()) if len(changed) else 0.0


def _calibration_change(clean: Frame, changed: Frame) -> tuple[float, float]:
    """Largest rotation (degrees) and shift (metres) of a mounting."""
    mountings = {camera.name: camera.ego_from_camera for camera in changed.cameras}
    pairs = [(c.ego_from_camera, mountings[c.name]) for c in clean.cameras if c.name in mountings]
    pairs += [(a.ego_from_lidar, b.ego_from_lidar) for a, b in zip(clean.sweeps, changed.sweeps)]
    rotation = shift = 0.0
    for before, after in pairs:
        if np.array_equal(before, after):
            continue
        moved = inverse(before) @ after
        # The sine: an arc cosine resolves no angle below a thousandth of a degree.
        sine = np.linalg.norm(moved[:3, :3] - np.eye(3)) / math.sqrt(8)
        rotation = max(rotation, math.degrees(2 * math.asin(min(1.0, sine))))
        shift = max(shift, float(np.linalg.norm(moved[:3, 3])))
    return rotation, shift
