"""Bias tuning: every bias of the backbone and nothing else of it (BitFit, Ben Zaken et al. 2022)."""

from ept_fed.models.backbones import Backbone
from ept_fed.models.comparators.backbone_copies import BackboneCopies

__all__ = ["Bias"]


class Bias(BackboneCopies):
    """Biases of projections, MLPs, layer norms and the patch embedding are trained."""

    method = "bias"

    def __init__(self, backbone: Backbone, *, num_classes: int, seed: int = 0) -> None:
        """Copy the biases; a backbone without any is refused."""
        super().__init__(backbone, num_classes=num_classes, seed=seed, chosen=lambda name: name.endswith(".bias"))
