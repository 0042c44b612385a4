"""The models among which a site chooses after the last round, by its own validation images; nothing of this is sent.

federated      the federation's model, as every site has it
personalised   its prompts, with an LDA head of this site's images, or with the head that the site itself trained last
sum of both    the logits of the local and the federated model, with a share that is chosen on validation images
local          the model that the site trained without exchange, with its trained head or with an LDA head

The order is that of preference, see `ept_fed.evaluation.candidates`. Where two heads are possible, the candidate has
the one that is better on the validation images. So the federation is compared with the best that the site reaches
alone.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch

from client.site.export_model import describe_release, release_model
from client.site.held_model import HeldModel, LentModel
from client.site.run_settings import create_head_fit
from ept_fed.catalog.methods import HEAD_TENSORS
from ept_fed.config.experiment import Experiment
from ept_fed.data.datasets.prepare import SiteData
from ept_fed.evaluation.candidates import Choice, choose_candidate, mix, mix_weight
from ept_fed.evaluation.metrics import Array, classification_metrics
from ept_fed.protocol.layout import Vector
from ept_fed.reports.run.settings import BASELINE, CHOSEN, FEDERATED, MIXED, PERSONALISED
from ept_fed.training.lda_head import FeaturesDivergedError

__all__ = [
    "Predicted",
    "SiteChoice",
    "SiteLoader",
    "choose_model",
    "release_choice",
    "release_loaded",
]

_TRAINED, _LDA, _OWN = "trained", "with LDA", "own"

# Lends a site's model under a setting, ready to be evaluated.
SiteLoader = Callable[[], LentModel]


@dataclass(frozen=True)
class Predicted:
    """A model's probabilities (n, C) on a site's validation and test images."""

    validation: Array
    test: Array

    @classmethod
    def of(cls, load: SiteLoader, data: SiteData) -> "Predicted":
        """Return the probabilities of a model, which may be that of all sites' images together."""
        with load() as held:
            return cls(held.predict(data.validation), held.predict(data.test))


@dataclass(frozen=True)
class SiteChoice:
    """A site's choice.

    Attributes:
        choice: the chosen candidate, with the losses of all candidates.
        local_head: "trained" or "with LDA"; None without a local model.
        personal_head: "with LDA" or "own"; None without such a candidate.
        share: share of the local model in the sum of both; NaN without it.
    """

    choice: Choice
    local_head: str | None
    personal_head: str | None
    share: float

    def to_json(self) -> dict[str, Any]:
        """Return the choice as a JSON document; the writer turns NaN into null."""
        heads = {"local_head": self.local_head, "personal_head": self.personal_head, "share": self.share}
        return {**asdict(self.choice), **heads}


def choose_model(
    data: SiteData, loaders: Mapping[str, SiteLoader], predicted: Mapping[str, Predicted], experiment: Experiment
) -> tuple[dict[str, Predicted], SiteChoice]:
    """Return the predictions of all candidates and of the chosen one, by setting, and the choice.

    Args:
        data: the site's images.
        loaders: loads the federated model, and the local one if there is one.
        predicted: predictions of these models, as they are loaded.
        experiment: settings of the LDA heads.
    """
    labels, groups = data.validation.labels.numpy(), [record.group for record in data.validation.records]
    found = {FEDERATED: predicted[FEDERATED]}
    local_head = personal_head = None
    share = math.nan
    if personal := _load_personal_heads(loaders[FEDERATED], experiment):
        heads = _predict_heads(personal, data)
        personal_head, found[PERSONALISED] = _best_head(heads, data) if heads else (None, predicted[FEDERATED])
    if BASELINE in loaders:
        with_lda = _predict_heads({_LDA: _with_lda_head(loaders[BASELINE], experiment)}, data)
        local_head, local = _best_head({_TRAINED: predicted[BASELINE], **with_lda}, data)
        federated = predicted[FEDERATED]
        share, validation = mix_weight(labels, groups, local.validation, federated.validation, data.task)
        found[MIXED] = Predicted(validation, mix(local.test, federated.test, share, data.task))
        found[BASELINE] = local
    choice = choose_candidate(labels, groups, {name: own.validation for name, own in found.items()}, data.task)
    found[CHOSEN] = found[choice.name]
    return found, SiteChoice(choice, local_head, personal_head, share)


def release_choice(
    choice: SiteChoice, loaders: Mapping[str, SiteLoader], experiment: Experiment
) -> tuple[dict[str, Vector], dict[str, Any]]:
    """Return the chosen model for prediction at this site, as `release_model` does.

    The sum of both has the tensors of both models, named after their member, and `members` with their shares.
    """
    local = loaders.get(BASELINE)
    if local is not None and choice.local_head == _LDA:
        local = _with_lda_head(local, experiment)
    chosen = choice.choice.name
    if chosen == PERSONALISED:
        heads = _load_personal_heads(loaders[FEDERATED], experiment)
        return release_loaded(heads[str(choice.personal_head)])
    if local is not None and chosen == BASELINE:
        return release_loaded(local)
    if local is not None and chosen == MIXED:
        return _release_sum(choice.share, local, loaders[FEDERATED])
    return release_loaded(loaders[FEDERATED])


def release_loaded(load: SiteLoader) -> tuple[dict[str, Vector], dict[str, Any]]:
    """Return a model for prediction at this site, as `release_model` does."""
    with load() as held:
        return release_model(held)


def _release_sum(
    share: float, load_local: SiteLoader, load_federated: SiteLoader
) -> tuple[dict[str, Vector], dict[str, Any]]:
    tensors: dict[str, Vector] = {}
    validation = []
    with load_local() as held:
        tensors |= _name_after(BASELINE, held)
        validation.append(held.predict(held.data.validation))
    with load_federated() as held:
        tensors |= _name_after(FEDERATED, held)
        validation.append(held.predict(held.data.validation))
        about = describe_release(held, mix(validation[0], validation[1], share, held.data.task))
    return tensors, {**about, "members": {BASELINE: share, FEDERATED: 1 - share}}


def _name_after(member: str, held: HeldModel) -> dict[str, Vector]:
    own, _ = release_model(held)
    return {f"{member}/{name}": tensor for name, tensor in own.items()}


def _load_personal_heads(load: SiteLoader, experiment: Experiment) -> dict[str, SiteLoader]:
    """Return loaders of the federated prompts with the site's own heads, without heads that it has anyway."""
    heads: dict[str, SiteLoader] = {}
    if experiment.training.head != "lda" or experiment.shared_statistics:
        heads[_LDA] = _with_lda_head(load, experiment)
    if experiment.training.head == "trained" and experiment.federation.share == "prompts+head":
        heads[_OWN] = _with_own_head(load)
    return heads


def _with_lda_head(load: SiteLoader, experiment: Experiment) -> SiteLoader:
    @contextmanager
    def loader() -> Iterator[HeldModel]:
        with load() as held:
            create_head_fit(experiment, held.data.name, held.model.device).apply(held.model, held.data.train)
            yield held

    return loader


def _with_own_head(load: SiteLoader) -> SiteLoader:
    """Return a loader of a model with the head that the site had after its own training in the chosen round."""

    @contextmanager
    def loader() -> Iterator[HeldModel]:
        with load() as held:
            if held.round:
                own = {name: torch.from_numpy(held.own[f"model/{name}"]) for name in HEAD_TENSORS}
                held.model.load_payload(own)
            yield held

    return loader


def _predict_heads(loaders: Mapping[str, SiteLoader], data: SiteData) -> dict[str, Predicted]:
    """Return each loader's predictions, without those whose head cannot be computed."""
    found = {}
    for name, load in loaders.items():
        try:
            found[name] = Predicted.of(load, data)
        except FeaturesDivergedError:
            continue
    return found


def _best_head(heads: Mapping[str, Predicted], data: SiteData) -> tuple[str, Predicted]:
    """Return the head with the highest validation AUC; the first one of equals, or if no AUC is defined."""
    labels = data.validation.labels.numpy()
    aucs = {name: classification_metrics(labels, own.validation, data.task)["auc"] for name, own in heads.items()}
    best = max(heads, key=lambda name: -math.inf if math.isnan(aucs[name]) else aucs[name])
    return best, heads[best]
