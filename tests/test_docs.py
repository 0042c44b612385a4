"""The documentation: generated pages are current, links lead somewhere, and every command in it runs."""

import re
import runpy
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from ept_fed.config.experiment import Experiment
from tests.command_line import call
from tests.needs import REAL_DATA, SHARED

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FASTER = {
    "simulate": [
        "--set=federation.rounds=1",
        "--set=data.shots=1",
        "--set=data.validation_shots=1",
        "--set=data.test_fraction=0.1",
        "--set=data.test_shots=4",
        "--set=evaluation.baselines=[local]",
    ]
}


def commands(page: Path) -> list[list[str]]:
    """The `ept-fed` lines of a page's shell blocks, in order."""
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text(), flags=re.DOTALL)
    lines = [line.split("#")[0].strip() for block in blocks for line in block.splitlines()]
    found = [shlex.split(line) for line in lines if "ept-fed " in line]
    return [words[1:] for words in found if words[0].endswith("ept-fed")]


def headings(page: Path) -> set[str]:
    """The anchors that a page's headings make."""
    found = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", re.sub(r"\]\([^)]*\)", "]", title)).lower().replace(" ", "-") for title in found}


def test_the_reference_pages_are_what_the_code_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "docs")
    monkeypatch.setattr(sys, "argv", ["generate_reference.py", "--check"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "docs" / "generate_reference.py"), run_name="__main__")
    assert ended.value.code == 0


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings_that_exist(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#]*)(?:#([^)]+))?\)", page.read_text()):
        if target.startswith("https://"):
            continue
        leads_to = page.parent / target if target else page
        assert leads_to.exists(), target
        assert not anchor or anchor in headings(leads_to), f"{target}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_settings_shown_are_settings(page: Path) -> None:
    for block in re.findall(r"```yaml\n(.*?)```", page.read_text(), flags=re.DOTALL):
        Experiment.model_validate(yaml.safe_load(block))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_named_in_prose_exist(page: Path) -> None:
    for name in re.findall(
        r"`((?:ept_fed|server|client|simulations|configs|tests|docs)/[\w/.]+\.\w+)`", page.read_text()
    ):
        assert (ROOT / name).exists(), f"{page.name} names {name}"


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of two hospitals and two classes, for the pages about one's own images."""
    folder = tmp_path_factory.mktemp("own") / "images"
    rng = np.random.default_rng(0)
    for hospital in ("north", "south"):
        for label in ("benign", "malignant"):
            (folder / hospital / label).mkdir(parents=True)
            for number in range(12):
                pixels = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / hospital / label / f"{number}.png")
    return folder


@pytest.mark.integration
@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)], ids=lambda page: page.name)
def test_every_command_runs_in_the_order_of_its_page(
    page: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All commands run in this process; the tests of each verb start it as a process of its own."""
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    (tmp_path / "images").symlink_to(images)
    monkeypatch.chdir(tmp_path)
    ran = 0
    for words in commands(page):
        if "data.root=DIR" in words:
            if not REAL_DATA.is_here():
                continue
            weights = next((SHARED / "weights").glob("*.safetensors"))
            places = {"data.root=DIR": f"data.root={SHARED / 'data'}", "model.weights=FILE": f"model.weights={weights}"}
            # With 9 tokens instead of 37 per image, the large backbone takes a few seconds.
            words = [*(places.get(word, word) for word in words), "--set=model.image_size=42"]  # noqa: PLW2901
        done = call(*words, *FASTER.get(words[0], []))
        assert done.exit_code == 0, f"{' '.join(words)}\n{done.stdout}\n{done.stderr}"
        ran += 1
    assert ran
