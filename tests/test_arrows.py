"""The arrows of the architecture: which folder may import which, and what must stay out of reach of whom."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Set
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("ept_fed", "server", "client", "simulations")
# For every folder the other folders whose files it may import. The files at the root of ept_fed (errors, seeds,
# progress) import none of the folders and may be imported by all; they are not repeated below.
ARROWS: dict[str, str] = {
    "ept_fed": "",
    "ept_fed/catalog": "",
    "ept_fed/config": "catalog",
    "ept_fed/storage": "",
    "ept_fed/pki": "config storage",
    "ept_fed/services": "",
    "ept_fed/protocol": "catalog config storage",
    "ept_fed/privacy": "",
    "ept_fed/privacy/dp": "protocol",
    "ept_fed/privacy/secure_aggregation": "pki protocol",
    "ept_fed/privacy/attacks": "evaluation models",
    "ept_fed/run_plan": "catalog config privacy/secure_aggregation protocol",
    "ept_fed/validation": "catalog config privacy/dp privacy/secure_aggregation protocol",
    "ept_fed/flower": "protocol",
    "ept_fed/data": "config data/datasets data/decoding data/records data/sources data/splits",
    "ept_fed/data/decoding": "",
    "ept_fed/data/records": "data/decoding",
    "ept_fed/data/splits": "config data/records",
    "ept_fed/data/sources": "config data/decoding data/records data/splits",
    "ept_fed/data/datasets": "config data/decoding data/records data/sources data/splits",
    "ept_fed/models": "catalog config data/datasets",
    "ept_fed/models/comparators": "models",
    "ept_fed/evaluation": "data/datasets models",
    "ept_fed/training": "catalog config data/datasets models privacy/dp protocol",
    "ept_fed/reports": "",
    "ept_fed/reports/charts": "data/records evaluation",
    "ept_fed/reports/run": "config data/records evaluation protocol reports/charts run_plan storage",
    "ept_fed/reports/statistics": "evaluation reports/run",
    "ept_fed/reports/pages": "evaluation reports/charts reports/run reports/statistics storage",
    "ept_fed/tracking": "config reports/run storage",
    "ept_fed/bundles": "config data/datasets data/decoding models pki protocol reports/run storage",
    "ept_fed/cli": "bundles config data pki reports/charts reports/run storage validation",
    "server": "run_plan /server/rounds /server/strategies",
    "server/strategies": "catalog config privacy/dp protocol run_plan",
    "server/rounds": "catalog flower privacy/secure_aggregation protocol reports/run run_plan storage "
    "/server/strategies",
    "server/provisioning": "config pki storage /server",
    "server/deployment": "config flower pki protocol reports/run run_plan services storage "
    "validation /server /server/rounds",
    "server/cli": "cli pki storage /server/deployment /server/provisioning",
    "client": "flower protocol /client/requests /client/worker",
    "client/site": "catalog config data/datasets evaluation models privacy/dp privacy/secure_aggregation protocol "
    "reports/run storage training validation",
    "client/ledger": "config pki storage",
    "client/gate": "catalog config pki privacy/dp privacy/secure_aggregation protocol run_plan storage validation "
    "/client/ledger /client/site",
    "client/requests": "protocol storage training /client/gate /client/site",
    "client/worker": "config data/datasets models pki protocol validation /client/gate /client/requests /client/site",
    "client/audit": "catalog pki protocol validation /client/gate /client/ledger",
    "client/deployment": "data pki protocol services validation /client /client/gate /client/site /client/worker",
    "client/report": "config data/datasets models privacy/dp protocol reports/charts reports/pages reports/run storage "
    "validation /client/deployment /client/gate /client/ledger /client/site /client/worker",
    "client/cli": "cli storage /client/audit /client/deployment /client/report /client/worker",
    "simulations": "",
    "simulations/engine": "config data/datasets data/records evaluation flower models pki protocol "
    "reports/pages reports/run run_plan storage tracking training validation /server /server/provisioning "
    "/server/rounds /client /client/gate /client/report /client/requests /client/site",
    "simulations/flower": "config flower protocol reports/run run_plan validation /server /server/deployment "
    "/server/rounds /client /client/requests /client/site /simulations/engine",
    "simulations/attacks": "data/datasets evaluation models privacy/attacks protocol reports/run run_plan storage "
    "training /client/gate /client/site /simulations/engine",
    "simulations/attacks/shadows": "config data/datasets data/records evaluation models privacy/attacks protocol "
    "reports/run run_plan storage training /client/site /simulations/attacks "
    "/simulations/engine",
    "simulations/benchmark/analysis": "config data/datasets evaluation models reports/charts reports/pages "
    "reports/run storage training /client/site /simulations/engine",
    "simulations/benchmark": "catalog config data/datasets evaluation protocol reports/charts reports/pages "
    "reports/run storage training validation /client/site /simulations/benchmark/analysis /simulations/engine",
    "simulations/deployment": "data/sources models pki services /server/deployment /server/provisioning",
    "simulations/probes": "data/datasets data/decoding data/records evaluation models privacy/attacks privacy/dp "
    "protocol reports/run training validation /client/site /simulations/attacks /simulations/engine",
    "simulations/pretraining": "data/datasets models storage /simulations/probes",
    "simulations/benches": "catalog config data data/datasets data/records data/sources data/splits evaluation flower "
    "models pki privacy/secure_aggregation protocol reports/pages reports/run run_plan storage training validation "
    "/server /server/deployment /server/rounds /client /client/gate /client/ledger /client/requests /client/site "
    "/client/worker "
    "/simulations/deployment /simulations/engine /simulations/flower",
    "simulations/cli": "cli reports/pages reports/run storage tracking validation /client/cli /simulations/attacks "
    "/simulations/attacks/shadows /simulations/benchmark /simulations/deployment /simulations/engine",
}
HEAVY = {"torch", "timm", "monai", "torchvision"}
# Folders from which no chain of imports leads to HEAVY.
WITHOUT_TORCH = (
    *("ept_fed", "ept_fed/catalog", "ept_fed/config", "ept_fed/storage", "ept_fed/pki", "ept_fed/services"),
    *("ept_fed/protocol", "ept_fed/run_plan", "ept_fed/validation", "ept_fed/flower", "ept_fed/tracking"),
    *("ept_fed/privacy", "ept_fed/privacy/dp", "ept_fed/privacy/secure_aggregation"),
    *("ept_fed/data", "ept_fed/data/decoding", "ept_fed/data/records", "ept_fed/data/splits"),
    *("ept_fed/reports", "ept_fed/reports/charts", "ept_fed/reports/run", "ept_fed/reports/statistics"),
    "ept_fed/reports/pages",
    *("server", "server/strategies", "server/rounds", "server/provisioning", "server/deployment", "server/cli"),
    *("client/ledger", "client/gate", "client/audit"),
)
WITH_FLWR = (
    "ept_fed/flower",
    *("server", "server/strategies", "server/rounds", "server/deployment"),
    *("client", "client/site", "client/deployment"),
    *("simulations/engine", "simulations/flower", "simulations/benches"),
)
MAX_FILES = 20
# What starts without HEAVY, also through packages that are not ours: its imports, what they load for certain, and what
# else they must not load. The first have to do without the most, because one interpreter runs them all in this order.
STARTS: dict[str, tuple[str, set[str], set[str]]] = {
    "command line": (
        "import ept_fed.cli.main",
        {"typer", *PACKAGES},
        {"flwr", "numpy", "pydantic", "scipy", "sklearn"},
    ),
    "worker without a run": ("import client.worker.process", {"numpy"}, {"scipy", "sklearn"}),
    "trackers": ("import ept_fed.tracking.tracker, ept_fed.tracking.tensorboard_events", {"tensorboard"}, set()),
    "tracker of MLflow": ("import ept_fed.tracking.mlflow_store", {"mlflow"}, set()),
    "list of images": ("import ept_fed.data.sources.registry", {"PIL"}, set()),
    "server": ("import server.app, server.rounds.loop, server.strategies.registry", {"flwr"}, set()),
}


def sources() -> dict[str, str]:
    """Return every source file's text by its path."""
    return {
        path.relative_to(ROOT).as_posix(): path.read_text()
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
    }


SOURCES = sources()
FOLDERS = sorted({name.rpartition("/")[0] for name in SOURCES})


def allowed(folder: str) -> set[str]:
    return {folder, "ept_fed"} | {
        name[1:] if name.startswith("/") else f"ept_fed/{name}" for name in ARROWS[folder].split()
    }


@cache
def imports(text: str) -> frozenset[str]:
    """Return the dotted names that a file imports, also inside functions; relative imports are refused."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(found)


@cache
def file_of(imported: str) -> str | None:
    """Return our file behind a dotted name, which may end in a name inside the file."""
    parts = imported.split(".")
    for length in range(len(parts), 0, -1):
        path = "/".join(parts[:length])
        for name in (f"{path}.py", f"{path}/__init__.py"):
            if name in SOURCES:
                return name
    return None


@cache
def reached(text: str) -> frozenset[str]:
    """Return our files that a text imports."""
    return frozenset(name for name in map(file_of, imports(text)) if name is not None)


def find_violations(name: str, text: str) -> list[str]:
    """Return what a file imports against the rules of its folder."""
    folder = name.rpartition("/")[0]
    found = [
        f"{name} imports {other}" for other in sorted(reached(text)) if other.rpartition("/")[0] not in allowed(folder)
    ]
    if folder not in WITH_FLWR and any(imported.split(".")[0] == "flwr" for imported in imports(text)):
        found.append(f"{name} imports flwr")
    return found


def find_heavy(names: Iterable[str]) -> dict[str, str]:
    """Return by file which heavy package it is that files reach, through any chain of our own imports."""
    waiting, seen, found = list(names), set[str](), {}
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        heavy = {imported.split(".")[0] for imported in imports(SOURCES[name])} & HEAVY
        if heavy:
            found[name] = min(heavy)
        # Importing a.b.c runs a/__init__.py and a/b/__init__.py too.
        folders = [f"{part}/__init__.py" for part in _parents(name)]
        waiting += [other for other in (*reached(SOURCES[name]), *folders) if other in SOURCES]
    return found


def _parents(name: str) -> Iterator[str]:
    while "/" in name:
        name = name.rpartition("/")[0]
        yield name


def find_cycle(arrows: Mapping[str, Set[str]]) -> list[str]:
    """Return the nodes of one cycle, or none."""
    left = {node: set(others) - {node} for node, others in arrows.items()}
    while left:
        ends = [node for node, others in left.items() if not others & left.keys()]
        if not ends:
            return sorted(left)
        for node in ends:
            del left[node]
    return []


def test_every_folder_has_a_rule_and_every_rule_a_folder() -> None:
    assert sorted(ARROWS) == FOLDERS
    assert set(WITHOUT_TORCH) | set(WITH_FLWR) <= ARROWS.keys()
    for folder in ARROWS:
        assert allowed(folder) <= ARROWS.keys()


@pytest.mark.parametrize("name", SOURCES)
def test_files_import_along_the_arrows_only(name: str) -> None:
    assert not find_violations(name, SOURCES[name])


def test_no_arrow_is_allowed_that_no_file_uses() -> None:
    used: dict[str, set[str]] = {folder: {folder, "ept_fed"} for folder in ARROWS}
    for name, text in SOURCES.items():
        used[name.rpartition("/")[0]] |= {other.rpartition("/")[0] for other in reached(text)}
    assert {folder: allowed(folder) - used[folder] for folder in ARROWS if allowed(folder) - used[folder]} == {}


@pytest.mark.parametrize("folder", ARROWS)
def test_a_planted_forbidden_import_is_found_in_every_folder(folder: str) -> None:
    name = f"{folder}/__init__.py"
    for other in sorted(ARROWS.keys() - allowed(folder)):
        planted = f"{SOURCES[name]}\nimport {other.replace('/', '.')}\n"
        assert find_violations(name, planted), f"{folder} may import {other} unnoticed"
    inside = f"{SOURCES[name]}\ndef f() -> None:\n    from flwr.app import Message\n"
    assert bool(find_violations(name, inside)) is (folder not in WITH_FLWR)


def test_folders_form_no_cycle() -> None:
    assert not find_cycle({folder: allowed(folder) - {"ept_fed"} for folder in ARROWS if folder != "ept_fed"})


def test_files_form_no_cycle() -> None:
    assert not find_cycle({name: reached(text) for name, text in SOURCES.items()})
    assert find_cycle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == ["a", "b", "c", "d"]


def test_packages_import_along_the_arrows_between_them() -> None:
    between = {"ept_fed": set[str](), "server": {"ept_fed"}, "client": {"ept_fed"}, "simulations": set(PACKAGES)}
    for folder in ARROWS:
        package = folder.partition("/")[0]
        assert {other.partition("/")[0] for other in allowed(folder)} <= between[package] | {package, "ept_fed"}


@pytest.mark.parametrize("folder", WITHOUT_TORCH)
def test_no_chain_of_imports_leads_to_torch(folder: str) -> None:
    assert not find_heavy(name for name in SOURCES if name.rpartition("/")[0] == folder)


def test_every_other_folder_does_reach_torch() -> None:
    for folder in ARROWS.keys() - set(WITHOUT_TORCH) - {"simulations"}:
        assert find_heavy(name for name in SOURCES if name.rpartition("/")[0] == folder), folder


def test_no_folder_holds_more_files_than_a_reader_takes_in_at_a_glance() -> None:
    held = {folder: sum(name.rpartition("/")[0] == folder for name in SOURCES) - 1 for folder in FOLDERS}
    assert max(held.values()) <= MAX_FILES, max(held, key=held.__getitem__)


def test_tests_mirror_the_tree() -> None:
    for path in (ROOT / "tests").rglob("test_*.py"):
        folder = path.parent.relative_to(ROOT / "tests").as_posix()
        assert folder in (".", "end_to_end", "end_to_end/deployment", *ARROWS), path


@pytest.fixture(scope="module")
def loaded() -> dict[str, set[str]]:
    """For each of STARTS, the packages that are loaded after it and those before it, in one interpreter."""
    show = "print(*{name.partition('.')[0] for name in sys.modules})"
    code = "\n".join(["import sys", *(f"{statement}; {show}" for statement, *_ in STARTS.values())])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return {name: set(line.split()) for name, line in zip(STARTS, done.stdout.splitlines(), strict=True)}


@pytest.mark.integration
@pytest.mark.parametrize("start", STARTS)
def test_a_start_loads_no_heavy_package(start: str, loaded: dict[str, set[str]]) -> None:
    _, used, unused = STARTS[start]
    assert used <= loaded[start]
    assert not loaded[start] & {*HEAVY, *unused}


def test_no_module_is_named_after_nothing() -> None:
    names = {Path(name).stem for name in SOURCES} | {folder.rpartition("/")[2] for folder in FOLDERS}
    assert not names & {"utils", "util", "helpers", "misc", "common"}


def test_the_architecture_page_lists_each_folder_once_and_is_right_about_torch() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    rows = re.findall(r"^\| `([\w/]+)` \| .+ \| (yes|no) \|$", page, flags=re.MULTILINE)
    assert sorted(folder for folder, _ in rows) == sorted(ARROWS)
    assert {folder for folder, torch in rows if torch == "no"} == {*WITHOUT_TORCH, "simulations"}


def test_the_walk_from_an_image_to_the_report_passes_few_files() -> None:
    walk = (ROOT / "docs" / "architecture.md").read_text().split("## A walk")[1].split("In a deployment")[0]
    files = re.findall(r"`([\w/]+\.py)`", walk)
    assert all((ROOT / name).exists() for name in files)
    assert len(files) == len(set(files)) <= 25
