"""The BEV grid: the only place that turns metres into cells and back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


def num_cells(name: str, span: float, size: float, option: str = "cell_size") -> int:
    """How many cells of ``size`` make ``span``, both in metres.

    Raises:
        ValueError: if that is not a whole number; says to change ``name`` or ``option``.
    """
    cells = span / size
    # round, not int: 153.6 / 0.8 is 191.99999999999997.
    if not cells > 0.5 or abs(cells - round(cells)) > 1e-3:
        raise ValueError(
            f"{name} spans {span:g} m, which is {cells:.3f} cells of {size:g} m; "
            f"change the range or {option} so that it is whole"
        )
    return round(cells)


@dataclass(frozen=True)
class BEVGrid:
    """A regular, possibly rectangular grid on the ground plane of the BEV frame.

    Cell (i, j) covers ``x_range[0] + i * cell_size <= x < x_range[0] + (i + 1) * cell_size`` and
    the same for y and j. Maps on the grid are (..., X, Y), x first.

    Args:
        x_range: lower and upper edge along x, metres; the upper edge itself is outside.
        y_range: the same along y.
        cell_size: edge of a square cell, metres.
    """

    x_range: tuple[float, float]
    y_range: tuple[float, float]
    cell_size: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "x_range", tuple(map(float, self.x_range)))
        object.__setattr__(self, "y_range", tuple(map(float, self.y_range)))
        for name, (low, high) in (("x_range", self.x_range), ("y_range", self.y_range)):
            num_cells(f"grid.{name}", high - low, self.cell_size)

    @property
    def shape(self) -> tuple[int, int]:
        """Number of cells along x and along y."""
        (x0, x1), (y0, y1) = self.x_range, self.y_range
        size = self.cell_size
        return num_cells("grid.x_range", x1 - x0, size), num_cells("grid.y_range", y1 - y0, size)

    @property
    def num_cells(self) -> int:
        """Number of cells in all, X * Y."""
        return self.shape[0] * self.shape[1]

    def coarser(self, stride: int) -> BEVGrid:
        """The grid of a map on the same ground after a network's ``stride``."""
        return BEVGrid(self.x_range, self.y_range, self.cell_size * stride)

    def to_cells(self, x: Any, y: Any) -> tuple[Any, Any]:
        """Metres to fractional cells; the centre of cell (i, j) is (i + 0.5, j + 0.5).

        Works on numpy arrays, torch tensors and floats alike.
        """
        return (x - self.x_range[0]) / self.cell_size, (y - self.y_range[0]) / self.cell_size

    def to_metres(self, i: Any, j: Any) -> tuple[Any, Any]:
        """Fractional cells to metres, the inverse of :meth:`to_cells`."""
        return i * self.cell_size + self.x_range[0], j * self.cell_size + self.y_range[0]

    def contains(self, x: Any, y: Any) -> Any:
        """Boolean array: is the point on the grid? NaN is not."""
        (x0, x1), (y0, y1) = self.x_range, self.y_range
        return (x >= x0) & (x < x1) & (y >= y0) & (y < y1)

    def flat_cell(self, x: Any, y: Any) -> Any:
        """Metres to the flat cell index i * Y + j (int64), -1 outside the grid.

        Works on numpy arrays and torch tensors of any equal shape.
        """
        inside = self.contains(x, y)
        (nx, ny), zero = self.shape, inside * 0
        i, j = self.to_cells(x, y)
        if hasattr(inside, "new_zeros"):  # torch; numpy 2 arrays have a .device as well
            # nan_to_num, so that NaN never meets an integer cast.
            i = i.nan_to_num(-1.0).floor().clamp(0, nx - 1).long()
            j = j.nan_to_num(-1.0).floor().clamp(0, ny - 1).long()
            return (i * ny + j).where(inside, zero - 1)
        import numpy as np

        # Clipped after the check above: rounding in the division may not leave the grid.
        i = np.clip(np.floor(np.nan_to_num(i, nan=-1.0)), 0, nx - 1).astype(np.int64)
        j = np.clip(np.floor(np.nan_to_num(j, nan=-1.0)), 0, ny - 1).astype(np.int64)
        return np.where(inside, i * ny + j, np.int64(-1))
