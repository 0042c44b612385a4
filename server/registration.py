"""Who may take part, as SuperLink enforces it: brought to what sites.json says, every time the server starts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from server.control import Control, Node
from server.server_kit import ServerKit

__all__ = ["Registrations", "plan_registrations", "register_sites"]


@dataclass(frozen=True)
class Registrations:
    """What has to change: nodes to shut out, by number with the name, and sites to admit."""

    unregister: Mapping[int, str]
    register: tuple[str, ...]


def plan_registrations(
    keys: Mapping[str, bytes], locations: Mapping[str, str | None], nodes: Sequence[Node]
) -> Registrations:
    """Compare what SuperLink knows with what it should.

    Whatever is not exactly a site's key under that site's name and location is shut out.

    Args:
        keys: public key (PEM) of each admitted site, by name.
        locations: of the same sites.
        nodes: as SuperLink has registered them.
    """
    right, wrong = set(), {}
    for node in nodes:
        if (
            keys.get(node.name) == node.key
            and (locations.get(node.name) or "") == node.location
            and node.name not in right
        ):
            right.add(node.name)
        else:
            wrong[node.identifier] = node.name
    return Registrations(wrong, tuple(sorted(set(keys) - right)))


def register_sites(kit: ServerKit, control: Control) -> Registrations:
    """Bring SuperLink's registrations to what the kit says; return what changed.

    Raises:
        ControlError: if SuperLink declines one.
    """
    keys = kit.public_keys()
    locations = {name: kit.sites[name].location for name in keys}
    changes = plan_registrations(keys, locations, control.nodes())
    for identifier in changes.unregister:
        control.unregister(identifier)
    for name in changes.register:
        control.register(name, keys[name], locations[name])
    return changes
