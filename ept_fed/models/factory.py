"""Creation of a model from the name of its method; `ept_fed.catalog.methods` describes the methods."""

import importlib

from ept_fed.catalog.methods import METHODS
from ept_fed.catalog.options import fill_options
from ept_fed.config.experiment import ModelSettings
from ept_fed.models.backbones import Backbone
from ept_fed.models.prompted_vit import PromptedViT
from ept_fed.models.tuned_vit import TunedViT

__all__ = ["create_model", "find_class"]


def find_class(method: str) -> type[TunedViT]:
    """Return the model class of a method in the catalogue."""
    module, _, name = METHODS[method].model.partition(":")
    found: type[TunedViT] = getattr(importlib.import_module(f"ept_fed.models.{module}"), name)
    return found


def create_model(settings: ModelSettings, backbone: Backbone, *, num_classes: int, seed: int) -> TunedViT:
    """Create the model of the settings' method around a backbone.

    Args:
        settings: the method and its options; `validate_experiment` has checked them.
        backbone: may be shared with other models.
        num_classes: C.
        seed: for all random values of the model.

    Raises:
        InputRefusedError: if the method cannot run on this backbone.
    """
    if settings.method == "ept":
        return PromptedViT(
            backbone,
            num_classes=num_classes,
            prompt_length=settings.prompt_length,
            prompt_layers=settings.prompt_layers,
            tokens=settings.tokens,
            embedding=settings.embedding,
            init=settings.init,
            initial_sink=settings.initial_sink,
            seed=seed,
        )
    options = METHODS[settings.method].options
    given = {
        name: int(value) if options[name].whole else value
        for name, value in fill_options(options, settings.method_options).items()
    }
    return find_class(settings.method)(backbone, num_classes=num_classes, seed=seed, **given)  # type: ignore[arg-type]
