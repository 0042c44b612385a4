"""Experiment settings: typed and immutable; an unknown key is refused.

`ept_fed.validation.load_experiment` reads them from YAML; paths are relative to the folder the command runs in.
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
    """What of the model a consortium agrees on. prompt_length to initial_sink are for method ept alone."""

    method: str = Field("ept", description="a name of docs/methods.md: ept, or one of the paper's comparators")
    method_options: dict[str, float] = Field(
        {}, description="the comparator's own numbers; see docs/methods.md (ept has the settings below)"
    )
    backbone: str = Field("vit_small_patch14_dinov2", description="a timm name, or hf-hub:… of a timm repository")
    image_size: Count | None = Field(None, description="pixels per side; null keeps the backbone's own size")
    prompt_length: Annotated[int, Field(ge=1, le=100_000)] = Field(
        100, description="M, prompt columns per token; starts the sink at about log M"
    )
    prompt_layers: Literal["deep", "shallow"] | tuple[int, ...] = Field(
        "deep", description="all layers, the first only, or a list of layer indices"
    )
    tokens: Annotated[int, Field(ge=0, le=200)] = Field(
        0, description="T, context tokens per prompted layer, each with a sink; T·(D+1) more numbers travel"
    )
    embedding: Literal["concat", "add", "multiply", "multiply_concat"] = Field(
        "concat", description="how prompts enter the attention logits (Fig. 5); only concat folds"
    )
    init: Literal["normal", "uniform", "zero", "kaiming"] = "normal"
    initial_sink: Annotated[float, Field(ge=-30.0, le=30.0)] | None = Field(
        None, description="where every sink starts; null: where the drawn columns fold to, about log M"
    )


class LocalModelSettings(Settings):
    """What of the model is each machine's own: where the weights lie, and where to compute."""

    weights: str | None = Field(
        None, description="null for random weights, 'pretrained' for timm's own, or a .safetensors/.pth path"
    )
    device: Literal["auto", "cpu", "cuda"] = "auto"


class ModelSettings(LocalModelSettings, SharedModelSettings):
    """The frozen backbone and what is tuned in it. prompt_length to initial_sink are for method ept alone."""


# Settings of the model that only method ept knows.
EPT_SETTINGS = ("prompt_length", "prompt_layers", "tokens", "embedding", "init", "initial_sink")


class TrainingSettings(Settings):
    """What one site does in one round. These settings travel with every train request."""

    optimizer: Literal["adamw", "sgd"] = "adamw"
    prompt_lr: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = Field(
        0.1,
        description="on prompts, hundreds of times the paper's 6e-4: see facts on the effective rate of a sink",
    )
    token_lr: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 0.003
    method_lr: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = Field(
        6e-4,
        description="on what a comparator trains; the paper's rate for all, with SGD. Tune it by validation, method by "
        "method",
    )
    head_lr: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 0.002
    weight_decay: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = 1e-4
    momentum: Fraction = Field(0.9, description="used by sgd")
    schedule: Literal["cosine", "constant"] = Field("cosine", description="over all rounds of the run, not within one")
    epochs: Annotated[int, Field(ge=1, le=1000)] = Field(1, description="passes over the training images per round")
    head_first_epochs: Annotated[int, Field(ge=0, le=1000)] = Field(
        0, description="FedRep: epochs on the head alone before `epochs` on the prompts alone; 0 trains both together"
    )
    head: HeadKind = Field(
        "trained",
        description="trained: by gradient, with the prompts; fixed: drawn from the run's seed, the same at every site, "
        "and never trained (FedBABU), so that prompts alone learn the classes; fixed+lda: fixed while prompts train; "
        "for use each site adds an LDA head of its own images, which never leaves; lda: computed in closed form from "
        "features under the current prompts, of the site's own images or, with federation.share=prompts+head, of all "
        "sites'",
    )
    head_shrinkage: Annotated[float, Field(gt=0.0, le=1.0)] = Field(
        0.3, description="of the LDA head's covariance matrix towards the identity"
    )
    head_evidence: Annotated[float, Field(gt=0.0, allow_inf_nan=False)] = Field(
        4.0,
        description="for head fixed+lda: from so many images per class on, the site's own LDA head counts half or more",
    )
    batch_size: Annotated[int, Field(ge=1, le=4096)] = Field(
        8, description="images per step; with privacy their mean number, as each image is drawn for itself"
    )
    class_balanced: bool = Field(False, description="draw every class equally often")
    optimizer_state: Literal["keep", "reset"] = Field("keep", description="momentum across rounds at a site")
    precision: Literal["auto", "fast", "float32", "bfloat16"] = Field(
        "auto",
        description="auto: bfloat16 on CUDA only; fast: on processors that have instructions for it too, where it is "
        "some three times as fast as float32, and eight times as slow on those that have none",
    )
    proximal_mu: Annotated[float, Field(ge=0.0, le=1000.0)] = Field(
        0.0, description="set by federation.strategy fedprox or feddyn; leave it at 0"
    )
    privacy: PrivacySettings | None = Field(None, description="clipped and noisy gradients; null trains without")

    def max_steps(self, examples: int) -> int:
        """Return the optimiser steps of one round on so many images; with an LDA head it may have fewer."""
        # Beside an LDA head an epoch has two halves, which may share images of classes that have one only.
        parts = 2 if self.head == "lda" else 1
        return parts * (self.head_first_epochs + self.epochs) * math.ceil(examples / self.batch_size)


class FederationSettings(Settings):
    """What is shared, how often, and how it is averaged."""

    rounds: Count = 8
    share: Literal["prompts", "prompts+head"] = Field(
        "prompts",
        description="prompts, or what another method trains, keeps the head at the site; prompts+head sends it too",
    )
    statistics: Statistics = Field(
        "means",
        description="what travels of an LDA head where it is shared: means of each class's features; "
        "moments, of their products too, from which every site computes the head that all images would give, and "
        "anybody who was trained on",
    )
    payload: Literal["folded", "raw"] = Field(
        "folded", description="folded: one number per layer and token; raw: all M columns, for ablations"
    )
    strategy: str = Field("fedavg", description="a name of docs/strategies.md")
    options: dict[str, float] = Field({}, description="the strategy's own numbers; see docs/strategies.md")
    averaging: Literal["mean", "log_mean_exp"] = Field(
        "mean", description="of folds: their mean, or the fold of all sites' columns together (fedavg only)"
    )
    weights: Literal["examples", "uniform", "capped"] = Field(
        "examples", description="sites count by training images, equally, or by images up to weight_cap"
    )
    weight_cap: Count | None = Field(None, description="for weights: capped")
    sites_per_round: Annotated[float, Field(gt=0.0)] = Field(
        1.0, description="share of the sites drawn for each round, or their number if above 1"
    )
    quorum: Count | None = Field(
        None, description="fewest sound replies that are averaged; null asks for half of the sites asked"
    )
    deadline: Positive = Field(3600.0, description="seconds after which a silent site is left out of the round")
    grace: Annotated[float, Field(ge=0.0, allow_inf_nan=False)] = Field(
        30.0, description="seconds that a round, once its quorum is online, still waits for the other sites"
    )
    norm_bound: Annotated[float, Field(ge=1.0, allow_inf_nan=False)] | None = Field(
        10.0, description="refuse an update longer than so many times the round's median length; null never does"
    )
    max_examples: Count | dict[str, Count] | None = Field(
        None,
        description="most training images a site may claim, or a map by site; null: in simulations what it has",
    )
    patience: Count | None = Field(
        None, description="stop after so many rounds without a better median validation AUC over sites"
    )
    target_auc: Annotated[float, Field(gt=0.0, le=1.0)] | None = Field(
        None, description="stop once the median validation AUC over sites reaches this"
    )
    secure_aggregation: SecureAggregationSettings | None = Field(
        None, description="hide every site's update from the server; null: it sees them; {} takes the defaults below"
    )
    site_privacy: SitePrivacySettings | None = Field(
        None, description="clip every site's update and add noise, so that ε bounds what it tells of the whole site"
    )


class PersonalisationSettings(Settings):
    """What a site makes for itself besides the federated prompts; nothing of it travels."""

    ditto: Positive | None = Field(
        None, description="Ditto's lambda: train a second, own model each round, held near the global prompts"
    )
    fine_tune_epochs: Annotated[int, Field(ge=1, le=1000)] | None = Field(
        None, description="after the last round, train the federated model so many epochs at the site"
    )
    interpolate: bool = Field(
        False, description="mix own and global prompts, by the share that suits the site's validation images best"
    )


class EvaluationSettings(Settings):
    """What the final table compares against, on each site's own test split."""

    baselines: tuple[Literal["local", "centralised"], ...] = ("local",)
    batch_size: Annotated[int, Field(ge=1, le=4096)] = 32
    cross_site: bool = Field(
        False, description="test each site's local model at every site too, S² passes over test images; needs local"
    )


# Settings of one machine and words for people: the same run may have others elsewhere.
LOCAL_SETTINGS: dict[str, Any] = {
    "data": set(LOCAL_DATA_FIELDS),
    "model": set(LocalModelSettings.model_fields),
    "name": True,
    "about": True,
}
# Settings that the prompts do not depend on.
_AFTERWARDS: dict[str, Any] = {"personalisation": True, "evaluation": True, "benchmark": True}


class Experiment(Settings):
    """One whole experiment; the root of a YAML file."""

    name: Name = Field("experiment", description="of the run and its folder")
    about: str = Field("", description="what the run shows, printed when it starts")
    seed: Seed = Field(0, description="every random choice derives from it")
    data: AnyDataSettings
    model: ModelSettings = ModelSettings()
    training: TrainingSettings = TrainingSettings()
    federation: FederationSettings = FederationSettings()
    personalisation: PersonalisationSettings = PersonalisationSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    benchmark: BenchmarkSettings = BenchmarkSettings()

    @property
    def data_seed(self) -> int:
        """What splits, K-shot samples and virtual sites derive from."""
        return self.seed if self.data.seed is None else self.data.seed

    @property
    def shared_statistics(self) -> Statistics | None:
        """What of an LDA head travels; None where it is trained, or stays at the sites."""
        shared = self.training.head == "lda" and self.federation.share == "prompts+head"
        return self.federation.statistics if shared else None

    @property
    def run_id(self) -> str:
        """Name of the run: 16 hex digits of the SHA-256 of the settings that its prompts depend on.

        Where files lie, the device and the baselines are left out: a site with another folder is in the same run, and
        moving the data changes nothing. So are nulls, lest a setting that a later version adds, null unless asked for,
        gives an old run another name.
        """
        settings = self.model_dump(mode="json", exclude=LOCAL_SETTINGS | _AFTERWARDS, exclude_none=True)
        canonical = json.dumps(settings, sort_keys=True)
        return hashlib.sha256(canonical.encode()).hexdigest()[:16]

    def to_yaml(self) -> str:
        """Return the resolved settings, defaults included, as YAML that `load_experiment` reads back."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
