"""VPT, which adds trainable tokens to the image's tokens (visual prompt tuning, Jia et al. 2022)."""

import math

import torch
from torch import Tensor, nn

from ept_fed.models.backbones import Backbone
from ept_fed.models.blocks import place_context, pool_tokens, remove_context
from ept_fed.models.tuned_vit import TunedViT

__all__ = ["VPT"]


class VPT(TunedViT):
    """A model with T trainable tokens after the cls token: new ones in every block (deep) or one set (shallow).

    VPT-SHALLOW inserts its tokens before the first block. The tokens start uniform within ±√(6 / (3 p² + D)), with
    patch size p, as in the authors' code. They are removed before the pooling, so that a backbone that averages its
    tokens averages image tokens only.

    Attributes:
        tokens: (L, T, D), or (1, T, D) if shallow.
    """

    method = "vpt"

    def __init__(self, backbone: Backbone, *, num_classes: int, tokens: int, deep: int, seed: int = 0) -> None:
        """Draw the tokens."""
        super().__init__(backbone, num_classes=num_classes, seed=seed, options={"tokens": tokens, "deep": deep})
        D, patch = self.vit.embed_dim, self.vit.patch_embed.patch_size
        layers = len(self.vit.blocks) if deep else 1
        bound = math.sqrt(6.0 / (3 * patch[0] * patch[1] + D))
        drawn = torch.empty(layers, tokens, D).uniform_(-bound, bound, generator=self.generator(seed))
        self.tokens = nn.Parameter(drawn)

    def method_tensors(self) -> dict[str, nn.Parameter]:
        """Return `vpt.tokens` (L, T, D), or (1, T, D) if shallow."""
        return {"vpt.tokens": self.tokens}

    @property
    def frozen_stages(self) -> int:
        """1: the embedding."""
        return 1

    def forward_suffix(self, x: Tensor) -> Tensor:
        """Return pooled features (B, D) of embedded images (B, N, D)."""
        L, T, _ = self.tokens.shape
        for layer, block in enumerate(self.vit.blocks):
            if layer < L:
                x = place_context(self.vit, x, self.tokens[layer], already=T if layer else 0)
            x = block(x)
        return pool_tokens(self.vit, remove_context(self.vit, x, T))
