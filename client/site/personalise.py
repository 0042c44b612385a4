"""Personalisation of the federated model at a site; no result of this module is sent.

Each function leaves the held model ready to be evaluated or exported.
"""

import numpy as np

from client.site.held_model import HeldModel
from client.site.local_round import DITTO
from ept_fed.config.experiment import TrainingSettings
from ept_fed.protocol.layout import Vector
from ept_fed.seeds import derive_seed
from ept_fed.training.loop import RoundScope, TrainingOutcome, train_round
from ept_fed.training.optimizer import build_optimizer

__all__ = ["INTERPOLATION_GRID", "fine_tune", "interpolate", "load_ditto"]

INTERPOLATION_GRID = tuple(step / 10 for step in range(11))


def load_ditto(held: HeldModel) -> bool:
    """Load the personal model that Ditto trained beside the federated one; return False if the site has none."""
    if not any(name.startswith(f"{DITTO}/") for name in held.own):
        return False
    held.load(held.own, f"{DITTO}/model")
    return True


def fine_tune(held: HeldModel, settings: TrainingSettings, *, epochs: int, seed: int) -> TrainingOutcome:
    """Train the federated model, own head included, on the site's own images after the last round.

    The learning rates are those of the run, from the start of their schedule; the optimiser starts anew.

    Args:
        held: has adopted the federation's payload.
        settings: training settings of the run.
        epochs: number of epochs.
        seed: seed of the run.

    Raises:
        TrainingDivergedError: if training diverges; the model must not be used then.
    """
    alone = settings.model_copy(update={"epochs": epochs, "head_first_epochs": 0, "proximal_mu": 0.0})
    scope = RoundScope(derive_seed(seed, "fine-tune"), held.data.name, 1, 1)
    head = held.prepare_training()
    outcome = train_round(held.model, build_optimizer(held.model, alone), held.data.train, alone, scope, head=head)
    held.refit_head()
    return outcome


def interpolate(held: HeldModel, payload: Vector) -> float:
    """Adopt the mix of own and global payload with the least validation loss, and return the own payload's share.

    The own payload is the one at the end of the site's last trained round. For sinks, mixing is a weighted geometric
    mean of the two prompts' weights in the softmax. In a tie, and at a site without validation images, the global
    payload is used (share 0). This follows APFL's mixture (Deng et al. 2020), but the share is chosen by validation
    instead of learned.

    Args:
        held: the site's model, as it was lent.
        payload: the federation's payload.
    """
    own = held.export()
    best, lowest = 0.0, np.inf
    for share in INTERPOLATION_GRID:
        held.adopt(_mix(own, payload, share))
        _, metrics = held.assess(held.data.validation)
        if metrics["loss"] < lowest:
            best, lowest = share, metrics["loss"]
    held.adopt(_mix(own, payload, best))
    return best


def _mix(own: Vector, payload: Vector, share: float) -> Vector:
    return (share * own.astype(np.float64) + (1 - share) * payload.astype(np.float64)).astype(np.float32)
