"""Views: the parts of one trained round that an attacker may see, depending on what the site sends."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ept_fed.models.prompts import fold

__all__ = ["View", "add_noise", "list_views"]

_HEAD = ("head.weight", "head.bias")


@dataclass(frozen=True)
class View:
    """What is seen of a round.

    Attributes:
        name: for people.
        tensors: among sinks, prompts, tokens, head.weight and head.bias.
        noise: standard deviation of the Gaussian noise on every tensor of the update, as a multiple of that tensor's
            own root mean square.
    """

    name: str
    tensors: tuple[str, ...]
    noise: float = 0.0

    def of_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return what is seen of trained tensors: prompts (…, N, M) appear as their sinks (…, N) where folded."""
        return {name: fold(state["prompts"]) if name == "sinks" else state[name] for name in self.tensors}

    def of_gradient(self, gradient: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return a gradient in these tensors; a sink's is the sum over its M columns, see `payload_gradient`."""
        return {name: gradient["prompts"].sum(-1) if name == "sinks" else gradient[name] for name in self.tensors}


def list_views(names: Sequence[str], noise: float) -> list[View]:
    """Return the views of a model whose trained tensors have these names, from the least to the most that is sent.

    Args:
        names: of the trained tensors: prompts, tokens if there are any, head.weight, head.bias.
        noise: multiple for the view with noise.
    """
    folded = ("sinks", *(name for name in names if name == "tokens"))
    more = [View("sinks + tokens", folded)] if "tokens" in names else []
    return [
        View("sinks", ("sinks",)),
        View("raw prompts", ("prompts",)),
        *more,
        View(f"{' + '.join(folded)}, noise ×{noise:g}", folded, noise),
        View(f"{' + '.join(folded)} + head", (*folded, *_HEAD)),
    ]


def add_noise(update: Mapping[str, Tensor], multiple: float, generator: torch.Generator) -> dict[str, Tensor]:
    """Return an update with Gaussian noise on it; `multiple` as in `View.noise`, 0 changes nothing.

    The noise is for measuring what noise would buy. It is drawn from a seed: it protects nobody.
    """
    if not multiple:
        return dict(update)
    return {
        name: tensor + multiple * tensor.square().mean().sqrt() * torch.randn(tensor.shape, generator=generator)
        for name, tensor in update.items()
    }
