"""What can be measured of two boxes; a file without torch or numba, since all paths name it."""

from enum import IntEnum


class Overlap(IntEnum):
    """How the overlap of two boxes is measured; kernels take the number."""

    BEV_AREA = 0  # of the intersection of the ground rectangles
    BEV_IOU = 1
    BEV_GIOU = 2
    IOU = 3  # of volumes
    GIOU = 4
