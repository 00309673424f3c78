import pytest
import torch

from bevstack.kernels.grid import BEVGrid
from bevstack.perception.fusion import ConvFuser
from bevstack.perception.necks import SECOND


def test_missing_sensor_counts_as_zeros():
    fuser = ConvFuser(3, 4, 5).eval()
    camera, lidar = torch.randn(2, 3, 6, 8), torch.randn(2, 4, 6, 8)
    assert torch.equal(fuser(camera, None), fuser(camera, torch.zeros_like(lidar)))
    assert torch.equal(fuser(None, lidar), fuser(torch.zeros_like(camera), lidar))


def test_fuser_without_any_sensor_is_refused():
    with pytest.raises(ValueError, match="no sensor"):
        ConvFuser(0, 0)
    with pytest.raises(ValueError, match="neither"):
        ConvFuser(3, 4)(None, None)


def test_backbone_keeps_a_rectangular_grid():
    grid = BEVGrid((0, 12), (0, 8), 1.0)
    neck = SECOND(3, grid, (4, 5, 6), (1, 2, 2), (1, 0, 1), (2, 3, 4))
    assert neck(torch.randn(2, 3, 12, 8)).shape == (2, neck.out_channels, 12, 8)


@pytest.mark.parametrize("strides", [(1, 3), (2, 4), (2, 2)])
def test_strides_that_do_not_divide_the_grid_are_refused(strides):
    with pytest.raises(ValueError, match="strides"):
        SECOND(3, BEVGrid((0, 12), (0, 6), 1.0), strides=strides)


def test_one_entry_per_stage_is_demanded():
    with pytest.raises(ValueError, match="one entry per stage"):
        SECOND(3, BEVGrid((0, 12), (0, 8), 1.0), channels=(4, 4, 4))
