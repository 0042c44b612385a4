"""Settings that are each valid but do not fit together, or name paths that are not there."""

import difflib
from pathlib import Path

from ept_fed.config import (
    Experiment,
    FederationSettings,
    ImageFolderSettings,
    ManifestSettings,
    MedMNISTSettings,
    PhantomSettings,
)
from ept_fed.problems import Problem
from ept_fed.strategies import STRATEGIES

__all__ = ["find_contradictions"]


def find_contradictions(experiment: Experiment) -> list[Problem]:
    """Check the sections against each other and the paths against the disk; return what is wrong."""
    data, model, training, federation = (
        experiment.data,
        experiment.model,
        experiment.training,
        experiment.federation,
    )
    found = _check_classes(data.classes, data.task)
    if model.embedding != "concat" and federation.payload == "folded":
        found.append(
            Problem(
                "federation.payload",
                "folded",
                f"model.embedding = '{model.embedding}' has no fold, because only columns of plain 'concat' enter the "
                "softmax as a constant sum of exponentials; set federation.payload=raw or model.embedding=concat",
            )
        )
    if data.test_fraction + data.validation_fraction >= 1.0:
        total = f"{data.test_fraction} + {data.validation_fraction}"
        found.append(Problem("data.test_fraction", total, "test and validation leave nothing to train on; lower one"))
    if data.augmentation.crop_scale[0] > data.augmentation.crop_scale[1]:
        found.append(Problem("data.augmentation.crop_scale", data.augmentation.crop_scale, "put the smaller first"))
    if data.task == "multi_label" and training.class_balanced:
        found.append(
            Problem("training.class_balanced", True, "is defined for data.task=single_label only; set it to false")
        )
    if isinstance(model.prompt_layers, tuple) and len(set(model.prompt_layers)) != len(model.prompt_layers):
        found.append(Problem("model.prompt_layers", list(model.prompt_layers), "name each layer once"))
    if isinstance(data, ImageFolderSettings):
        found += _check_image_folder(data)
    elif isinstance(data, PhantomSettings):
        found += _check_phantoms(data)
    elif isinstance(data, ManifestSettings):
        found += _check_manifest(data)
    elif isinstance(data, MedMNISTSettings):
        found += _check_exists("data.archive", data.root / data.archive)
    if model.weights not in (None, "pretrained"):
        found += _check_exists("model.weights", Path(str(model.weights)))
    if training.proximal_mu:
        fix = "is set by the server; use federation.strategy=fedprox or feddyn, and its option"
        found.append(Problem("training.proximal_mu", training.proximal_mu, fix))
    if training.head_first_epochs and federation.share == "prompts+head":
        fix = "FedRep's order is for heads that stay at the sites; set it to 0, or federation.share=prompts"
        found.append(Problem("training.head_first_epochs", training.head_first_epochs, fix))
    return found + _check_strategy(federation)


def _check_classes(classes: tuple[str, ...] | None, task: str) -> list[Problem]:
    if classes is None:
        return []
    if len(set(classes)) != len(classes):
        return [Problem("data.classes", list(classes), "name each class once")]
    if len(classes) < 2 and task == "single_label":
        return [Problem("data.classes", list(classes), "single-label needs at least two classes")]
    return []


def _check_strategy(federation: FederationSettings) -> list[Problem]:
    found = []
    strategy = STRATEGIES.get(federation.strategy)
    if strategy is None:
        near = difflib.get_close_matches(federation.strategy, STRATEGIES, n=1)
        hint = f"did you mean '{near[0]}'? " if near else ""
        found.append(
            Problem("federation.strategy", federation.strategy, f"{hint}known are {', '.join(sorted(STRATEGIES))}")
        )
    else:
        for name, value in federation.options.items():
            option = strategy.options.get(name)
            if option is None:
                known = ", ".join(strategy.options) or "none"
                fix = f"{federation.strategy} has no such option; it has: {known}"
                found.append(Problem(f"federation.options.{name}", value, fix))
            elif not option.allows(value):
                kind = "a whole number" if option.whole else "a number"
                fix = f"must be {kind} from {option.low:g} to {option.high:g}: {option.meaning}"
                found.append(Problem(f"federation.options.{name}", value, fix))
    if (federation.weights == "capped") != (federation.weight_cap is not None):
        found.append(
            Problem("federation.weight_cap", federation.weight_cap, "set it together with federation.weights=capped")
        )
    if federation.averaging == "log_mean_exp":
        if federation.strategy != "fedavg":
            fix = f"'{federation.strategy}' averages in its own way; use mean, or federation.strategy=fedavg"
            found.append(Problem("federation.averaging", federation.averaging, fix))
        if federation.payload == "raw":
            fix = "is an average of folds; use mean, or federation.payload=folded"
            found.append(Problem("federation.averaging", federation.averaging, fix))
    if federation.sites_per_round > 1 and not federation.sites_per_round.is_integer():
        fix = "must be a share up to 1, or a whole number of sites"
        found.append(Problem("federation.sites_per_round", federation.sites_per_round, fix))
    return found


def _check_image_folder(data: ImageFolderSettings) -> list[Problem]:
    found = _check_exists("data.images", data.root / data.images)
    if data.levels.startswith("site") and data.virtual_sites is not None:
        fix = f"data.levels = '{data.levels}' names real sites; set virtual_sites to null, or levels to class"
        found.append(Problem("data.virtual_sites", data.virtual_sites, fix))
    if data.task != "single_label":
        found.append(Problem("data.task", data.task, "a folder gives one class; use a manifest for several"))
    return found


def _check_phantoms(data: PhantomSettings) -> list[Problem]:
    found = []
    if data.virtual_sites is not None:
        found.append(Problem("data.virtual_sites", data.virtual_sites, "phantoms have sites; set data.phantom_sites"))
    if data.task != "single_label":
        found.append(Problem("data.task", data.task, "a phantom shows one structure; use single_label"))
    return found


def _check_manifest(data: ManifestSettings) -> list[Problem]:
    found = []
    columns = data.columns
    if (columns.label is None) == (columns.labels is None):
        found.append(
            Problem(
                "data.columns",
                {"label": columns.label, "labels": columns.labels},
                "set one of label and labels",
            )
        )
    if data.task == "multi_label" and columns.labels is None:
        found.append(Problem("data.columns.labels", None, "multi_label needs one 0/1 column per class; list them"))
    if columns.site is not None and data.virtual_sites is not None:
        found.append(
            Problem(
                "data.virtual_sites",
                data.virtual_sites,
                "the manifest has real sites; set it or columns.site null",
            )
        )
    if columns.site is None and data.virtual_sites is None:
        found.append(Problem("data.columns.site", None, "name the site column, or set data.virtual_sites"))
    if "{image}" not in data.image_name:
        found.append(Problem("data.image_name", data.image_name, "must contain {image}"))
    found += _check_exists("data.manifest", data.root / data.manifest)
    found += _check_exists("data.images", data.root / data.images)
    return found


def _check_exists(field: str, path: Path) -> list[Problem]:
    try:
        there = path.exists()
    except (OSError, ValueError):
        there = False
    return [] if there else [Problem(field, str(path), "no such file or folder; correct the path")]
