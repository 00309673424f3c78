"""The published benchmarks, and one of our own, in terms of this package's steps.

A file holds what one benchmark does to one kind of sensor, as ``PARTS`` by corruption name.
"""

from __future__ import annotations

from ..entry import Suite
from . import (
    multicorrupt_camera,
    multicorrupt_lidar,
    nuscenes_c_alignment,
    nuscenes_c_camera,
    nuscenes_c_lidar,
    nuscenes_c_objects,
    own,
    robo3d,
    robobev,
)

SUITES: dict[str, Suite] = {
    suite.name: suite
    for suite in (
        Suite.of(
            "multicorrupt",
            "MultiCorrupt (Beemelmanns et al., IV 2024)",
            multicorrupt_lidar.PARTS,
            multicorrupt_camera.PARTS,
        ),
        Suite.of("robobev", "RoboBEV (Xie et al., 2023)", robobev.PARTS),
        Suite.of("robo3d", "Robo3D (Kong et al., ICCV 2023)", robo3d.PARTS),
        Suite.of(
            "nuscenes_c",
            "nuScenes-C (Dong et al., CVPR 2023)",
            nuscenes_c_lidar.PARTS,
            nuscenes_c_camera.PARTS,
            nuscenes_c_objects.PARTS,
            nuscenes_c_alignment.PARTS,
        ),
        Suite.of(
            "bevstack",
            "what the published benchmarks lack",
            own.CAMERA_PARTS,
            own.LIDAR_PARTS,
        ),
    )
}


def suite_of(name: str) -> Suite:
    """The suite of that name.

    Raises:
        ValueError: if there is none, listing those there are.
    """
    if name not in SUITES:
        raise ValueError(f'there is no corruption suite "{name}"; use {", ".join(SUITES)}')
    return SUITES[name]
