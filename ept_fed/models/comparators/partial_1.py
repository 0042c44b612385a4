"""Partial-1, which trains only the last block (Yosinski et al. 2014; as in Jia et al. 2022)."""

from ept_fed.models.backbones import Backbone
from ept_fed.models.comparators.backbone_copies import BackboneCopies

__all__ = ["PartialOne"]


class PartialOne(BackboneCopies):
    """A model that trains the last block; unlike in the code of Jia et al., the norm after it is frozen."""

    method = "partial_1"

    def __init__(self, backbone: Backbone, *, num_classes: int, seed: int = 0) -> None:
        """Copy the last block."""
        last = f"blocks.{len(backbone.vit.blocks) - 1}."
        super().__init__(backbone, num_classes=num_classes, seed=seed, chosen=lambda name: name.startswith(last))
