"""Pages in headless Chromium: axe-core finds no serious fault, and nothing is wider than the screen or the paper.

axe-core is part of axe-playwright-python in the `dev` extra. The browser is taken from PATH.
"""

import html
import json
import re
import subprocess
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest

from ept_fed.config.experiment import Experiment
from ept_fed.reports.pages.gallery import GalleryItem
from ept_fed.reports.pages.pdf import NoBrowserError, find_browser
from ept_fed.reports.pages.write_reports import write_reports
from simulations.benchmark.analysis.feature_record import MOMENTS, FeatureRecord, ScalingExamples
from simulations.benchmark.analysis.folder import AnalysisFolder
from simulations.benchmark.grid import list_cells

MakeRun = Callable[..., Path]
SETTINGS = {"local": 0.5, "federated": 2.0, "fine-tuned": 2.1, "interpolated": 1.9, "ditto": 1.0, "centralised": 2.5}
PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c4890000000d49444154789c6360606060000000050001a5f645400000000049454e44ae426082"
)


@pytest.fixture(scope="module")
def browser() -> str:
    try:
        return find_browser()
    except NoBrowserError:
        pytest.skip(
            "no browser: pages are shown to nobody here, so nothing was checked; put Chromium or Chrome on PATH"
        )


@pytest.fixture(scope="module")
def axe() -> str:
    spec = find_spec("axe_playwright_python")
    assert spec is not None, "the dev extra is not installed: pip install -e '.[dev]'"
    assert spec.origin is not None
    return Path(spec.origin).with_name("axe.min.js").read_text(encoding="utf-8")


@pytest.fixture(params=[["local", "federated"], list(SETTINGS)], ids=["two settings", "six settings"])
def pages(request: pytest.FixtureRequest, make_run: MakeRun) -> list[Path]:
    folder = make_run(
        gains={name: SETTINGS[name] for name in request.param},
        validation=(10, 10, 10),
        subgroups={"age": lambda patient: str(20 + patient), "sex": lambda patient: "fm"[patient % 2]},
        refused=[{"site": "north", "phase": "train", "reason": "declined"}],
    )
    gallery = {"north": [GalleryItem("a.png", PIXEL, "nv", "bcc", 0.9, (0.2, 0.4))]}
    written = write_reports(folder, gallery=gallery)
    return [path for path in written if path.suffix == ".html" and "south" not in path.parts]


@pytest.fixture
def analysis_page(micro: Callable[..., Experiment], tmp_path: Path) -> Path:
    """The page of ten methods' features, drawn at random."""
    rng = np.random.default_rng(0)
    experiment = micro("benchmark.settings=[federated+head]", "benchmark.seeds=[0]")
    cells, folder = list_cells(experiment), AnalysisFolder(tmp_path / "benchmark")
    labels = rng.integers(0, 3, 60)
    for cell in cells:
        scaling = None
        if cell.method == "ept":
            factors = {moment: rng.random((3, 4, 4), dtype=np.float32) for moment in MOMENTS}
            pictures = rng.integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
            scaling = ScalingExamples(pictures, np.arange(3), factors)
        record = FeatureRecord(
            key=cell.key,
            setting=cell.setting,
            classes=("nevus", "a class with a name of more than a few words", "alone"),
            sites=("north", "a hospital with a long and winding name"),
            numbers={},
            labels=labels,
            places=rng.integers(0, 2, 60),
            features={moment: rng.normal(size=(60, 5)).astype(np.float32) for moment in MOMENTS},
            drawn=np.arange(60),
            maps={"before": rng.normal(size=(60, 2)).astype(np.float32), "after": None},
            scaling=scaling,
        )
        folder.write(record)
    folder.write_page("micro", cells, {cell.key: {"sites": {}} for cell in cells}, ["another"])
    return folder.page


def evaluate(browser: str, page: Path, script: str, *, width: int = 1280, library: str = "") -> Any:
    """Return the value of a promise in the page, which is shown in a frame of the given width."""
    text = re.sub(r"<meta http-equiv[^>]*>", "", page.read_text())
    ending = (
        f"<script>{library}</script><script>({script}).then(r => parent.postMessage(JSON.stringify(r), '*'))</script>"
    )
    frame = html.escape(text.replace("</body>", f"{ending}</body>"))
    host = page.with_name("framed.html")
    host.write_text(
        "<!doctype html><title>test</title>"
        "<script>onmessage = event => document.title = encodeURIComponent(event.data)</script>"
        f'<iframe style="width:{width}px;height:900px;border:0" srcdoc="{frame}"></iframe>'
    )
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=30000", "--dump-dom"]
    profile = f"--user-data-dir={page.parent / 'profile'}"
    done = subprocess.run([browser, *flags, profile, host.as_uri()], capture_output=True, timeout=120, check=True)
    title = re.search(rb"<title>(.*?)</title>", done.stdout)
    assert title is not None
    return json.loads(unquote(html.unescape(title.group(1).decode())))


def test_axe_finds_no_serious_fault(browser: str, axe: str, pages: list[Path]) -> None:
    for page in pages:
        for width in (390, 1280):
            assert not find_faults(browser, axe, page, width), (page.name, width)


def test_axe_finds_a_planted_fault(browser: str, axe: str, tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text("<html lang=en><title>bad</title><body><main><h1>bad</h1><img src='a.png'></main></body></html>")
    assert [fault[1] for fault in find_faults(browser, axe, page, 1280)] == ["image-alt"]


def find_faults(browser: str, axe: str, page: Path, width: int) -> list[Any]:
    script = (
        "axe.run(document, {resultTypes: ['violations']})"
        ".then(r => r.violations.map(v => [v.impact, v.id, v.nodes.map(n => n.html.slice(0, 90))]))"
    )
    found = evaluate(browser, page, script, width=width, library=axe)
    return [fault for fault in found if fault[0] in ("serious", "critical")]


@pytest.mark.parametrize("width", [390, 700, 1280], ids=["phone", "A4", "desktop"])
def test_pages_are_no_wider_than_the_screen(browser: str, pages: list[Path], width: int) -> None:
    """On a phone, tables scroll within the page; on the desktop, no table needs to scroll."""
    script = (
        "Promise.resolve([document.documentElement.scrollWidth,"
        " [...document.querySelectorAll('.table')].filter(t => t.scrollWidth > t.clientWidth + 1).length])"
    )
    for page in pages:
        wide, scrolling = evaluate(browser, page, script, width=width)
        assert wide <= width, page
        assert width < 1280 or scrolling == 0, page


def test_the_analysis_is_no_wider_than_the_screen_and_axe_finds_no_serious_fault(
    browser: str, axe: str, analysis_page: Path
) -> None:
    for width in (390, 1280):
        wide = evaluate(browser, analysis_page, "Promise.resolve(document.documentElement.scrollWidth)", width=width)
        assert wide <= width
        assert not find_faults(browser, axe, analysis_page, width)
