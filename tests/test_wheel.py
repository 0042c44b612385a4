"""What is installed at a hospital: the wheel holds what the commands need, and nothing that is run from a checkout."""

import ast
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.integration
ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("ept_fed", "server", "client", "simulations", "configs")
FROM_A_CHECKOUT = ("simulations/benches/", "simulations/probes/", "simulations/pretraining/")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of the wheel that this checkout builds, by name."""
    folder = tmp_path_factory.mktemp("wheel")
    checkout = folder / "checkout"
    checkout.mkdir()
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, checkout)
    for name in PACKAGES:
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run(
        [*command, f"--wheel-dir={folder}", str(checkout)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def test_the_wheel_holds_the_packages_and_leaves_out_what_is_run_from_a_checkout(wheel: dict[str, bytes]) -> None:
    held = {name for name in wheel if ".dist-info/" not in name}
    tracked = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert held == {name for name in tracked if not name.startswith(FROM_A_CHECKOUT)}
    assert any(name.startswith(FROM_A_CHECKOUT) for name in tracked)


def test_nothing_in_the_wheel_imports_what_it_leaves_out(wheel: dict[str, bytes]) -> None:
    left_out = tuple(folder.rstrip("/").replace("/", ".") for folder in FROM_A_CHECKOUT)
    for name, content in wheel.items():
        if not name.endswith(".py"):
            continue
        for node in ast.walk(ast.parse(content)):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            for imported in names:
                assert not imported.startswith(left_out), f"{name} imports {imported}"
                assert imported.partition(".")[0] != "tests", f"{name} imports {imported}"
