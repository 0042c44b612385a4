"""Tests of faults that hit a run of two sites: each has the expected outcome and leaves nothing behind.

They wait for minutes in total, and only `make faults` runs them. With a third site, two others would be a majority.
"""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from simulations.deployment.faults import FAULTS
from simulations.deployment.loopback_deployment import Rehearsal
from tests.needs import NGINX

pytestmark = [pytest.mark.faults, NGINX.mark]


@pytest.fixture(scope="module")
def pair() -> Iterator[Rehearsal]:
    with Rehearsal(2, patients=40) as running:
        running.start_all()
        yield running
        running.stop()
        assert running.descendants() == []
        assert running.sockets() == []


def may_mount(folder: Path) -> bool:
    mounted = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(folder)], capture_output=True, check=False)
    return mounted.returncode == 0 and subprocess.run(["umount", str(folder)], check=False).returncode == 0


@pytest.mark.parametrize("name", [name for name, fault in FAULTS.items() if not fault.quick])
def test_a_fault_is_survived_and_reported_to_the_operator(pair: Rehearsal, name: str, tmp_path: Path) -> None:
    if FAULTS[name].mounts and not may_mount(tmp_path):
        pytest.skip("a small disk cannot be mounted here")
    seen = FAULTS[name].cause(pair)
    assert FAULTS[name].is_survived(seen), seen
    assert "the comparison" not in seen.lost
    assert "prompts differ" not in seen.lost
    pair.wait_online(pair.names)
