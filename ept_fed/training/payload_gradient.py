"""The gradient of a site's loss in the shared tensors, at the payload that it received."""

import torch
from torch import Tensor

from ept_fed.data.datasets.prepare import CachedDataset
from ept_fed.models.tuned_vit import TunedViT
from ept_fed.training.losses import LOSSES

__all__ = ["payload_gradient"]


def payload_gradient(
    model: TunedViT, images: CachedDataset, *, batch_size: int, shared: tuple[str, str]
) -> dict[str, Tensor]:
    """Return the gradient of the mean loss over all images, without augmentation, by name as in `payload_tensors`.

    A sink's gradient is the sum over its M columns, because moving all of them by t moves the sink by t.

    Args:
        model: its tensors do not change; its gradients are cleared.
        images: the site's training images.
        batch_size: images per pass.
        shared: (share, payload) as in `payload_tensors`.
    """
    device, loss_of = model.device, LOSSES[images.task]
    model.zero_grad(set_to_none=True)
    model.eval()
    for batch, labels in images.batches(batch_size):
        loss = loss_of(model(batch.to(device)).float(), labels.to(device))
        (loss * (len(labels) / len(images))).backward()
    share, payload = shared
    parameters = model.payload_tensors(share=share, payload="raw", detach=False)
    gradients = {
        name: torch.zeros_like(tensor) if tensor.grad is None else tensor.grad.clone()
        for name, tensor in parameters.items()
    }
    model.zero_grad(set_to_none=True)
    if payload == "folded":
        gradients = {"sinks": gradients.pop("prompts").sum(-1), **gradients}
    return gradients
