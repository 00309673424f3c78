"""Boxes for the kernel tests, and what shapely says of them."""

from __future__ import annotations

import numpy as np
import shapely
import torch
from hypothesis import strategies as st
from torch import Tensor


def random_boxes(count: int, extent: float = 6.0, seed: int = 0, at: float = 0.0) -> Tensor:
    """(M, 7) float64 in a square around (at, at); the smaller the square, the more overlap."""
    random = np.random.default_rng(seed)
    columns = [
        random.uniform(at - extent, at + extent, (count, 2)),
        random.uniform(-1, 1, (count, 1)),
        random.uniform(0.3, 12, (count, 1)),
        random.uniform(0.3, 3, (count, 2)),
        random.uniform(-4, 4, (count, 1)),
    ]
    return torch.from_numpy(np.concatenate(columns, 1))


# Sizes and places that meet: shared edges, corners on edges, one in another, equal ones, right and
# nearly right angles, and no size at all.
_nearly = st.sampled_from([0, 0, 0, 1e-15, 1e-12, 1e-9, 1e-6, -1e-10])
_place = st.one_of(st.integers(-3, 3), st.floats(-5, 5))
_size = st.one_of(st.integers(0, 4), st.floats(0.05, 12))
_angle = st.one_of(st.integers(-4, 4).map(lambda k: k * np.pi / 4), st.floats(-7, 7))
_box = st.tuples(_place, _place, _place, _size, _size, _size, _angle)


@st.composite
def box_pairs(draw) -> tuple[Tensor, Tensor]:
    """Two boxes (1, 7) float64 that are likely to meet in a special way."""
    box, other = draw(_box), draw(_box)
    if draw(st.booleans()):
        other = (*box[:6], box[6] + draw(st.integers(0, 4)) * np.pi / 2)
    # No size stays none: what hardly has one has no overlap that can be told.
    other = [
        value + draw(_nearly) * (value != 0 or k not in (3, 4, 5)) for k, value in enumerate(other)
    ]
    return torch.tensor([box], dtype=torch.float64), torch.tensor([other], dtype=torch.float64)


def rectangles(boxes: Tensor, origin: Tensor | None = None) -> np.ndarray:
    """(M,) shapely polygons of the ground rectangles, relative to ``origin``."""
    box = boxes.double().numpy()
    half = np.maximum(box[:, None, 3:5], 0) / 2 * np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]])
    cos, sin = np.cos(box[:, 6:]), np.sin(box[:, 6:])
    x = half[..., 0] * cos - half[..., 1] * sin + box[:, :1]
    y = half[..., 0] * sin + half[..., 1] * cos + box[:, 1:2]
    shift = np.zeros(2) if origin is None else origin.double().numpy()[:2]
    return shapely.polygons(np.stack([x - shift[0], y - shift[1]], -1))


def by_shapely(boxes: Tensor, others: Tensor) -> dict[str, np.ndarray]:
    """All measures of all pairs, (M, L) each, in float64."""
    origin = boxes[:1].double().mean(0)
    first, second = rectangles(boxes, origin)[:, None], rectangles(others, origin)
    # On a grid of a picometre: without one, nearly equal polygons come out disjoint in GEOS.
    shared = shapely.area(shapely.intersection(first, second, grid_size=1e-12))
    area, other_area = shapely.area(first), shapely.area(second)
    hull = shapely.area(shapely.convex_hull(shapely.geometrycollections(_pairs(first, second))))
    z, top = boxes[:, 2].double().numpy()[:, None], boxes[:, 5].double().numpy()[:, None] / 2
    other_z, other_top = others[:, 2].double().numpy(), others[:, 5].double().numpy() / 2
    high, low = np.minimum(z + top, other_z + other_top), np.maximum(z - top, other_z - other_top)
    volume = shared * np.maximum(high - low, 0)
    extent = np.maximum(z + top, other_z + other_top) - np.minimum(z - top, other_z - other_top)
    union = area + other_area - shared
    volumes = area * 2 * top + other_area * 2 * other_top - volume
    iou, iou_bev = _ratio(volume, volumes), _ratio(shared, union)
    return {
        "intersection_area_bev": shared,
        "box_iou_bev": iou_bev,
        "box_giou_bev": iou_bev - _ratio(hull - union, hull),
        "box_iou": iou,
        "box_giou": iou - _ratio(hull * extent - volumes, hull * extent),
    }


def _pairs(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.stack(np.broadcast_arrays(first, second), -1)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    return np.where(whole > 0, part / np.where(whole > 0, whole, 1), 0)
