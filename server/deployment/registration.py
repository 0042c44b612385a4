"""Who may take part, as SuperLink enforces it: brought to what sites.json says, every time the server starts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from server.deployment.control import Control, ControlDeclinedError, Node
from server.deployment.server_kit import ServerKit

__all__ = ["Registrations", "plan_registrations", "register_sites"]


@dataclass(frozen=True)
class Registrations:
    """What has to change: nodes to shut out, by number with the name, and sites to admit.

    Attributes:
        unregister: number -> name.
        register: names.
        declined: name -> why SuperLink did not take the key of a site that should be admitted.
    """

    unregister: Mapping[int, str]
    register: tuple[str, ...]
    declined: Mapping[str, str] = field(default_factory=dict)


def plan_registrations(keys: Mapping[str, bytes], nodes: Sequence[Node]) -> Registrations:
    """Compare what SuperLink has registered with what it should: whatever is not a site's own key is shut out.

    A location that has changed is left as it is: Flower takes no key twice, not even one that was unregistered.

    Args:
        keys: public key (PEM) of each admitted site, by name.
        nodes: as SuperLink has registered them.
    """
    right, wrong = set(), {}
    for node in nodes:
        if keys.get(node.name) == node.key and node.name not in right:
            right.add(node.name)
        else:
            wrong[node.identifier] = node.name
    return Registrations(wrong, tuple(sorted(set(keys) - right)))


def register_sites(kit: ServerKit, control: Control) -> Registrations:
    """Bring SuperLink's registrations to what the kit says; return what changed.

    A key that SuperLink declines keeps its own site out, and no other.

    Raises:
        ControlError: if SuperLink does not answer, or does not shut a node out.
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
