"""Tests of faults in a federation of real processes: each has the expected outcome and leaves nothing behind.

The faults that hit a run wait for minutes in total; `make faults` runs them too.
"""

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from simulations.deployment.faults import FAULTS
from simulations.deployment.loopback_deployment import Rehearsal

pytestmark = pytest.mark.skipif(
    shutil.which("nginx", path="/usr/sbin:/usr/local/sbin:/sbin:/usr/bin:/usr/local/bin:/opt/homebrew/bin") is None,
    reason="nginx is not installed: apt install nginx-light",
)


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
        assert running.sockets() == []


def may_mount(folder: Path) -> bool:
    mounted = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(folder)], capture_output=True, check=False)
    return mounted.returncode == 0 and subprocess.run(["umount", str(folder)], check=False).returncode == 0


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if fault.quick else [pytest.mark.faults]) for name, fault in FAULTS.items()]
)
def test_a_fault_is_survived_and_reported_to_the_operator(rehearsal: Rehearsal, name: str, tmp_path: Path) -> None:
    if FAULTS[name].mounts and not may_mount(tmp_path):
        pytest.skip("a small disk cannot be mounted here")
    seen = FAULTS[name].cause(rehearsal)
    assert FAULTS[name].is_survived(seen), seen
    assert "the comparison" not in seen.lost
    assert "prompts differ" not in seen.lost
    rehearsal.wait_online(rehearsal.names)
