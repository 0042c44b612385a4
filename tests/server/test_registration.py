"""Who may take part is what sites.json says, whatever SuperLink had registered before."""

from hypothesis import given
from hypothesis import strategies as st

from server.control import Node
from server.registration import plan_registrations

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
