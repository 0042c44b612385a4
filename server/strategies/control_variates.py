"""SCAFFOLD and FedDyn: strategies that correct the drift of each site's loss from the mean loss of all sites.

Both keep one control vector per site. The server keeps these vectors, not the sites, so they depend only on accepted
replies. A refused, repeated or lost reply therefore causes no difference between server and site, and the sites keep no
additional state. The cost is one more payload per message, which is kilobytes for folded prompts.
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np

from ept_fed.protocol.layout import Vector
from server.strategies.aggregation_rules import control_mean, feddyn, feddyn_control, scaffold
from server.strategies.base import Aggregator, Update, Weigh, count_examples, stack_payloads

__all__ = ["FedDyn", "Scaffold"]

_CONTROL = "control/"


class _Controlled(Aggregator):
    """An aggregator with a control vector (n,) for each site that has sent an update; it is zero for the others."""

    def __init__(self, sites: int, weigh: Weigh) -> None:
        self._sites, self._weigh = sites, weigh
        self._controls: dict[str, Vector] = {}
        self._mean: Vector | None = None

    @abstractmethod
    def aggregate(self, round_number: int, payload: Vector, updates: Sequence[Update]) -> Vector:
        """Return the next payload and update the controls of the sites in `updates`."""

    def state(self) -> dict[str, Vector]:
        """Return the controls by site."""
        return {f"{_CONTROL}{site}": control for site, control in sorted(self._controls.items())}

    def load_state(self, state: Mapping[str, Vector], payload: Vector) -> None:
        """Restore the controls; see `Aggregator.load_state`."""
        shape = payload.shape
        wrong = [name for name, held in state.items() if not name.startswith(_CONTROL) or held.shape != shape]
        if wrong:
            raise ValueError(f"{type(self).__name__} keeps one control of shape {shape} per site, not {wrong}")
        self._controls = {name.removeprefix(_CONTROL): np.array(vector) for name, vector in state.items()}
        self._mean = control_mean(self._controls, self._sites, payload) if state else None


class Scaffold(_Controlled):
    """SCAFFOLD with option I: a site's control is the gradient of its loss at the payload that it received."""

    def __init__(self, sites: int, weigh: Weigh, server_learning_rate: float) -> None:
        super().__init__(sites, weigh)
        self._rate = server_learning_rate

    def aggregate(self, round_number: int, payload: Vector, updates: Sequence[Update]) -> Vector:
        """Set the sites' gradients as their controls, and return the payload after a step along the mean update."""
        del round_number
        for update in updates:
            if update.gradient is None:
                raise ValueError(f"{update.site} was accepted without the gradient that SCAFFOLD requires")
            self._controls[update.site] = update.gradient
        self._mean = control_mean(self._controls, self._sites, payload)
        return scaffold(payload, stack_payloads(updates), self._weigh(count_examples(updates)), self._rate)

    def correction(self, site: str) -> Vector | None:
        """Return c - cᵢ, which corrects the site's gradient towards the mean gradient of all sites."""
        return None if self._mean is None else self._mean - self._controls.get(site, np.zeros_like(self._mean))


class FedDyn(_Controlled):
    """FedDyn: each site's loss has a linear term that moves the minima of all sites to a common one."""

    def __init__(self, sites: int, weigh: Weigh, alpha: float) -> None:
        super().__init__(sites, weigh)
        self._alpha = alpha

    def aggregate(self, round_number: int, payload: Vector, updates: Sequence[Update]) -> Vector:
        """Update the controls, and return the mean payload minus the mean control divided by α."""
        del round_number
        for update in updates:
            before = self._controls.get(update.site, np.zeros_like(payload))
            self._controls[update.site] = feddyn_control(before, payload, update.payload, self._alpha)
        self._mean = control_mean(self._controls, self._sites, payload)
        return feddyn(stack_payloads(updates), self._weigh(count_examples(updates)), self._mean, self._alpha)

    def correction(self, site: str) -> Vector | None:
        """Return -hᵢ, or None if the site has no control yet."""
        control = self._controls.get(site)
        return None if control is None else -control
