"""Bias tuning, which trains only the biases of the backbone (BitFit, Ben Zaken et al. 2022)."""

from ept_fed.models.backbones import Backbone
from ept_fed.models.comparators.backbone_copies import BackboneCopies

__all__ = ["Bias"]


class Bias(BackboneCopies):
    """A model that trains the biases of projections, MLPs, layer norms and the patch embedding."""

    method = "bias"

    def __init__(self, backbone: Backbone, *, num_classes: int, seed: int = 0) -> None:
        """Copy the biases; a backbone without biases is refused."""
        super().__init__(backbone, num_classes=num_classes, seed=seed, chosen=lambda name: name.endswith(".bias"))
