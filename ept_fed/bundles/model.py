"""Loading a bundle as a model: backbone, prompts, head, normalisation and temperature in one module."""

import torch
from torch import Tensor, nn

from ept_fed.bundles.bundle import Bundle
from ept_fed.bundles.description import Description
from ept_fed.errors import InputRefusedError, Problem
from ept_fed.models.backbones import Backbone, create_backbone
from ept_fed.models.demo_backbone import DEMO_BACKBONE
from ept_fed.models.device import choose_device
from ept_fed.models.prompted_vit import PromptedViT

__all__ = ["CalibratedModel", "load_model"]


class CalibratedModel(nn.Module):
    """The model of a bundle, for prediction and export: from pixels to calibrated logits and probabilities.

    Attributes:
        model: the frozen backbone with prompts and head, in evaluation mode.
        temperature: divisor of the logits.
        multi_label: whether a sigmoid per class is used instead of one softmax.
    """

    scale: Tensor
    offset: Tensor

    def __init__(self, model: PromptedViT, description: Description) -> None:
        """Take a loaded model and the bundle's description of its input and output."""
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
        """Return logits and probabilities for RGB images.

        Args:
            pixels: (B, 3, size, size) float32, from 0 to 255, resized but not normalised.

        Returns:
            logits (B, C), divided by the temperature, and probabilities (B, C): their softmax, or sigmoid.
        """
        logits = self.model(pixels * self.scale - self.offset) / self.temperature
        return logits, logits.sigmoid() if self.multi_label else logits.softmax(-1)


def load_model(bundle: Bundle, *, weights: str | None, device: str = "auto") -> CalibratedModel:
    """Return the model of a bundle, with its backbone loaded.

    Args:
        bundle: a bundle that `read_bundle` checked.
        weights: a .safetensors or .pth file, or "pretrained" for the weights from timm, which timm may download; None
            is sufficient for the demo backbone, which is part of this package.
        device: auto, cpu or cuda.

    Raises:
        InputRefusedError: if the prompts were tuned in another backbone, or the tensors do not fit the backbone.
    """
    target = choose_device(device, "--device")
    return CalibratedModel(_fill(bundle, _load_backbone(bundle.description, weights)), bundle.description).to(target)


def _load_backbone(description: Description, weights: str | None) -> Backbone:
    wanted = description.backbone
    if weights is None and wanted.name != DEMO_BACKBONE:
        fix = f"the bundle needs the weights of {wanted.name} with digest {wanted.digest}; give their file"
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
            # A sink needs a single column, because logsumexp of one number is exactly that number.
            prompt_length=tensors["prompts"].shape[2] if "prompts" in tensors else 1,
            prompt_layers=description.prompt_layers,
            tokens=description.tokens,
            embedding=description.embedding,
            init="zero",
        )
        model.load_payload({name: torch.from_numpy(tensor.copy()) for name, tensor in tensors.items()})
    except (ValueError, KeyError) as error:
        fix = f"the bundle is inconsistent ({error}); export it again"
        raise _refusal("model.safetensors", description.backbone.name, fix) from error
    return model


def _refusal(field: str, value: object, fix: str) -> InputRefusedError:
    return InputRefusedError([Problem(field, value, fix)])
