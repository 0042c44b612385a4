"""The registration of sites at SuperLink: at every start it is updated to match sites.json."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from server.deployment.server_kit import ServerKit
from server.deployment.superlink_control import Control, ControlDeclinedError, Node

__all__ = ["Registrations", "plan_registrations", "register_sites"]


@dataclass(frozen=True)
class Registrations:
    """Changes of the registrations: nodes to unregister, and sites to register.

    Attributes:
        unregister: names of nodes to unregister, by node number.
        register: names of sites to register.
        declined: reasons why SuperLink declined the key of a site, by name.
    """

    unregister: Mapping[int, str]
    register: tuple[str, ...]
    declined: Mapping[str, str] = field(default_factory=dict)


def plan_registrations(keys: Mapping[str, bytes], nodes: Sequence[Node]) -> Registrations:
    """Return the changes that SuperLink's registrations need; each node without a site's own key is unregistered.

    A changed location is not updated: Flower accepts no key twice, not even one that was unregistered.

    Args:
        keys: public key (PEM) of each admitted site, by name.
        nodes: the nodes that are registered at SuperLink.
    """
    right, wrong = set(), {}
    for node in nodes:
        if keys.get(node.name) == node.key and node.name not in right:
            right.add(node.name)
        else:
            wrong[node.identifier] = node.name
    return Registrations(wrong, tuple(sorted(set(keys) - right)))


def register_sites(kit: ServerKit, control: Control) -> Registrations:
    """Update SuperLink's registrations to match the kit, and return the changes.

    If SuperLink declines a key, only the site of this key is excluded.

    Raises:
        ControlError: if SuperLink does not answer, or does not unregister a node.
    """
    keys = kit.public_keys()
    changes = plan_registrations(keys, control.nodes())
    for identifier in changes.unregister:
        control.unregister(identifier)
    declined = {}
    for name in changes.register:
        try:
            control.register(name, keys[name], kit.sites[name].location)
        except ControlDeclinedError as error:
            declined[name] = str(error)
    return replace(changes, register=tuple(sorted({*changes.register} - {*declined})), declined=declined)
