"""Validators for settings that do not fit together and for paths that do not exist."""

import difflib
from collections.abc import Collection
from pathlib import Path

from ept_fed.catalog.methods import FIXED_HEADS, METHODS
from ept_fed.catalog.options import check_options
from ept_fed.catalog.strategies import STRATEGIES, count_asked, resolve_options
from ept_fed.config.experiment import Experiment, FederationSettings, ModelSettings, TrainingSettings
from ept_fed.errors import Problem
from ept_fed.validation.data import check_exists, validate_data, validate_splits
from ept_fed.validation.dp import check_noise_shares, validate_record_dp, validate_site_dp
from ept_fed.validation.secure_aggregation import check_secure_sites, validate_secure_aggregation

__all__ = ["check_sites", "check_statistics", "validate_experiment", "validate_shared"]

_PLAIN_MEANS = ("fedavg", "fedprox")


def validate_experiment(experiment: Experiment) -> list[Problem]:
    """Check that the sections fit together and that the paths exist; return the problems."""
    weights, found = experiment.model.weights, validate_data(experiment)
    if weights not in (None, "pretrained"):
        found += check_exists("model.weights", Path(str(weights)))
    return found + _check_sections(experiment)


def validate_shared(experiment: Experiment) -> list[Problem]:
    """Check the settings that a consortium proposes, but no paths, because images and weights are at the sites."""
    return validate_splits(experiment.data) + _check_sections(experiment)


def _check_sections(experiment: Experiment) -> list[Problem]:
    data, model, training, federation = (
        experiment.data,
        experiment.model,
        experiment.training,
        experiment.federation,
    )
    found = []
    if model.method == "ept" and model.embedding != "concat" and federation.payload == "folded":
        found.append(
            Problem(
                "federation.payload",
                "folded",
                f"model.embedding = '{model.embedding}' has no fold, because only columns of 'concat' enter the "
                "softmax as a constant sum of exponentials; set federation.payload=raw or model.embedding=concat",
            )
        )
    if model.initial_sink is not None and model.embedding != "concat":
        fix = "is the initial fold of the columns of concat; leave it out, or set model.embedding=concat"
        found.append(Problem("model.initial_sink", model.initial_sink, fix))
    if data.task == "multi_label" and training.class_balanced:
        found.append(
            Problem("training.class_balanced", True, "is defined for data.task=single_label only; set it to false")
        )
    if isinstance(model.prompt_layers, tuple) and len(set(model.prompt_layers)) != len(model.prompt_layers):
        found.append(Problem("model.prompt_layers", list(model.prompt_layers), "list each layer once"))
    if training.proximal_mu:
        fix = "is set by the server; use federation.strategy=fedprox or feddyn, and its option"
        found.append(Problem("training.proximal_mu", training.proximal_mu, fix))
    if training.head_first_epochs and federation.share == "prompts+head":
        fix = "FedRep's order requires heads that stay at the sites; set it to 0, or federation.share=prompts"
        found.append(Problem("training.head_first_epochs", training.head_first_epochs, fix))
    if training.head in FIXED_HEADS:
        found += _check_fixed_head(experiment)
    if training.head == "lda":
        found += _check_lda(experiment)
    if experiment.evaluation.cross_site and "local" not in experiment.evaluation.baselines:
        fix = "compares the sites' local models, but there are none; add local to evaluation.baselines"
        found.append(Problem("evaluation.cross_site", True, fix))
    found += validate_record_dp(experiment) + validate_secure_aggregation(federation)
    found += validate_site_dp(experiment)
    return found + _check_method(model, training, federation) + _check_strategy(federation)


def _check_fixed_head(experiment: Experiment) -> list[Problem]:
    """Return the settings that do not fit together with a fixed head, which is not trained."""
    found = []
    if experiment.federation.share == "prompts+head":
        fix = "every site draws a fixed head from the run's seed, so it is not sent; set it to prompts"
        found.append(Problem("federation.share", experiment.federation.share, fix))
    if experiment.training.head_first_epochs:
        fix = "a fixed head is not trained; set it to 0"
        found.append(Problem("training.head_first_epochs", experiment.training.head_first_epochs, fix))
    if experiment.training.head == "fixed+lda" and experiment.personalisation.ditto is not None:
        fix = "trains a second model under only the fixed head; leave it out, or set training.head=fixed"
        found.append(Problem("personalisation.ditto", experiment.personalisation.ditto, fix))
    return found


def _check_lda(experiment: Experiment) -> list[Problem]:
    """Return the settings that do not fit together with an LDA head, which is computed in closed form."""
    found = []
    if experiment.federation.share == "prompts+head":
        found += check_statistics(experiment.federation) + _check_use_of_statistics(experiment)
    if experiment.training.head_first_epochs:
        fix = "an LDA head is not trained by gradient; set it to 0"
        found.append(Problem("training.head_first_epochs", experiment.training.head_first_epochs, fix))
    if experiment.personalisation.ditto is not None:
        fix = "trains a second model with its own head; leave it out, or set training.head=trained"
        found.append(Problem("personalisation.ditto", experiment.personalisation.ditto, fix))
    return found


def _check_use_of_statistics(experiment: Experiment) -> list[Problem]:
    """Return the settings that shared class statistics do not support."""
    found = []
    if experiment.data.task == "multi_label":
        fix = "statistics of labels that occur together leak single images; set federation.share=prompts"
        found.append(Problem("data.task", "multi_label", fix))
    personal = experiment.personalisation
    for name, value, unset in (
        ("fine_tune_epochs", personal.fine_tune_epochs, None),
        ("interpolate", personal.interpolate, False),
    ):
        if value != unset:
            fix = "changes the prompts, but the head was computed for the old prompts; leave it out"
            found.append(Problem(f"personalisation.{name}", value, fix))
    return found


def check_statistics(federation: FederationSettings) -> list[Problem]:
    """Return the settings that do not fit together with a shared LDA head.

    The head is computed from the mean of all sites' statistics.
    """
    found = []
    shared = "federation.share=prompts+head with training.head=lda"
    if federation.strategy not in _PLAIN_MEANS:
        fix = f"{shared} requires a plain mean of the sites' statistics; use {' or '.join(_PLAIN_MEANS)}"
        found.append(Problem("federation.strategy", federation.strategy, fix))
    for name in ("patience", "target_auc"):
        if (value := getattr(federation, name)) is not None:
            fix = f"{shared} collects statistics in the last round, so the run must not stop early; leave it out"
            found.append(Problem(f"federation.{name}", value, fix))
    if federation.select != "last":
        fix = f"{shared} collects the statistics of the final prompts in the last round; set it to last"
        found.append(Problem("federation.select", federation.select, fix))
    for name, wanted in (("sites_per_round", 1.0), ("weights", "examples")):
        if (value := getattr(federation, name)) != wanted:
            fix = f"{shared} uses the images of all sites, each with equal weight; set it to {wanted}"
            found.append(Problem(f"federation.{name}", value, fix))
    if federation.secure_aggregation is not None and federation.rounds > 1:
        fix = (
            f"under secure aggregation {shared} allows only one round, because the sums of two rounds may differ by "
            "one site's statistics; set it to 1"
        )
        found.append(Problem("federation.rounds", federation.rounds, fix))
    if federation.site_privacy is not None:
        fix = (
            f"{shared} sends {federation.statistics}, which have so many numbers that the noise would dominate; "
            "set federation.share=prompts"
        )
        found.append(Problem("federation.site_privacy", federation.site_privacy.noise, fix))
    return found


def _check_method(model: ModelSettings, training: TrainingSettings, federation: FederationSettings) -> list[Problem]:
    method = METHODS.get(model.method)
    if method is None:
        near = difflib.get_close_matches(model.method, METHODS, n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        return [Problem("model.method", model.method, f"{hint}known methods are {', '.join(METHODS)}")]
    found = check_options("model.method_options", model.method, method.options, model.method_options)
    if model.method != "ept" and federation.payload == "folded":
        fix = f"model.method = '{model.method}' cannot be folded; only ept's prompts can; set federation.payload=raw"
        found.append(Problem("federation.payload", "folded", fix))
    if not method.sends_without_head and training.head in FIXED_HEADS:
        fix = f"model.method = '{model.method}' has only the head, so nothing would be trained; set it to trained"
        found.append(Problem("training.head", training.head, fix))
    elif not method.sends_without_head and federation.share == "prompts":
        fix = f"model.method = '{model.method}' has only the head, so nothing would be sent; set it to prompts+head"
        found.append(Problem("federation.share", federation.share, fix))
    return found


def _check_strategy(federation: FederationSettings) -> list[Problem]:
    found = []
    strategy = STRATEGIES.get(federation.strategy)
    if strategy is None:
        near = difflib.get_close_matches(federation.strategy, STRATEGIES, n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        found.append(
            Problem(
                "federation.strategy",
                federation.strategy,
                f"{hint}known strategies are {', '.join(sorted(STRATEGIES))}",
            )
        )
    else:
        found += check_options("federation.options", federation.strategy, strategy.options, federation.options)
    if strategy is not None and strategy.uniform_only and federation.weights != "uniform":
        fix = f"{federation.strategy} corrects sites towards their unweighted mean; set federation.weights=uniform"
        found.append(Problem("federation.weights", federation.weights, fix))
    if (federation.weights == "capped") != (federation.weight_cap is not None):
        found.append(
            Problem("federation.weight_cap", federation.weight_cap, "set it together with federation.weights=capped")
        )
    if federation.averaging == "log_mean_exp":
        if federation.strategy != "fedavg":
            fix = f"'{federation.strategy}' has its own way of averaging; use mean, or federation.strategy=fedavg"
            found.append(Problem("federation.averaging", federation.averaging, fix))
        if federation.payload == "raw":
            fix = "is an average of folds; use mean, or federation.payload=folded"
            found.append(Problem("federation.averaging", federation.averaging, fix))
    if federation.sites_per_round > 1 and not federation.sites_per_round.is_integer():
        fix = "must be a share up to 1, or a whole number of sites"
        found.append(Problem("federation.sites_per_round", federation.sites_per_round, fix))
    return found


def check_sites(federation: FederationSettings, names: Collection[str]) -> list[Problem]:
    """Return the settings that are impossible with these sites, given by name."""
    found = []
    sites = len(names)
    if isinstance(federation.max_examples, dict):
        unknown = sorted(set(federation.max_examples) - set(names))
        fix = f"there is no such site; the sites are {', '.join(sorted(names))}"
        found += [Problem("federation.max_examples", name, fix) for name in unknown]
    needed = STRATEGIES[federation.strategy].minimum_sites(resolve_options(federation.strategy, federation.options))
    asked = count_asked(federation.sites_per_round, sites)
    if asked < needed:
        fix = f"requires {needed} sites in every round, but {asked} are selected; use another strategy or other options"
        found.append(Problem("federation.strategy", federation.strategy, fix))
    if federation.quorum is not None and federation.quorum > asked:
        fix = f"only {asked} sites are selected in a round; lower it"
        found.append(Problem("federation.quorum", federation.quorum, fix))
    if federation.sites_per_round > sites:
        found.append(Problem("federation.sites_per_round", federation.sites_per_round, f"there are only {sites} sites"))
    return found + check_secure_sites(federation, sites) + check_noise_shares(federation, sites)
