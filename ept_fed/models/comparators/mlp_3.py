"""MLP-3, which has a three-layer head instead of a linear one (Mlp-3 of Jia et al. 2022)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ept_fed.models.backbones import Backbone
from ept_fed.models.tuned_vit import TunedViT

__all__ = ["MLP3"]

_HIDDEN_LAYERS = 2


class MLP3(TunedViT):
    """Two hidden layers as wide as the features, h_i = ReLU(W_i h_{i-1} + b_i), then the linear head.

    The hidden layers are the method's own tensors and are sent. The third layer is the head, which may stay at the
    site. Weights start as in He et al. 2015, biases at zero.

    Attributes:
        weight: (2, D, D).
        bias: (2, D).
    """

    method = "mlp_3"

    def __init__(self, backbone: Backbone, *, num_classes: int, seed: int = 0) -> None:
        """Draw the three layers."""
        super().__init__(backbone, num_classes=num_classes, seed=seed)
        D = int(self.vit.num_features)
        drawn = torch.empty(_HIDDEN_LAYERS, D, D).normal_(0.0, math.sqrt(2.0 / D), generator=self.generator(seed))
        self.weight = nn.Parameter(drawn)
        self.bias = nn.Parameter(torch.zeros(_HIDDEN_LAYERS, D))

    def method_tensors(self) -> dict[str, nn.Parameter]:
        """Return `mlp.weight` (2, D, D) and `mlp.bias` (2, D)."""
        return {"mlp.weight": self.weight, "mlp.bias": self.bias}

    @property
    def frozen_stages(self) -> int:
        """All of them."""
        return len(self.vit.blocks) + 2

    def forward_suffix(self, x: Tensor) -> Tensor:
        """Return the output (B, D) of the second hidden layer for the backbone's features (B, D)."""
        for weight, bias in zip(self.weight, self.bias, strict=True):
            x = F.relu(F.linear(x, weight, bias))
        return x
