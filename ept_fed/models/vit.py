"""PromptedViT: a frozen timm ViT with embedded prompts in its attention, and a linear head."""

from collections.abc import Iterable, Mapping
from typing import Literal

import torch
from timm.layers.attention import Attention
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from ept_fed.models.backbones import Backbone, create_backbone
from ept_fed.models.embedding import (
    EMBEDDINGS,
    FOLDABLE,
    PORTABLE_EMBEDDINGS,
    Embedding,
    needs_square_prompt,
    refuse_folding,
)
from ept_fed.models.prompts import EmbeddedPrompts, Init
from ept_fed.problems import InputRefusedError, Problem
from ept_fed.seeds import derive_seed

__all__ = ["PromptedViT"]


class PromptedViT(nn.Module):
    """Embedded Prompt Tuning over a frozen backbone (Zu et al. 2024; EPT-DEEP Eq. 8, EPT-SHALLOW Eq. 7).

    Several PromptedViTs may share one backbone: it holds no state of theirs. Trainable are the prompts, the context
    tokens if any, and the head; the backbone stays in evaluation mode whatever `train` says.

    Attributes:
        backbone: the frozen backbone and its digest.
        prompts: (L, N + T, M).
        tokens: (L, T, D) or None.
        head: linear, D -> C, on the backbone's own pooling (the cls token for the paper's models).
        layers: indices of the prompted layers.
        portable: attend in operations that exporters know (TorchScript, ONNX), without our flash kernels.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        num_classes: int,
        prompt_length: int = 100,
        prompt_layers: Literal["deep", "shallow"] | Iterable[int] = "deep",
        tokens: int = 0,
        embedding: str = "concat",
        init: Init = "normal",
        seed: int = 0,
    ) -> None:
        """Wrap a backbone; see `create` for the arguments."""
        super().__init__()
        vit = backbone.vit
        self.backbone = backbone
        self.vit = vit
        self.layers = _resolve_layers(prompt_layers, len(vit.blocks))
        self.embedding = embedding
        self.portable = False
        context_length = backbone.num_tokens + tokens
        if needs_square_prompt(embedding) and prompt_length != context_length:
            fix = f"embedding '{embedding}' needs one entry per key; set prompt_length to {context_length}"
            raise InputRefusedError([Problem("model.prompt_length", prompt_length, fix)])
        self.embedded = EmbeddedPrompts(
            layers=len(self.layers),
            tokens=backbone.num_tokens,
            length=prompt_length,
            embed_dim=vit.embed_dim,
            context=tokens,
            init=init,
            seed=derive_seed(seed, "prompts"),
        )
        self.head = _create_head(int(vit.num_features), num_classes, derive_seed(seed, "head"))

    @classmethod
    def create(
        cls,
        name: str,
        *,
        num_classes: int,
        prompt_length: int = 100,
        prompt_layers: Literal["deep", "shallow"] | Iterable[int] = "deep",
        tokens: int = 0,
        weights: str | None = None,
        image_size: int | None = None,
        embedding: str = "concat",
        init: Init = "normal",
        seed: int = 0,
    ) -> "PromptedViT":
        """Create backbone, prompts and head.

        Args:
            name: timm ViT name or `hf-hub:` id.
            num_classes: C.
            prompt_length: M; the sink starts at about log M.
            prompt_layers: "deep" (all), "shallow" (the first), or layer indices.
            tokens: T context tokens per prompted layer.
            weights: None (random), "pretrained", or a path; see `create_backbone`.
            image_size: pixels per side, None for the backbone's own.
            embedding: one of `EMBEDDINGS`.
            init: how prompts are drawn, one of `INITS`.
            seed: of random weights, prompts, tokens and head.

        Raises:
            InputRefusedError: naming the setting, its value and the fix.
        """
        backbone = create_backbone(name, weights=weights, image_size=image_size, seed=derive_seed(seed, "backbone"))
        return cls(
            backbone,
            num_classes=num_classes,
            prompt_length=prompt_length,
            prompt_layers=prompt_layers,
            tokens=tokens,
            embedding=embedding,
            init=init,
            seed=seed,
        )

    @property
    def prompts(self) -> nn.Parameter:
        """Prompt columns (L, N + T, M)."""
        return self.embedded.prompts

    @property
    def tokens(self) -> nn.Parameter | None:
        """Context tokens (L, T, D), or None."""
        return self.embedded.tokens

    def train(self, mode: bool = True) -> "PromptedViT":
        """Switch the head and prompts; a frozen backbone has neither dropout nor stochastic depth."""
        super().train(mode)
        self.vit.eval()
        return self

    def fold(self) -> Tensor:
        """Return the sinks (L, N + T).

        Raises:
            ValueError: if the prompts are embedded in a way that has no fold; the message says why.
        """
        if self.embedding not in FOLDABLE:
            raise ValueError(refuse_folding(self.embedding))
        return self.embedded.fold()

    def forward(self, images: Tensor) -> Tensor:
        """Classify images (B, 3, height, width), returning logits (B, C)."""
        logits: Tensor = self.head(self.forward_features(images))
        return logits

    def forward_features(self, images: Tensor) -> Tensor:
        """Return pooled features (B, D) of images (B, 3, height, width)."""
        vit = self.vit
        x = vit.norm_pre(vit.patch_drop(vit._pos_embed(vit.patch_embed(images))))
        if x.shape[1] != self.backbone.num_tokens:
            side = self.backbone.input.size
            raise ValueError(
                f"images {tuple(images.shape)} give {x.shape[1]} tokens, but the prompts have "
                f"{self.backbone.num_tokens}; resize them to {side}×{side}"
            )
        embed = (PORTABLE_EMBEDDINGS if self.portable else EMBEDDINGS)[self.embedding]
        position = {layer: index for index, layer in enumerate(self.layers)}
        context = 0
        for layer, block in enumerate(vit.blocks):
            if layer not in position:
                x = block(x)
                continue
            index = position[layer]
            if self.tokens is not None:
                x = self._place_context(x, self.tokens[index], already=context)
                context = self.tokens.shape[1]
            x = _prompted_block(block, x, self.prompts[index], embed)
        if context:
            x = torch.cat([x[:, : self._context_start], x[:, self._context_start + context :]], dim=1)
        features: Tensor = vit.forward_head(vit.norm(x), pre_logits=True)
        return features

    def payload_tensors(self, *, share: str, payload: str, detach: bool = True) -> dict[str, Tensor]:
        """Return what would travel.

        Args:
            share: "prompts", or "prompts+head".
            payload: "folded" gives `sinks` (L, N + T); "raw" gives `prompts` (L, N + T, M).
            detach: False keeps the graph, for terms of a loss.

        Returns:
            tensors by name, in the order of the layout; `tokens` (L, T, D) if T > 0, then the head's if shared.
        """
        tensors: dict[str, Tensor] = {"sinks": self.fold()} if payload == "folded" else {"prompts": self.prompts}
        if self.tokens is not None:
            tensors["tokens"] = self.tokens
        if share == "prompts+head":
            tensors |= {"head.weight": self.head.weight, "head.bias": self.head.bias}
        return {name: tensor.detach() for name, tensor in tensors.items()} if detach else tensors

    @torch.no_grad()
    def load_payload(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over received tensors; sinks are unfolded into this model's own columns.

        Raises:
            KeyError: for a name this model has no room for.
            ValueError: for a shape that does not fit.
        """
        for name, tensor in tensors.items():
            if name == "sinks":
                self.fold()
                self.embedded.unfold(tensor)
                continue
            target = self._payload_target(name)
            if target.shape != tensor.shape:
                raise ValueError(f"{name} has shape {tuple(tensor.shape)}; this model needs {tuple(target.shape)}")
            target.copy_(tensor)

    def _payload_target(self, name: str) -> Tensor:
        targets: dict[str, Tensor] = {
            "prompts": self.prompts,
            "head.weight": self.head.weight,
            "head.bias": self.head.bias,
        }
        if self.tokens is not None:
            targets["tokens"] = self.tokens
        return targets[name]

    @property
    def _context_start(self) -> int:
        return 1 if self.vit.has_class_token else 0

    def _place_context(self, x: Tensor, tokens: Tensor, *, already: int) -> Tensor:
        start = self._context_start
        own = tokens.to(x.dtype).expand(x.shape[0], -1, -1)
        return torch.cat([x[:, :start], own, x[:, start + already :]], dim=1)


def _prompted_block(block: Block, x: Tensor, prompt: Tensor, embed: Embedding) -> Tensor:
    """timm's Block.forward with prompts in its attention: x (B, N + T, D), prompt (N + T, M)."""
    x = x + block.drop_path1(block.ls1(_attend(block.attn, block.norm1(x), prompt, embed)))
    mixed: Tensor = x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))
    return mixed


def _attend(attn: Attention, x: Tensor, prompt: Tensor, embed: Embedding) -> Tensor:
    """timm's Attention.forward with its attention replaced; (B, N + T, D) -> (B, N + T, D)."""
    B, N, _ = x.shape
    qkv = attn.qkv(x).reshape(B, N, 3, attn.num_heads, attn.head_dim).permute(2, 0, 3, 1, 4)
    q, k, v = qkv.unbind(0)
    out = embed(attn.q_norm(q).to(v.dtype), attn.k_norm(k).to(v.dtype), v, prompt)
    out = attn.norm(out.transpose(1, 2).reshape(B, N, attn.attn_dim))
    if attn.gate is not None:
        out = out * attn.gate(x).sigmoid()
    projected: Tensor = attn.proj_drop(attn.proj(out))
    return projected


def _resolve_layers(prompt_layers: Literal["deep", "shallow"] | Iterable[int], depth: int) -> tuple[int, ...]:
    if prompt_layers == "deep":
        return tuple(range(depth))
    if prompt_layers == "shallow":
        return (0,)
    layers = tuple(sorted(int(layer) for layer in prompt_layers))
    if not layers or len(set(layers)) != len(layers) or layers[0] < 0 or layers[-1] >= depth:
        fix = f"name distinct layers between 0 and {depth - 1}, or 'deep' or 'shallow'"
        raise InputRefusedError([Problem("model.prompt_layers", list(layers), fix)])
    return layers


def _create_head(embed_dim: int, num_classes: int, seed: int) -> nn.Linear:
    """Return a linear head (D -> C) drawn from its own generator; nn.Linear alone would draw from the global one."""
    head: nn.Linear = nn.utils.skip_init(nn.Linear, embed_dim, num_classes)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        head.weight.normal_(0.0, 0.01, generator=generator)
        head.bias.zero_()
    return head
