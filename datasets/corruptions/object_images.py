"""What happens to images inside the outlines of annotated boxes."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from ..boxes import Boxes3D
from ..frame import Camera, Frame
from ..geometry import apply, inverse
from .image_blur import FRONT_AND_BACK, box_blur, zoom_blur
from .regions import boxes_at
from .sensors import CameraContext, CameraStep

_NEAR = 0.3  # metres; boxes that reach nearer to the camera are left alone
# Corners of the faces, numbered as in Boxes3D.corners, clockwise as seen from outside.
_FACES = np.array(
    [(0, 3, 7, 4), (1, 5, 6, 2), (0, 4, 5, 1), (2, 6, 7, 3), (4, 7, 6, 5), (0, 1, 2, 3)]
)


@dataclass(frozen=True)
class BlurObjects(CameraStep):
    """Objects that move while the image is taken: blur inside their outlines only.

    The middle cameras zoom, the others draw a horizontal line, as in
    :class:`image_blur.DrivingBlur`. nuScenes-C: zoom 0.02, 0.04, 0.06, 0.08, 0.10 in 5, then 4
    layers; line 16, 32, 48, 64, 80 pixels.

    Args:
        zoom: largest magnification minus 1.
        line: length of the line, pixels of an image 1,600 wide.
        layers: magnified images that are mixed.
    """

    zoom: float
    line: int
    layers: int = 4

    def is_identity(self) -> bool:
        """See :class:`CameraStep`."""
        return self.zoom == 0 and self.line <= 1

    def corrupt(self, image: NDArray[np.uint8], context: CameraContext) -> NDArray[np.uint8]:
        """See :class:`CameraStep`."""
        outlines = [
            cv2.convexHull(np.round(corners[:, :2]).astype(np.int32))
            for corners in _corners_in_image(context.frame, context.camera)[1]
        ]
        if not outlines:
            return image
        mask = np.zeros(image.shape[:2], np.uint8)
        for outline in outlines:
            cv2.fillConvexPoly(mask, outline, (1,))
        if context.camera.name in FRONT_AND_BACK:
            blurred = zoom_blur(image, self.zoom, self.zoom / self.layers)
        else:
            blurred = box_blur(image, self.line)
        return np.where(mask[..., None] == 1, blurred, image)


@dataclass(frozen=True, eq=False)
class ObjectWarp(CameraStep):
    """Paste every object's visible faces where they are after a deformation.

    Args:
        maps: (M, 3, 4) affine maps of the frame's boxes, in the axes of each about its middle.
    """

    maps: NDArray[np.float64]

    def corrupt(self, image: NDArray[np.uint8], context: CameraContext) -> NDArray[np.uint8]:
        """See :class:`CameraStep`."""
        rows, before = _corners_in_image(context.frame, context.camera)
        boxes = boxes_at(context.frame, context.camera)[rows]
        after, depth = _project(context, _deformed_corners(boxes, self.maps[rows]))
        warped = image.copy()
        for m in np.argsort(-before[:, :, 2].mean(1), kind="stable"):
            if (depth[m] < _NEAR).any():
                continue
            for face in _FACES[_faces_camera(before[m][_FACES, :2])]:
                _paste(image, warped, before[m][face, :2], after[m][face])
        return warped


def _deformed_corners(boxes: Boxes3D, maps: NDArray[np.float64]) -> NDArray[np.float64]:
    cos, sin = np.cos(boxes.yaw), np.sin(boxes.yaw)
    zero, one = np.zeros_like(cos), np.ones_like(cos)
    axes = np.stack([cos, -sin, zero, sin, cos, zero, zero, zero, one], -1).reshape(-1, 3, 3)
    local = np.einsum("mij,mki->mkj", axes, boxes.corners() - boxes.center[:, None])
    local = np.einsum("mij,mkj->mki", maps[:, :, :3], local) + maps[:, None, :, 3]
    return np.einsum("mij,mkj->mki", axes, local) + boxes.center[:, None]


def _corners_in_image(frame: Frame, camera: Camera) -> tuple[NDArray, NDArray]:
    """The boxes in view: their rows (S,), and u, v, depth (S, 8, 3) of their corners."""
    corners = boxes_at(frame, camera).corners()
    uvz = camera.model.project(apply(_camera_from_key_ego(frame, camera), corners))
    ahead = (uvz[:, :, 2] > _NEAR).all(1)
    uv = np.where(ahead[:, None, None], uvz[:, :, :2], -1)
    low, high = uv.min(1), uv.max(1)
    size = np.array([camera.model.width, camera.model.height])
    rows = np.flatnonzero(ahead & (high > 0).all(1) & (low < size - 1).all(1))
    return rows, uvz[rows]


def _project(context: CameraContext, corners: NDArray) -> tuple[NDArray, NDArray]:
    matrix = _camera_from_key_ego(context.frame, context.camera)
    uvz = context.camera.model.project(apply(matrix, corners))
    return uvz[:, :, :2], uvz[:, :, 2]


def _camera_from_key_ego(frame: Frame, camera: Camera) -> NDArray[np.float64]:
    return inverse(camera.global_from_ego @ camera.ego_from_camera) @ frame.global_from_ego


def _faces_camera(faces: NDArray) -> NDArray[np.bool_]:
    """(F,) whether faces (F, 4, 2), clockwise from outside, are seen from outside."""
    x, y = faces[..., 0], faces[..., 1]
    area = (x * np.roll(y, -1, 1) - y * np.roll(x, -1, 1)).sum(1) / 2
    return area > 1  # pixels; v points down


def _paste(source: NDArray, target: NDArray, before: NDArray, after: NDArray) -> None:
    """Draw the quadrilateral ``before`` (4, 2) of the source as ``after`` into the target."""
    height, width = target.shape[:2]
    left, top = np.floor(after.min(0)).astype(int).clip(0)
    right, bottom = np.minimum(np.ceil(after.max(0)).astype(int) + 1, (width, height))
    if right <= left or bottom <= top:
        return
    corner = np.array([left, top])
    part_from_source = cv2.getPerspectiveTransform(
        before.astype(np.float32), (after - corner).astype(np.float32)
    )
    size = (int(right - left), int(bottom - top))
    part = cv2.warpPerspective(source, part_from_source, size, borderMode=cv2.BORDER_REPLICATE)
    mask = np.zeros(size[::-1], np.uint8)
    cv2.fillConvexPoly(mask, np.round(after - corner).astype(np.int32), (1,))
    window = target[top:bottom, left:right]
    window[mask == 1] = part[mask == 1]
