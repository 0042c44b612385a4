"""The arrows of the design: who may import whom, and what must stay out of reach of whom."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("ept_fed", "server", "client", "simulations")
ALLOWED = {
    "ept_fed": {"ept_fed"},
    "server": {"server", "ept_fed"},
    "client": {"client", "ept_fed"},
    "simulations": {"simulations", "server", "client", "ept_fed"},
}
HEAVY = ("torch", "timm", "monai", "torchvision")
FLWR_ALLOWED = ("ept_fed/flower/", "server/", "client/", "simulations/")


def modules() -> Iterator[tuple[str, Path]]:
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            yield path.relative_to(ROOT).as_posix(), path


def imports(path: Path, *, inside_functions: bool = True) -> set[str]:
    """Absolute names of everything a module imports; relative imports are refused outright."""
    tree = ast.parse(path.read_text())
    nodes = list(ast.walk(tree)) if inside_functions else _module_level(tree)
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def _module_level(tree: ast.Module) -> list[ast.AST]:
    found: list[ast.AST] = []
    waiting: list[ast.AST] = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        found.append(node)
        waiting.extend(ast.iter_child_nodes(node))
    return found


@pytest.mark.parametrize(("name", "path"), modules(), ids=lambda value: value if isinstance(value, str) else "")
def test_packages_import_along_the_arrows_only(name: str, path: Path) -> None:
    package = name.split("/", maxsplit=1)[0]
    reached = {imported.split(".")[0] for imported in imports(path)} & set(PACKAGES)
    assert reached <= ALLOWED[package], f"{name} imports {reached - ALLOWED[package]}"


@pytest.mark.parametrize(("name", "path"), modules(), ids=lambda value: value if isinstance(value, str) else "")
def test_flwr_is_imported_at_the_edges_only(name: str, path: Path) -> None:
    if any(imported.split(".")[0] == "flwr" for imported in imports(path)):
        assert name.startswith(FLWR_ALLOWED)


def test_no_chain_of_imports_leads_from_the_server_to_a_model() -> None:
    """Follows imports statically, those inside functions included, through our own modules."""
    waiting = [path for name, path in modules() if name.startswith("server/")]
    seen: set[Path] = set()
    while waiting:
        path = waiting.pop()
        if path in seen:
            continue
        seen.add(path)
        for imported in imports(path):
            top = imported.split(".")[0]
            assert top not in HEAVY, f"{path.relative_to(ROOT)} reaches {top}"
            if top in PACKAGES:
                waiting += [
                    candidate
                    for candidate in (
                        ROOT / (imported.replace(".", "/") + ".py"),
                        ROOT / imported.replace(".", "/") / "__init__.py",
                    )
                    if candidate.exists()
                ]
    assert ROOT / "ept_fed/flower/messages.py" in seen


def loaded_after(statement: str) -> set[str]:
    code = f"import sys\n{statement}\nprint(' '.join({{m.split('.')[0] for m in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return set(done.stdout.split())


def test_a_running_server_has_no_torch_loaded() -> None:
    loaded = loaded_after("import server.app, server.rounds.loop, server.strategies.registry")
    assert "flwr" in loaded
    assert not loaded & set(HEAVY)


def test_the_command_line_starts_without_heavy_imports() -> None:
    loaded = loaded_after("import ept_fed.cli.main")
    assert "typer" in loaded
    assert not loaded & {*HEAVY, "flwr", "numpy", "pydantic", "sklearn"}


def test_no_module_is_named_after_nothing() -> None:
    names = {path.stem for _, path in modules()}
    assert not names & {"utils", "util", "helpers", "misc", "common"}
