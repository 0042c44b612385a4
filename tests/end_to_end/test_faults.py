"""Faults, each caused on a federation of real processes: what must come of it comes, and nothing is left behind.

Those that hit a run take minutes of waiting together: `make faults`.
"""

import os
import shutil
from collections.abc import Iterator

import pytest

from simulations.faults import FAULTS
from simulations.rehearsal import Rehearsal

pytestmark = pytest.mark.skipif(
    shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/sbin:/usr/bin:/usr/local/bin:/opt/homebrew/bin") is None,
    reason="nginx is not installed: apt install nginx-light",
)
NEEDS_ROOT = {"a site's disk is full for a while (quorum 1)"}


@pytest.fixture(scope="module")
def rehearsal() -> Iterator[Rehearsal]:
    with Rehearsal(2, patients=40) as running:
        running.start_server()
        for name in running.names:
            running.start_site(name)
        running.wait_online(running.names)
        yield running
        running.stop()
        assert running.descendants() == []
        assert [path for name in running.names for path in running.site_kit(name).glob("run/*.sock")] == []


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if fault.quick else [pytest.mark.faults]) for name, fault in FAULTS.items()]
)
def test_a_fault_is_survived_and_the_operator_is_told(rehearsal: Rehearsal, name: str) -> None:
    if name in NEEDS_ROOT and os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    seen = FAULTS[name].cause(rehearsal)
    assert FAULTS[name].is_survived(seen), seen
    assert "not those" not in seen.lost
    rehearsal.wait_online(rehearsal.names)
