"""Waiting for sites, on a clock of its own: for all, or for the quorum and a grace, but never past the deadline."""

from types import SimpleNamespace

import pytest

from server.rounds import wait_for_sites as module
from server.rounds.wait_for_sites import wait_for_sites

WANTED = ("a", "b", "c")


class Grid:
    """A grid whose nodes come online at given times; it is also the clock."""

    def __init__(self, *arrivals: tuple[str, float]) -> None:
        self.now, self.arrivals, self.asked = 1000.0, arrivals, 0

    def get_nodes(self) -> list[SimpleNamespace]:
        self.asked += 1
        assert self.asked < 50, "it does not wait between two looks"
        return [
            SimpleNamespace(name=name, node_id=number)
            for number, (name, after) in enumerate(self.arrivals)
            if self.now >= 1000.0 + after
        ]

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds


@pytest.mark.parametrize(
    ("arrivals", "online", "waited"),
    [
        ([("a", 0), ("b", 0), ("c", 0)], "abc", 0),
        ([("a", 0), ("b", 3), ("c", 6)], "abc", 6),
        ([("a", 0), ("b", 3), ("c", 9)], "ab", 8.5),
        ([("a", 0), ("b", 18)], "ab", 20.5),
        ([("b", 0), ("stranger", 0)], "b", 20.5),
        ([("stranger", 0), ("other", 0), ("third", 0)], "", 20.5),
    ],
    ids=["all", "all within the grace", "the quorum and the grace", "the deadline in the grace", "too few", "none"],
)
def test_all_are_awaited_until_the_grace_after_the_quorum_or_the_deadline(
    monkeypatch: pytest.MonkeyPatch, arrivals: list[tuple[str, float]], online: str, waited: float
) -> None:
    grid = Grid(*arrivals)
    monkeypatch.setattr(module, "time", grid)
    found, doubled = wait_for_sites(grid, WANTED, deadline=20.5, quorum=2, grace=5.5)  # type: ignore[arg-type]
    assert found == {name: [name for name, _ in arrivals].index(name) for name in online}
    assert (doubled, grid.now - 1000) == ([], waited)


def test_names_of_more_than_one_node_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    grid = Grid(("c", 0), ("a", 0), ("b", 0), ("c", 0), ("a", 0), ("stranger", 0), ("stranger", 0))
    monkeypatch.setattr(module, "time", grid)
    found, doubled = wait_for_sites(grid, WANTED, deadline=1.0, quorum=3, grace=0.0)  # type: ignore[arg-type]
    assert (set(found), doubled) == (set(WANTED), ["a", "c"])
