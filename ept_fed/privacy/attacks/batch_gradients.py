"""Gradients of many small batches at once, differentiable in the images."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from ept_fed.models.prompted_vit import PromptedViT

__all__ = ["batch_gradients", "differentiable_twice", "flatten"]


def batch_gradients(
    model: nn.Module,
    tensors: Mapping[str, Tensor],
    images: Tensor,
    labels: Tensor,
    loss: Callable[[Tensor, Tensor], Tensor],
) -> dict[str, Tensor]:
    """Return the gradient of each batch's mean loss with respect to each tensor.

    Args:
        model: images (B, …) -> logits (B, C).
        tensors: parameters by the model's own names; the gradients are computed at these values.
        images: (G, B, …), G batches.
        labels: (G, B), or (G, B, C) for multi-label.
        loss: (logits, labels) -> mean over the batch.

    Returns:
        gradients (G, *shape) by name, differentiable in `images` if the model is twice differentiable.
    """

    def loss_of(values: dict[str, Tensor], batch: Tensor, truth: Tensor) -> Tensor:
        return loss(functional_call(model, values, (batch,)), truth)

    gradients: dict[str, Tensor] = vmap(grad(loss_of), in_dims=(None, 0, 0))(dict(tensors), images, labels)
    return gradients


@contextmanager
def differentiable_twice(model: PromptedViT) -> Iterator[None]:
    """Switch the model's attention to operations with a second derivative, which flash kernels lack."""
    before = model.portable
    model.portable = True
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        model.portable = before


def flatten(tensors: Mapping[str, Tensor], lead: int = 0) -> Tensor:
    """Concatenate tensors (*lead axes, …) into (*lead axes, n)."""
    return torch.cat([tensor.flatten(lead) for tensor in tensors.values()], dim=lead)
