"""The catalogue of methods: what each is called, where it is from, which tensors it trains and may therefore send.

Pure data, shared by the settings (which refuse unknown names and numbers), the payload's layout (which lets nothing
else travel), the models and the docs. Settings are those of the EPT paper's comparison (Zu et al. 2024, Table 1) where
it gives them; where it tries several values, the default here is one of them.
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
# What an LDA head is computed from, see ept_fed/training/lda.py.
STATISTICS_TENSORS = ("statistics.shares", "statistics.sums", "statistics.mean", "statistics.moments")
Statistics = Literal["means", "moments"]  # all of these but the last, or all
HeadKind = Literal["trained", "fixed", "fixed+lda", "lda"]  # how the head is made, see training.head
# Those that every site draws from the run's seed and holds still while prompts train.
FIXED_HEADS: tuple[HeadKind, ...] = ("fixed", "fixed+lda")

_OF_BACKBONE = "backbone."


@dataclass(frozen=True)
class MethodInfo:
    """One method.

    Attributes:
        model: its module below ept_fed.models and its class, `module:Class`; only those who tune a model import it.
        paper: where it was published.
        summary: what it trains beside the linear head, in a sentence.
        caveat: when not to use it, or where ours differs from the paper's.
        tensors: names of what it trains and sends, beside the head; for ept also their folded form.
        backbone_tensors: regular expression for names of the backbone's own tensors that it trains copies of; these
            travel as `backbone.<name>`. None trains none.
        options: the method's own numbers, by name.
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
        """Tell whether anything is left to send when the head stays at the site."""
        return bool(self.tensors) or self.backbone_tensors is not None

    def may_send(self, name: str) -> bool:
        """Tell whether a tensor of this name may travel under this method; what makes the head may under every one."""
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
        "vit:PromptedViT",
        "Zu et al. 2024, arXiv 2407.01003",
        "Prompt columns beside the attention logits, and optionally context tokens.",
        "On HAM10000, three seeds, prompts with heads that every site trains for itself were not shown to beat staying "
        "home; with tokens under training.head=fixed+lda they were, on blood cells; see docs/prompts-alone.md.",
        ("sinks", "prompts", "tokens"),
    ),
    "linear": MethodInfo(
        "comparators.linear:Linear",
        "as in Zu et al. 2024, Table 1",
        "Nothing but the head.",
        "Nothing is left to send if the head stays at the site, so it needs federation.share=prompts+head.",
    ),
    "full": MethodInfo(
        "comparators.full:Full",
        "as in Zu et al. 2024, Table 1",
        "A copy of every tensor of the backbone.",
        "The whole model travels, and a site keeps it and its moments for several rounds. Few images overfit it; under "
        "AdamW it is usually trained at a far lower rate than the default.",
        backbone_tensors=r"[A-Za-z0-9_.]+",
    ),
    "partial_1": MethodInfo(
        "comparators.partial_1:PartialOne",
        "Yosinski et al. 2014, arXiv 1411.1792; as in Jia et al. 2022, arXiv 2203.12119",
        "A copy of the last block.",
        "A whole block travels. Jia et al.'s code also trains the last layer norm; this does not.",
        backbone_tensors=r"blocks\.\d+\.[A-Za-z0-9_.]+",
    ),
    "mlp_3": MethodInfo(
        "comparators.mlp_3:MLP3",
        "Mlp-3 of Jia et al. 2022, arXiv 2203.12119",
        "Two hidden layers, as wide as the features, before the head.",
        "More numbers than images: it overfits the fewest shots first.",
        ("mlp.weight", "mlp.bias"),
    ),
    "lora": MethodInfo(
        "comparators.lora:LoRA",
        "Hu et al. 2022, arXiv 2106.09685",
        "A low-rank addition to the query and value weights of every block.",
        "The product of averaged factors is not the average of the sites' products.",
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
        "A backbone without biases has nothing to train.",
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
            "scale": Option(0.1, 1e-3, 10, "what the bottleneck's output is multiplied by, AdaptFormer's 0.1"),
        },
    ),
    "vp": MethodInfo(
        "comparators.vp:VisualPrompt",
        "Bahng et al. 2022, arXiv 2203.17274",
        "A border of numbers that is added to every image.",
        "A wide border disturbs what lies at the edge. It starts near zero, not at Bahng et al.'s unit noise. Zu et "
        "al. describe their VP as values added to the input tokens; this is the border of the paper they cite.",
        ("vp.top", "vp.bottom", "vp.left", "vp.right"),
        options={"pad": Option(30, 1, 2048, "width of the border in pixels; Bahng et al.: 30 of 224", whole=True)},
    ),
    "vpt": MethodInfo(
        "comparators.vpt:VPT",
        "Jia et al. 2022, arXiv 2203.12119",
        "Tokens that are put beside the image's in every block, or in the first alone.",
        "Sensitive to its rate: on HAM10000's validation lesions, heads shared, one sample, AUC was 0.763 at "
        "method_lr 0.001 and 0.709 at 0.005 (docs/recipes.md).",
        ("vpt.tokens",),
        options={
            "tokens": Option(10, 1, 200, "T per layer; the paper tries 1, 5, 10, 50, 100 and 150", whole=True),
            "deep": Option(1, 0, 1, "1 for new tokens in every block, 0 for the first alone", whole=True),
        },
    ),
}


def find_senders(names: Collection[str]) -> list[str]:
    """Return the methods under which all of these tensors may travel together."""
    return [method for method, info in METHODS.items() if all(info.may_send(name) for name in names)]


def may_travel(name: str) -> bool:
    """Tell whether a tensor of this name may travel under any method."""
    return bool(find_senders([name]))
