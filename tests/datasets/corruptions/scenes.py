"""A small frame for corruptions: a street in closed form, seen by 32 beams and two cameras."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
from hand_made import make_annotations, make_camera, make_frame, make_sweep

SENSOR_HEIGHT = 1.8  # of make_sweep's mounting
ELEVATIONS = np.deg2rad(np.linspace(-30.67, 10.67, 32))


def street_cloud(num_azimuths=180, seed=0):
    """(P, 5): flat ground, a wall around at 25 to 45 m, two boxes; in nuScenes' LiDAR frame."""
    random = np.random.default_rng(seed)
    azimuth = np.linspace(-np.pi, np.pi, num_azimuths, endpoint=False)
    azimuth, elevation = (a.ravel() for a in np.meshgrid(azimuth, ELEVATIONS, indexing="ij"))
    ring = np.tile(np.arange(32), num_azimuths)
    with np.errstate(divide="ignore"):
        ground = np.where(elevation < 0, -SENSOR_HEIGHT / np.sin(elevation), np.inf)
    wall = (35 + 10 * np.sin(3 * azimuth)) / np.cos(elevation)
    boxed = (np.abs(azimuth) < 0.15) | (np.abs(azimuth - 1.5) < 0.1)
    box = np.where(boxed & (np.abs(elevation) < 0.12), 9.0, np.inf)
    distance = np.minimum(np.minimum(ground, wall), box) + random.normal(0, 0.02, len(ring))
    on_ground = ground < np.minimum(wall, box)
    intensity = np.where(
        on_ground, 18 * np.sin(np.abs(elevation)) + 6, random.uniform(5, 90, len(ring))
    )
    x = distance * np.cos(elevation) * np.cos(azimuth)
    y = distance * np.cos(elevation) * np.sin(azimuth)
    cloud = np.stack([x, y, distance * np.sin(elevation), np.floor(intensity), ring], 1)
    cloud = cloud.astype(np.float32)
    cloud.flags.writeable = False
    return cloud


def picture(seed=0, size=(160, 90)):
    """(H, W, 3): sky, road and something with edges."""
    random = np.random.default_rng(seed)
    width, height = size
    row = np.linspace(0, 1, height)[:, None, None]
    image = np.where(row < 0.5, 150 + 60 * row, 90 - 40 * row) * np.array([0.9, 0.95, 1.0])
    image = np.broadcast_to(image, (height, width, 3)).copy()
    for _ in range(12):
        v, u = random.integers(0, height - 20), random.integers(0, width - 20)
        image[v : v + 20, u : u + 20] = random.integers(0, 256, 3)
    image = (image + random.normal(0, 4, image.shape)).clip(0, 255).astype(np.uint8)
    image.flags.writeable = False
    return image


def street_frame(token="frame0", age=0):
    """Three sweeps, two cameras, annotated boxes around the two things on the street.

    Args:
        token: of the frame.
        age: key frames before the last; there are five, and the vehicle drives 4 m between them.
    """
    sweeps = [make_sweep(driven(street_cloud(seed=i), age + i / 10), 50_000 * i) for i in range(3)]
    sweeps = [replace(s, timestamp_us=s.timestamp_us - 500_000 * age) for s in sweeps]
    cameras = (
        make_camera("CAM_FRONT", np.roll(picture(0), 9 * age, 1)),
        make_camera("CAM_BACK", np.roll(picture(1), 9 * age, 1), yaw=np.pi),
    )
    # x right, y forward in the LiDAR's frame is x forward, y left in the vehicle's.
    center = [[0.9, -10.0, 1.8], [9.9, 0.0, 1.8]]
    annotations = make_annotations(center, [[4.5, 3.0, 3.0]] * 2, [np.pi / 2, 0.0])
    annotations = replace(annotations, category=("vehicle.car", "vehicle.truck"))
    frame = make_frame(token, cameras, sweeps, annotations)
    return replace(frame, previous=lambda: street_frame(token, age + 1) if age < 4 else None)


def driven(cloud, key_frames):
    """The cloud as it was seen so long before."""
    earlier = cloud.copy()
    earlier[:, 1] += np.float32(4 * key_frames)
    return earlier
