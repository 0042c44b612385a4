"""The client's side of FedProx (Li et al. 2020): a pull towards what the round started from."""

import torch
from torch import Tensor

from ept_fed.models.vit import PromptedViT

__all__ = ["ProximalTerm"]


class ProximalTerm:
    """mu/2 · ||θ - θ₀||² over the tensors that travel, differentiable in the model.

    For folded payloads the distance is between sinks, not columns: columns that move along their own fold are free.
    """

    def __init__(self, model: PromptedViT, mu: float, shared: tuple[str, str]) -> None:
        """Remember where the shared tensors stand now; `shared` is (share, payload) as in `payload_tensors`."""
        self._model, self._mu, (self._share, self._payload) = model, mu, shared
        self._start = {name: tensor.clone() for name, tensor in self._tensors(detach=True).items()}

    def __call__(self) -> Tensor:
        """Return the term, a scalar."""
        tensors = self._tensors(detach=False)
        squares = [(tensors[name] - start).square().sum() for name, start in self._start.items()]
        return 0.5 * self._mu * torch.stack(squares).sum()

    def _tensors(self, *, detach: bool) -> dict[str, Tensor]:
        return self._model.payload_tensors(share=self._share, payload=self._payload, detach=detach)
