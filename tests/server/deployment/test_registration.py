"""Only the sites in sites.json may participate, independent of earlier registrations in the SuperLink."""

from types import SimpleNamespace
from typing import cast

from hypothesis import given
from hypothesis import strategies as st

from server.deployment.registration import plan_registrations, register_sites
from server.deployment.server_kit import ServerKit
from server.deployment.superlink_control import Control, ControlDeclinedError, Node

NAMES = ["north", "south", "west"]
KEYS = [b"key-1", b"key-2", b"key-3", b"key-4"]


def node(number: int, name: str, key: bytes) -> Node:
    return Node(number, name, key, "", "online", 0.0)


@given(
    st.dictionaries(st.sampled_from(NAMES), st.sampled_from(KEYS)),
    st.lists(st.tuples(st.sampled_from([*NAMES, "", "intruder"]), st.sampled_from(KEYS))),
)
def test_afterwards_exactly_the_sites_are_registered_each_once(
    keys: dict[str, bytes], registered: list[tuple[str, bytes]]
) -> None:
    nodes = [node(number, name, key) for number, (name, key) in enumerate(registered)]
    changes = plan_registrations(keys, nodes)
    after = [(n.name, n.key) for n in nodes if n.identifier not in changes.unregister]
    after += [(name, keys[name]) for name in changes.register]
    assert sorted(after) == sorted(keys.items())


def test_registering_twice_changes_nothing() -> None:
    keys = {"north": b"key-1"}
    changes = plan_registrations(keys, [node(1, "north", b"key-1")])
    assert (dict(changes.unregister), changes.register) == ({}, ())


def test_a_strangers_key_under_a_sites_name_is_shut_out() -> None:
    changes = plan_registrations({"north": b"key-1"}, [node(1, "north", b"key-1"), node(2, "north", b"key-2")])
    assert changes.unregister == {2: "north"}


def test_a_declined_key_excludes_only_its_own_site() -> None:
    admitted: list[str] = []

    class SuperLink:
        def nodes(self) -> list[Node]:
            return []

        def register(self, name: str, _key: bytes, _location: str | None) -> None:
            if name == "north":
                raise ControlDeclinedError("SuperLink declines: key in use")
            admitted.append(name)

    class Kit:
        sites = dict.fromkeys(("north", "south"), SimpleNamespace(location=None))

        def public_keys(self) -> dict[str, bytes]:
            return {"north": b"key-1", "south": b"key-2"}

    changes = register_sites(cast(ServerKit, Kit()), cast(Control, SuperLink()))
    assert admitted == ["south"]
    assert changes.register == ("south",)
    assert list(changes.declined) == ["north"]
