"""Stores of a site's state after each trained round: its own columns, tokens, head and optimiser.

A round may be requested again, if the server was killed before it had stored the reply. It then starts from the state
before it, so it has the same result. The last few states are kept, on disk or in memory.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ept_fed.models.tuned_vit import TunedViT
from ept_fed.storage.checkpoint_file import DamagedCheckpointError, read_checksummed, write_checksummed

__all__ = [
    "KEPT_STATES",
    "SiteState",
    "StateFolder",
    "StateLostError",
    "StateMemory",
    "StateStore",
    "Tensors",
    "capture_model",
    "capture_optimizer",
    "restore_model",
    "restore_optimizer",
]

# A server resumes at its last complete checkpoint. Its sites may have trained one round more, or two if that checkpoint
# is damaged and removed. With three states, the state before the resumed round still exists. A site hears of the best
# round two rounds later, and then keeps its state too.
KEPT_STATES = 3

Tensors = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class SiteState:
    """The state of one site after one round.

    Attributes:
        round: number of the trained round, from 1.
        trained: number of rounds that the site has trained so far; less than `round` if sites are sampled.
        tensors: tensors by name, of any dtype.
        settings: JSON of the training settings to which the optimiser's moments belong.
        best_round: the best round so far, as the site heard before it trained this one; 0 if none.
    """

    round: int
    trained: int
    tensors: Tensors
    settings: str
    best_round: int = 0


class StateLostError(LookupError):
    """The state before a round is no longer kept; the text contains no path and may leave the site."""


class StateStore(ABC):
    """A store of a site's states, by the trained round."""

    def latest(self, before: int | None = None) -> SiteState | None:
        """Return the newest state, or the newest one before the given round; None if the site starts there.

        Raises:
            DamagedCheckpointError: if that state is damaged, or of another run or site.
            StateLostError: if the site trained that round so long ago that the state before it is gone.
        """
        held = self._held()
        fitting = [number for number in held if before is None or number < before]
        found = self._read(max(fitting)) if fitting else None
        later = held.difference(fitting)
        # States between two kept ones are gone if the site trained more than one round between them.
        if later and self._read(min(later)).trained > (found.trained if found else 0) + 1:
            raise StateLostError(f"the state before round {before} is no longer kept; resume from a later round")
        return found

    def after(self, round_number: int) -> SiteState | None:
        """Return the state that the site had after a round, which it may not have trained; None if it is the start.

        Raises:
            DamagedCheckpointError: as for `latest`.
            StateLostError: if that state is gone. That of the best round is always kept.
        """
        held = self._held()
        earlier = max((number for number in held if number <= round_number), default=0)
        if earlier and (earlier == round_number or self._read(max(held)).best_round == round_number):
            return self._read(earlier)
        return self.latest(before=round_number + 1)

    def save(self, state: SiteState) -> None:
        """Store a state; drop states of later rounds, which are obsolete now, and the oldest states.

        Of the old states, the one that the site had after the best round is kept.
        """
        self._write(state)
        held = sorted(self._held())
        best = max((number for number in held if number <= state.best_round), default=0)
        latest = [number for number in held if number <= state.round][-KEPT_STATES:]
        for number in held:
            if number not in latest and number != best:
                self._drop(number)

    @abstractmethod
    def _held(self) -> set[int]:
        """Return the rounds whose states are kept, as a new set."""

    @abstractmethod
    def _read(self, round_number: int) -> SiteState: ...

    @abstractmethod
    def _write(self, state: SiteState) -> None: ...

    @abstractmethod
    def _drop(self, round_number: int) -> None: ...


class StateMemory(StateStore):
    """A store of states in memory, for a process that never resumes."""

    def __init__(self) -> None:
        """Start empty."""
        self._states: dict[int, SiteState] = {}

    def _held(self) -> set[int]:
        return set(self._states)

    def _read(self, round_number: int) -> SiteState:
        return self._states[round_number]

    def _write(self, state: SiteState) -> None:
        self._states[state.round] = state

    def _drop(self, round_number: int) -> None:
        del self._states[round_number]


class StateFolder(StateStore):
    """A store of states as checksummed safetensors in a folder: `round-0007.safetensors`."""

    def __init__(self, folder: Path, *, run: str, site: str) -> None:
        """Take the folder of one site in one run; a state of another site or run is refused."""
        self._folder, self._identity = folder, {"schema": 2, "run": run, "site": site}

    def _held(self) -> set[int]:
        names = [path.stem.removeprefix("round-") for path in self._folder.glob("round-*.safetensors")]
        return {int(name) for name in names if name.isdigit()}

    def _read(self, round_number: int) -> SiteState:
        path = self._path(round_number)
        tensors, about = read_checksummed(path)
        expected = {**self._identity, "round": round_number}
        differing = [key for key, value in expected.items() if about.get(key) != value]
        if differing:
            raise DamagedCheckpointError(
                f"{path} belongs elsewhere: its {', '.join(differing)} differ from this site's"
            )
        best = int(about["best_round"])
        return SiteState(round_number, int(about["trained"]), tensors, str(about["settings"]), best)

    def _write(self, state: SiteState) -> None:
        about = {
            **self._identity,
            "round": state.round,
            "trained": state.trained,
            "settings": state.settings,
            "best_round": state.best_round,
        }
        write_checksummed(self._path(state.round), state.tensors, about)

    def _drop(self, round_number: int) -> None:
        self._path(round_number).unlink()

    def _path(self, round_number: int) -> Path:
        return self._folder / f"round-{round_number:04d}.safetensors"


def capture_model(model: TunedViT, prefix: str = "model") -> dict[str, npt.NDArray[Any]]:
    """Return copies of all trainable tensors, named `prefix/name`."""
    return {f"{prefix}/{name}": tensor.detach().cpu().numpy().copy() for name, tensor in _trainable(model).items()}


@torch.no_grad()
def restore_model(model: TunedViT, tensors: Tensors, prefix: str = "model") -> None:
    """Restore the tensors that `capture_model` returned.

    Raises:
        ValueError: if names or shapes are not this model's.
    """
    held = {name: tensor for name, tensor in tensors.items() if name.startswith(f"{prefix}/")}
    expected = {f"{prefix}/{name}": tensor for name, tensor in _trainable(model).items()}
    shapes = {name: tuple(tensor.shape) for name, tensor in expected.items()}
    if {name: tensor.shape for name, tensor in held.items()} != shapes:
        raise ValueError(f"the state holds {sorted(held)}; this model has {shapes}")
    for name, tensor in expected.items():
        tensor.copy_(torch.from_numpy(np.ascontiguousarray(held[name])))


def capture_optimizer(optimizer: torch.optim.Optimizer, prefix: str = "optimizer") -> dict[str, npt.NDArray[Any]]:
    """Return copies of the optimiser's moments, named `prefix/parameter/key`."""
    state = optimizer.state_dict()["state"]
    return {
        f"{prefix}/{index}/{key}": value.detach().cpu().numpy().copy()
        for index, entry in state.items()
        for key, value in entry.items()
        if isinstance(value, torch.Tensor)
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Tensors, prefix: str = "optimizer") -> None:
    """Restore the moments that `capture_optimizer` returned in a new optimiser of the same settings."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith(f"{prefix}/"):
            index, key = name.removeprefix(f"{prefix}/").split("/")
            state.setdefault(int(index), {})[key] = torch.from_numpy(np.array(tensor))
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _trainable(model: TunedViT) -> dict[str, torch.nn.Parameter]:
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
