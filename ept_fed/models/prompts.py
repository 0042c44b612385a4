"""Prompts: their initial values, and how they fold into a sink and unfold again.

M prompt columns act on the attention only through s = logsumexp(P, -1), so M columns and one column are the same
function. A site therefore sends a prompt (L, N, M) as its sink (L, N). A site that receives a sink shifts its own
columns so that they fold to it. This keeps the differences between the columns and the state of the optimiser.
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
        sink: (…, N) target sink.

    Returns:
        (…, N, M): P + (sink - fold(P)). The differences between the columns are those of P.

    Raises:
        ValueError: if the shape of the sink is not that of P without the last axis.
    """
    if sink.shape != P.shape[:-1]:
        raise ValueError(f"sink has shape {tuple(sink.shape)}; prompts {tuple(P.shape)} need {tuple(P.shape[:-1])}")
    return P + (sink - fold(P)).unsqueeze(-1)


def init_prompts(shape: tuple[int, int, int], init: Init, generator: torch.Generator) -> Tensor:
    """Draw prompts (L, N, M) as the authors' code does.

    * normal (the default): standard deviation 0.02;
    * uniform: within ±0.08;
    * zero: all 0;
    * kaiming: He et al. 2015 for ReLU, with the fan-in of a (L, N, M) tensor, N·M.
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

    A context token is inserted after the cls token and replaced at every prompted layer, like the prompts of VPT-DEEP
    (Jia et al. 2022). Like any other token, it has its own sink, so `prompts` covers N + T tokens.

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
        """Shift the columns so that every token's sink has this value; drawn prompts have a sink of about log M."""
        self.prompts.copy_(unfold(self.prompts, torch.full(self.prompts.shape[:-1], sink)))

    def fold(self) -> Tensor:
        """Return the sinks (L, N + T), differentiable in the prompts."""
        return fold(self.prompts)

    @torch.no_grad()
    def unfold(self, sinks: Tensor) -> None:
        """Shift the columns in place so that they fold to `sinks` (L, N + T)."""
        self.prompts.copy_(unfold(self.prompts, sinks.to(self.prompts)))
