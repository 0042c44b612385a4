"""The demo backbone: a small ViT that is part of the package, so that everything runs offline.

It is registered with timm as `vit_demo_patch8_64`: patch 8 at 64 px, width 192, six blocks, 2.7 M parameters. Its
weights were trained only on procedural images (simulations/pretraining/train.py); ept_fed/assets contains them with
a model card. It is for demos and tests. For patients, use a foundation model.
"""

from pathlib import Path
from typing import Any

from timm.models import generate_default_cfgs, register_model
from timm.models.vision_transformer import VisionTransformer

__all__ = ["DEMO_BACKBONE", "DEMO_WEIGHTS"]

DEMO_BACKBONE = "vit_demo_patch8_64"
DEMO_WEIGHTS = Path(__file__).resolve().parents[1] / "assets" / f"{DEMO_BACKBONE}.safetensors"

default_cfgs = generate_default_cfgs(
    {
        DEMO_BACKBONE: {
            "file": str(DEMO_WEIGHTS),
            "input_size": (3, 64, 64),
            "num_classes": 0,
            "mean": (0.485, 0.456, 0.406),
            "std": (0.229, 0.224, 0.225),
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "first_conv": "patch_embed.proj",
            "classifier": "head",
            "license": "apache-2.0",
        }
    }
)


@register_model
def vit_demo_patch8_64(pretrained: bool = False, **options: Any) -> VisionTransformer:
    """Create the demo backbone; timm calls this for `create_model("vit_demo_patch8_64")`."""
    from timm.models import build_model_with_cfg
    from timm.models.vision_transformer import checkpoint_filter_fn

    architecture = {"img_size": 64, "patch_size": 8, "embed_dim": 192, "depth": 6, "num_heads": 3, "num_classes": 0}
    vit: VisionTransformer = build_model_with_cfg(
        VisionTransformer,
        DEMO_BACKBONE,
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        **{**architecture, **options},
    )
    return vit
