"""Prompts: how they start, fold into a sink and unfold again.

M prompt columns act on the attention only through s = logsumexp(P, -1): M columns and one column are the same function.
So a prompt (L, N, M) travels as its sink (L, N), and a site that receives a sink shifts its own columns until they fold
to it, which keeps the columns' shape and the optimiser's state.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn

__all__ = ["INITS", "EmbeddedPrompts", "Init", "fold", "init_prompts", "unfold"]

Init = Literal["normal", "uniform", "zero", "kaiming"]
INITS: tuple[Init, ...] = ("normal", "uniform", "zero", "kaiming")


def fold(P: Tensor) -> Tensor:
    """Fold prompt columns into their sink: (…, N, M) -> (…, N), s = logsumexp(P, -1)."""
    return torch.logsumexp(P, dim=-1)


def unfold(P: Tensor, sink: Tensor) -> Tensor:
    """Shift prompt columns so that they fold to a given sink.

    Args:
        P: (…, N, M) prompt columns.
        sink: (…, N) wanted sink.

    Returns:
        (…, N, M): P + (sink - fold(P)), whose differences between columns are those of P.

    Raises:
        ValueError: if the sink is not P's shape without its last axis.
    """
    if sink.shape != P.shape[:-1]:
        raise ValueError(f"sink has shape {tuple(sink.shape)}; prompts {tuple(P.shape)} need {tuple(P.shape[:-1])}")
    return P + (sink - fold(P)).unsqueeze(-1)


def init_prompts(shape: tuple[int, int, int], init: Init, generator: torch.Generator) -> Tensor:
    """Draw prompts (L, N, M) as the authors' code does.

    normal: standard deviation 0.02 (the default); uniform: within ±0.08; zero; kaiming: He et al. 2015 for ReLU, with
    the fan-in of a (L, N, M) tensor, N·M.
    """
    L, N, M = shape
    P = torch.empty(L, N, M)
    match init:
        case "normal":
            return P.normal_(0.0, 0.02, generator=generator)
        case "uniform":
            return P.uniform_(-0.08, 0.08, generator=generator)
        case "zero":
            return P.zero_()
        case "kaiming":
            return P.normal_(0.0, math.sqrt(2.0 / (N * M)), generator=generator)
    raise ValueError(f"init = {init!r}: choose one of {', '.join(INITS)}")


class EmbeddedPrompts(nn.Module):
    """The trainable prompts of L layers, and optionally T context tokens per layer.

    A context token is inserted after the cls token and replaced at every prompted layer (as VPT-DEEP does with its
    prompts, Jia et al. 2022); like any other token it has a sink of its own, so `prompts` covers N + T tokens.

    Attributes:
        prompts: (L, N + T, M).
        tokens: (L, T, D), or None when T = 0.
    """

    def __init__(
        self, *, layers: int, tokens: int, length: int, embed_dim: int, context: int, init: Init, seed: int
    ) -> None:
        """Draw prompts for `layers` = L, `tokens` = N, `length` = M, `embed_dim` = D and `context` = T."""
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.prompts = nn.Parameter(init_prompts((layers, tokens + context, length), init, generator))
        self.tokens: nn.Parameter | None = None
        if context:
            drawn = torch.empty(layers, context, embed_dim).normal_(0.0, 0.02, generator=generator)
            self.tokens = nn.Parameter(drawn)

    @torch.no_grad()
    def start_at(self, sink: float) -> None:
        """Shift the columns so that every token's sink is this number; log M would be about the drawn start."""
        self.prompts.copy_(unfold(self.prompts, torch.full(self.prompts.shape[:-1], sink)))

    def fold(self) -> Tensor:
        """Return the sinks (L, N + T), differentiable in the prompts."""
        return fold(self.prompts)

    @torch.no_grad()
    def unfold(self, sinks: Tensor) -> None:
        """Shift the columns in place so that they fold to `sinks` (L, N + T)."""
        self.prompts.copy_(unfold(self.prompts, sinks.to(self.prompts)))
