"""Tests of faults that need no run: each has the expected outcome, and the deployment continues."""

import pytest

from server.deployment.status import describe_server
from simulations.deployment.faults import FAULTS
from simulations.deployment.loopback_deployment import Rehearsal
from tests.needs import NGINX

pytestmark = [pytest.mark.integration, NGINX.mark]


@pytest.mark.parametrize("name", [name for name, fault in FAULTS.items() if fault.quick])
def test_a_fault_is_survived_and_reported_to_the_operator(rehearsal: Rehearsal, name: str) -> None:
    seen = FAULTS[name].cause(rehearsal)
    assert FAULTS[name].is_survived(seen), seen
    rehearsal.wait_online(rehearsal.names)
    assert set(describe_server(rehearsal.server.folder)["sites"]) == set(rehearsal.names)
