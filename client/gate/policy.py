"""A site's policy: what may leave, what may come in. Only the site edits it (`policy.yaml`); no server can.

What the file does not say keeps the strictest default, and so does a site without a file. The defaults refuse every run
until a backbone is pinned. `ept_fed/assets/policy.yaml` is the commented file that every kit holds.
"""

import hashlib
import logging
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

import ept_fed
from ept_fed.catalog.methods import HEAD_TENSORS, METHODS, STATISTICS_TENSORS, HeadKind, Statistics, may_travel
from ept_fed.config.base import Count, Digest, Positive, Settings
from ept_fed.config.privacy import NoiseSource
from ept_fed.config.yaml_reader import read_mapping, validate_settings
from ept_fed.errors import InputRefusedError, Problem
from ept_fed.storage.canonical_json import serialize_canonical

__all__ = ["Budget", "Incoming", "Outgoing", "Policy", "TrainingRanges", "UpdateBound", "load_policy"]

_log = logging.getLogger(__name__)


def _check_range(ends: tuple[float, float]) -> tuple[float, float]:
    if ends[0] > ends[1]:
        raise ValueError("write [least, most], the least first")
    return ends


def _check_tensor(name: str) -> str:
    if name in HEAD_TENSORS:
        raise ValueError("the head has a rule of its own: outgoing.head")
    if name in STATISTICS_TENSORS:
        raise ValueError("an LDA head's statistics have a rule of their own: outgoing.statistics")
    if not may_travel(name):
        raise ValueError("no method sends a tensor of this name; see docs/methods.md")
    return name


def _check_method(name: str) -> str:
    if name not in METHODS:
        raise ValueError(f"is no method; the methods are {', '.join(METHODS)}")
    return name


_End = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Range = Annotated[tuple[_End, _End], AfterValidator(_check_range)]
Metric = Literal["loss", "auc", "accuracy", "balanced_accuracy", "average_precision", "classes_present", "seconds"]


class UpdateBound(Settings):
    """How far training may move what the site sends."""

    bound: Positive = Field(
        1.0,
        description="largest root mean square of an update, over the numbers of each tensor by itself",
    )
    above: Literal["refuse", "clip"] = Field(
        "refuse", description="an update above the bound: refuse it, or scale it down to the bound"
    )


class Budget(Settings):
    """How much all private training at this site may ever tell of one training image, or of all of them."""

    epsilon: Positive = Field(description="largest ε of all private rounds together, over all runs")
    delta: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(
        1e-5, description="probability that epsilon may fail to hold; keep it well below 1 / training images"
    )
    noise: tuple[NoiseSource, ...] = Field(
        ("local",),
        description="whose noise on whole updates counts (federation.site_privacy.noise), beside this site's own in "
        "training: distributed believes the other sites, central the server",
    )


class Outgoing(Settings):
    """What may leave."""

    tensors: tuple[Annotated[str, AfterValidator(_check_tensor)], ...] = Field(
        ("sinks", "tokens"), description="names of the tensors that may leave; sinks are folded prompts"
    )
    head: bool = Field(False, description="whether the linear head may leave too; it tells more about the classes")
    statistics: Statistics | None = Field(
        None,
        description="which of an LDA head's statistics may leave: means of each class's features, or moments, of "
        "their products too; null: none. They tell more than a head",
    )
    min_class_images: Count = Field(
        5, description="statistics in which a class has training images, but fewer than these, are refused"
    )
    gradient: bool = Field(False, description="whether the gradient of the site's loss may leave (strategy scaffold)")
    metrics: tuple[Metric, ...] = Field(
        ("loss", "auc", "accuracy", "balanced_accuracy", "average_precision", "classes_present", "seconds"),
        description="metrics that may leave; others are sent as undefined. A train reply always carries its loss",
    )
    min_images: Count = Field(10, description="a metric over fewer images is sent as undefined, over 0 images")
    min_training_images: Count = Field(10, description="an update trained on fewer images is refused")
    digits: Annotated[int, Field(ge=0, le=15)] = Field(3, description="decimals that metrics are rounded to")
    update: UpdateBound = UpdateBound()
    min_secure_aggregation_sites: Annotated[int, Field(ge=3)] = Field(
        3, description="refuse secure aggregation whose sums may be of fewer sites than these"
    )
    secure_aggregation_only: bool = Field(
        False, description="refuse runs without secure aggregation, in which the server sees every update"
    )
    budget: Budget | None = Field(
        None,
        description="with one, training without noise is refused, and so are other splits than the first run's, "
        "and the round that would overspend it",
    )


class TrainingRanges(Settings):
    """What a server may ask for in a round, [least, most] for every number of the training settings."""

    prompt_lr: Range = (0.0, 1.0)
    token_lr: Range = (0.0, 0.1)
    method_lr: Range = (0.0, 0.1)
    head_lr: Range = (0.0, 0.1)
    weight_decay: Range = (0.0, 0.1)
    momentum: Range = (0.0, 0.99)
    epochs: Range = (1, 20)
    head_first_epochs: Range = (0, 20)
    head_shrinkage: Range = (0.0, 1.0)
    head_evidence: Range = (0.0, 1000.0)
    batch_size: Range = (4, 256)
    proximal_mu: Range = (0.0, 10.0)


class Incoming(Settings):
    """What may come in."""

    backbone: tuple[Digest, ...] | Literal["first"] | None = Field(
        None,
        description="SHA-256 of the backbones that may be tuned; first: the one that is loaded first, and no other "
        "afterwards; null: none",
    )
    code: tuple[str, ...] = Field(
        (ept_fed.__version__,), description="versions of ept-fed that a server may have; the default is this site's own"
    )
    methods: tuple[Annotated[str, AfterValidator(_check_method)], ...] = Field(
        ("ept",), description="names of docs/methods.md"
    )
    share: tuple[Literal["prompts", "prompts+head"], ...] = ("prompts",)
    heads: tuple[HeadKind, ...] = Field(
        ("trained", "lda"),
        description="how heads may be made, see training.head; the server knows a fixed head too, so with the prompts "
        "it has the whole classifier, and with fixed+lda all but the site's own share",
    )
    payload: tuple[Literal["folded", "raw"], ...] = ("folded",)
    correction: bool = Field(
        False, description="whether a server may add a linear term to the loss (strategies scaffold and feddyn)"
    )
    splits: tuple[Literal["train", "validation", "test"], ...] = Field(
        ("validation", "test"), description="what a server may ask to evaluate on"
    )
    rounds: Range = (1, 200)
    fine_tune_epochs: Range = Field((0, 50), description="after the last round, for the site alone")
    image_size: Range = Field((0, 640), description="pixels per side; 0 stands for the backbone's own")
    prompt_length: Range = (1, 1000)
    tokens: Range = Field((0, 20), description="context tokens per prompted layer")
    initial_sink: Range = Field((0, 8), description="where every sink may be told to start")
    training: TrainingRanges = TrainingRanges()
    prompt_change: Positive = Field(
        1.0,
        description="largest root mean square of the change of the prompts that come in, over the numbers of each "
        "tensor by itself, against those accepted last",
    )


class Policy(Settings):
    """A policy.yaml."""

    schema_version: Literal[1] = Field(1, alias="schema", description="of this file's format")
    outgoing: Outgoing = Outgoing()
    incoming: Incoming = Incoming()

    @property
    def digest(self) -> str:
        """SHA-256, in hex, of all rules; it stands in every entry of the ledger."""
        return hashlib.sha256(serialize_canonical(self.model_dump(mode="json", by_alias=True))).hexdigest()


def load_policy(path: Path) -> Policy:
    """Read a policy; without a file the strictest one, which is said aloud.

    Raises:
        InputRefusedError: with every problem of the file; a policy that cannot be understood permits nothing.
    """
    if not path.exists():
        _log.warning(
            "there is no %s: the strictest policy holds, and every run is refused until a backbone is pinned", path.name
        )
        return Policy()
    raw = read_mapping(path, "policy", "a mapping with schema, outgoing and incoming")
    policy, problems = validate_settings(Policy, raw, lambda _: [])
    if "schema" not in raw:
        problems.append(Problem("schema", None, "is required; add schema: 1"))
    if problems or policy is None:
        raise InputRefusedError(problems)
    return policy
