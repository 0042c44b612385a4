"""Full fine-tuning, which trains a copy of every parameter of the backbone (as in Zu et al. 2024, Table 1)."""

from ept_fed.models.backbones import Backbone
from ept_fed.models.comparators.backbone_copies import BackboneCopies

__all__ = ["Full"]


class Full(BackboneCopies):
    """A model that trains and sends all parameters of the backbone."""

    method = "full"

    def __init__(self, backbone: Backbone, *, num_classes: int, seed: int = 0) -> None:
        """Copy the whole backbone."""
        super().__init__(backbone, num_classes=num_classes, seed=seed, chosen=lambda _name: True)
