"""A fixed head, the same at all sites, and its sum with the LDA head of a site's own images.

Every site draws the same head from the run's seed and keeps it frozen while its prompts train (FedBABU, Oh et al.
2022). So the prompts of all sites learn for one head, and their mean combines what every site has learnt. The fixed
head contains nothing that is specific to one site, such as its camera or its patients. The LDA head of a site's own
images adds this. Logits are log-odds, so the logits of two independent sources of evidence add up (a product of
experts, Hinton 2002), and the sum of two linear heads is one linear head.

An LDA head from n images per class is overconfident. In every direction, the squared error of a class centre is the
variance of the features divided by n, and the head takes this error for a difference between classes. Let d² be the
squared distance between the true centres, in units of that variance, and D the number of directions. The head then
measures d² + D / n instead of d², so it is weighted by n / (n + D / d²). `evidence` is this D / d².
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from ept_fed.models.tuned_vit import HEAD_STD, TunedViT

__all__ = ["FixedHead", "rescale_head"]

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class FixedHead:
    """The head that is drawn from the run's seed.

    Attributes:
        weight: (C, D).
        bias: (C,).
        evidence: number of images per class at which a site's own LDA head has the weight 1/2.
    """

    weight: Array
    bias: Array
    evidence: float

    def add(self, weight: Array, bias: Array, images_per_class: float) -> tuple[Array, Array]:
        """Return weight and bias of the weighted sum of this head and an LDA head.

        Without images, the result is this head. With many images, it is the sum of both heads.

        Args:
            weight: (C, D), of the LDA head.
            bias: (C,), of the LDA head.
            images_per_class: number of images per class that the LDA head was computed from.
        """
        share = images_per_class / (images_per_class + self.evidence)
        return self.weight + share * weight, self.bias + share * bias

    @torch.no_grad()
    def put_back(self, model: TunedViT) -> None:
        """Set a model's head to this head, which is used while its prompts train."""
        model.head.weight.copy_(torch.from_numpy(self.weight))
        model.head.bias.copy_(torch.from_numpy(self.bias))


@torch.no_grad()
def rescale_head(model: TunedViT, std: float) -> None:
    """Give the weights of a newly created model's head another standard deviation."""
    model.head.weight.mul_(std / HEAD_STD)
