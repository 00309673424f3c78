"""An adversarial patch in the camera images; the LiDAR points stay as they are.

After "Fusion is Not Enough" (Cheng et al., ICLR 2024): a fusion model can be misled through its
camera branch alone. First the gradient shows where each image is most sensitive; there a patch is
placed, which projected gradient ascent (PGD, Madry et al. 2018) then fills so that the model's own
loss grows. The attacker knows the model and the truth: it is a bound, not an everyday fault.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from ...datasets.batch import Batch
from ...datasets.seeding import generator


class Differentiable(Protocol):
    """A model that can be attacked: ``FusionModel``, or anything that offers this."""

    def __call__(self, batch: Batch) -> dict[str, Any]: ...

    def loss(self, outputs: dict[str, Any], batch: Batch) -> dict[str, Tensor]:
        """Terms by ``"task/name"``."""
        ...


@dataclass(frozen=True)
class PatchAttack:
    """The attack, bounded in area and norm.

    Args:
        area: share of every image that its patch covers at most.
        eps: largest change of a pixel, of 255.
        steps: of gradient ascent.
    """

    area: float = 0.05
    eps: float = 64.0
    steps: int = 10

    def __post_init__(self) -> None:
        if not (0 < self.area <= 1 and 1 <= self.eps <= 255 and self.steps >= 1):
            raise ValueError(
                f"the attack has area={self.area:g}, eps={self.eps:g}, steps={self.steps}; give "
                "0 < area <= 1, 1 <= eps <= 255 and at least one step"
            )

    def __call__(self, model: Differentiable, batch: Batch, seed: int) -> Batch:
        """The batch with a patch in every image, the same for the same model, batch and seed.

        Args:
            model: in evaluation mode; its parameters get no gradient.
            batch: with annotated boxes; one without images is given back.
            seed: decides where the ascent starts.
        """
        if not len(batch.images):
            return batch
        # A batch made in inference mode cannot take part in a gradient; its copy can.
        with torch.inference_mode(False), torch.enable_grad():
            batch = batch.clone()
            clean = batch.images.float()
            mask = self.place(_gradient(model, batch, clean))
            change = mask * _start(batch, seed).to(clean.device) * self.eps
            # As long a step as reaches the bound from anywhere, and some way back.
            step = 2.5 * self.eps / self.steps
            for _ in range(self.steps):
                image = (clean + change).clamp(0, 255)
                change = change + step * mask * _gradient(model, batch, image).sign()
                change = change.clamp(-self.eps, self.eps)
            # Whole numbers within the bound, as a camera would give them.
            low, high = (clean - self.eps).clamp(min=0), (clean + self.eps).clamp(max=255)
            image = (clean + change).clamp(0, 255).round()
            image = image.minimum(high.floor()).maximum(low.ceil())
        return replace(batch, images=image.to(torch.uint8))

    def place(self, gradient: Tensor) -> Tensor:
        """(N, 3, H, W) gradient -> (N, 1, H, W), 1 in the most sensitive window of each image.

        The window has the shape of the image.
        """
        height, width = gradient.shape[-2:]
        rows, columns = max(1, int(height * self.area**0.5)), max(1, int(width * self.area**0.5))
        sensitivity = gradient.abs().sum(1, keepdim=True).double()
        windows = F.avg_pool2d(sensitivity, (rows, columns), stride=1)
        best = windows.flatten(1).argmax(1)
        top, left = best // windows.shape[-1], best % windows.shape[-1]
        v = torch.arange(height, device=gradient.device)[None, :, None] - top[:, None, None]
        u = torch.arange(width, device=gradient.device)[None, None, :] - left[:, None, None]
        inside = (v >= 0) & (v < rows) & (u >= 0) & (u < columns)
        return inside[:, None].float()


class Attacked:
    """A loader whose images are attacked, batch by batch."""

    def __init__(
        self, loader: Iterable, model: Any, attack: PatchAttack, seed: int, device: Any
    ) -> None:
        self.loader, self.model, self.attack = loader, model, attack
        self.seed, self.device = seed, device

    def __iter__(self) -> Iterator[Any]:
        for item in self.loader:
            batch, rest = item if isinstance(item, tuple) else (item, ())
            if batch is not None:
                batch = self.attack(self.model, batch.to(self.device), self.seed)
            yield batch, rest


def _gradient(model: Differentiable, batch: Batch, images: Tensor) -> Tensor:
    """Of the detection loss (of all heads' where there is none) after the pixels."""
    images = images.detach().requires_grad_()
    seen = replace(batch, images=images)
    terms = {k: v for k, v in model.loss(model(seen), seen).items() if not k.startswith("camera/")}
    wanted = [v for k, v in terms.items() if k.startswith("detection/")] or list(terms.values())
    return torch.autograd.grad(torch.stack([v.float() for v in wanted]).sum(), images)[0]


def _start(batch: Batch, seed: int) -> Tensor:
    """(N, 3, H, W) uniform in -1..1; of each image the same whatever batch it is in."""
    random = [generator(seed, token, "patch_attack") for token in batch.tokens]
    size = tuple(batch.images.shape[1:])
    draws = [random[int(i)].uniform(-1, 1, size) for i in batch.image_sample]
    return torch.stack([torch.from_numpy(d).float() for d in draws])
