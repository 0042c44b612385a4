"""The paper's losses: cross entropy for one class per image, binary cross entropy for any number of classes."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

__all__ = ["IMAGE_LOSSES", "LOSSES", "Loss"]

Loss = Callable[[Tensor, Tensor], Tensor]


def _binary_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean over images and classes; logits (B, C), labels (B, C) in {0, 1}."""
    return F.binary_cross_entropy_with_logits(logits, labels)


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the mean over images; logits (B, C), labels (B,) class indices."""
    return F.cross_entropy(logits, labels)


LOSSES: dict[str, Loss] = {"single_label": _cross_entropy, "multi_label": _binary_cross_entropy}


def _binary_cross_entropy_per_image(logits: Tensor, labels: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(-1)


def _cross_entropy_per_image(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits, labels, reduction="none")


# The same losses per image, (B,); their mean is the loss in LOSSES.
IMAGE_LOSSES: dict[str, Loss] = {
    "single_label": _cross_entropy_per_image,
    "multi_label": _binary_cross_entropy_per_image,
}
