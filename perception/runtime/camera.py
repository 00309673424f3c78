"""The inputs of the camera graph."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ...datasets.sensors import SensorInputs
from ...kernels.numba_frustum import FrustumShape, frustum_cells, last_depth, nearest_depth
from ...kernels.numba_segments import column_runs
from .manifest import CameraSpec


class CameraInputs:
    """Makes the inputs of the camera graph from a frame's sensors.

    ``images`` (N, 3, H, W) uint8; ``depth`` (N, h, w) metres by LiDAR, if the graph wants it; and
    the pooling plan, which follows from the calibration alone and is kept while that stays:
    ``pool_bins``, ``pool_mask``, ``pool_rows_0`` ... and ``pool_place`` (``ColumnRuns``).

    Args:
        spec: of the manifest.
        num_threads: threads to use, by default all cores of this process.
    """

    def __init__(self, spec: CameraSpec, num_threads: int | None = None):
        self.spec, self.num_threads = spec, num_threads
        self._image_from_feature = np.array(spec.image_from_feature, np.float32)
        self._frustum = FrustumShape(
            *(spec.first_depth, spec.depth_step, spec.num_bins, spec.depth_in_bin),
            *(spec.height_range, spec.truncate_cells),
        )
        self._calibration: NDArray | None = None
        self._plan: dict[str, NDArray] = {}

    def __call__(self, sensors: SensorInputs) -> dict[str, NDArray]:
        """All inputs by name; the frame must have an image.

        The plan's arrays are the same objects for as long as the calibration stays.
        """
        # In float64, and then rounded, as in training.
        product = sensors.bev_from_image.astype(np.float64) @ self._image_from_feature
        bev_from_feature = product.astype(np.float32)
        if not np.array_equal(self._calibration, bev_from_feature):  # pyright: ignore
            self._plan = self._make_plan(bev_from_feature)
            self._calibration = bev_from_feature
        inputs = {"images": sensors.images, **self._plan}
        if self.spec.depth is not None:
            inputs["depth"] = self._depth(sensors.points, bev_from_feature)
        return inputs

    def _make_plan(self, bev_from_feature: NDArray) -> dict[str, NDArray]:
        spec, sample = self.spec, np.zeros(len(bev_from_feature), np.int64)
        cells = frustum_cells(
            *(bev_from_feature, sample, spec.feature_size),
            *(self._frustum, spec.pool_grid, self.num_threads),
        )
        plan = column_runs(cells, spec.pool_grid.num_cells, self.num_threads)
        inputs = {f"pool_rows_{i}": rows for i, rows in enumerate(plan.cells.buckets)}
        return {
            "pool_bins": plan.bins,
            "pool_mask": plan.mask,
            **inputs,
            "pool_place": plan.cells.place,
        }

    def _depth(self, points: NDArray, bev_from_feature: NDArray) -> NDArray:
        spec = self.spec
        assert spec.depth_size is not None
        sample = np.zeros(max(len(points), len(bev_from_feature)), np.int64)
        matrices = bev_from_feature
        if spec.depth == "last":
            # From feature pixels back to the image's, which is what this depth is looked up in.
            scale = np.ones(4, np.float32)
            scale[:2] = np.float32(1) / np.diagonal(self._image_from_feature)[:2]
            matrices = bev_from_feature * scale
        find = last_depth if spec.depth == "last" else nearest_depth
        return find(
            *(points, sample[: len(points)], matrices, sample[: len(matrices)]),
            *(spec.depth_size, self.num_threads),
        )
