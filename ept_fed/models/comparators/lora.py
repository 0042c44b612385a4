"""LoRA: low-rank additions to the query and value projections of every block (Hu et al. 2022)."""

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ept_fed.errors import InputRefusedError, Problem
from ept_fed.models.backbones import Backbone
from ept_fed.models.blocks import attend, pool_tokens, run_block
from ept_fed.models.tuned_vit import TunedViT

__all__ = ["LoRA"]


class LoRA(TunedViT):
    """The weights are W_q + (alpha / r) B_q A_q and W_v + (alpha / r) B_v A_v, with A down and B up (Hu et al., Eq. 3).

    A starts as in the authors' code (Kaiming uniform with a = √5, that is, within ±1/√D), and B at zero. So the initial
    model is the frozen model. P is the width of q and of v, heads times head dimension.

    Attributes:
        query_down: (L, r, D); value_down has the same shape.
        query_up: (L, P, r); value_up has the same shape.
    """

    method = "lora"

    def __init__(self, backbone: Backbone, *, num_classes: int, rank: int, alpha: float, seed: int = 0) -> None:
        """Draw the factors.

        Raises:
            InputRefusedError: for a rank above the smaller of D and P.
        """
        super().__init__(backbone, num_classes=num_classes, seed=seed, options={"rank": rank, "alpha": alpha})
        D, L, P = self.vit.embed_dim, len(self.vit.blocks), self.vit.blocks[0].attn.attn_dim
        if rank > min(D, P):
            fix = f"{backbone.name} projects width {D} to width {P}; use a rank of at most {min(D, P)}"
            raise InputRefusedError([Problem("model.method_options.rank", rank, fix)])
        self._scale = alpha / rank
        generator, bound = self.generator(seed), 1.0 / math.sqrt(D)
        self.query_down = nn.Parameter(torch.empty(L, rank, D).uniform_(-bound, bound, generator=generator))
        self.value_down = nn.Parameter(torch.empty(L, rank, D).uniform_(-bound, bound, generator=generator))
        self.query_up = nn.Parameter(torch.zeros(L, P, rank))
        self.value_up = nn.Parameter(torch.zeros(L, P, rank))

    def method_tensors(self) -> dict[str, nn.Parameter]:
        """Return the factors: down (L, r, D), up (L, P, r)."""
        return {
            "lora.query.down": self.query_down,
            "lora.query.up": self.query_up,
            "lora.value.down": self.value_down,
            "lora.value.up": self.value_up,
        }

    @property
    def frozen_stages(self) -> int:
        """1: the embedding."""
        return 1

    def forward_suffix(self, x: Tensor) -> Tensor:
        """Return pooled features (B, D) of embedded images (B, N, D)."""
        for layer, block in enumerate(self.vit.blocks):
            x = run_block(block, x, attention=partial(self._attend, layer))
        return pool_tokens(self.vit, x)

    @torch.no_grad()
    def merge(self) -> dict[str, Tensor]:
        """Return the qkv weights with the low-rank additions, by their name in the backbone: (3P, D) each.

        A backbone with these weights computes the same features as this model, without extra cost.
        """
        merged = {}
        for layer, block in enumerate(self.vit.blocks):
            query = self.query_up[layer] @ self.query_down[layer]
            value = self.value_up[layer] @ self.value_down[layer]
            delta = torch.cat([query, torch.zeros_like(query), value])
            merged[f"blocks.{layer}.attn.qkv.weight"] = block.attn.qkv.weight + self._scale * delta
        return merged

    def _attend(self, layer: int, x: Tensor) -> Tensor:
        query = F.linear(F.linear(x, self.query_down[layer]), self.query_up[layer])
        value = F.linear(F.linear(x, self.value_down[layer]), self.value_up[layer])
        delta = self._scale * torch.cat([query, torch.zeros_like(query), value], dim=-1)
        return attend(self.vit.blocks[layer].attn, x, qkv_delta=delta)
