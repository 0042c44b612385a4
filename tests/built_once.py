"""What is costly to build and shared by all test processes of one run of pytest; tests copy what they change."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

BuildOnce = Callable[[str, Callable[[Path], object]], Path]


@pytest.fixture(scope="session")
def build_once(tmp_path_factory: pytest.TempPathFactory) -> BuildOnce:
    """Return a function `(name, build)` that calls `build(folder)` in the first test process that asks.

    The folder is the same for all test processes of the run. If `build` fails, so does every test that asks for it.
    """
    base = tmp_path_factory.getbasetemp()
    # With xdist, each process has a folder of its own below that of the run.
    home = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "built-once"
    home.mkdir(exist_ok=True)

    def build_or_find(name: str, build: Callable[[Path], object]) -> Path:
        folder, done = home / name, home / f"{name}.done"
        with FileLock(home / f"{name}.lock"):
            if not done.exists():
                assert not folder.exists(), f"{name} could not be built; the first test that asked for it says why"
                folder.mkdir()
                build(folder)
                done.touch()
        return folder

    return build_or_find
