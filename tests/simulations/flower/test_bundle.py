"""`flwr run .` sends exactly the files listed in pyproject.toml, even if the checkout contains other files."""

import ast
import io
import re
import shutil
import tomllib
import zipfile
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_disk

ROOT = Path(__file__).resolve().parents[3]
APP = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
CODE = (
    "simulations/__init__.py",
    "simulations/engine/__init__.py",
    "simulations/flower/__init__.py",
    "simulations/flower/client.py",
    "simulations/flower/server.py",
    "simulations/flower/introduction.py",
    "simulations/flower/named_grid.py",
    "simulations/flower/run_config.py",
    "simulations/engine/pass_through_gate.py",
    "simulations/engine/virtual_sites.py",
)
BUNDLE = {"pyproject.toml", ".info/CONTENT", "configs/demo.yaml", *CODE}
STRANGERS = (
    "patients.csv",
    "manifest.json",
    "report.md",
    "rounds.jsonl",
    ".git/config.yaml",
    "runs/site/report.json",
    "configs/our_hospital.yaml",
    "simulations/patients.json",
    "simulations/secret.py",
    "ept_fed/assets/weights.safetensors",
    "client/gate.yaml",
    "tests/conftest.py",
    "data/images/p1.json",
)


def bundled(folder: Path) -> set[str]:
    names = zipfile.ZipFile(io.BytesIO(build_fab_from_disk(folder))).namelist()
    assert len(names) == len(set(names))
    return set(names)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "ept-fed"
    folder.mkdir()
    for name in ("pyproject.toml", ".gitignore"):
        shutil.copy(ROOT / name, folder)
    for name in ("ept_fed", "server", "client", "simulations", "configs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def test_the_bundle_of_the_whole_tree_holds_exactly_the_listed_files(tmp_path: Path) -> None:
    tree = tmp_path / "ept-fed"
    # Environments and caches have thousands of files, and `.gitignore` keeps them out.
    shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(".venv", ".git", "*cache*"))
    assert bundled(tree) == BUNDLE


def test_nothing_that_lies_beside_them_gets_into_the_bundle(checkout: Path) -> None:
    before = build_fab_from_disk(checkout)
    for name in STRANGERS:
        path = checkout / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("patient: Jane Doe\n")
    assert bundled(checkout) == BUNDLE
    assert build_fab_from_disk(checkout) == before


def test_the_list_has_no_wildcards() -> None:
    assert set(APP["fab-include"]) == BUNDLE - {"pyproject.toml", ".info/CONTENT"}


def test_bundled_modules_import_no_module_of_simulations_that_is_left_behind() -> None:
    """The bundle's `simulations` hides the installed package; ept_fed, server and client are the installed packages."""
    trees = [ast.parse((ROOT / path).read_text()) for path in CODE]
    froms = [node.module for tree in trees for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    reached = {name for name in froms if name and name.startswith("simulations")}
    assert reached
    assert reached <= {path.removesuffix(".py").replace("/", ".") for path in CODE}


def test_components_and_the_default_experiment_are_in_the_bundle() -> None:
    for component in APP["components"].values():
        assert component.split(":")[0].replace(".", "/") + ".py" in CODE
    assert APP["config"]["experiment"] in BUNDLE


def test_the_documentation_explains_every_key_of_the_run_config() -> None:
    page = (ROOT / "docs" / "flower-runtimes.md").read_text()
    assert re.findall(r"^\| `(\w+)` \|", page, flags=re.MULTILINE) == list(APP["config"])
