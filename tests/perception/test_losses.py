import math

import pytest
import torch

from bevstack.perception.losses import (
    dice_loss,
    gaussian_focal_loss,
    masked_l1,
    mean_over_processes,
    sigmoid_focal_loss,
)


def test_gaussian_focal_loss_is_the_formula_of_the_paper():
    logits = torch.linspace(-4, 4, 9, dtype=torch.float64)
    p = logits.sigmoid()
    peak = gaussian_focal_loss(logits, torch.ones(9))
    torch.testing.assert_close(peak.double(), -((1 - p) ** 2) * p.log(), rtol=1e-5, atol=1e-7)
    near = gaussian_focal_loss(logits, torch.full((9,), 0.7))
    expected = -(0.3**4) * p**2 * (1 - p).log()
    torch.testing.assert_close(near.double(), expected, rtol=1e-5, atol=1e-7)


def test_sigmoid_focal_loss_is_the_formula_of_the_paper():
    logits = torch.linspace(-4, 4, 9, dtype=torch.float64)
    p = logits.sigmoid()
    for target, q in ((torch.ones(9), p), (torch.zeros(9), 1 - p)):
        loss = sigmoid_focal_loss(logits, target.bool(), gamma=2.0)
        torch.testing.assert_close(loss.double(), -((1 - q) ** 2) * q.log(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("loss", [gaussian_focal_loss, sigmoid_focal_loss])
def test_focal_losses_stay_finite_at_extreme_logits(loss):
    logits = torch.tensor([-200.0, 200.0] * 2, requires_grad=True)
    value = loss(logits, torch.tensor([0.0, 0.0, 1.0, 1.0])).sum()
    value.backward()
    assert math.isfinite(value.item())
    assert logits.grad.isfinite().all()
    assert logits.grad[1] > 0.5  # a sure mistake still has a gradient


def test_unknown_targets_have_no_loss_and_no_gradient():
    prediction = torch.tensor([1.0, 2.0], requires_grad=True)
    loss = masked_l1(prediction, torch.tensor([math.nan, 5.0]))
    loss.sum().backward()
    assert loss.tolist() == [0, 3]
    assert prediction.grad.tolist() == [0, -1]


def test_count_is_at_least_one():
    assert mean_over_processes(torch.tensor(0)) == 1
    assert mean_over_processes(torch.tensor(7)) == 7


def test_dice_loss_is_its_formula_and_rewards_overlap():
    logits = torch.randn(2, 3, 5, 4, dtype=torch.float64)
    target = torch.rand(2, 3, 5, 4) > 0.7
    p, t = logits.sigmoid(), target.double()
    overlap = (p * t).sum((2, 3))
    expected = 1 - (2 * overlap + 1) / ((p**2).sum((2, 3)) + t.sum((2, 3)) + 1)
    torch.testing.assert_close(dice_loss(logits, target).double(), expected, atol=1e-6, rtol=1e-6)
    sure = (2 * target.float() - 1) * 30
    assert dice_loss(sure, target).max() < 1e-6
    assert dice_loss(-sure, target).min() > 0.5
