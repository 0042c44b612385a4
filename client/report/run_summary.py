"""The part of a run's report.json apart from the results; it is the same for a simulation and a site's own report."""

import platform
from collections.abc import Mapping, Sequence
from typing import Any

import torch

import ept_fed
from ept_fed.config.experiment import Experiment
from ept_fed.models.backbones import Backbone
from ept_fed.protocol.layout import PayloadLayout
from ept_fed.reports.run.training_record import TrainingRecord

__all__ = ["describe_run"]


def describe_run(
    experiment: Experiment,
    *,
    run: str,
    status: str,
    chosen: int | None,
    ended: str,
    classes: Sequence[str],
    backbone: Backbone,
    layout: PayloadLayout,
    data: Sequence[Mapping[str, Any]],
    notes: Sequence[str],
    limits: Mapping[str, Sequence[str]],
    training: Mapping[str, Mapping[str, TrainingRecord]],
    device: torch.device,
) -> dict[str, Any]:
    """Return the JSON-ready part of a run's report that does not depend on any result.

    Args:
        experiment: the settings of the run.
        run: the identity of the run.
        status: done or failed.
        chosen: the round whose prompts the run keeps; None if there is none, or if a site does not know it.
        ended: the reason why there was no further round.
        classes: class names.
        backbone: the backbone, of which name and digest are reported.
        layout: the layout of the payload.
        data: the images in use, see `PreparedData.summary`.
        notes: sentences about the run.
        limits: sentences by site, only for the site's own page.
        training: how training ended, by setting and site.
        device: the device of the computation.
    """
    return {
        "schema": 1,
        "status": status,
        "name": experiment.name,
        "run": run,
        "seed": experiment.seed,
        "rounds": experiment.federation.rounds,
        "share": experiment.federation.share,
        "strategy": experiment.federation.strategy,
        "ended": ended,
        "chosen_round": chosen,
        "classes": list(classes),
        "backbone": {"name": backbone.name, "digest": backbone.digest},
        "payload": {"layout": layout.to_json(), "hash": layout.hash, "bytes": 4 * layout.size},
        "data": list(data),
        "notes": list(notes),
        "limits": {site: list(sentences) for site, sentences in limits.items()},
        "training": {
            setting: {site: record.to_json() for site, record in records.items()}
            for setting, records in training.items()
        },
        "versions": {"ept_fed": ept_fed.__version__, "torch": torch.__version__, "python": platform.python_version()},
        "device": str(device),
    }
