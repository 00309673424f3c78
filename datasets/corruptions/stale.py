"""Old sensor data taken for new: the truth, the poses and the time stamps stay those of the frame.

The previous key frame comes from ``Frame.previous``; where there is none, at the start of a scene,
data are as new as ever.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..frame import Frame, LidarSweep
from ..seeding import generator

_IMAGES_PER_KEY_FRAME = 6  # nuScenes' cameras record at 12 Hz, its key frames are 0.5 s apart


@dataclass(frozen=True)
class StaleImages:
    """Each camera, by chance, gives the image of an earlier key frame once more.

    MultiCorrupt: 0.2, 0.4, 0.6, one key frame (0.5 s).

    Args:
        probability: for every camera.
        key_frames: how far back; as far as the scene goes.
    """

    probability: float
    key_frames: int = 1

    def __call__(self, frame: Frame, seed: int) -> Frame:
        """The frame with some old images, the same for the same frame and ``seed``."""
        earlier = {c.name: c for c in earlier_frame(frame, self.key_frames).cameras}
        cameras = tuple(
            replace(c, load=earlier[c.name].load)
            if c.name in earlier
            and generator(seed, frame.token, f"stale_images/{c.name}").random() < self.probability
            else c
            for c in frame.cameras
        )
        return replace(frame, cameras=cameras)


@dataclass(frozen=True)
class StaleSweeps:
    """By chance, the LiDAR's sweeps are those of an earlier key frame.

    MultiCorrupt: 0.2, 0.4, 0.6, one key frame (0.5 s).

    Args:
        probability: for the frame.
        key_frames: how far back; as far as the scene goes.
    """

    probability: float
    key_frames: int = 1

    def __call__(self, frame: Frame, seed: int) -> Frame:
        """The frame, perhaps with old sweeps, the same for the same frame and ``seed``."""
        if generator(seed, frame.token, "stale_sweeps").random() >= self.probability:
            return frame
        earlier = earlier_frame(frame, self.key_frames)
        return frame if earlier is frame else _with_clouds_of(frame, earlier.sweeps)


@dataclass(frozen=True)
class LateSensors:
    """Both sensors lag: sweeps and images are some recordings old.

    nuScenes-C: 2, 4, 6, 8, 10 recordings, of sweeps (20 a second) and of images (12 a second).
    Images between key frames (2 a second) are not indexed, so an image that should be n / 6 key
    frames old is, for each camera by chance, one of the two key images around: the right age on
    average.

    Args:
        sweeps: LiDAR revolutions; as far as the scene goes.
        images: recordings of a camera; as far as the scene goes.
        single: leave one sweep, as the original does.
    """

    sweeps: int
    images: float
    single: bool = False

    def __call__(self, frame: Frame, seed: int) -> Frame:
        """The frame with late sensors, the same for the same frame and ``seed``."""
        whole, rest = divmod(self.images / _IMAGES_PER_KEY_FRAME, 1)
        late = StaleImages(1.0, int(whole))(frame, seed) if whole else frame
        later = StaleImages(rest, int(whole) + 1)(frame, seed)
        cameras = tuple(
            b if b.load is not clean.load else a
            for clean, a, b in zip(frame.cameras, late.cameras, later.cameras)
        )
        if self.sweeps:
            frame = _with_clouds_of(frame, _recorded_before(frame, self.sweeps))
        sweeps = frame.sweeps[:1] if self.single else frame.sweeps
        return replace(frame, cameras=cameras, sweeps=sweeps)


def earlier_frame(frame: Frame, key_frames: int) -> Frame:
    """The key frame so many before, or the first of the scene."""
    for _ in range(key_frames):
        before = frame.previous() if frame.previous else None
        if before is None:
            break
        frame = before
    return frame


def _recorded_before(frame: Frame, count: int) -> tuple[LidarSweep, ...]:
    """The frame's sweeps, each ``count`` revolutions earlier or the scene's first."""
    wanted = len(frame.sweeps) + count
    sweeps, source = list(frame.sweeps), frame
    while len(sweeps) < wanted and source.previous and (before := source.previous()):
        known = sweeps[-1].timestamp_us if sweeps else frame.timestamp_us
        sweeps += [s for s in before.sweeps if s.timestamp_us < known]
        source = before
    late = sweeps[count:wanted] or sweeps[-1:]
    return tuple(late[: len(frame.sweeps)])


def _with_clouds_of(frame: Frame, sweeps: tuple[LidarSweep, ...]) -> Frame:
    """The frame with other sweeps' points; where those are fewer, the last ones are gone."""
    pairs = zip(frame.sweeps, sweeps)
    return replace(frame, sweeps=tuple(replace(now, load=old.load) for now, old in pairs))
