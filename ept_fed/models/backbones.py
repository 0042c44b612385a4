"""Frozen backbones: timm creates them, they load without pickle, and a digest of their tensors identifies them."""

import difflib
import hashlib
import pickle
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.layers.attention import Attention
from timm.models.vision_transformer import Block, VisionTransformer, checkpoint_filter_fn
from torch import Tensor, nn

import ept_fed.models.demo_backbone  # noqa: F401 - registers the name with timm
from ept_fed.data.datasets.input_spec import InputSpec
from ept_fed.errors import InputRefusedError, Problem

__all__ = ["Backbone", "create_backbone", "digest_tensors", "frozen_tensors"]

_WEIGHT_WRAPPERS = ("state_dict", "model", "model_ema", "teacher")
_CLASSIFIER_PREFIXES = ("head.", "head_dist.", "fc.")


@dataclass(frozen=True)
class Backbone:
    """A frozen ViT with its name, digest and input format.

    Attributes:
        name: timm name.
        vit: the module; no parameter requires a gradient, and it stays in evaluation mode.
        digest: SHA-256 over names, dtypes, shapes and bytes of the tensors as loaded, before the position embedding is
            resized to `image_size`. Resizing may round differently on another processor; the loaded tensors are the
            same everywhere.
        input: format of the images that it expects.
    """

    name: str
    vit: VisionTransformer
    digest: str
    input: InputSpec

    @property
    def num_tokens(self) -> int:
        """The number of tokens N: prefix tokens (cls, registers, distillation) and patches."""
        return int(self.vit.num_prefix_tokens + self.vit.patch_embed.num_patches)


def create_backbone(name: str, *, weights: str | None, image_size: int | None, seed: int) -> Backbone:
    """Create and freeze a timm ViT with standard attention.

    Args:
        name: a timm model name or `hf-hub:` id.
        weights: None for random weights drawn from `seed`, "pretrained" for timm's own, or a .safetensors or .pth file.
        image_size: pixels per side, to which the position embedding is resized; None keeps the model's own size.
        seed: for random weights.

    Raises:
        InputRefusedError: for an unknown name, an unsupported architecture, weights that do not fit or are not finite,
            or an image size that is not a multiple of the patch size.
    """
    vit = _create(name, pretrained=weights == "pretrained", seed=seed)
    problems: list[Problem] = []
    if image_size is not None:
        problems += _check_size(vit, image_size)
    try:
        if weights is not None and weights != "pretrained":
            _load_weights(vit, Path(weights))
    except InputRefusedError as refusal:
        problems += refusal.problems
    if problems:
        raise InputRefusedError(problems)
    not_finite = [key for key, tensor in frozen_tensors(vit).items() if not torch.isfinite(tensor).all()]
    if not_finite:
        shown = ", ".join(not_finite[:5])
        raise _refusal(
            "weights", weights, f"{len(not_finite)} tensors contain NaN or infinity ({shown}); use an intact copy"
        )
    digest = digest_tensors(frozen_tensors(vit))
    if image_size is not None:
        _resize(vit, image_size)
    vit.requires_grad_(False).eval()
    try:
        spec = InputSpec.from_pretrained_cfg(vit.pretrained_cfg, vit.patch_embed.img_size[0])
    except (TypeError, ValueError) as error:
        raise _refusal("backbone", name, f"does not specify how its images are prepared: {error}") from error
    return Backbone(name, vit, digest, spec)


def frozen_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return all parameters and persistent buffers by name."""
    return dict(module.state_dict())


def digest_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Return the SHA-256, in hex, over names, dtypes, shapes and bytes of tensors, sorted by name."""
    digest = hashlib.sha256()
    for key in sorted(tensors):
        tensor = tensors[key].detach().cpu().contiguous()
        digest.update(f"{key}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _create(name: str, *, pretrained: bool, seed: int) -> VisionTransformer:
    if not name.startswith("hf-hub:") and not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(["vit_*", "deit*"]), n=3, cutoff=0.4)
        raise _refusal("backbone", name, f"timm has no such model; similar names: {', '.join(near) or 'none'}")
    with torch.random.fork_rng(devices=[]):
        # timm draws from the global generator; the fork keeps the caller's random state unchanged.
        torch.manual_seed(seed)
        try:
            if pretrained:
                # Check the architecture before the weights are downloaded.
                with torch.device("meta"):
                    _require_supported(name, timm.create_model(name, pretrained=False, num_classes=0))
            vit = timm.create_model(name, pretrained=pretrained, num_classes=0)
        except (OSError, RuntimeError, ValueError) as error:
            fix = f"timm could not create it ({_first_line(error)}); give a local file"
            raise _refusal("backbone", name, fix) from error
    _require_supported(name, vit)
    return vit


def _require_supported(name: str, vit: nn.Module) -> None:
    if unsupported := _why_unsupported(vit):
        raise _refusal("backbone", name, unsupported)


def _why_unsupported(vit: nn.Module) -> str | None:
    supported = (
        "supported are timm VisionTransformers with plain pre-norm blocks and standard attention: "
        "vit_*, deit*_*, vit_*_dinov2*, vit_*_reg4_*, with or without LayerScale"
    )
    if not isinstance(vit, VisionTransformer):
        return f"is a {type(vit).__name__}; {supported}"
    for index, block in enumerate(vit.blocks):
        if type(block) is not Block:
            return f"block {index} is a {type(block).__name__}; {supported}"
        if type(block.attn) is not Attention:
            return f"block {index} attends with {type(block.attn).__name__}; {supported}"
    return None


def _load_weights(vit: VisionTransformer, path: Path) -> None:
    try:
        loaded: Any = (
            load_file(path)
            if path.suffix == ".safetensors"
            else torch.load(path, map_location="cpu", weights_only=True)
        )
    except (OSError, SafetensorError, RuntimeError, ValueError, EOFError) as error:
        raise _refusal("weights", str(path), f"cannot be read ({_first_line(error)})") from error
    except (pickle.UnpicklingError, AttributeError, IndexError, KeyError) as error:
        advice = "is not a plain weights file; convert it to .safetensors on a machine where you trust it"
        raise _refusal("weights", str(path), advice) from error
    state = _unwrap(loaded)
    if state is None:
        raise _refusal("weights", str(path), "contains no mapping from names to tensors")
    wanted = frozen_tensors(vit)
    try:
        state = {key: tensor.float() for key, tensor in checkpoint_filter_fn(state, vit).items()}
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        fix = f"has tensors with shapes that no ViT has ({_first_line(error)}); check model.backbone"
        raise _refusal("weights", str(path), fix) from error
    spare = [key for key in state if key not in wanted and not key.startswith(_CLASSIFIER_PREFIXES)]
    missing = [key for key in wanted if key not in state]
    shapes = [
        f"{key} is {tuple(state[key].shape)}, not {tuple(tensor.shape)}"
        for key, tensor in wanted.items()
        if key in state and state[key].shape != tensor.shape
    ]
    if spare or missing or shapes:
        raise _refusal("weights", str(path), _explain_misfit(missing, spare, shapes))
    vit.load_state_dict({key: state[key] for key in wanted}, strict=True)


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _unwrap(loaded: Any) -> dict[str, Tensor] | None:
    for wrapper in _WEIGHT_WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(wrapper), Mapping):
            loaded = loaded[wrapper]
            break
    if not isinstance(loaded, Mapping) or not all(isinstance(value, Tensor) for value in loaded.values()):
        return None
    return {str(key).removeprefix("module."): value for key, value in loaded.items()}


def _explain_misfit(missing: Iterable[str], spare: Iterable[str], shapes: Iterable[str]) -> str:
    parts = []
    for label, items in (
        ("lacks", list(missing)),
        ("has unknown", list(spare)),
        ("has other shapes:", list(shapes)),
    ):
        if items:
            parts.append(f"{label} {', '.join(items[:3])}" + (f" and {len(items) - 3} more" if len(items) > 3 else ""))
    return f"does not fit this backbone: {'; '.join(parts)}; check model.backbone"


def _check_size(vit: VisionTransformer, image_size: int) -> list[Problem]:
    patch = vit.patch_embed.patch_size[0]
    if image_size % patch == 0:
        return []
    below, above = image_size // patch * patch, (image_size // patch + 1) * patch
    near = f"{below} or {above}" if below else f"{above}"
    return [Problem("model.image_size", image_size, f"must be a multiple of the patch size {patch}; use {near}")]


def _resize(vit: VisionTransformer, image_size: int) -> None:
    if (image_size, image_size) != tuple(vit.patch_embed.img_size):
        vit.set_input_size(img_size=image_size)


def _refusal(setting: str, value: object, fix: str) -> InputRefusedError:
    return InputRefusedError([Problem(f"model.{setting}", value, fix)])
