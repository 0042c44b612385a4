"""One head that all sites hold still while their prompts train, and what a site adds to it from its own images.

Every site draws the same head from the run's seed (FedBABU, Oh et al. 2022), so that all prompts learn for one head and
their mean knows what every site taught. What tells one site from the others, its camera and its patients, is not in it.
A discriminant of the site's own images knows nothing else. Logits are logarithms of odds, so those of two witnesses add
up (a product of experts, Hinton 2002), and the sum of two linear heads is one linear head.

From n images per class the LDA head boasts: in every direction its centres are off by the features' spread over n,
which it takes for a difference between classes. With d² between the true centres, in units of the spread, and D
directions, it sees d² + D / n for d², so it counts n / (n + D / d²). This D / d² is `evidence`.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from ept_fed.models.tuned_vit import TunedViT

__all__ = ["FixedHead"]

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class FixedHead:
    """The head as the run's seed drew it.

    Attributes:
        weight: (C, D).
        bias: (C,).
        evidence: images per class from which on a site's own LDA head counts half.
    """

    weight: Array
    bias: Array
    evidence: float

    def add(self, weight: Array, bias: Array, images_per_class: float) -> tuple[Array, Array]:
        """Return this head with an LDA head's weight (C, D) and bias (C,) of so many images per class added to it.

        Without images it is this head, and with more and more of them the sum of both.
        """
        share = images_per_class / (images_per_class + self.evidence)
        return self.weight + share * weight, self.bias + share * bias

    @torch.no_grad()
    def put_back(self, model: TunedViT) -> None:
        """Set a model's head to this one, which its prompts train under."""
        model.head.weight.copy_(torch.from_numpy(self.weight))
        model.head.bias.copy_(torch.from_numpy(self.bias))
