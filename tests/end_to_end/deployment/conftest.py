"""One deployment of three sites, as hospitals would run it: all tests of this folder share its processes and runs."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from simulations.deployment.loopback_deployment import Rehearsal
from simulations.deployment.traffic import read_requests

# The noise is so small that it changes only the last digits: a share is just above the fixed-point resolution.
NOISE = {"noise": "distributed", "clip": 10.0, "noise_multiplier": 2e-5}
PLAINTEXT = {"rounds": 1, "select": "last", "norm_bound": None, "weights": "uniform"}


@dataclass(frozen=True)
class Federated:
    """A run that has ended, in a deployment that still runs; `requests` are those that the proxy passed during it."""

    rehearsal: Rehearsal
    experiment: Path
    requests: tuple[dict[str, Any], ...] = ()
    second: tuple[int, str] = (0, "")

    @property
    def name(self) -> str:
        return self.experiment.stem

    @property
    def folder(self) -> Path:
        return self.rehearsal.server.runs / self.name

    def rounds(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.folder / "rounds.jsonl").read_text().splitlines()]


@pytest.fixture(scope="package")
def rehearsal() -> Iterator[Rehearsal]:
    """Start the server and three sites; a run waits until the sites are online."""
    with Rehearsal(3) as running:
        running.start_server()
        for name in running.names:
            running.start_site(name)
        yield running
        running.stop()
        assert running.descendants() == []
        assert running.sockets() == []
    assert not running.folder.exists()


@pytest.fixture(scope="package")
def plain(rehearsal: Rehearsal) -> Federated:
    """Submit a run of two rounds, try to submit a second one meanwhile, and wait for the end."""
    log = rehearsal.server.state / "logs" / "proxy" / "proxy.log"
    earlier = len(list(read_requests(log)))
    experiment = rehearsal.write_experiment("plain")
    code, said = rehearsal.run(experiment, "--detach")
    assert code == 0, said
    second = rehearsal.run(experiment, "--name", "second")
    rehearsal.wait_until_ended()
    return Federated(rehearsal, experiment, tuple(read_requests(log))[earlier:], second)


@pytest.fixture(scope="package")
def masked(rehearsal: Rehearsal) -> Federated:
    """Follow a run of one round with secure aggregation and distributed noise to its end."""
    federation = {**PLAINTEXT, "secure_aggregation": {}, "site_privacy": NOISE}
    experiment = rehearsal.write_experiment("masked", federation=federation)
    code, said = rehearsal.run(experiment)
    assert code == 0, said
    return Federated(rehearsal, experiment)
