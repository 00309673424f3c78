"""``bevstack synthesize``: write a synthetic nuScenes dataset."""

from __future__ import annotations

from pathlib import Path


def synthesize(
    out: Path,
    scenes: int = 10,
    frames: int = 40,
    seed: int = 0,
    image_size: tuple[int, int] = (1600, 900),
    camera_sweeps: bool = True,
    processes: int | None = None,
) -> None:
    """Write a procedural world as a nuScenes dataset.

    Args:
        out: folder to write, new or empty.
        scenes: number of scenes; up to 10 make v1.0-mini, more make v1.0-trainval.
        frames: key frames per scene, at 2 Hz.
        seed: the world; the same seed gives the same bytes.
        image_size: image width and height, pixels.
        camera_sweeps: write the images between key frames too (12 Hz), as nuScenes has them.
        processes: worker processes; default: one per core.
    """
    from ...datasets.synthetic.write import synthesize as write_world
    from .progress import progress_bar

    with progress_bar("synthesize", "scenes") as advance:
        write_world(
            out,
            scenes=scenes,
            frames=frames,
            seed=seed,
            image_size=image_size,
            camera_sweeps=camera_sweeps,
            processes=processes,
            progress=advance,
        )
