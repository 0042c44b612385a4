"""Every method with one backbone that is small enough for tests."""

import torch
from timm.models.vision_transformer import VisionTransformer

from ept_fed.catalog.methods import METHODS
from ept_fed.config.experiment import ModelSettings, TrainingSettings
from ept_fed.data.datasets.input_spec import InputSpec
from ept_fed.models import TunedViT, create_model, digest_tensors, frozen_tensors
from ept_fed.models.backbones import Backbone
from ept_fed.training.optimizer import build_optimizer

SIZE, PATCH, DEPTH, WIDTH, CLASSES = 32, 8, 3, 24, 5
SETTINGS: dict[str, ModelSettings] = {name: ModelSettings(method=name) for name in METHODS} | {
    "ept": ModelSettings(prompt_length=3, prompt_layers="deep", tokens=1),
    "vp": ModelSettings(method="vp", method_options={"pad": 4}),
}
RATES = TrainingSettings(method_lr=0.05, prompt_lr=0.05, token_lr=0.05, head_lr=0.05)


def micro_backbone(**options: object) -> Backbone:
    torch.manual_seed(0)
    vit = VisionTransformer(
        img_size=SIZE, patch_size=PATCH, embed_dim=WIDTH, depth=DEPTH, num_heads=3, num_classes=0, **options
    )
    with torch.no_grad():
        for name, tensor in vit.named_parameters():
            if name.endswith(".bias"):
                tensor.normal_(0.0, 0.1)
    vit.requires_grad_(False).eval()
    spec = InputSpec(size=SIZE, mean=(0.5,) * 3, std=(0.5,) * 3, interpolation="bicubic")
    return Backbone("micro", vit, digest_tensors(frozen_tensors(vit)), spec)


def build(name: str, backbone: Backbone | None = None, *, seed: int = 0, **options: float) -> TunedViT:
    settings = SETTINGS[name].model_copy(update={"method_options": options or SETTINGS[name].method_options})
    return create_model(settings, backbone or micro_backbone(), num_classes=CLASSES, seed=seed)


def images(batch: int = 4) -> torch.Tensor:
    return torch.randn(batch, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(7))


def step(model: TunedViT, steps: int = 1) -> None:
    optimizer = build_optimizer(model, RATES)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images()), torch.arange(4)).backward()
        optimizer.step()
    model.eval()
