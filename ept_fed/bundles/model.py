"""Loading a bundle as a model: backbone, prompts, head, normalisation and temperature in one module."""

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from ept_fed.bundles.bundle import Bundle
from ept_fed.bundles.description import Description
from ept_fed.bundles.members import tensors_by_member
from ept_fed.errors import InputRefusedError, Problem
from ept_fed.models.backbones import Backbone, create_backbone
from ept_fed.models.demo_backbone import DEMO_BACKBONE
from ept_fed.models.device import choose_device
from ept_fed.models.prompted_vit import PromptedViT
from ept_fed.protocol.layout import Vector

__all__ = ["CalibratedModel", "SummedLogits", "load_model"]


class SummedLogits(nn.Module):
    """The weighted sum of the logits of several models that share one backbone and prompt the same layers."""

    def __init__(self, members: Sequence[PromptedViT], shares: Sequence[float]) -> None:
        """Take the models and the share of each; all models have the same backbone object and prompted layers.

        Raises:
            ValueError: if backbones or layers differ, or the number of shares is not that of the models.
        """
        super().__init__()
        if len(members) != len(shares):
            raise ValueError(f"{len(members)} models have {len(shares)} shares")
        if any(member.vit is not members[0].vit or member.layers != members[0].layers for member in members):
            raise ValueError("the models differ in their backbone or their prompted layers")
        self.members = nn.ModuleList(members)
        self.shares = tuple(shares)

    @property
    def backbone(self) -> Backbone:
        """The one backbone of all members."""
        return self._models[0].backbone

    @property
    def portable(self) -> bool:
        """Whether the attention of every member uses only operations that exporters support."""
        return all(model.portable for model in self._models)

    @portable.setter
    def portable(self, value: bool) -> None:
        for model in self._models:
            model.portable = value

    @property
    def _models(self) -> list[PromptedViT]:
        return [cast(PromptedViT, member) for member in self.members]

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the summed logits (B, C) for images (B, 3, height, width)."""
        # The blocks below the first prompted layer give every member the same, so they run once.
        inputs = self._models[0].prefix_of(inputs)
        weighted = [share * model(inputs) for share, model in zip(self.shares, self._models, strict=True)]
        return torch.stack(weighted).sum(0)


class CalibratedModel(nn.Module):
    """The model of a bundle, for prediction and export: from pixels to calibrated logits and probabilities.

    Attributes:
        model: the frozen backbone with prompts and head, or several of them, in evaluation mode.
        temperature: divisor of the logits.
        multi_label: whether a sigmoid per class is used instead of one softmax.
    """

    scale: Tensor
    offset: Tensor

    def __init__(self, model: PromptedViT | SummedLogits, description: Description) -> None:
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
    description = bundle.description
    backbone = _load_backbone(description, weights)
    by_member = tensors_by_member(bundle.tensors, description.members)
    filled = {member: _fill(description, tensors, backbone) for member, tensors in by_member.items()}
    if description.members is None:
        return CalibratedModel(filled[""], description).to(target)
    summed = SummedLogits(list(filled.values()), [description.members[member] for member in filled])
    return CalibratedModel(summed, description).to(target)


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


def _fill(description: Description, tensors: Mapping[str, Vector], backbone: Backbone) -> PromptedViT:
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
