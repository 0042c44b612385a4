"""The model: exact prompted attention, prompts that fold, and a frozen ViT around them."""

from ept_fed.models.attention import prompted_attention
from ept_fed.models.backbones import Backbone, create_backbone, digest_tensors, frozen_tensors
from ept_fed.models.prompts import EmbeddedPrompts, fold, unfold
from ept_fed.models.vit import PromptedViT

__all__ = [
    "Backbone",
    "EmbeddedPrompts",
    "PromptedViT",
    "create_backbone",
    "digest_tensors",
    "fold",
    "frozen_tensors",
    "prompted_attention",
    "unfold",
]
