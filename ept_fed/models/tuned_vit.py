"""The base class of all methods: a module around a shared frozen backbone, with the tensors that it would send."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ept_fed.models.backbones import Backbone
from ept_fed.models.blocks import run_stages
from ept_fed.seeds import derive_seed

__all__ = ["HEAD_STD", "TunedViT"]

# Standard deviation of the weights of a head that is drawn and then trained.
HEAD_STD = 0.01

# The output of a prefix has three axes (tokens) or two (features).
_IMAGE_AXES = 4


class TunedViT(nn.Module, ABC):
    """A frozen backbone with a method's trainable tensors and a linear head.

    Several models may share one backbone, because none writes to its tensors. A method that trains some of them trains
    its own copies. Only the method's tensors and the head require gradients. The backbone always stays in evaluation
    mode, also after `train()`. A subclass defines `method`, `method_tensors`, `frozen_stages` and `forward_suffix`.

    The first stages of a model, which no training changes, are its prefix. A model accepts the prefix's output wherever
    it accepts images, so that it can be computed once per image (see `ept_fed.data.datasets.prefix_store`).

    Attributes:
        method: its name in `ept_fed.catalog.methods.METHODS`.
        backbone: the frozen backbone and its digest.
        vit: the backbone's module.
        head: linear, D -> C, on the features of `forward_features`.
        frozen_stages: number of stages in the prefix; see `run_stages`.
        options: values of the method's own options.
    """

    method: ClassVar[str]

    def __init__(
        self, backbone: Backbone, *, num_classes: int, seed: int, options: Mapping[str, float] | None = None
    ) -> None:
        """Keep the backbone and draw the head from `seed`; subclasses draw the rest from `self.generator(seed)`."""
        super().__init__()
        self.backbone = backbone
        self.vit = backbone.vit
        self.options = dict(options or {})
        self.head = _create_head(int(self.vit.num_features), num_classes, derive_seed(seed, "head"))

    @abstractmethod
    def method_tensors(self) -> dict[str, nn.Parameter]:
        """Return the trainable tensors other than the head, by their payload name, in the order of the layout."""

    @property
    @abstractmethod
    def frozen_stages(self) -> int:
        """The number of first stages that neither contain nor follow a trainable tensor; 0 to L + 2."""

    @abstractmethod
    def forward_suffix(self, x: Tensor) -> Tensor:
        """Return the input features (B, D) of the head for the output of the prefix."""

    def forward_prefix(self, images: Tensor) -> Tensor:
        """Return the output of the frozen stages for images (B, 3, height, width)."""
        return run_stages(self.vit, images, range(self.frozen_stages))

    def forward_features(self, inputs: Tensor) -> Tensor:
        """Return the input features (B, D) of the head for images (B, 3, height, width), or for the prefix's output."""
        return self.forward_suffix(self.prefix_of(inputs))

    def prefix_of(self, inputs: Tensor) -> Tensor:
        """Return the output of the prefix for images (B, 3, height, width); what is that already is returned."""
        return self.forward_prefix(inputs) if inputs.ndim == _IMAGE_AXES else inputs

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return self.head.weight.device

    def train(self, mode: bool = True) -> "TunedViT":
        """Set the mode of the head and the method's own modules; the frozen backbone stays in evaluation mode."""
        super().train(mode)
        self.vit.eval()
        return self

    def forward(self, inputs: Tensor) -> Tensor:
        """Classify images (B, 3, height, width), or outputs of the prefix, returning logits (B, C)."""
        logits: Tensor = self.head(self.forward_features(inputs))
        return logits

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        """Return the trainable parameters by kind; each kind has its own learning rate, see `build_optimizer`."""
        groups = {"method": list(self.method_tensors().values()), "head": list(self.head.parameters())}
        return {kind: parameters for kind, parameters in groups.items() if parameters}

    def meaning(self) -> tuple[str, ...]:
        """Return the properties that must be equal at all sites, besides the names and shapes of the layout."""
        return (f"method {self.method}", *(f"{name} {value:g}" for name, value in sorted(self.options.items())))

    def describe(self) -> dict[str, Any]:
        """Return the entries about the method for the metadata of a released model."""
        return {"method": self.method, "method_options": self.options}

    def folded_tensors(self) -> dict[str, Tensor]:
        """Return the method's tensors in their folded form.

        Raises:
            ValueError: for all methods but ept, because they have no folded form.
        """
        raise ValueError(f"method '{self.method}' has nothing to fold; its payload is raw")

    def payload_tensors(self, *, share: str, payload: str, detach: bool = True) -> dict[str, Tensor]:
        """Return the tensors that the site would send.

        Args:
            share: "prompts" for the method's tensors, or "prompts+head".
            payload: "raw" for the tensors as they are, or "folded" if the method has a folded form.
            detach: False keeps the computation graph, for terms of a loss.

        Returns:
            tensors by name, in the order of the layout: the method's, then the head's if shared.
        """
        tensors: dict[str, Tensor] = {**(self.folded_tensors() if payload == "folded" else self.method_tensors())}
        if share == "prompts+head":
            tensors |= {"head.weight": self.head.weight, "head.bias": self.head.bias}
        return {name: tensor.detach() for name, tensor in tensors.items()} if detach else tensors

    @torch.no_grad()
    def load_payload(self, tensors: Mapping[str, Tensor]) -> None:
        """Copy received tensors into the model.

        Raises:
            KeyError: for a name that this model does not have.
            ValueError: for a shape that does not fit.
        """
        targets = {**self.method_tensors(), "head.weight": self.head.weight, "head.bias": self.head.bias}
        for name, tensor in tensors.items():
            target = targets[name]
            if target.shape != tensor.shape:
                raise ValueError(f"{name} has shape {tuple(tensor.shape)}; this model needs {tuple(target.shape)}")
            target.copy_(tensor)

    @staticmethod
    def generator(seed: int) -> torch.Generator:
        """Return the generator from which a comparator draws its tensors, independent of all other draws."""
        return torch.Generator().manual_seed(derive_seed(seed, "method"))


def _create_head(embed_dim: int, num_classes: int, seed: int) -> nn.Linear:
    """Return a linear head (D -> C) drawn from its own generator, because nn.Linear would use the global one."""
    head: nn.Linear = nn.utils.skip_init(nn.Linear, embed_dim, num_classes)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        head.weight.normal_(0.0, HEAD_STD, generator=generator)
        head.bias.zero_()
    return head
