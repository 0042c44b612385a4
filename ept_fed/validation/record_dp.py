"""Validators for DP-SGD: settings that would use the images in another way than through the noisy gradients."""

from ept_fed.catalog.strategies import STRATEGIES
from ept_fed.config.experiment import Experiment, TrainingSettings
from ept_fed.errors import Problem

__all__ = ["validate_private_training", "validate_record_dp"]


def validate_record_dp(experiment: Experiment) -> list[Problem]:
    """Return the settings that do not fit together with `training.privacy`; none if it is null."""
    if experiment.training.privacy is None:
        return []
    model, federation, personal = experiment.model, experiment.federation, experiment.personalisation
    found = validate_private_training(experiment.training)
    if model.method != "ept" or model.embedding != "concat":
        field, value = ("method", model.method) if model.method != "ept" else ("embedding", model.embedding)
        fix = "has no per-image gradients here; with training.privacy use method ept with embedding concat"
        found.append(Problem(f"model.{field}", value, fix))
    strategy = STRATEGIES.get(federation.strategy)
    if strategy is not None and strategy.wants_gradient:
        fix = "requests the gradient over all images, without noise; leave out training.privacy, or use fedavg"
        found.append(Problem("federation.strategy", federation.strategy, fix))
    if federation.strategy == "qfedavg":
        fix = "weights sites by their training loss, which private training does not send; use fedavg"
        found.append(Problem("federation.strategy", federation.strategy, fix))
    if personal.ditto is not None:
        fix = "trains a second model without noise; leave it out, or training.privacy"
        found.append(Problem("personalisation.ditto", personal.ditto, fix))
    if personal.fine_tune_epochs is not None:
        fix = "trains after the last round, without a share of the budget; leave it out, or training.privacy"
        found.append(Problem("personalisation.fine_tune_epochs", personal.fine_tune_epochs, fix))
    return found


def validate_private_training(training: TrainingSettings) -> list[Problem]:
    """Return the training settings that do not fit together with their own `privacy`; none if it is null."""
    if training.privacy is None:
        return []
    found = []
    if training.head == "lda":
        fix = (
            "is computed from all training images without noise, and prompts trained through it leak all of them; "
            "with training.privacy set it to trained"
        )
        found.append(Problem("training.head", training.head, fix))
    if training.class_balanced:
        fix = "draws images of rare classes more often, which the privacy accountant does not include; set it to false"
        found.append(Problem("training.class_balanced", True, fix))
    if training.head_first_epochs:
        fix = "private training updates all tensors in one step; set it to 0"
        found.append(Problem("training.head_first_epochs", training.head_first_epochs, fix))
    return found
