"""Occupancy as a picture: voxels seen obliquely from behind, and slices of height from above."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ...datasets.nuscenes.classes import FREE
from ...datasets.occupancy import OccupancyLabels
from ...kernels.numba_rays import first_hits
from ...kernels.voxel_grid import OCC3D_GRID, VoxelGrid
from .canvas import Canvas
from .style import DARK, OCCUPANCY_COLOURS, Theme

Picture = NDArray[np.uint8]

ELEVATION = np.deg2rad(38)  # of the eye above the ground
FACE_LIGHT = np.array([0.72, 0.86, 1.0])  # of faces across x, y and z
SLICES = 4


@dataclass(frozen=True)
class Voxels:
    """What fills every voxel of a frame's grid."""

    semantics: NDArray[np.uint8]  # (X, Y, Z) classes, FREE where nothing is
    grid: VoxelGrid  # x is ahead

    def __post_init__(self) -> None:
        if self.semantics.shape != self.grid.shape:
            raise ValueError(f"the volume is {self.semantics.shape}, its grid {self.grid.shape}")

    @staticmethod
    def of(labels: OccupancyLabels) -> Voxels:
        """Labels, or a prediction as such; in the vehicle's frame, whatever frame they are in."""
        if not np.array_equal(labels.grid_from_ego, np.eye(4)):
            labels = labels.on_grid(OCC3D_GRID, np.eye(4))
        return Voxels(labels.semantics, labels.grid)


def draw_occupancy(
    voxels: Voxels,
    title: str = "",
    width: int = 960,
    theme: Theme = DARK,
) -> Picture:
    """Voxels on the left, slices of height on the right.

    Args:
        voxels: of one frame.
        title: written into the corner.
        width: pixels of the picture.
        theme: colours of the background and of the text.

    Returns:
        (H, width, 3) RGB.
    """
    wide = width * 3 // 5
    view = voxel_view(voxels.semantics, wide, theme)
    slices = height_slices(voxels.semantics, voxels.grid, width - wide, len(view), theme)
    canvas = Canvas(np.concatenate([view, slices], 1), scale=1)
    if title:
        canvas.text((10, 12), title, theme.text, 15, bold=True)
    return canvas.finish()


def draw_occupancy_square(
    voxels: Voxels, title: str = "", size_px: int = 500, theme: Theme = DARK
) -> Picture:
    """(size_px, size_px, 3): voxels above, slices of height in a row below; as draw_occupancy."""
    view = voxel_view(voxels.semantics, size_px, theme)
    view = view[: size_px - size_px // SLICES]
    row = np.full((size_px - len(view), size_px, 3), theme.surface, np.uint8)
    edge = min(len(row), size_px // SLICES) - 8
    canvas = Canvas(np.concatenate([view, row]), scale=1)
    top = len(view) + (len(row) - edge) // 2
    for number, (picture, name) in enumerate(_slices(voxels.semantics, voxels.grid, edge, theme)):
        left = number * size_px // SLICES + 4
        canvas.pixels[top : top + edge, left : left + edge] = picture
        canvas.text((left + 4, top + 3), name, theme.text, 11)
    if title:
        canvas.text((10, 9), title, theme.text, 14, bold=True, pill=theme.background)
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
    edge = min(width // 2, height // 2) - 8
    canvas = Canvas(picture, scale=1)
    for number, (above, name) in enumerate(_slices(semantics, grid, edge, theme)):
        top, left = (number // 2) * (height // 2) + 4, (number % 2) * (width // 2) + 4
        canvas.pixels[top : top + edge, left : left + edge] = above
        canvas.text((left + 6, top + 5), name, theme.text, 12)
    return canvas.finish()


def _slices(
    semantics: NDArray[np.uint8], grid: VoxelGrid, edge: int, theme: Theme
) -> Iterator[tuple[Picture, str]]:
    """Each slice from above, (edge, edge, 3), with its heights."""
    for layer in np.array_split(np.arange(grid.shape[2]), SLICES):
        part = semantics[:, :, layer]
        there = part != FREE
        highest = part.shape[2] - 1 - there[:, :, ::-1].argmax(2)
        label = np.take_along_axis(part, highest[..., None], 2)[..., 0]
        table = np.array([*OCCUPANCY_COLOURS, theme.background], np.uint8)
        above = table[label][::-1, ::-1]  # rows from far to near, columns from left to right
        rows = np.linspace(0, len(above) - 1, edge).round().astype(int)
        columns = np.linspace(0, above.shape[1] - 1, edge).round().astype(int)
        low, high = (grid.z_range[0] + grid.voxel_size * n for n in (layer[0], layer[-1] + 1))
        yield above[rows][:, columns], f"{low:.1f} to {high:.1f} m"
