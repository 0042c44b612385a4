"""A site as a MONAI `ClientAlgo`, so that another federated framework can drive it.

The exchange contains exactly the tensors of a payload, by name: `sinks` (L, N + T), `tokens` (L, T, D) and, only if the
site was made with `share="prompts+head"`, those of the head.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from monai.fl.client.client_algo import ClientAlgo
from monai.fl.utils.constants import ExtraItems, FlStatistics, WeightType
from monai.fl.utils.exchange_object import ExchangeObject

from client.site.site import Site
from ept_fed.config.experiment import TrainingSettings
from ept_fed.errors import InputRefusedError, Problem
from ept_fed.protocol.layout import Vector

__all__ = ["EPTClientAlgo"]


class EPTClientAlgo(ClientAlgo):
    """Train and evaluate one site on weights that arrive in MONAI's `ExchangeObject`.

    Rounds are counted here, because `ClientAlgo` has no round number: each call of `train` is the next of `rounds`.
    The learning-rate schedule spans all of them.
    """

    def __init__(self, site: Site, settings: TrainingSettings, *, rounds: int) -> None:
        """Wrap a site; `settings` are the training settings that a Flower train request would contain.

        Raises:
            InputRefusedError: for a site of a run with secure aggregation, noise on its updates, or class statistics;
                this class neither adds nor checks them.
        """
        for field, present in (
            ("secure_aggregation", site.settings.secure_aggregation),
            ("site_privacy", site.settings.noise is not None),
            ("statistics", site.layout.holds_statistics),
        ):
            if present:
                fix = "is available only with Flower's messages, and not through MONAI; leave it out"
                raise InputRefusedError([Problem(f"federation.{field}", "on", fix)])
        self.site = site
        self._settings, self._rounds = settings, rounds
        self._round = 0

    def initialize(self, extra: dict[str, Any] | None = None) -> None:
        """Check that the framework addresses this site, if it names one.

        Raises:
            ValueError: if `extra` names another client.
        """
        name = (extra or {}).get(ExtraItems.CLIENT_NAME, self.site.name)
        if name != self.site.name:
            raise ValueError(f"this is site '{self.site.name}', not '{name}'")

    def train(self, data: ExchangeObject, extra: dict[str, Any] | None = None) -> None:
        """Take over the weights and train one round.

        Raises:
            PayloadMismatchError: if the weights do not fit the site's layout.
            RuntimeError: if all rounds are done.
        """
        del extra
        if self._round >= self._rounds:
            raise RuntimeError(f"all {self._rounds} rounds are done; make a new EPTClientAlgo for a new run")
        self.site.fit(self._settings, self._round + 1, self._rounds, payload=self._read(data))
        self._round += 1

    def get_weights(self, extra: dict[str, Any] | None = None) -> ExchangeObject:
        """Return the site's payload after its last round by tensor name, and the number of its training images."""
        del extra
        return ExchangeObject(
            weights=self.site.layout.unflatten(self.site.own_payload()),
            weight_type=WeightType.WEIGHTS,
            statistics={FlStatistics.DATA_COUNT: len(self.site.data.train)},
        )

    def evaluate(self, data: ExchangeObject, extra: dict[str, Any] | None = None) -> ExchangeObject:
        """Evaluate weights with the site's own head on its validation split; undefined metrics are NaN."""
        del extra
        with self.site.hold(self._read(data)) as held:
            _, metrics = held.assess(self.site.data.validation)
        return ExchangeObject(metrics=metrics)

    def _read(self, data: ExchangeObject) -> Vector:
        weights: Mapping[str, Any] = data.weights or {}
        payload = self.site.layout.flatten({name: np.asarray(value) for name, value in weights.items()})
        self.site.layout.check(payload)
        return payload
