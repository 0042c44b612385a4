"""The forward pass of a frozen timm ViT in steps, so that methods can act between them.

Each function repeats a part of timm's forward pass. It changes only the parts that its arguments replace or extend.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from timm.layers.attention import Attention
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor

__all__ = ["attend", "embed_images", "place_context", "pool_tokens", "remove_context", "run_block", "run_stages"]


def embed_images(vit: VisionTransformer, images: Tensor) -> Tensor:
    """Return the input of the first block: images (B, 3, height, width) -> (B, N, D)."""
    tokens: Tensor = vit.norm_pre(vit.patch_drop(vit._pos_embed(vit.patch_embed(images))))
    return tokens


def pool_tokens(vit: VisionTransformer, x: Tensor) -> Tensor:
    """Return the features that the backbone pools from the output of the last block: (B, N, D) -> (B, D)."""
    features: Tensor = vit.forward_head(vit.norm(x), pre_logits=True)
    return features


def run_stages(vit: VisionTransformer, x: Tensor, stages: range) -> Tensor:
    """Run consecutive stages of the frozen backbone: 0 embeds, 1 … L are the blocks, L + 1 pools.

    Args:
        vit: the backbone, with L blocks.
        x: the input of the first stage: images (B, 3, height, width), or tokens (B, N, D).
        stages: numbers of the stages; if there are none, x is returned.

    Returns:
        tokens (B, N, D), or after the last stage features (B, D).
    """
    for stage in stages:
        if stage == 0:
            x = embed_images(vit, x)
        elif stage <= len(vit.blocks):
            x = vit.blocks[stage - 1](x)
        else:
            x = pool_tokens(vit, x)
    return x


def run_block(
    block: Block,
    x: Tensor,
    *,
    attention: Callable[[Tensor], Tensor] | None = None,
    beside_mlp: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Run timm's Block.forward on x (B, N, D).

    Args:
        block: a block of the frozen backbone.
        x: input of the block.
        attention: replaces the block's own attention, on normed tokens; for example a `partial` of `attend`.
        beside_mlp: a branch parallel to the MLP, on the same normed input; its output is added to the residual.
    """
    x = x + block.drop_path1(block.ls1((attention or block.attn)(block.norm1(x))))
    normed = block.norm2(x)
    mixed: Tensor = x + block.drop_path2(block.ls2(block.mlp(normed)))
    return mixed if beside_mlp is None else mixed + beside_mlp(normed)


def attend(
    attn: Attention,
    x: Tensor,
    *,
    core: Callable[[Tensor, Tensor, Tensor], Tensor] = F.scaled_dot_product_attention,
    qkv_delta: Tensor | None = None,
) -> Tensor:
    """Run timm's Attention.forward on normed tokens: (B, N, D) -> (B, N, D).

    Args:
        attn: an attention module of the frozen backbone.
        x: normed tokens.
        core: the attention function, q, k, v (B, H, N, d) -> (B, H, N, d).
        qkv_delta: (B, N, 3·H·d), added to the qkv projection.
    """
    B, N, _ = x.shape
    projected = attn.qkv(x) if qkv_delta is None else attn.qkv(x) + qkv_delta
    qkv = projected.reshape(B, N, 3, attn.num_heads, attn.head_dim).permute(2, 0, 3, 1, 4)
    q, k, v = qkv.unbind(0)
    out = core(attn.q_norm(q).to(v.dtype), attn.k_norm(k).to(v.dtype), v)
    out = attn.norm(out.transpose(1, 2).reshape(B, N, attn.attn_dim))
    if attn.gate is not None:
        out = out * attn.gate(x).sigmoid()
    attended: Tensor = attn.proj_drop(attn.proj(out))
    return attended


def place_context(vit: VisionTransformer, x: Tensor, tokens: Tensor, *, already: int) -> Tensor:
    """Insert context tokens after the cls token, in place of those that are already there.

    Args:
        vit: the backbone.
        x: (B, N + already, D).
        tokens: (T, D) or (B, T, D), to insert.
        already: number of context tokens that x contains and that are replaced.

    Returns:
        (B, N + T, D).
    """
    start = _context_start(vit)
    own = tokens.to(x.dtype).expand(x.shape[0], -1, -1)
    return torch.cat([x[:, :start], own, x[:, start + already :]], dim=1)


def remove_context(vit: VisionTransformer, x: Tensor, count: int) -> Tensor:
    """Remove `count` context tokens: (B, N + count, D) -> (B, N, D)."""
    start = _context_start(vit)
    return torch.cat([x[:, :start], x[:, start + count :]], dim=1)


def _context_start(vit: VisionTransformer) -> int:
    return 1 if vit.has_class_token else 0
