"""What the images show of classes, said straight to the heat-maps of detection."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Evidence below this, in probability times cells, says nothing about the class.
LEAST = 0.1


class ClassEvidence(nn.Module):
    """Painted class probabilities, gathered around every cell, as a prior of the heat-maps.

    LiDAR says well that something stands there, and badly which of two classes of one shape it is;
    the painted pixels of its sides say that, but lie metres beside its centre, where the heat-map
    asks. So they are summed over windows of two sizes, and the class of cell g gets

        log(K (s_k(g) + e) / (sum over j of s_j(g) + K e)),

    s_k the sum of class k in the window: 0 where nothing was painted, and the logarithm of the
    odds that Bayes' rule would add where something was. A linear layer weighs both windows.

    Args:
        num_classes: detection classes K.
        windows: edges of the two windows, cells, odd: what a person and what a bus covers.
    """

    def __init__(self, num_classes: int, windows: tuple[int, int] = (3, 9)):
        super().__init__()
        if any(window % 2 == 0 for window in windows):
            raise ValueError(f"class evidence windows are {windows}; give odd numbers of cells")
        self.windows = tuple(windows)
        # Without a bias: no evidence, no change.
        self.weigh = nn.Conv2d(len(windows) * num_classes, num_classes, 1, bias=False)
        # At first half of what independent evidence would count: pixels of one object are not.
        with torch.no_grad():
            share = torch.eye(num_classes).repeat(1, len(windows)) / (2 * len(windows))
            self.weigh.weight.copy_(share[..., None, None])

    def forward(self, painted: Tensor) -> Tensor:
        """(B, K, X, Y) probabilities per cell to (B, K, X, Y), to be added to the logits."""
        num_classes = painted.shape[1]
        ratios = []
        for window in self.windows:
            total = F.avg_pool2d(painted, window, 1, window // 2) * window**2 + LEAST
            ratios.append((num_classes * total / total.sum(1, keepdim=True)).log())
        return self.weigh(torch.cat(ratios, 1))
