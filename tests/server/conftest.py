"""Fixtures: a federation of three sites, two of which get their keys from the consortium, and a quiet Flower log."""

import gc
import logging
import shutil
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import yaml

from ept_fed.flower.transport import set_task_identity
from server.provisioning.provision import provision

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
FEDERATION: dict[str, Any] = {
    "name": "three",
    "about": "A test.",
    "server": {"host": "localhost", "port": 8443},
    "sites": [{"name": "north", "location": "48.2,16.4"}, {"name": "south"}, {"name": "west", "keys": "site"}],
}


@pytest.fixture(autouse=True)
def _quiet_flower() -> None:
    logging.getLogger("flwr").setLevel(logging.ERROR)


@pytest.fixture(autouse=True)
def _small_heap() -> None:
    """Freeze the heap: Flower's q-FedAvg collects garbage for every site, and would scan the objects of other tests."""
    gc.freeze()


@pytest.fixture(autouse=True)
def _in_a_task() -> None:
    """Set a task identity as a grid does, because Flower's strategies need one to create messages."""
    set_task_identity(1)


@pytest.fixture
def now() -> datetime:
    return NOW


@pytest.fixture
def federation_file(tmp_path: Path) -> Path:
    path = tmp_path / "federation.yaml"
    path.write_text(yaml.safe_dump(FEDERATION))
    return path


@pytest.fixture(scope="session")
def provisioned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("provisioned")
    (folder / "federation.yaml").write_text(yaml.safe_dump(FEDERATION))
    provision(folder / "federation.yaml", folder / "kits", now=NOW)
    return folder / "kits"


@pytest.fixture
def kits(provisioned: Path, tmp_path: Path) -> Path:
    """Return a copy of provisioned kits, because making the keys takes longer than most tests."""
    return Path(shutil.copytree(provisioned, tmp_path / "kits"))


@pytest.fixture
def add_to(federation_file: Path) -> Any:
    """Change the federation.yaml: `add_to(certificate_days=5, sites=[…])`."""

    def change(**settings: Any) -> Path:
        federation_file.write_text(yaml.safe_dump({**yaml.safe_load(federation_file.read_text()), **settings}))
        return federation_file

    return change


@pytest.fixture
def snapshot() -> Any:
    """Return a function that maps every file in a folder to its digest and permissions."""

    def take(folder: Path) -> dict[str, tuple[str, int]]:
        return {
            path.relative_to(folder).as_posix(): (sha256(path.read_bytes()).hexdigest(), path.stat().st_mode & 0o777)
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }

    return take
