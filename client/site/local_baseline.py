"""The local-only baseline of a federation: the same training at each site, without any exchange."""

import time
from collections.abc import Mapping

from client.site.site import Site
from ept_fed.config.experiment import TrainingSettings
from ept_fed.progress import Progress
from ept_fed.protocol.layout import Vector
from ept_fed.reports.run.training_record import TrainingRecord, describe_training
from ept_fed.training.loop import TrainingDivergedError

__all__ = ["describe_local_training", "train_locally"]


def train_locally(
    sites: Mapping[str, Site],
    training: TrainingSettings,
    rounds: int,
    progress: Progress,
    *,
    stage: str = "local",
    start: Vector | None = None,
    patience: int | None = None,
    tolerance: float | None = None,
) -> None:
    """Train a local-only model at each site: the same rounds, seeds and schedule as in the federation, but no exchange.

    A site resumes from its newest state, so rounds that an earlier process trained are not trained again. Each
    site ends with the model of its own best or last round.

    Args:
        sites: the sites by name.
        training: training settings of each round.
        rounds: number of rounds.
        progress: receives the progress of each site.
        stage: name of this training in the progress reports.
        start: payload at the start of the first round; None starts from the initial model of the federation.
        patience: a site stops after so many rounds without a better AUC on its own validation images; None: never.
        tolerance: use the latest round whose AUC on the site's own validation images is at most this below the highest;
            None: use the last round.

    Raises:
        PayloadMismatchError: if `start` does not fit a site's layout.
        DamagedCheckpointError: if the state of a site is damaged; nothing is trained then.
    """
    progress.on_stage(stage, tuple(sites), rounds)
    done = {name: site.state.round if site.state else 0 for name, site in sites.items()}
    training_sites = set(sites)
    for round_number in range(1, rounds + 1):
        started = time.perf_counter()
        for name in sorted(training_sites):
            if round_number <= done[name] or sites[name].curve.is_over(patience):
                continue
            try:
                outcome = sites[name].fit(
                    training,
                    round_number,
                    rounds,
                    payload=start if round_number == 1 else None,
                    tolerance=tolerance or 0.0,
                )
            except TrainingDivergedError as diverged:
                training_sites.discard(name)
                progress.on_note(f"{stage}: {name} stops before round {round_number}, because {diverged}")
                continue
            progress.on_site(round_number, name, {"loss": outcome.loss})
        progress.on_round(round_number, time.perf_counter() - started)
    for site in sites.values():
        if tolerance is not None and (chosen := site.curve.choose_round(tolerance)):
            site.select_round(chosen)


def describe_local_training(site: Site) -> TrainingRecord:
    """Return how the training of a site's local model ended, by its own validation images."""
    state, curve = site.state, site.curve
    rounds = site.trained_rounds
    return describe_training(curve.auc, curve.loss, rounds=rounds, chosen=0 if state is None else state.round)
