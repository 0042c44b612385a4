"""A store of a site's states in Flower's `context.state`, for a process that ends before the next message.

Flower's SuperNode starts a new process for every message, and its simulation assigns a site to any free worker. Both
keep `context.state` at the node between messages.
"""

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from client.site.state_store import SiteState, StateStore

__all__ = ["ContextStates"]

_ARRAYS, _ABOUT = "state-", "about-"


class ContextStates(StateStore):
    """Store of states as pairs of records, named after their round."""

    def __init__(self, records: RecordDict) -> None:
        """Take the records of a node's context; records of other names are left alone."""
        self._records = records

    def _held(self) -> set[int]:
        return {int(name.removeprefix(_ARRAYS)) for name in self._records.array_records if name.startswith(_ARRAYS)}

    def _read(self, round_number: int) -> SiteState:
        arrays = self._records.array_records[f"{_ARRAYS}{round_number}"]
        about = self._records.config_records[f"{_ABOUT}{round_number}"]
        tensors = {name: array.numpy() for name, array in arrays.items()}
        best = int(str(about["best_round"]))
        return SiteState(round_number, int(str(about["trained"])), tensors, str(about["settings"]), best)

    def _write(self, state: SiteState) -> None:
        arrays = {name: Array(np.asarray(tensor)) for name, tensor in state.tensors.items()}
        self._records[f"{_ARRAYS}{state.round}"] = ArrayRecord(arrays)
        about = ConfigRecord({"trained": state.trained, "settings": state.settings, "best_round": state.best_round})
        self._records[f"{_ABOUT}{state.round}"] = about

    def _drop(self, round_number: int) -> None:
        del self._records[f"{_ARRAYS}{round_number}"]
        del self._records[f"{_ABOUT}{round_number}"]
