"""Adapter: a bottleneck beside the MLP of every block (AdaptFormer, Chen et al. 2022)."""

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ept_fed.errors import InputRefusedError, Problem
from ept_fed.models.backbones import Backbone
from ept_fed.models.blocks import pool_tokens, run_block
from ept_fed.models.tuned_vit import TunedViT

__all__ = ["Adapter"]


class Adapter(TunedViT):
    """Blocks compute x + MLP(LN(x)) + scale · (W_up ReLU(W_down LN(x) + b_down) + b_up) (Chen et al. 2022, section 3).

    W_down starts Kaiming uniform with a = √5, and the rest starts at zero, as in the authors' code. So the initial
    model is the frozen model. The width of the bottleneck is W = D // reduction.

    Attributes:
        down_weight: (L, W, D); down_bias: (L, W).
        up_weight: (L, D, W); up_bias: (L, D).
    """

    method = "adapter"

    def __init__(self, backbone: Backbone, *, num_classes: int, reduction: int, scale: float, seed: int = 0) -> None:
        """Draw the bottlenecks.

        Raises:
            InputRefusedError: for a reduction that makes the width zero.
        """
        super().__init__(backbone, num_classes=num_classes, seed=seed, options={"reduction": reduction, "scale": scale})
        D, L = self.vit.embed_dim, len(self.vit.blocks)
        width = D // reduction
        if not width:
            fix = f"{backbone.name} has width {D}, so the bottleneck would have width 0; use at most {D}"
            raise InputRefusedError([Problem("model.method_options.reduction", reduction, fix)])
        self._scale = scale
        bound = 1.0 / math.sqrt(D)
        drawn = torch.empty(L, width, D).uniform_(-bound, bound, generator=self.generator(seed))
        self.down_weight = nn.Parameter(drawn)
        self.down_bias = nn.Parameter(torch.zeros(L, width))
        self.up_weight = nn.Parameter(torch.zeros(L, D, width))
        self.up_bias = nn.Parameter(torch.zeros(L, D))

    def method_tensors(self) -> dict[str, nn.Parameter]:
        """Return the bottlenecks: down (L, W, D) and (L, W), up (L, D, W) and (L, D)."""
        return {
            "adapter.down.weight": self.down_weight,
            "adapter.down.bias": self.down_bias,
            "adapter.up.weight": self.up_weight,
            "adapter.up.bias": self.up_bias,
        }

    @property
    def frozen_stages(self) -> int:
        """1: the embedding."""
        return 1

    def forward_suffix(self, x: Tensor) -> Tensor:
        """Return pooled features (B, D) of embedded images (B, N, D)."""
        for layer, block in enumerate(self.vit.blocks):
            x = run_block(block, x, beside_mlp=partial(self._bottleneck, layer))
        return pool_tokens(self.vit, x)

    def _bottleneck(self, layer: int, x: Tensor) -> Tensor:
        hidden = F.relu(F.linear(x, self.down_weight[layer], self.down_bias[layer]))
        return self._scale * F.linear(hidden, self.up_weight[layer], self.up_bias[layer])
