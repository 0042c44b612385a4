"""From a bundle to a model: backbone, prompts, head, normalisation and temperature as one module."""

import torch
from torch import Tensor, nn

from ept_fed.bundles.bundle import Bundle
from ept_fed.bundles.description import Description
from ept_fed.errors import InputRefusedError, Problem
from ept_fed.models.backbones import Backbone, create_backbone
from ept_fed.models.demo_backbone import DEMO_BACKBONE
from ept_fed.models.device import choose_device
from ept_fed.models.vit import PromptedViT

__all__ = ["CalibratedModel", "load_model"]


class CalibratedModel(nn.Module):
    """What a bundle predicts with, and what is exported: pixels in, calibrated logits and probabilities out.

    Attributes:
        model: prompts and head around the frozen backbone, in evaluation mode.
        temperature: divides the logits.
        multi_label: a sigmoid for each class instead of one softmax.
    """

    scale: Tensor
    offset: Tensor

    def __init__(self, model: PromptedViT, description: Description) -> None:
        """Take a loaded model and what the bundle says about its input and output."""
        super().__init__()
        self.model = model.requires_grad_(False)
        self.temperature = description.temperature
        self.multi_label = description.task == "multi_label"
        spec = description.input
        mean, std = torch.tensor(spec.mean)[:, None, None], torch.tensor(spec.std)[:, None, None]
        self.register_buffer("scale", 1.0 / (255.0 * std))
        self.register_buffer("offset", mean / std)
        self.eval()

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Classify RGB images.

        Args:
            pixels: (B, 3, size, size) float32, from 0 to 255, resized but not normalised.

        Returns:
            logits (B, C), divided by the temperature, and probabilities (B, C): their softmax, or sigmoid.
        """
        logits = self.model(pixels * self.scale - self.offset) / self.temperature
        return logits, logits.sigmoid() if self.multi_label else logits.softmax(-1)


def load_model(bundle: Bundle, *, weights: str | None, device: str = "auto") -> CalibratedModel:
    """Build the model of a bundle around its backbone.

    Args:
        bundle: checked by `read_bundle`.
        weights: a .safetensors or .pth file, or "pretrained" for timm's own, which timm may download; None is enough
            for the demo backbone, which ships with this package.
        device: auto, cpu or cuda.

    Raises:
        InputRefusedError: if the backbone is not the one that the prompts were tuned in, or the tensors do not fit it.
    """
    target = choose_device(device, "--device")
    return CalibratedModel(_fill(bundle, _load_backbone(bundle.description, weights)), bundle.description).to(target)


def _load_backbone(description: Description, weights: str | None) -> Backbone:
    wanted = description.backbone
    if weights is None and wanted.name != DEMO_BACKBONE:
        fix = f"the bundle needs the weights of {wanted.name} with digest {wanted.digest}; name their file"
        raise _refusal("--weights", None, fix)
    source = weights or "pretrained"
    backbone = create_backbone(wanted.name, weights=source, image_size=description.input.size, seed=0)
    if backbone.digest != wanted.digest:
        fix = f"holds a {wanted.name} with digest {backbone.digest}; the prompts were tuned in {wanted.digest}"
        raise _refusal("--weights", source, fix)
    return backbone


def _fill(bundle: Bundle, backbone: Backbone) -> PromptedViT:
    description, tensors = bundle.description, bundle.tensors
    try:
        model = PromptedViT(
            backbone,
            num_classes=len(description.classes),
            # A sink is its own single column: logsumexp of one number is that number, exactly.
            prompt_length=tensors["prompts"].shape[2] if "prompts" in tensors else 1,
            prompt_layers=description.prompt_layers,
            tokens=description.tokens,
            embedding=description.embedding,
            init="zero",
        )
        model.load_payload({name: torch.from_numpy(tensor.copy()) for name, tensor in tensors.items()})
    except (ValueError, KeyError) as error:
        fix = f"the bundle contradicts itself ({error}); export it again"
        raise _refusal("model.safetensors", description.backbone.name, fix) from error
    return model


def _refusal(field: str, value: object, fix: str) -> InputRefusedError:
    return InputRefusedError([Problem(field, value, fix)])
