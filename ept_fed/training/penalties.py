"""Penalty terms that a federation adds to a site's loss: functions of the shared tensors, differentiable in the model.

For folded payloads, they depend on sinks, not on columns. Column changes that keep the sink cost nothing, and the
gradient reaches every column through the fold.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from ept_fed.models.tuned_vit import TunedViT

__all__ = ["LinearTerm", "ProximalTerm"]


class ProximalTerm:
    """The term mu/2 · ||θ - θ₀||² of FedProx (Li et al. 2020), FedDyn and Ditto."""

    def __init__(self, model: TunedViT, mu: float, shared: tuple[str, str]) -> None:
        """Use the current shared tensors as θ₀; `shared` is (share, payload) as in `payload_tensors`."""
        self._model, self._mu, self._shared = model, mu, shared
        self._start = {name: tensor.clone() for name, tensor in _tensors(model, shared, detach=True).items()}

    def __call__(self) -> Tensor:
        """Return the term, a scalar."""
        tensors = _tensors(self._model, self._shared, detach=False)
        squares = [(tensors[name] - start).square().sum() for name, start in self._start.items()]
        return 0.5 * self._mu * torch.stack(squares).sum()


class LinearTerm:
    """The term ⟨c, θ⟩ with the constant gradient c: SCAFFOLD's correction, and FedDyn's linear penalty."""

    def __init__(self, model: TunedViT, coefficients: Mapping[str, Tensor], shared: tuple[str, str]) -> None:
        """Set the coefficients c, by tensor name and with the shapes of `payload_tensors`."""
        self._model, self._shared = model, shared
        self._coefficients = {name: tensor.to(model.device) for name, tensor in coefficients.items()}

    def __call__(self) -> Tensor:
        """Return the term, a scalar."""
        tensors = _tensors(self._model, self._shared, detach=False)
        products = [(tensors[name] * value).sum() for name, value in self._coefficients.items()]
        return torch.stack(products).sum()


def _tensors(model: TunedViT, shared: tuple[str, str], *, detach: bool) -> dict[str, Tensor]:
    share, payload = shared
    return model.payload_tensors(share=share, payload=payload, detach=detach)
