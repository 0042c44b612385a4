"""Full fine-tuning: every tensor of the backbone, as a copy (as in Zu et al. 2024, Table 1)."""

from ept_fed.models.backbones import Backbone
from ept_fed.models.comparators.backbone_copies import BackboneCopies

__all__ = ["Full"]


class Full(BackboneCopies):
    """All parameters of the backbone are trained, and travel."""

    method = "full"

    def __init__(self, backbone: Backbone, *, num_classes: int, seed: int = 0) -> None:
        """Copy the whole backbone."""
        super().__init__(backbone, num_classes=num_classes, seed=seed, chosen=lambda _name: True)
