"""The model of method ept: a frozen timm ViT with embedded prompts in its attention, and a linear head."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ept_fed.errors import InputRefusedError, Problem
from ept_fed.models.attention import prompted_attention
from ept_fed.models.backbones import Backbone, create_backbone
from ept_fed.models.blocks import attend, place_context, pool_tokens, remove_context, run_block
from ept_fed.models.embedding import (
    EMBEDDINGS,
    FOLDABLE,
    PORTABLE_EMBEDDINGS,
    Embedding,
    needs_square_prompt,
    refuse_folding,
)
from ept_fed.models.prompts import EmbeddedPrompts, Init
from ept_fed.models.tuned_vit import TunedViT
from ept_fed.seeds import derive_seed

__all__ = ["PromptedViT"]


class PromptedViT(TunedViT):
    """Embedded Prompt Tuning of a frozen backbone (Zu et al. 2024; EPT-DEEP Eq. 8, EPT-SHALLOW Eq. 7).

    The prompts, the context tokens (if any) and the head are trainable. The head gets the features that the backbone
    pools (the cls token for the paper's models).

    Attributes:
        prompts: (L, N + T, M).
        tokens: (L, T, D) or None.
        layers: indices of the prompted layers.
        portable: whether attention uses only operations that exporters support (TorchScript, ONNX), no flash kernels.
    """

    method = "ept"

    def __init__(
        self,
        backbone: Backbone,
        *,
        num_classes: int,
        prompt_length: int = 100,
        prompt_layers: Literal["deep", "late", "shallow"] | Iterable[int] = "deep",
        tokens: int = 0,
        embedding: str = "concat",
        init: Init = "normal",
        initial_sink: float | None = None,
        seed: int = 0,
    ) -> None:
        """Draw prompts, tokens and head for a backbone; see `create` for the arguments."""
        super().__init__(backbone, num_classes=num_classes, seed=seed)
        vit = backbone.vit
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
        if initial_sink is not None:
            self.embedded.start_at(initial_sink)

    @classmethod
    def create(
        cls,
        name: str,
        *,
        num_classes: int,
        prompt_length: int = 100,
        prompt_layers: Literal["deep", "late", "shallow"] | Iterable[int] = "deep",
        tokens: int = 0,
        weights: str | None = None,
        image_size: int | None = None,
        embedding: str = "concat",
        init: Init = "normal",
        initial_sink: float | None = None,
        seed: int = 0,
    ) -> "PromptedViT":
        """Create backbone, prompts and head.

        Args:
            name: timm ViT name or `hf-hub:` id.
            num_classes: C.
            prompt_length: M; the sink starts at about log M.
            prompt_layers: "deep" (all), "late" (the last third), "shallow" (the first), or layer indices.
            tokens: T context tokens per prompted layer.
            weights: None (random), "pretrained", or a path; see `create_backbone`.
            image_size: pixels per side, None for the backbone's own.
            embedding: one of `EMBEDDINGS`.
            init: distribution of the initial prompts, one of `INITS`.
            initial_sink: initial value of every sink; None keeps the fold of the drawn columns, about log M.
            seed: for random weights, prompts, tokens and head.

        Raises:
            InputRefusedError: with the setting, its value and the fix.
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
            initial_sink=initial_sink,
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

    def fold(self) -> Tensor:
        """Return the sinks (L, N + T).

        Raises:
            ValueError: if prompts with this embedding have no fold; the message states the reason.
        """
        if self.embedding not in FOLDABLE:
            raise ValueError(refuse_folding(self.embedding))
        return self.embedded.fold()

    def method_tensors(self) -> dict[str, nn.Parameter]:
        """Return `prompts` (L, N + T, M), and `tokens` (L, T, D) if T > 0."""
        tensors = {"prompts": self.prompts}
        if self.tokens is not None:
            tensors["tokens"] = self.tokens
        return tensors

    def folded_tensors(self) -> dict[str, Tensor]:
        """Return `sinks` (L, N + T), and `tokens` (L, T, D) if T > 0."""
        tensors = {"sinks": self.fold()}
        if self.tokens is not None:
            tensors["tokens"] = self.tokens
        return tensors

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Return prompts, head and tokens as separate groups.

        The M columns of a prompt share one sink. So with SGD the effective learning rate of the sink is about lr / M.
        Even with AdamW, prompts need much higher rates than the head.
        """
        groups = {"prompts": [self.prompts], "head": list(self.head.parameters())}
        return groups if self.tokens is None else groups | {"tokens": [self.tokens]}

    def meaning(self) -> tuple[str, ...]:
        """Return the embedding and the indices of the prompted layers."""
        return (f"embedding {self.embedding}", *(f"layer {layer}" for layer in self.layers))

    def describe(self) -> dict[str, Any]:
        """Return the settings from which a released model is built again."""
        return {"prompt_layers": list(self.layers), "embedding": self.embedding}

    @property
    def frozen_stages(self) -> int:
        """The embedding, and the blocks before the first prompted one."""
        return 1 + self.layers[0]

    def forward_suffix(self, x: Tensor) -> Tensor:
        """Return pooled features (B, D) for the input (B, N, D) of the first prompted layer."""
        embed = (PORTABLE_EMBEDDINGS if self.portable else EMBEDDINGS)[self.embedding]
        return self._run(x, [_prompted_core(embed, prompt) for prompt in self.prompts], self.tokens)

    def features_per_image(self, inputs: Tensor, sinks: Tensor, tokens: Tensor | None) -> Tensor:
        """Return the features (B, D) of images that each have their own sinks and tokens.

        The gradient of the summed loss in these sinks and tokens keeps the batch axis, so it contains each image's own
        gradient.

        Args:
            inputs: images (B, 3, height, width), or outputs of the prefix (B, N, D).
            sinks: (L, B, N + T), instead of this model's folded prompts.
            tokens: (L, B, T, D), instead of this model's tokens; None for a model without tokens.

        Raises:
            ValueError: if this model's prompts have no fold.
        """
        if self.embedding not in FOLDABLE:
            raise ValueError(refuse_folding(self.embedding))
        cores = [partial(prompted_attention, sink=sink) for sink in sinks.unbind(0)]
        return self._run(self.prefix_of(inputs), cores, tokens)

    def _run(self, x: Tensor, cores: Sequence[Callable[..., Tensor]], tokens: Tensor | None) -> Tensor:
        """Run the backbone from the first prompted layer; each has one attention core, and (T, D) or (B, T, D)."""
        vit = self.vit
        if x.shape[1] != self.backbone.num_tokens:
            side = self.backbone.input.size
            raise ValueError(
                f"these images give {x.shape[1]} tokens, but the prompts have {self.backbone.num_tokens}; resize them "
                f"to {side}×{side}"
            )
        context_of_layer = None if tokens is None else tokens.unbind(0)
        position = {layer: index for index, layer in enumerate(self.layers)}
        context = 0
        for layer, block in enumerate(vit.blocks):
            if layer < self.layers[0]:
                continue
            if layer not in position:
                x = block(x)
                continue
            index = position[layer]
            if context_of_layer is not None:
                x = place_context(vit, x, context_of_layer[index], already=context)
                context = context_of_layer[index].shape[-2]
            x = run_block(block, x, attention=partial(attend, block.attn, core=cores[index]))
        return pool_tokens(vit, remove_context(vit, x, context) if context else x)

    @torch.no_grad()
    def load_payload(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy received tensors into the model; sinks are unfolded into the model's own columns.

        Raises:
            KeyError: for a name that this model does not have.
            ValueError: for a shape that does not fit.
        """
        if "sinks" in tensors:
            self.fold()
            self.embedded.unfold(tensors["sinks"])
        super().load_payload({name: tensor for name, tensor in tensors.items() if name != "sinks"})


def _prompted_core(embed: Embedding, prompt: Tensor) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Return the attention with one layer's prompt (N + T, M): q, k, v (B, H, N + T, d) -> (B, H, N + T, d)."""
    return lambda q, k, v: embed(q, k, v, prompt)


def _resolve_layers(prompt_layers: Literal["deep", "late", "shallow"] | Iterable[int], depth: int) -> tuple[int, ...]:
    if prompt_layers == "deep":
        return tuple(range(depth))
    if prompt_layers == "late":
        return tuple(range(depth - math.ceil(depth / 3), depth))
    if prompt_layers == "shallow":
        return (0,)
    layers = tuple(sorted(int(layer) for layer in prompt_layers))
    if not layers or len(set(layers)) != len(layers) or layers[0] < 0 or layers[-1] >= depth:
        fix = f"name distinct layers between 0 and {depth - 1}, or 'deep', 'late' or 'shallow'"
        raise InputRefusedError([Problem("model.prompt_layers", list(layers), fix)])
    return layers
