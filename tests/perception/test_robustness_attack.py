"""The patch attack: within its bounds, the same twice, and it does harm."""

from dataclasses import replace

import pytest
import torch
from model_parts import fingerprint, make_batch, make_model

from bevstack.perception.robustness.attack import Attacked, PatchAttack

ATTACK = PatchAttack(area=0.06, eps=40, steps=4)


@pytest.fixture(scope="module")
def model():
    return make_model().eval()


def detection_loss(model, batch) -> float:
    with torch.no_grad():
        terms = model.loss(model(batch), batch)
    return sum(float(v) for k, v in terms.items() if k.startswith("detection/"))


def test_area_and_norm_are_bounded_and_everything_else_stays(model):
    batch = make_batch()
    before = fingerprint(batch)
    attacked = ATTACK(model, batch, seed=3)
    assert fingerprint(batch) == before
    assert attacked.images.dtype == torch.uint8
    change = attacked.images.int() - batch.images.int()
    assert 30 < change.abs().max() <= 40
    touched = (change != 0).any(1)  # (N, H, W)
    assert (touched.flatten(1).float().mean(1) <= 0.06).all()
    assert touched.flatten(1).any(1).all()
    for pixels in touched:  # one rectangle
        rows, columns = pixels.any(1).nonzero().flatten(), pixels.any(0).nonzero().flatten()
        assert (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1) <= 0.06 * pixels.numel()
    assert fingerprint(replace(attacked, images=batch.images)) == before


def test_the_loss_grows_more_than_by_noise_in_the_same_place(model):
    batch = make_batch()
    attacked = ATTACK(model, batch, seed=0)
    mask = attacked.images != batch.images
    noise = torch.randint(-40, 41, batch.images.shape, generator=torch.Generator().manual_seed(0))
    noisy = (batch.images + noise).clamp(0, 255).to(torch.uint8).where(mask, batch.images)
    clean = detection_loss(model, batch)
    assert detection_loss(model, attacked) > clean
    harm = detection_loss(model, attacked) - clean
    assert harm > 2 * abs(detection_loss(model, replace(batch, images=noisy)) - clean)


def test_the_same_seed_gives_the_same_patch_in_inference_mode_too(model):
    batch = make_batch()
    first, second = ATTACK(model, batch, seed=5), ATTACK(model, batch, seed=5)
    assert torch.equal(first.images, second.images)
    assert not torch.equal(first.images, ATTACK(model, batch, seed=6).images)
    with torch.inference_mode():
        ((third, rest),) = Attacked([(batch.clone(), ())], model, ATTACK, 5, "cpu")
    assert torch.equal(first.images, third.images)
    assert rest == ()
    assert all(p.grad is None for p in model.parameters())


def test_a_batch_without_images_comes_back_as_it_is(model):
    batch = make_batch(cameras=0)
    assert ATTACK(model, batch, seed=0) is batch


def test_the_most_sensitive_window_is_found():
    gradient = torch.zeros(2, 3, 20, 40)
    gradient[0, 1, 12:14, 30:33] = -5.0
    gradient[1, 0, 0, 0] = 1.0
    mask = PatchAttack(area=0.04).place(gradient)  # 4 x 8 of 20 x 40
    assert mask.flatten(1).sum(1).tolist() == [32, 32]
    assert mask[0, 0, 12:14, 30:33].all()
    assert mask[1, 0, 0, 0] == 1


@pytest.mark.parametrize("wrong", [{"area": 0.0}, {"area": 1.5}, {"eps": 0.0}, {"steps": 0}])
def test_a_patch_that_cannot_be_is_refused(wrong):
    with pytest.raises(ValueError, match="the attack has"):
        PatchAttack(**wrong)
