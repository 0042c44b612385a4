"""Experiment settings: typed and immutable; unknown keys are refused.

`ept_fed.validation.load_experiment` reads them from YAML. Paths are relative to the folder the command runs in.
"""

import hashlib
import json
import math
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field

from ept_fed.catalog.methods import HeadKind, Statistics
from ept_fed.config.base import Count, Fraction, Name, Positive, Seed, Settings
from ept_fed.config.benchmark import BenchmarkSettings
from ept_fed.config.data import LOCAL_DATA_FIELDS, AnyDataSettings
from ept_fed.config.privacy import PrivacySettings, SecureAggregationSettings, SitePrivacySettings

__all__ = [
    "EPT_SETTINGS",
    "LOCAL_SETTINGS",
    "EvaluationSettings",
    "Experiment",
    "FederationSettings",
    "LocalModelSettings",
    "ModelSettings",
    "PersonalisationSettings",
    "SharedModelSettings",
    "TrainingSettings",
]


class SharedModelSettings(Settings):
    """Model settings that are equal at all sites; prompt_length to initial_sink are only for method ept."""

    method: str = Field("ept", description="a name of docs/methods.md: ept, or one of the paper's comparators")
    method_options: dict[str, float] = Field(
        {}, description="options of a comparator; see docs/methods.md (ept has the settings below instead)"
    )
    backbone: str = Field("vit_small_patch14_dinov2", description="a timm name, or hf-hub:… of a timm repository")
    image_size: Count | None = Field(None, description="pixels per side; null: the backbone's default size")
    prompt_length: Annotated[int, Field(ge=1, le=100_000)] = Field(
        100, description="M, prompt columns per token; the sink starts at about log M"
    )
    prompt_layers: Literal["deep", "late", "shallow"] | tuple[int, ...] = Field(
        "late",
        description="deep: all layers; late: the last third, so that the layers below can run once per image (see "
        "data.augmentation.views); shallow: only the first; or a list of layer indices",
    )
    tokens: Annotated[int, Field(ge=0, le=200)] = Field(
        32, description="T, context tokens per prompted layer, each with a sink; adds T·(D+1) numbers to the payload"
    )
    embedding: Literal["concat", "add", "multiply", "multiply_concat"] = Field(
        "concat", description="how prompts enter the attention logits (Fig. 5); only concat can be folded"
    )
    init: Literal["normal", "uniform", "zero", "kaiming"] = "normal"
    initial_sink: Annotated[float, Field(ge=-30.0, le=30.0)] | None = Field(
        None, description="initial value of every sink; null: the fold of the randomly drawn columns, about log M"
    )


class LocalModelSettings(Settings):
    """Model settings of one machine: path of the weights, compute device and memory."""

    weights: str | None = Field(
        None, description="null for random weights, 'pretrained' for timm's own, or a .safetensors/.pth path"
    )
    device: Literal["auto", "cpu", "cuda"] = "auto"
    prefix_memory: Annotated[int, Field(ge=0)] = Field(
        1024,
        description="MiB of memory for outputs of the frozen layers below the first prompt, which run once per image "
        "and view; what does not fit is kept in a file; 0 runs these layers every time",
    )


class ModelSettings(LocalModelSettings, SharedModelSettings):
    """The frozen backbone and the tuned tensors; prompt_length to initial_sink are only for method ept."""


# Model settings that only method ept has.
EPT_SETTINGS = ("prompt_length", "prompt_layers", "tokens", "embedding", "init", "initial_sink")


class TrainingSettings(Settings):
    """Training of one site in one round; the server sends these settings with every train request."""

    optimizer: Literal["adamw", "sgd"] = "adamw"
    prompt_lr: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = Field(
        0.05,
        description="learning rate of prompts; a hundred times the paper's 6e-4, because of the effective rate of a "
        "sink",
    )
    token_lr: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = Field(
        0.003,
        description="learning rate of context tokens; with 0.01 and twice the default prompt_lr, training may stay at "
        "the loss of guessing",
    )
    method_lr: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = Field(
        6e-4,
        description="learning rate of a comparator's tensors; the paper uses this rate for all methods, with SGD. Tune "
        "it on validation images for each method",
    )
    head_lr: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 0.005
    weight_decay: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 1e-4
    momentum: Fraction = Field(0.9, description="used by sgd")
    schedule: Literal["cosine", "constant"] = Field(
        "cosine", description="learning-rate schedule over all rounds of the run, not within one round"
    )
    epochs: Annotated[int, Field(ge=1, le=1000)] = Field(4, description="passes over the training images per round")
    head_first_epochs: Annotated[int, Field(ge=0, le=1000)] = Field(
        0,
        description="FedRep: epochs on only the head, before `epochs` on only the prompts; 0 trains both together",
    )
    head: HeadKind = Field(
        "fixed+lda",
        description="trained: by gradient, together with the prompts; fixed: drawn from the run's seed, equal at every "
        "site and never trained (FedBABU), so that only the prompts learn the classes; fixed+lda: fixed while prompts "
        "train; for prediction each site adds an LDA head of its own images, which never leaves the site; lda: "
        "computed in closed form from features under the current prompts, of the site's own images or, with "
        "federation.share=prompts+head, of all sites' images",
    )
    fixed_head_std: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        0.03,
        description="for heads fixed and fixed+lda: standard deviation of the head's weights; with small ones, prompts "
        "have to amplify the features first",
    )
    head_shrinkage: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        0.3, description="shrinkage of the LDA head's covariance matrix towards the identity"
    )
    head_evidence: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] = Field(
        4.0,
        description="for head fixed+lda: with at least so many images per class, the weight of the site's own LDA head "
        "is one half or more",
    )
    batch_size: Annotated[int, Field(ge=1, le=4096)] = Field(
        16, description="images per step; with privacy the mean number, because each image is drawn independently"
    )
    class_balanced: bool = Field(False, description="draw every class equally often")
    optimizer_state: Literal["keep", "reset"] = Field(
        "keep", description="whether a site keeps its optimiser state (momentum) from round to round"
    )
    precision: Literal["auto", "fast", "float32", "bfloat16"] = Field(
        "auto",
        description="auto: bfloat16 on CUDA only; fast: bfloat16 also on CPUs with instructions for it, where it is "
        "about three times as fast as float32 (without such instructions bfloat16 is eight times as slow)",
    )
    proximal_mu: Annotated[float, Field(ge=0.0, le=1000.0)] = Field(
        0.0, description="set by federation.strategy fedprox or feddyn; leave it at 0"
    )
    privacy: PrivacySettings | None = Field(None, description="clipped and noisy gradients; null: plain gradients")

    def max_steps(self, examples: int) -> int:
        """Return the maximum number of optimiser steps of one round on so many images.

        With an LDA head a round may have fewer steps.
        """
        # With an LDA head an epoch has two parts; an image that is the only one of its class may be in both parts.
        parts = 2 if self.head == "lda" else 1
        return parts * (self.head_first_epochs + self.epochs) * math.ceil(examples / self.batch_size)


class FederationSettings(Settings):
    """What the sites share, how often, and how it is averaged."""

    rounds: Count = 20
    share: Literal["prompts", "prompts+head"] = Field(
        "prompts",
        description="prompts: only the prompts (or the tensors of another method) are sent, and the head stays at the "
        "site; prompts+head: the head is sent too",
    )
    statistics: Statistics = Field(
        "means",
        description="what a site sends of a shared LDA head. means: the mean features of each class; moments: the "
        "means of feature products too, from which every site computes the LDA head of all images, but from which "
        "anybody can also compute who was trained on",
    )
    payload: Literal["folded", "raw"] = Field(
        "folded", description="folded: one number per layer and token is sent; raw: all M columns, for ablations"
    )
    strategy: str = Field("fedavg", description="a name of docs/strategies.md")
    options: dict[str, float] = Field({}, description="options of the strategy; see docs/strategies.md")
    averaging: Literal["mean", "log_mean_exp"] = Field(
        "mean",
        description="average of folds. mean: their mean; log_mean_exp: the fold of all sites' columns together "
        "(fedavg only)",
    )
    weights: Literal["examples", "uniform", "capped"] = Field(
        "examples",
        description="weight of a site. examples: its number of training images; uniform: equal for all sites; capped: "
        "its number of training images, at most weight_cap",
    )
    weight_cap: Count | None = Field(None, description="for weights: capped")
    sites_per_round: Annotated[float, Field(gt=0.0)] = Field(
        1.0, description="share of the sites that is drawn for each round, or their number if above 1"
    )
    quorum: Count | None = Field(
        None, description="minimum valid replies for averaging a round; null: half of the selected sites"
    )
    deadline: Positive = Field(
        3600.0, description="seconds after which a site that has not answered is left out of the round"
    )
    grace: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = Field(
        30.0, description="seconds that a round waits for the other sites once its quorum is online"
    )
    norm_bound: Annotated[float, Field(ge=1.0, allow_inf_nan=False)] | None = Field(
        10.0, description="refuse an update whose norm exceeds so many times the round's median norm; null: no limit"
    )
    max_examples: Count | dict[str, Count] | None = Field(
        None,
        description="maximum training images that a site may report, or a map by site; null: in simulations the "
        "number it has",
    )
    select: Literal["best", "last"] = Field(
        "best",
        description="the round whose prompts the run keeps. best: the latest one whose median validation AUC over the "
        "sites is at most select_tolerance below the highest (for a local model: of its own rounds, on the site's own "
        "validation images); last: the last one",
    )
    select_tolerance: Annotated[float, Field(ge=0.0, le=0.5, allow_inf_nan=False)] = Field(
        0.02,
        description="how far below the highest validation AUC the chosen round may be, since the AUC of few images is "
        "mostly chance; 0: the latest of the best rounds",
    )
    patience: Count | None = Field(
        None, description="stop after so many rounds without improvement of the median validation AUC over sites"
    )
    target_auc: Annotated[float, Field(gt=0.0, le=1.0)] | None = Field(
        None, description="stop once the median validation AUC over sites reaches this"
    )
    secure_aggregation: SecureAggregationSettings | None = Field(
        None,
        description="hide each site's update from the server; null: the server sees single updates; {} uses the "
        "defaults below",
    )
    site_privacy: SitePrivacySettings | None = Field(
        None,
        description="clip each site's update and add noise, so that ε bounds the information it leaks about the site",
    )

    @property
    def round_tolerance(self) -> float | None:
        """How far below the highest validation AUC the kept round may be; None: the last round is kept."""
        return self.select_tolerance if self.select == "best" else None


class PersonalisationSettings(Settings):
    """Personal models that a site trains in addition to the federated prompts; nothing of them leaves the site."""

    ditto: Positive | None = Field(
        None,
        description="Ditto's lambda: each round, train a second, personal model with a penalty on its distance from "
        "the global prompts",
    )
    fine_tune_epochs: Annotated[int, Field(ge=1, le=1000)] | None = Field(
        None, description="after the last round, train the federated model for so many epochs at the site"
    )
    choose: bool = Field(
        True,
        description="after the last round, each site chooses by its own validation images between the federated model, "
        "the same with a head of its own, its local model, and the sum of both; its report and its export are of the "
        "chosen one",
    )
    interpolate: bool = Field(
        False,
        description="mix personal and global prompts, with the share that is best on the site's validation images",
    )


class EvaluationSettings(Settings):
    """The baselines of the final table, evaluated on each site's own test split."""

    baselines: tuple[Literal["local", "centralised"], ...] = ("local",)
    batch_size: Annotated[int, Field(ge=1, le=4096)] = 32
    cross_site: bool = Field(
        False,
        description="also test each site's local model at every other site, with S² passes over test images; requires "
        "local in baselines",
    )


# Settings of one machine, and texts for people; they may differ between the sites of one run.
LOCAL_SETTINGS: dict[str, Any] = {
    "data": set(LOCAL_DATA_FIELDS),
    "model": set(LocalModelSettings.model_fields),
    "name": True,
    "about": True,
}
# The prompts do not depend on these settings.
_AFTERWARDS: dict[str, Any] = {"personalisation": True, "evaluation": True, "benchmark": True}


class Experiment(Settings):
    """One complete experiment; the root of a YAML file."""

    name: Name = Field("experiment", description="name of the run and of its folder")
    about: str = Field("", description="purpose of the run, printed when it starts")
    seed: Seed = Field(0, description="seed from which all random choices derive")
    data: AnyDataSettings
    model: ModelSettings = ModelSettings()
    training: TrainingSettings = TrainingSettings()
    federation: FederationSettings = FederationSettings()
    personalisation: PersonalisationSettings = PersonalisationSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    benchmark: BenchmarkSettings = BenchmarkSettings()

    @property
    def data_seed(self) -> int:
        """Seed of splits, K-shot samples and virtual sites."""
        return self.seed if self.data.seed is None else self.data.seed

    @property
    def shared_statistics(self) -> Statistics | None:
        """The statistics of an LDA head that sites send; None if the head is not an LDA head or is not shared."""
        shared = self.training.head == "lda" and self.federation.share == "prompts+head"
        return self.federation.statistics if shared else None

    @property
    def run_id(self) -> str:
        """Identifier of the run: 16 hex digits of the SHA-256 of the settings that its prompts depend on.

        File paths, the device and the baselines are left out, so a site with another folder belongs to the same run,
        and moving the data changes nothing. Nulls are left out too. Otherwise a new setting of a later version, which
        is null by default, would change the identifier of an old run.
        """
        settings = self.model_dump(mode="json", exclude=LOCAL_SETTINGS | _AFTERWARDS, exclude_none=True)
        canonical = json.dumps(settings, sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    def to_yaml(self) -> str:
        """Return the resolved settings, defaults included, as YAML that `load_experiment` reads back."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
