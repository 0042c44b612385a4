"""Maps of the patch-wise scaling of Embedded Prompt Tuning: the share of attention that each patch keeps.

The prompt takes a share of every query token's softmax but has no value. So the attention output of the token is
multiplied by the remaining share (Zu et al. 2024, section 3.3, "patch-wise scaling"):

    factor[b, l, h, n] = sigmoid(lse(A[b, l, h, n, :]) - s[l, n]),   A = q kᵀ / √d,  s[l, n] = logsumexp(P[l, n, :])

with lse over the N + T real keys of the layer. At 1 the prompt takes nothing, at 0 it suppresses the token's output.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ept_fed.models.prompted_vit import PromptedViT

__all__ = ["scaling_factors", "scaling_map"]


def scaling_factors(logits: Tensor, sink: Tensor) -> Tensor:
    """Return the factors (..., N) for scaled attention logits (..., N, keys) and sinks (N,)."""
    return torch.sigmoid(torch.logsumexp(logits, dim=-1) - sink)


@torch.inference_mode()
def scaling_map(model: PromptedViT, images: Tensor) -> Tensor:
    """Return each patch query's mean factor over all prompted layers and heads, (B, rows, columns) float32.

    The map contains only patches. The cls token, registers and context tokens are queries too, but have no place in the
    image.

    Args:
        model: its prompts are embedded with "concat", the paper's default.
        images: (B, 3, height, width), normalised, on the model's device.

    Raises:
        ValueError: for another embedding: it has no fold, that is, no single sink per layer and token.
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
