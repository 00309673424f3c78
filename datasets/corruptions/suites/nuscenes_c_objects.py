"""nuScenes-C inside boxes and on moving objects: 5 severities. The boxes stay as annotated."""

from __future__ import annotations

from ..combine import Sequential
from ..entry import Fidelity, Part, Touches
from ..object_images import BlurObjects
from ..object_points import ObjectNoise, SplitObjects, ThinObjects
from ..object_shapes import DeformObjects, Scale, Shear, Turn
from .nuscenes_c_camera import LINE, ZOOM

_NOISE = (0.02, 0.04, 0.06, 0.08, 0.10)
_ONE_IN = (30, 25, 20, 15, 10)
_POSITION_ONLY = "the noise is on x, y, z in metres; as published, the same number on intensity too"
_AGREE = "one draw with the LiDAR's sizes for all sensors; as published, each has its own"
_BOTH = Touches.LIDAR | Touches.CAMERA


def _apart(lidar: Scale | Turn | Shear, camera: Scale | Turn | Shear) -> Sequential:
    return Sequential((DeformObjects(lidar, cameras=False), DeformObjects(camera, lidar=False)))


PARTS: dict[str, Part] = {
    "moving_object": Part(
        _BOTH,
        tuple(
            Sequential((SplitObjects(distance), BlurObjects(zoom, line, layers)))
            for distance, zoom, line, layers in zip(
                (0.2, 0.4, 0.6, 0.8, 1.0), ZOOM, LINE, (5, 4, 4, 4, 4)
            )
        ),
        Fidelity.SAME_ALGORITHM,
        "along the object's own axis; boxes that reach behind a camera are not blurred in it",
    ),
    "local_density": Part(
        Touches.LIDAR,
        tuple(ThinObjects(share) for share in (0.1, 0.2, 0.3, 0.4, 0.5)),
        Fidelity.SAME_ALGORITHM,
        "the same share of each object",
    ),
    "local_cutout": Part(
        Touches.LIDAR,
        tuple(ThinObjects(share, "patch") for share in (0.3, 0.4, 0.5, 0.6, 0.7)),
        Fidelity.SAME_ALGORITHM,
        "distance in metres; as published, intensity is a coordinate too",
        tuple(
            ThinObjects(share, "patch", with_intensity=True) for share in (0.3, 0.4, 0.5, 0.6, 0.7)
        ),
    ),
    "local_gaussian": Part(
        Touches.LIDAR,
        tuple(ObjectNoise("normal", level) for level in _NOISE),
        Fidelity.SAME_ALGORITHM,
        _POSITION_ONLY,
        tuple(ObjectNoise("normal", level, columns=4) for level in _NOISE),
    ),
    "local_uniform": Part(
        Touches.LIDAR,
        tuple(ObjectNoise("uniform", level) for level in _NOISE),
        Fidelity.SAME_ALGORITHM,
        _POSITION_ONLY,
        tuple(ObjectNoise("uniform", level, columns=4) for level in _NOISE),
    ),
    "local_impulse": Part(
        Touches.LIDAR,
        tuple(ObjectNoise("impulse", 0.1, 1 / n) for n in _ONE_IN),
        Fidelity.SAME_ALGORITHM,
        _POSITION_ONLY,
        tuple(ObjectNoise("impulse", 0.1, 1 / n, columns=4) for n in _ONE_IN),
    ),
    "shear": Part(
        _BOTH,
        tuple(DeformObjects(Shear(size)) for size in (0.05, 0.10, 0.15, 0.20, 0.25)),
        Fidelity.OWN_MODEL,
        "points: the same maps, squeezed by the box; images: faces as planes, not thin-plate "
        f"splines; {_AGREE}",
        tuple(
            _apart(Shear(size), Shear(size, shared=True)) for size in (0.05, 0.10, 0.15, 0.20, 0.25)
        ),
    ),
    "scale": Part(
        _BOTH,
        tuple(DeformObjects(Scale(size)) for size in (0.04, 0.08, 0.12, 0.16, 0.20)),
        Fidelity.OWN_MODEL,
        f"points: the same maps; images: faces as planes, not thin-plate splines; {_AGREE}",
        tuple(
            _apart(Scale(size), Scale(camera, all_axes=True))
            for size, camera in zip((0.04, 0.08, 0.12, 0.16, 0.20), (0.1, 0.2, 0.3, 0.4, 0.5))
        ),
    ),
    "rotation": Part(
        _BOTH,
        tuple(DeformObjects(Turn(degrees)) for degrees in (1, 3, 5, 7, 9)),
        Fidelity.OWN_MODEL,
        f"points: the same maps; images: faces as planes, not thin-plate splines; {_AGREE}",
        tuple(
            _apart(Turn(degrees), Turn(camera, 2.0))
            for degrees, camera in zip((1, 3, 5, 7, 9), (4, 8, 12, 16, 20))
        ),
    ),
}
