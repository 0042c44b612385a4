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
    """The part of a round that an attacker sees.

    Attributes:
        name: readable name.
        tensors: names of the visible tensors: sinks, prompts, tokens, head.weight or head.bias.
        noise: standard deviation of the Gaussian noise on every tensor of the update, as a multiple of that tensor's
            own root mean square.
    """

    name: str
    tensors: tuple[str, ...]
    noise: float = 0.0

    def of_state(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the visible part of trained tensors; folded prompts (…, N, M) appear as their sinks (…, N)."""
        return {name: fold(state["prompts"]) if name == "sinks" else state[name] for name in self.tensors}

    def of_gradient(self, gradient: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the gradient in these tensors; a sink's is the sum over its M columns, see `payload_gradient`."""
        return {name: gradient["prompts"].sum(-1) if name == "sinks" else gradient[name] for name in self.tensors}


def list_views(names: Sequence[str], noise: float) -> list[View]:
    """Return the views of a model with these trained tensors, ordered from the least to the most that is sent.

    Args:
        names: names of the trained tensors: prompts, tokens if there are any, head.weight, head.bias.
        noise: as in `View.noise`, for the view with noise.
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
    """Return an update with added Gaussian noise; `multiple` is as in `View.noise`, and 0 changes nothing.

    The noise serves to measure the effect of noise on an attack. It comes from a seed, so it protects nobody.
    """
    if not multiple:
        return dict(update)
    return {
        name: tensor + multiple * tensor.square().mean().sqrt() * torch.randn(tensor.shape, generator=generator)
        for name, tensor in update.items()
    }
