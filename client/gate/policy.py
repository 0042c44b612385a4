"""A site's policy: rules for outgoing and incoming messages. Only the site edits it (`policy.yaml`); no server can.

Settings that are not in the file keep the strictest default; a site without a file has all defaults. The defaults
refuse every run until a backbone is pinned. `ept_fed/assets/policy.yaml` is the commented file in every kit.
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

__all__ = ["Budget", "Incoming", "Outgoing", "Policy", "RunLimit", "TrainingRanges", "UpdateBound", "load_policy"]

_log = logging.getLogger(__name__)


def _check_range(ends: tuple[float, float]) -> tuple[float, float]:
    if ends[0] > ends[1]:
        raise ValueError("write [minimum, maximum], the minimum first")
    return ends


def _check_tensor(name: str) -> str:
    if name in HEAD_TENSORS:
        raise ValueError("the head has its own rule: outgoing.head")
    if name in STATISTICS_TENSORS:
        raise ValueError("an LDA head's statistics have their own rule: outgoing.statistics")
    if not may_travel(name):
        raise ValueError("no method sends a tensor of this name; see docs/methods.md")
    return name


def _check_method(name: str) -> str:
    if name not in METHODS:
        raise ValueError(f"is not a method; the methods are {', '.join(METHODS)}")
    return name


_End = Annotated[float, Field(ge=0.0, allow_inf_nan=False)]
Range = Annotated[tuple[_End, _End], AfterValidator(_check_range)]
Metric = Literal["loss", "auc", "accuracy", "balanced_accuracy", "average_precision", "classes_present", "seconds"]


class UpdateBound(Settings):
    """Bound on the change of the payload that a site's training may send."""

    bound: Positive = Field(
        1.0,
        description="largest root mean square of an update, computed for each tensor separately",
    )
    above: Literal["refuse", "clip"] = Field(
        "refuse", description="an update above the bound: refuse it, or scale it down to the bound"
    )


class Budget(Settings):
    """Bound on what all private training at this site may ever leak about one training image, or about all of them."""

    epsilon: Positive = Field(description="largest ε of all private rounds together, over all runs")
    delta: Annotated[float, Field(gt=0.0, lt=1.0)] = Field(
        1e-5, description="probability that epsilon may fail to hold; keep it well below 1 / training images"
    )
    noise: tuple[NoiseSource, ...] = Field(
        ("local",),
        description="sources of noise on whole updates (federation.site_privacy.noise) that the site trusts, besides "
        "its own noise in training: distributed trusts the other sites, central trusts the server",
    )


class RunLimit(Settings):
    """Limit on the number of runs, each of which tells a little more about the same images."""

    runs: Count = Field(20, description="largest number of runs in which updates may leave")
    days: Count = Field(30, description="within so many days")


class Outgoing(Settings):
    """Rules for outgoing messages."""

    tensors: tuple[Annotated[str, AfterValidator(_check_tensor)], ...] = Field(
        ("sinks", "tokens"), description="names of the tensors that may leave; sinks are folded prompts"
    )
    head: bool = Field(False, description="whether the linear head may leave too; it leaks more about the classes")
    statistics: Statistics | None = Field(
        None,
        description="statistics of an LDA head that may leave: means (of each class's features), or moments (of their "
        "products too); null: none. They leak more than a head",
    )
    min_class_images: Count = Field(
        5, description="statistics in which a class has training images, but fewer than these, are refused"
    )
    repeated_statistics: bool = Field(
        False,
        description="whether statistics may leave under secure aggregation in more than one run; they do not depend on "
        "the seed, so the difference of two sums over different sites can be one site's statistics",
    )
    gradient: bool = Field(False, description="whether the gradient of the site's loss may leave (strategy scaffold)")
    metrics: tuple[Metric, ...] = Field(
        ("loss", "auc", "accuracy", "balanced_accuracy", "average_precision", "classes_present", "seconds"),
        description="metrics that may leave; others are sent as undefined. A train reply always contains its loss",
    )
    min_images: Count = Field(10, description="a metric over fewer images is sent as undefined, and their number as 0")
    min_training_images: Count = Field(10, description="an update trained on fewer images is refused")
    digits: Annotated[int, Field(ge=0, le=15)] = Field(3, description="number of decimals to which metrics are rounded")
    update: UpdateBound = UpdateBound()
    run_limit: RunLimit | None = Field(
        RunLimit(), description="limit on the number of runs in which updates may leave; null: none"
    )
    min_secure_aggregation_sites: Annotated[int, Field(ge=3)] = Field(
        3, description="refuse secure aggregation whose sums may contain fewer sites than this"
    )
    secure_aggregation_only: bool = Field(
        False, description="refuse runs without secure aggregation, in which the server sees every update"
    )
    budget: Budget | None = Field(
        None,
        description="the site's privacy budget. With a budget, the site refuses training without noise, splits that "
        "differ from the first run's, and every round that would exceed the budget",
    )


class TrainingRanges(Settings):
    """Training settings that a server may request for a round: [minimum, maximum] for every number."""

    prompt_lr: Range = (0.0, 1.0)
    token_lr: Range = (0.0, 0.1)
    method_lr: Range = (0.0, 0.1)
    head_lr: Range = (0.0, 0.1)
    weight_decay: Range = (0.0, 0.1)
    momentum: Range = (0.0, 0.99)
    epochs: Range = (1, 20)
    head_first_epochs: Range = (0, 20)
    fixed_head_std: Range = (0.0, 1.0)
    head_shrinkage: Range = (0.0, 1.0)
    head_evidence: Range = (0.0, 1000.0)
    batch_size: Range = (4, 256)
    proximal_mu: Range = (0.0, 10.0)


class Incoming(Settings):
    """Rules for incoming messages."""

    backbone: tuple[Digest, ...] | Literal["first"] | None = Field(
        None,
        description="SHA-256 of the backbones that may be tuned; first: only the backbone that is loaded first; "
        "null: none",
    )
    code: tuple[str, ...] = Field(
        (ept_fed.__version__,), description="versions of ept-fed that a server may use; default: this site's version"
    )
    methods: tuple[Annotated[str, AfterValidator(_check_method)], ...] = Field(
        ("ept",), description="methods that a run may use, by their names in docs/methods.md"
    )
    share: tuple[Literal["prompts", "prompts+head"], ...] = ("prompts",)
    heads: tuple[HeadKind, ...] = Field(
        ("trained", "fixed+lda", "lda"),
        description="kinds of heads that are allowed, see training.head. The server has a fixed head too: with the "
        "prompts it has the whole classifier, and with fixed+lda all but the site's own share",
    )
    payload: tuple[Literal["folded", "raw"], ...] = ("folded",)
    correction: bool = Field(
        False, description="whether a server may add a linear term to the loss (strategies scaffold and feddyn)"
    )
    splits: tuple[Literal["train", "validation", "test"], ...] = Field(
        ("validation", "test"), description="splits on which a server may request an evaluation"
    )
    rounds: Range = (1, 200)
    fine_tune_epochs: Range = Field((0, 50), description="epochs of local fine-tuning after the last round")
    image_size: Range = Field((0, 640), description="pixels per side; 0 means the backbone's own size")
    prompt_length: Range = (1, 1000)
    tokens: Range = Field((0, 64), description="context tokens per prompted layer")
    initial_sink: Range = Field((0, 8), description="initial value of every sink that a run may set")
    training: TrainingRanges = TrainingRanges()
    prompt_change: Positive = Field(
        1.0,
        description="largest root mean square of the difference between incoming prompts and those accepted last, "
        "computed for each tensor separately",
    )


class Policy(Settings):
    """A policy.yaml."""

    schema_version: Literal[1] = Field(1, alias="schema", description="version of this file's format")
    outgoing: Outgoing = Outgoing()
    incoming: Incoming = Incoming()

    @property
    def digest(self) -> str:
        """SHA-256, in hex, of all rules; every entry of the ledger contains it."""
        return hashlib.sha256(serialize_canonical(self.model_dump(mode="json", by_alias=True))).hexdigest()


def load_policy(path: Path) -> Policy:
    """Read a policy; without a file, return the strictest policy and log a warning.

    Raises:
        InputRefusedError: with every problem of the file; a policy that cannot be read permits nothing.
    """
    if not path.exists():
        _log.warning(
            "there is no %s: the strictest policy applies; every run is refused until a backbone is pinned", path.name
        )
        return Policy()
    raw = read_mapping(path, "policy", "a mapping with schema, outgoing and incoming")
    policy, problems = validate_settings(Policy, raw, lambda _: [])
    if "schema" not in raw:
        problems.append(Problem("schema", None, "is required; add schema: 1"))
    if problems or policy is None:
        raise InputRefusedError(problems)
    return policy
