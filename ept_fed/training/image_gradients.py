"""Per-image gradients of the tensors that ept trains, from one backward pass over the batch.

Every image gets its own copy of the sinks and tokens, so that their gradients keep the batch axis. This costs little:
the attention's backward pass has this axis anyway before its last sum. The head is linear, so its gradient for image i
is the outer product of ∂logits_i and the image's features. The norm of this product follows from the norms of the two
factors, without the product (Goodfellow 2015, arXiv 1510.01799).

Prompts are represented by their sinks, (L, N) numbers instead of (L, N, M). The columns act only through the sinks, and
by the chain rule ∂P = ∂s · softmax(P).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ept_fed.models.prompted_vit import PromptedViT
from ept_fed.training.losses import Loss

__all__ = ["HEAD", "SINKS", "TOKENS", "ImageGradients", "find_image_gradients", "lay_down_gradients"]

SINKS, TOKENS = "sinks", "tokens"
HEAD = ("head.weight", "head.bias")


@dataclass(frozen=True)
class ImageGradients:
    """The gradients of B images, each of its own loss.

    Attributes:
        sinks: (L, B, N + T).
        tokens: (L, B, T, D), or None.
        logits: (B, C), or None if the head is frozen.
        features: (B, D), the input of the head.
    """

    sinks: Tensor
    tokens: Tensor | None
    logits: Tensor | None
    features: Tensor

    def norms(self) -> Tensor:
        """Return every image's L2 norm over all tensors together, (B,) float64; not finite if any value is not."""
        squares = self.sinks.double().square().sum((0, 2))
        if self.tokens is not None:
            squares = squares + self.tokens.double().square().sum((0, 2, 3))
        if self.logits is not None:
            of_features = self.features.double().square().sum(-1) + 1.0
            squares = squares + self.logits.double().square().sum(-1) * of_features
        return squares.sqrt()

    def clipped_sum(self, clip: float) -> tuple[dict[str, Tensor], int]:
        """Return the sum of the gradients after clipping to L2 norm `clip`, and the number of images left out.

        An image whose gradient is not finite is left out, because no factor gives it a bounded norm.

        Returns:
            float64 sums by name (sinks (L, N + T), tokens (L, T, D), head.weight (C, D), head.bias (C,)), and a count.
        """
        norms = self.norms()
        kept = torch.isfinite(norms).nonzero().squeeze(-1)
        factors = (clip / norms[kept].clamp(min=clip)).clamp(max=1.0)
        sums = {SINKS: torch.einsum("lbn,b->ln", self.sinks[:, kept].double(), factors)}
        if self.tokens is not None:
            sums[TOKENS] = torch.einsum("lbtd,b->ltd", self.tokens[:, kept].double(), factors)
        if self.logits is not None:
            scaled = self.logits[kept].double() * factors.unsqueeze(-1)
            sums |= dict(zip(HEAD, (scaled.T @ self.features[kept].double(), scaled.sum(0)), strict=True))
        return sums, len(norms) - len(kept)


def find_image_gradients(
    model: PromptedViT, images: Tensor, labels: Tensor, loss_of: Loss, *, bfloat16: bool = False
) -> ImageGradients:
    """Return the gradients of images (B, 3, height, width); the model's own `grad` do not change.

    Args:
        model: its prompts must have a fold; a head that requires no gradient is frozen.
        images: on the model's device; B may be 1.
        labels: in the format of `loss_of`.
        loss_of: from `IMAGE_LOSSES`.
        bfloat16: whether to run the forward pass in bfloat16.

    Raises:
        ValueError: if the model's prompts have no fold.
    """
    B = len(images)
    sinks = model.fold().detach().unsqueeze(1).repeat(1, B, 1).requires_grad_()
    tokens = None
    if model.tokens is not None:
        tokens = model.tokens.detach().unsqueeze(1).repeat(1, B, 1, 1).requires_grad_()
    with torch.autocast(model.device.type, torch.bfloat16, enabled=bfloat16):
        features = model.features_per_image(images, sinks, tokens)
        logits = model.head(features)
    inputs = [sinks, logits] if tokens is None else [sinks, logits, tokens]
    found = torch.autograd.grad(loss_of(logits.float() if bfloat16 else logits, labels).sum(), inputs)
    of_logits = found[1].detach() if model.head.weight.requires_grad else None
    return ImageGradients(found[0], None if tokens is None else found[2], of_logits, features.detach())


@torch.no_grad()
def lay_down_gradients(model: PromptedViT, gradients: Mapping[str, Tensor]) -> None:
    """Set the `grad` of the model's parameters from gradients named as in `clipped_sum`.

    Raises:
        KeyError: if a gradient of a trained tensor is missing.
    """
    columns = torch.softmax(model.prompts, dim=-1)
    model.prompts.grad = gradients[SINKS].to(columns).unsqueeze(-1) * columns
    if model.tokens is not None:
        model.tokens.grad = gradients[TOKENS].to(model.tokens)
    if model.head.weight.requires_grad:
        for name, parameter in zip(HEAD, (model.head.weight, model.head.bias), strict=True):
            parameter.grad = gradients[name].to(parameter)
