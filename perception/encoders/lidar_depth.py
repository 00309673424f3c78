"""What LiDAR tells about the depth of image pixels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from numpy.typing import NDArray
from torch import Tensor

from ..layers import full_precision


def nearest_depth(
    points: Tensor,
    point_sample: Tensor,
    bev_from_image: Tensor,
    image_sample: Tensor,
    size: Sequence[int],
) -> Tensor:
    """Depth of the nearest LiDAR point in every pixel.

    The nearest wins by a minimum, which does not depend on the order of the points: a far point
    seen past an edge never replaces a near one, and two runs agree bit by bit.

    Args:
        points: (P, 3 or more) x, y, z in the (augmented) BEV frame.
        point_sample: (P,) which sample a point belongs to.
        bev_from_image: (N, 4, 4) takes (u * d, v * d, d, 1) to the BEV frame, where pixel
            (row i, column j) of the result has its centre at u = j, v = i. It contains the
            augmentations of image and BEV, so its inverse undoes them: d is in true metres.
        image_sample: (N,) which sample an image belongs to.
        size: H, W of the result.

    Returns:
        (N, H, W) float32 metres along the optical axis; infinity where there is no point.
    """
    if points.device.type == "cpu":
        return _nearest_depth(points, point_sample, bev_from_image, image_sample, list(size))
    return nearest_depth_on_device(points, point_sample, bev_from_image, image_sample, size)


def nearest_depth_on_device(
    points: Tensor,
    point_sample: Tensor,
    bev_from_image: Tensor,
    image_sample: Tensor,
    size: Sequence[int],
) -> Tensor:
    """:func:`nearest_depth` in tensor operations, on any device."""
    height, width = size
    # float64: the matrices hold both metres and 1 / focal length.
    image_from_bev = torch.linalg.inv(bev_from_image.double()).float()
    nearest = points.new_full((len(bev_from_image) * height * width,), torch.inf, dtype=torch.float)
    position = torch.nn.functional.pad(points[:, :3].float(), (0, 1), value=1.0)  # (P, 4)
    for sample in image_sample.unique().tolist():
        images = (image_sample == sample).nonzero()[:, 0]  # (n,)
        rows = image_from_bev[images, :3].flatten(0, 1)  # (n * 3, 4)
        with full_precision(points):
            projected = position[point_sample == sample] @ rows.T
        u_depth, v_depth, depth = projected.view(-1, len(images), 3).unbind(-1)
        ahead = depth > 1e-2
        inverse = 1 / depth.where(ahead, 1)
        # floor of the shifted float, and compared as a float: no wrap-around of huge values.
        column, row = (u_depth * inverse + 0.5).floor(), (v_depth * inverse + 0.5).floor()
        seen = ahead & (column >= 0) & (column < width) & (row >= 0) & (row < height)
        point, image = seen.nonzero(as_tuple=True)
        row, column = row[point, image].long(), column[point, image].long()
        pixel = (images[image] * height + row) * width + column
        nearest.scatter_reduce_(0, pixel, depth[point, image], "amin")
    return nearest.view(-1, height, width)


def depth_bins(depth: Tensor, first: float, step: float, num_bins: int) -> Tensor:
    """Bin of every depth: floor((depth - first) / step), int64; -1 outside all bins."""
    position = ((depth - first) / step).floor()
    inside = (position >= 0) & (position < num_bins)
    return position.where(inside, -1.0).long()


def last_depth(
    points: Tensor,
    point_sample: Tensor,
    bev_from_image: Tensor,
    image_sample: Tensor,
    size: Sequence[int],
) -> Tensor:
    """Depth of the last LiDAR point, by input order, in every pixel: what MIT BEVFusion saw.

    Pixel (row i, column j) holds what falls into j <= u < j + 1, i <= v < i + 1. Of points in one
    pixel the one that was written last stayed, and the depth of an empty pixel is 0. (On a GPU it
    was any of them; here it is the last on every device.)

    Args:
        points: (P, 3 or more) x, y, z in the (augmented) BEV frame.
        point_sample: (P,) which sample a point belongs to.
        bev_from_image: (N, 4, 4) takes (u * d, v * d, d, 1) to the BEV frame.
        image_sample: (N,) which sample an image belongs to.
        size: H, W of the result.

    Returns:
        (N, H, W) float32 metres along the optical axis; 0 where there is no point.
    """
    if points.device.type == "cpu":
        return _last_depth(points, point_sample, bev_from_image, image_sample, list(size))
    return last_depth_on_device(points, point_sample, bev_from_image, image_sample, size)


def last_depth_on_device(
    points: Tensor,
    point_sample: Tensor,
    bev_from_image: Tensor,
    image_sample: Tensor,
    size: Sequence[int],
) -> Tensor:
    """:func:`last_depth` in tensor operations, on any device."""
    height, width = size
    # float64: the matrices hold both metres and 1 / focal length.
    image_from_bev = torch.linalg.inv(bev_from_image.double()).float()
    image_from_bev = image_from_bev[:, :3]
    # One place more than pixels takes what falls into none.
    none = len(bev_from_image) * height * width
    last = torch.full((none + 1,), -1, device=points.device)
    number = torch.arange(len(points), device=points.device)
    position = points[:, :3].float()
    found = points.new_zeros(none + 1, dtype=torch.float)
    for n, matrix in enumerate(image_from_bev):
        with full_precision(points):
            projected = position @ matrix[:, :3].T + matrix[:, 3]
        u_depth, v_depth, depth = projected.unbind(1)
        distance = depth.clamp(1e-5, 1e5)
        u, v = u_depth / distance, v_depth / distance
        seen = (u >= 0) & (u < width) & (v >= 0) & (v < height)
        seen &= (depth > 0) & (point_sample == image_sample[n])
        row = torch.where(seen, v, 0).long() + n * height
        pixel = torch.where(seen, row * width + torch.where(seen, u, 0).long(), none)
        last.scatter_reduce_(0, pixel, number, "amax")
        winner = seen & (last[pixel] == number)
        found.index_put_((pixel.where(winner, none),), distance)
    found[none] = 0
    return found[:none].view(-1, height, width)


# --- CPU: numba, shared with the deployed runtime, which must find the same pixels ----------------


def _array(tensor: Tensor) -> NDArray:
    return tensor.detach().contiguous().numpy()


@torch.library.custom_op("bevstack::nearest_depth", mutates_args=(), device_types="cpu")
def _nearest_depth(
    points: Tensor,
    point_sample: Tensor,
    bev_from_image: Tensor,
    image_sample: Tensor,
    size: Sequence[int],
) -> Tensor:
    from ...kernels.numba_frustum import nearest_depth  # here: numba takes a second to import

    cloud = _array(points.float()), _array(point_sample)
    images = _array(bev_from_image), _array(image_sample), (size[0], size[1])
    return torch.from_numpy(nearest_depth(*cloud, *images, torch.get_num_threads()))


@torch.library.custom_op("bevstack::last_depth", mutates_args=(), device_types="cpu")
def _last_depth(
    points: Tensor,
    point_sample: Tensor,
    bev_from_image: Tensor,
    image_sample: Tensor,
    size: Sequence[int],
) -> Tensor:
    from ...kernels.numba_frustum import last_depth

    cloud = _array(points.float()), _array(point_sample)
    images = _array(bev_from_image), _array(image_sample), (size[0], size[1])
    return torch.from_numpy(last_depth(*cloud, *images, torch.get_num_threads()))


@_nearest_depth.register_fake
@_last_depth.register_fake
def _(points, point_sample, bev_from_image, image_sample, size):
    return points.new_empty(len(bev_from_image), *size, dtype=torch.float)
