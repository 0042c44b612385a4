"""The patch-wise scaling of Embedded Prompt Tuning, made visible: how much of its attention each patch keeps.

The prompt takes a share of every query token's softmax and gives no value for it, so the token's attention output is
multiplied by what is left (Zu et al. 2024, section 3.3, "patch-wise scaling"):

    factor[b, l, h, n] = sigmoid(lse(A[b, l, h, n, :]) - s[l, n]),   A = q kᵀ / √d,  s[l, n] = logsumexp(P[l, n, :])

with lse over the N + T real keys of the layer. 1 means that the prompt takes nothing, 0 that it silences the token.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ept_fed.models.vit import PromptedViT

__all__ = ["scaling_factors", "scaling_map"]


def scaling_factors(logits: Tensor, sink: Tensor) -> Tensor:
    """Return the factors (..., N) of scaled attention logits (..., N, keys) under sinks (N,)."""
    return torch.sigmoid(torch.logsumexp(logits, dim=-1) - sink)


@torch.inference_mode()
def scaling_map(model: PromptedViT, images: Tensor) -> Tensor:
    """Return the mean factor of each patch's own query over all prompted layers and heads, (B, rows, columns) float32.

    The cls token, registers and context tokens are queries too but no part of the picture, and are left out.

    Args:
        model: prompts embedded by "concat", the paper's default.
        images: (B, 3, height, width), normalised, on the model's device.

    Raises:
        ValueError: for another embedding: there the factor is not one number per layer, token and image (fold).
    """
    sinks = model.fold().float()
    rows, columns = model.vit.patch_embed.grid_size
    found: list[Tensor] = []

    def record(attn: Any, sink: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(_module: nn.Module, _inputs: tuple[Tensor, ...], qkv: Tensor) -> None:
            B, N, _ = qkv.shape
            q, k, _ = qkv.reshape(B, N, 3, attn.num_heads, attn.head_dim).permute(2, 0, 3, 1, 4).float().unbind(0)
            logits = attn.q_norm(q) @ attn.k_norm(k).transpose(-2, -1) * attn.head_dim**-0.5
            found.append(scaling_factors(logits, sink)[:, :, -rows * columns :].mean(dim=1))

        return hook

    blocks = [model.vit.blocks[layer] for layer in model.layers]
    handles = [
        block.attn.qkv.register_forward_hook(record(block.attn, sink))
        for block, sink in zip(blocks, sinks, strict=True)
    ]
    try:
        model.forward_features(images)
    finally:
        for handle in handles:
            handle.remove()
    return torch.stack(found).mean(dim=0).reshape(-1, rows, columns)
