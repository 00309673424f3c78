"""Occupancy as a picture: voxels seen obliquely from behind, and slices of height from above."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...datasets.nuscenes.classes import FREE
from ...kernels.numba_rays import first_hits
from ...kernels.voxel_grid import VoxelGrid
from .canvas import Canvas
from .style import DARK, OCCUPANCY_COLOURS, Theme

Picture = NDArray[np.uint8]

ELEVATION = np.deg2rad(38)  # of the eye above the ground
FACE_LIGHT = np.array([0.72, 0.86, 1.0])  # of faces across x, y and z
SLICES = 4


def draw_occupancy(
    semantics: NDArray[np.uint8],
    grid: VoxelGrid,
    title: str = "",
    width: int = 960,
    theme: Theme = DARK,
) -> Picture:
    """Voxels on the left, slices of height on the right.

    Args:
        semantics: (X, Y, Z) classes, FREE where nothing is.
        grid: of the volume; x is ahead.
        title: written into the corner.
        width: pixels of the picture.
        theme: colours of the background and of the text.

    Returns:
        (H, width, 3) RGB.
    """
    if semantics.shape != grid.shape:
        raise ValueError(f"the volume is {semantics.shape}, its grid {grid.shape}")
    wide = width * 3 // 5
    view = voxel_view(semantics, wide, theme)
    slices = height_slices(semantics, grid, width - wide, len(view), theme)
    canvas = Canvas(np.concatenate([view, slices], 1), scale=1)
    if title:
        canvas.text((10, 12), title, theme.text, 15, bold=True)
    return canvas.finish()


def voxel_view(semantics: NDArray[np.uint8], width: int, theme: Theme = DARK) -> Picture:
    """(H, width, 3): all voxels from behind and above, in parallel projection.

    A ray per pixel, all in one direction; a face's light tells how it is turned.
    """
    shape = np.array(semantics.shape, float)
    ahead = np.array([np.cos(ELEVATION), 0, -np.sin(ELEVATION)])  # towards +x and down
    right, up = np.array([0.0, -1, 0]), np.array([np.sin(ELEVATION), 0, np.cos(ELEVATION)])
    corners = np.stack(np.meshgrid(*[[-0.5, 0.5]] * 3, indexing="ij"), -1).reshape(-1, 3) * shape
    reach, rise = np.abs(corners @ right).max(), np.abs(corners @ up).max()
    height = round(width * rise / reach)
    u = np.linspace(-reach, reach, width)[None, :, None] * right
    v = np.linspace(rise, -rise, height)[:, None, None] * up
    eye = (shape / 2 + u + v - 2 * shape.max() * ahead).reshape(-1, 3)
    start, meets = _enter(eye, ahead, shape)
    picture = np.full((len(eye), 3), theme.background, np.uint8)
    label, depth = first_hits(semantics, FREE, start, ahead[None], meets[:, None])
    hit = label[:, 0] != FREE
    # The depth is where the voxel is left; its near faces say where it was entered.
    inside = start[hit] + ahead * (depth[hit] - 1e-6)
    near = np.floor(inside) + (ahead < 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        entered = np.where(ahead != 0, (near - start[hit]) / ahead, -np.inf)
    light = FACE_LIGHT[entered.argmax(1)][:, None]
    colours = np.array(OCCUPANCY_COLOURS, float)[label[hit, 0]]
    # Higher is lighter, so that a wall stands out from the ground before it.
    lift = 0.8 + 0.35 * inside[:, 2:] / shape[2]
    picture[hit] = np.clip(colours * light * lift, 0, 255).astype(np.uint8)
    return picture.reshape(height, width, 3)


def _enter(
    eye: NDArray[np.float64], direction: NDArray[np.float64], shape: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Where rays enter the volume, and which do at all."""
    first, last = np.full(len(eye), -np.inf), np.full(len(eye), np.inf)
    inside = np.ones(len(eye), bool)
    for axis in range(3):
        if direction[axis] == 0:
            inside &= (eye[:, axis] > 0) & (eye[:, axis] < shape[axis])
            continue
        low, high = -eye[:, axis] / direction[axis], (shape[axis] - eye[:, axis]) / direction[axis]
        first = np.maximum(first, np.minimum(low, high))
        last = np.minimum(last, np.maximum(low, high))
    start = eye + (first + 1e-6)[:, None] * direction
    return start, inside & (first + 1e-6 < last)


def height_slices(
    semantics: NDArray[np.uint8], grid: VoxelGrid, width: int, height: int, theme: Theme = DARK
) -> Picture:
    """(height, width, 3): from above, what is highest in each of four slices; ahead is up."""
    picture = np.full((height, width, 3), theme.surface, np.uint8)
    layers = np.array_split(np.arange(grid.shape[2]), SLICES)
    edge = min(width // 2, height // 2) - 8
    canvas = Canvas(picture, scale=1)
    for number, layer in enumerate(layers):
        part = semantics[:, :, layer]
        there = part != FREE
        highest = part.shape[2] - 1 - there[:, :, ::-1].argmax(2)
        label = np.take_along_axis(part, highest[..., None], 2)[..., 0]
        table = np.array([*OCCUPANCY_COLOURS, theme.background], np.uint8)
        above = table[label][::-1, ::-1]  # rows from far to near, columns from left to right
        rows = np.linspace(0, len(above) - 1, edge).round().astype(int)
        columns = np.linspace(0, above.shape[1] - 1, edge).round().astype(int)
        top, left = (number // 2) * (height // 2) + 4, (number % 2) * (width // 2) + 4
        canvas.pixels[top : top + edge, left : left + edge] = above[rows][:, columns]
        low, high = (grid.z_range[0] + grid.voxel_size * n for n in (layer[0], layer[-1] + 1))
        canvas.text((left + 6, top + 5), f"{low:.1f} to {high:.1f} m", theme.text, 12)
    return canvas.finish()
