"""What report.json of a run says besides its results; the same words for a simulation and for a site's own report."""

import platform
from collections.abc import Mapping, Sequence
from typing import Any

import torch

import ept_fed
from ept_fed.config.experiment import Experiment
from ept_fed.models.backbones import Backbone
from ept_fed.protocol.layout import PayloadLayout

__all__ = ["describe_run"]


def describe_run(
    experiment: Experiment,
    *,
    run: str,
    status: str,
    ended: str,
    classes: Sequence[str],
    backbone: Backbone,
    layout: PayloadLayout,
    data: Sequence[Mapping[str, Any]],
    notes: Sequence[str],
    limits: Mapping[str, Sequence[str]],
    device: torch.device,
) -> dict[str, Any]:
    """Return the JSON-ready part of a run's report that no result depends on.

    Args:
        experiment: the settings.
        run: identity.
        status: done or failed.
        ended: why there was no further round.
        classes: names.
        backbone: name and digest are told.
        layout: of the payload.
        data: images in use, see `PreparedData.summary`.
        notes: sentences.
        limits: sentences by site, for its own page alone.
        device: where it was computed.
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
        "classes": list(classes),
        "backbone": {"name": backbone.name, "digest": backbone.digest},
        "payload": {"layout": layout.to_json(), "hash": layout.hash, "bytes": 4 * layout.size},
        "data": list(data),
        "notes": list(notes),
        "limits": {site: list(sentences) for site, sentences in limits.items()},
        "versions": {"ept_fed": ept_fed.__version__, "torch": torch.__version__, "python": platform.python_version()},
        "device": str(device),
    }
