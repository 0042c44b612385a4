"""From the name of a method to its model; `ept_fed.methods` says what each is."""

from ept_fed.config import ModelSettings
from ept_fed.methods import METHODS
from ept_fed.models.adapter import Adapter
from ept_fed.models.backbones import Backbone
from ept_fed.models.bias import Bias
from ept_fed.models.full import Full
from ept_fed.models.linear import Linear
from ept_fed.models.lora import LoRA
from ept_fed.models.method import TunedViT
from ept_fed.models.mlp_3 import MLP3
from ept_fed.models.partial_1 import PartialOne
from ept_fed.models.vit import PromptedViT
from ept_fed.models.vp import VisualPrompt
from ept_fed.models.vpt import VPT
from ept_fed.options import fill_options

__all__ = ["MODELS", "create_model"]

_CLASSES: tuple[type[TunedViT], ...] = (
    PromptedViT,
    Linear,
    Full,
    PartialOne,
    MLP3,
    LoRA,
    Bias,
    Adapter,
    VisualPrompt,
    VPT,
)
MODELS: dict[str, type[TunedViT]] = {cls.method: cls for cls in _CLASSES}


def create_model(settings: ModelSettings, backbone: Backbone, *, num_classes: int, seed: int) -> TunedViT:
    """Put the method of the settings around a backbone.

    Args:
        settings: the method and its numbers; `find_contradictions` has checked them.
        backbone: shared with any number of other models.
        num_classes: C.
        seed: of everything that is drawn.

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
    return MODELS[settings.method](backbone, num_classes=num_classes, seed=seed, **given)  # type: ignore[arg-type]
