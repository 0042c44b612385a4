"""The catalogue of methods: name, paper, options, and the tensors that a method trains and may send.

This module is pure data. It is used by the settings (which refuse unknown names and options), the payload's layout
(which excludes all other tensors), the models and the docs. Options have the values of the EPT paper's comparison
(Zu et al. 2024, Table 1) where the paper states them. Where it tries several values, the default here is one of them.
"""

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Literal

from ept_fed.catalog.options import Option

__all__ = [
    "FIXED_HEADS",
    "HEAD_TENSORS",
    "METHODS",
    "STATISTICS_TENSORS",
    "HeadKind",
    "MethodInfo",
    "Statistics",
    "find_senders",
    "may_travel",
]

HEAD_TENSORS = ("head.weight", "head.bias")
# An LDA head is computed from these tensors, see ept_fed/training/lda.py.
STATISTICS_TENSORS = ("statistics.shares", "statistics.sums", "statistics.mean", "statistics.moments")
Statistics = Literal["means", "moments"]  # means: STATISTICS_TENSORS without the last; moments: all of them
HeadKind = Literal["trained", "fixed", "fixed+lda", "lda"]  # how the head is made, see training.head
# Heads that every site draws from the run's seed and keeps frozen while prompts train.
FIXED_HEADS: tuple[HeadKind, ...] = ("fixed", "fixed+lda")

_OF_BACKBONE = "backbone."


@dataclass(frozen=True)
class MethodInfo:
    """One method.

    Attributes:
        model: module below ept_fed.models and class, `module:Class`; it is imported only where a model is tuned.
        paper: the publication.
        summary: what it trains in addition to the linear head, in one sentence.
        caveat: when not to use it, or how this implementation differs from the paper's.
        tensors: names of the tensors that it trains and sends, without the head; for ept also their folded form.
        backbone_tensors: regular expression for names of backbone tensors; the method trains copies of these, which
            are sent as `backbone.<name>`. None: it trains no copies.
        options: the method's options by name.
    """

    model: str
    paper: str
    summary: str
    caveat: str
    tensors: tuple[str, ...] = ()
    backbone_tensors: str | None = None
    options: Mapping[str, Option] = field(default_factory=dict)

    @property
    def sends_without_head(self) -> bool:
        """Whether the method sends any tensor when the head stays at the site."""
        return bool(self.tensors) or self.backbone_tensors is not None

    def may_send(self, name: str) -> bool:
        """Return whether this method may send a tensor of this name.

        All methods may send the tensors of the head and of its statistics.
        """
        if name in self.tensors or name in HEAD_TENSORS or name in STATISTICS_TENSORS:
            return True
        own = name.removeprefix(_OF_BACKBONE)
        return (
            self.backbone_tensors is not None
            and own != name
            and re.fullmatch(self.backbone_tensors, own, flags=re.ASCII) is not None
        )


METHODS: dict[str, MethodInfo] = {
    "ept": MethodInfo(
        "prompted_vit:PromptedViT",
        "Zu et al. 2024, arXiv 2407.01003",
        "Prompt columns beside the attention logits, and optionally context tokens.",
        "Context tokens carry what the sites learn from each other; sinks without them carry little. See "
        "docs/benchmark.md.",
        ("sinks", "prompts", "tokens"),
    ),
    "linear": MethodInfo(
        "comparators.linear:Linear",
        "as in Zu et al. 2024, Table 1",
        "Only the head.",
        "It requires federation.share=prompts+head, because without the head there is nothing to send.",
    ),
    "full": MethodInfo(
        "comparators.full:Full",
        "as in Zu et al. 2024, Table 1",
        "A copy of every tensor of the backbone.",
        "The whole model is sent, and a site stores it and its optimiser moments for several rounds. It overfits few "
        "images. With AdamW it is usually trained at a much lower learning rate than the default.",
        backbone_tensors=r"[A-Za-z0-9_.]+",
    ),
    "partial_1": MethodInfo(
        "comparators.partial_1:PartialOne",
        "Yosinski et al. 2014, arXiv 1411.1792; as in Jia et al. 2022, arXiv 2203.12119",
        "A copy of the last block.",
        "A whole block is sent. Jia et al.'s code also trains the last layer norm; this implementation does not.",
        backbone_tensors=r"blocks\.\d+\.[A-Za-z0-9_.]+",
    ),
    "mlp_3": MethodInfo(
        "comparators.mlp_3:MLP3",
        "Mlp-3 of Jia et al. 2022, arXiv 2203.12119",
        "Two hidden layers, as wide as the features, before the head.",
        "It has more parameters than there are images, so it overfits with few shots.",
        ("mlp.weight", "mlp.bias"),
    ),
    "lora": MethodInfo(
        "comparators.lora:LoRA",
        "Hu et al. 2022, arXiv 2106.09685",
        "A low-rank addition to the query and value weights of every block.",
        "The product of the averaged factors is not the average of the sites' products.",
        ("lora.query.down", "lora.query.up", "lora.value.down", "lora.value.up"),
        options={
            "rank": Option(8, 1, 1024, "r of the factors; the paper tries 1, 4, 8, 32 and 64", whole=True),
            "alpha": Option(8, 1e-3, 1024, "the addition is scaled by alpha / rank"),
        },
    ),
    "bias": MethodInfo(
        "comparators.bias:Bias",
        "Ben Zaken et al. 2022, arXiv 2106.10199",
        "A copy of every bias of the backbone.",
        "A backbone without biases cannot be trained with this method.",
        backbone_tensors=r"[A-Za-z0-9_.]+\.bias",
    ),
    "adapter": MethodInfo(
        "comparators.adapter:Adapter",
        "Chen et al. 2022, arXiv 2205.13535 (AdaptFormer)",
        "A bottleneck beside the MLP of every block.",
        "Averaging two-layer bottlenecks mixes hidden units that sites may use differently.",
        ("adapter.down.weight", "adapter.down.bias", "adapter.up.weight", "adapter.up.bias"),
        options={
            "reduction": Option(
                8, 1, 4096, "the bottleneck is D // reduction wide; the paper tries 1 to 64", whole=True
            ),
            "scale": Option(0.1, 1e-3, 10, "factor on the bottleneck's output; AdaptFormer uses 0.1"),
        },
    ),
    "vp": MethodInfo(
        "comparators.vp:VisualPrompt",
        "Bahng et al. 2022, arXiv 2203.17274",
        "A border of numbers that is added to every image.",
        "A wide border disturbs the edge of the image. It starts near zero, not with unit noise as in Bahng et al. Zu "
        "et al. describe their VP as values added to the input tokens; this is the border of the paper that they cite.",
        ("vp.top", "vp.bottom", "vp.left", "vp.right"),
        options={"pad": Option(30, 1, 2048, "width of the border in pixels; Bahng et al.: 30 of 224", whole=True)},
    ),
    "vpt": MethodInfo(
        "comparators.vpt:VPT",
        "Jia et al. 2022, arXiv 2203.12119",
        "Tokens that are added to the image's tokens in every block, or only in the first.",
        "It is sensitive to its learning rate: on HAM10000's validation lesions, with shared heads and one sample, AUC "
        "was 0.763 at method_lr 0.001 and 0.709 at 0.005.",
        ("vpt.tokens",),
        options={
            "tokens": Option(10, 1, 200, "T per layer; the paper tries 1, 5, 10, 50, 100 and 150", whole=True),
            "deep": Option(1, 0, 1, "1: new tokens in every block; 0: tokens only in the first block", whole=True),
        },
    ),
}


def find_senders(names: Collection[str]) -> list[str]:
    """Return the methods that may send all of these tensors together."""
    return [method for method, info in METHODS.items() if all(info.may_send(name) for name in names)]


def may_travel(name: str) -> bool:
    """Return whether any method may send a tensor of this name."""
    return bool(find_senders([name]))
