"""Shared fixtures of the client tests: a site's kit that serves a round within a second."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from flwr.app import RecordDict

from ept_fed.config.experiment import Experiment
from ept_fed.data.sources.phantom_structures import STRUCTURES
from ept_fed.flower.messages import encode_proposal
from ept_fed.protocol.proposal import propose
from tests.client.gated_kit import Kit


@pytest.fixture
def federation(micro: Callable[..., Experiment]) -> Callable[..., Experiment]:
    """Return a function that builds the micro experiment with named classes, which a proposal requires."""
    classes = f"data.classes=[{', '.join(STRUCTURES)}]"
    return lambda *overrides: micro(classes, "model.tokens=1", "model.device=cpu", *overrides)


@pytest.fixture
def make_kit(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes a site.yaml for a site of the micro experiment."""

    def make(site: str = "site-1", **sections: Any) -> Path:
        kit = tmp_path / f"kit-{site}"
        kit.mkdir()
        data = {"source": "phantoms", "phantom_sites": 3, "patients_per_class": 8, "sites": [site]}
        document = {"site": site, "data": data, "model": {"device": "cpu"}, **sections}
        (kit / "site.yaml").write_text(yaml.safe_dump(document))
        return kit

    return make


@pytest.fixture
def proposal_record(federation: Callable[..., Experiment]) -> RecordDict:
    return encode_proposal("run-a", propose(federation()))


@pytest.fixture
def kit(tmp_path: Path, micro: Callable[..., Experiment]) -> Iterator[Kit]:
    made = Kit(tmp_path, propose(micro("data.classes=[a, b]")))
    yield made
    made.close()
