"""What a centre head should say: heat-maps and the cells that know a box."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...datasets.batch import Batch
from ...kernels.grid import BEVGrid


@dataclass(frozen=True)
class CenterTargets:
    """Targets of a batch; T pairs of a box and a cell that regresses it."""

    heatmap: Tensor  # (B, K, X, Y) in [0, 1]; 1 exactly at the cells of box centres
    num_boxes: Tensor  # () annotated boxes on the grid
    box: Tensor  # (T,) index into the boxes of the batch
    cell: Tensor  # (T,) flat cell i * Y + j
    offset: Tensor  # (T, 2) from the cell's lower corner to the box centre, cells
    weight: Tensor  # (T,) 1 at the centre's cell, less around it


def gaussian_radius(
    length: Tensor, width: Tensor, min_overlap: float, as_published: bool = False
) -> Tensor:
    """How far corners may be off, cells, for a box to keep ``min_overlap`` IoU with the truth.

    The smallest of three cases (Law and Deng, ECCV 2018, with their later correction: roots are
    divided by 2a, not by 2): both corners moved inwards, both outwards, both the same way.

    Args:
        length: (M,) cells.
        width: (M,) cells.
        min_overlap: IoU in (0, 1).
        as_published: without the correction, and with the larger root of each case, as in the
            training of published detectors.

    Returns:
        (M,) cells, not rounded.
    """
    total, area, o = length + width, length * width, min_overlap
    if as_published:
        return torch.minimum(
            _larger_root_halved(1.0, total, area * (1 - o) / (1 + o)),
            torch.minimum(
                _larger_root_halved(4.0, 2 * total, (1 - o) * area),
                _larger_root_halved(4 * o, -2 * o * total, (o - 1) * area),
            ),
        )
    # Shifted: (l - r)(w - r) = o (2 l w - (l - r)(w - r))
    shifted = _smaller_root(1.0, -total, area * (1 - o) / (1 + o))
    # Shrunk: (l - 2r)(w - 2r) = o l w
    shrunk = _smaller_root(4.0, -2 * total, area * (1 - o))
    # Grown: l w = o (l + 2r)(w + 2r); one root is negative
    b = 2 * o * total
    grown = (-b + (b**2 + 16 * o * (1 - o) * area).sqrt()) / (8 * o)
    return torch.minimum(torch.minimum(shifted, shrunk), grown)


def _smaller_root(a: float, b: Tensor, c: Tensor) -> Tensor:
    return (-b - (b**2 - 4 * a * c).clamp(min=0).sqrt()) / (2 * a)


def _larger_root_halved(a: float, b: Tensor, c: Tensor) -> Tensor:
    return (b + (b**2 - 4 * a * c).clamp(min=0).sqrt()) / 2


@dataclass(frozen=True)
class PeakShape:
    """How a box is drawn on the heat-map: a Gaussian that is 1 at the cell of its centre.

    Args:
        min_overlap: a circle's radius lets a box moved by it overlap itself this much.
        min_radius: smallest radius, cells.
        elongation: 0 draws CenterPoint's circles, whose radius follows the shorter side. A share
            of length and width draws ellipses along the box with that standard deviation, and not
            less than the smallest circle's: where a truck's middle is, a network knows to metres
            along the truck and to decimetres across it.
        regression_value: the box is also regressed from cells where its Gaussian is this high, so
            that a peak beside the centre still gives the right box; 1 is the centre's cell alone.
        published_radius: the radius of published training, see :func:`gaussian_radius`.
    """

    min_overlap: float = 0.1
    min_radius: int = 2
    elongation: float = 0.0
    regression_value: float = 0.2
    published_radius: bool = False

    def deviations(self, length: Tensor, width: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Standard deviations along and across boxes, and how far they are drawn; all in cells."""
        if not self.elongation:
            radius = gaussian_radius(length, width, self.min_overlap, self.published_radius)
            radius = radius.floor().clamp(min=self.min_radius)
            return _deviation(radius), _deviation(radius), radius
        least = (2 * self.min_radius + 1) / 6
        along = (self.elongation * length).clamp(min=least)
        across = (self.elongation * width).clamp(min=least)
        return along, across, (REACH * torch.maximum(along, across)).ceil()


# Standard deviations to which an ellipse is drawn: 0.044 is left there.
REACH = 2.5


def _deviation(radius: Tensor) -> Tensor:
    return (2 * radius + 1) / 6


@torch.no_grad()
def draw_targets(batch: Batch, grid: BEVGrid, num_classes: int, shape: PeakShape) -> CenterTargets:
    """Draw the targets of all samples at once, on the batch's device.

    Boxes off the grid and those of samples that are not ``box_valid`` are left out. Where
    Gaussians of one class meet, the larger value holds; two boxes may share a cell.
    """
    boxes = batch.boxes
    flat = grid.flat_cell(boxes.center[:, 0], boxes.center[:, 1])
    box = ((flat >= 0) & batch.box_valid[boxes.sample]).nonzero()[:, 0]
    nx, ny = grid.shape
    i, j = flat[box] // ny, flat[box] % ny
    cells = boxes.size[box] / grid.cell_size
    along, across, radius = shape.deviations(cells[:, 0], cells[:, 1])
    widest = int(radius.max()) if len(box) else 0
    reach = torch.arange(-widest, widest + 1, device=flat.device)
    di, dj = torch.meshgrid(reach, reach, indexing="ij")
    di, dj = di.flatten(), dj.flatten()  # (S,) the cells of the largest patch
    cos, sin = boxes.yaw[box, None].cos(), boxes.yaw[box, None].sin()
    u, v = di * cos + dj * sin, dj * cos - di * sin  # (M, S) in the box's own axes
    value = (-((u / along[:, None]) ** 2 + (v / across[:, None]) ** 2) / 2).exp()
    to_i, to_j = i[:, None] + di, j[:, None] + dj
    on_grid = (to_i >= 0) & (to_i < nx) & (to_j >= 0) & (to_j < ny)
    drawn = on_grid & (torch.maximum(di.abs(), dj.abs()) <= radius[:, None])
    channel = boxes.sample[box] * num_classes + boxes.label[box]
    index = (channel[:, None] * nx + to_i) * ny + to_j
    heatmap = value.new_zeros(batch.size * num_classes * nx * ny)
    heatmap.scatter_reduce_(0, index[drawn], value[drawn], "amax")
    row, patch = (drawn & (value >= shape.regression_value)).nonzero(as_tuple=True)
    cell_i, cell_j = to_i[row, patch], to_j[row, patch]
    x, y = grid.to_cells(boxes.center[box[row], 0], boxes.center[box[row], 1])
    return CenterTargets(
        heatmap=heatmap.view(batch.size, num_classes, nx, ny),
        num_boxes=torch.tensor(len(box), device=flat.device),
        box=box[row],
        cell=cell_i * ny + cell_j,
        offset=torch.stack([x - cell_i, y - cell_j], 1),
        weight=value[row, patch],
    )
