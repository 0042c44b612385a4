"""The models: exact prompted attention, prompts that fold, the frozen ViT that uses them, and the compared methods."""

from ept_fed.models.attention import prompted_attention
from ept_fed.models.backbones import Backbone, create_backbone, digest_tensors, frozen_tensors
from ept_fed.models.factory import create_model, find_class
from ept_fed.models.prompted_vit import PromptedViT
from ept_fed.models.prompts import EmbeddedPrompts, fold, unfold
from ept_fed.models.tuned_vit import TunedViT

__all__ = [
    "Backbone",
    "EmbeddedPrompts",
    "PromptedViT",
    "TunedViT",
    "create_backbone",
    "create_model",
    "digest_tensors",
    "find_class",
    "fold",
    "frozen_tensors",
    "prompted_attention",
    "unfold",
]
