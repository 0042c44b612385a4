"""Where verbs find what they start: the library may not import server, client or simulations, so these register."""

from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any

__all__ = ["load_engine"]


def load_engine(verb: str) -> Callable[..., Any]:
    """Return the function registered for a verb in the entry-point group `ept_fed.engines`.

    Raises:
        LookupError: if the installation lacks it.
    """
    matches = list(entry_points(group="ept_fed.engines", name=verb))
    if len(matches) != 1:
        raise LookupError(f"{len(matches)} engines are installed for '{verb}'; reinstall ept-fed")
    engine: Callable[..., Any] = matches[0].load()
    return engine
