"""What a site remembers from round to round, as plain arrays: for a process that ends before the next message.

Flower's SuperNode starts a new process for every message, and its simulation hands a site to whichever worker is free.
The state stays at the site: prompts in full (the payload holds only their fold), tokens, the own head, and the
optimiser's moments.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from client.site import Site
from ept_fed.config import TrainingSettings
from ept_fed.training.optimizer import build_optimizer

__all__ = ["SiteStateError", "export_state", "import_state"]

Arrays = dict[str, npt.NDArray[Any]]
_MODEL, _OPTIMIZER = "model", "optimizer"


class SiteStateError(ValueError):
    """A state that does not fit the site; the text says what differs."""


def export_state(site: Site) -> tuple[Arrays, str]:
    """Return the site's arrays by name, and the JSON of the settings its optimiser was made with ("" if there is none).

    Names are `model.<parameter>` and `optimizer.<parameter number>.<moment>`.
    """
    arrays = {f"{_MODEL}.{name}": _copy(parameter) for name, parameter in _trainable(site)}
    optimizer, settings = site._optimizer, site._optimizer_settings
    if optimizer is None or settings is None:
        return arrays, ""
    for number, moments in optimizer.state_dict()["state"].items():
        for name, value in moments.items():
            if value is not None:
                arrays[f"{_OPTIMIZER}.{number}.{name}"] = _copy(torch.as_tensor(value))
    return arrays, settings.model_dump_json()


@torch.no_grad()
def import_state(site: Site, arrays: Mapping[str, npt.NDArray[Any]], settings: str) -> None:
    """Put a fresh site into the state that `export_state` returned; training then goes on bit for bit.

    Raises:
        SiteStateError: for another model's state.
    """
    parameters = dict(_trainable(site))
    expected = {f"{_MODEL}.{name}" for name in parameters}
    found = {name for name in arrays if name.startswith(f"{_MODEL}.")}
    if found != expected:
        raise SiteStateError(f"state holds {sorted(found)}; this site's model has {sorted(expected)}")
    for name, parameter in parameters.items():
        array = arrays[f"{_MODEL}.{name}"]
        if array.shape != tuple(parameter.shape):
            raise SiteStateError(f"'{name}' has shape {array.shape}; this site's model has {tuple(parameter.shape)}")
        parameter.copy_(torch.from_numpy(np.array(array)))
    if settings:
        site._optimizer_settings = TrainingSettings.model_validate_json(settings)
        site._optimizer = build_optimizer(site.model, site._optimizer_settings)
        site._optimizer.load_state_dict({**site._optimizer.state_dict(), "state": _moments(arrays)})


def _moments(arrays: Mapping[str, npt.NDArray[Any]]) -> dict[int, dict[str, torch.Tensor]]:
    moments: dict[int, dict[str, torch.Tensor]] = {}
    for name, array in arrays.items():
        kind, _, rest = name.partition(".")
        if kind == _OPTIMIZER:
            number, _, moment = rest.partition(".")
            moments.setdefault(int(number), {})[moment] = torch.from_numpy(np.array(array))
    return moments


def _trainable(site: Site) -> list[tuple[str, torch.nn.Parameter]]:
    return [(name, parameter) for name, parameter in site.model.named_parameters() if parameter.requires_grad]


def _copy(tensor: torch.Tensor) -> npt.NDArray[Any]:
    array: npt.NDArray[Any] = tensor.detach().cpu().numpy().copy()
    return array
