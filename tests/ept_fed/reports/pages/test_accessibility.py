"""Pages in headless Chromium: axe-core finds no serious fault, and nothing is wider than the screen or the paper.

axe-core is part of axe-playwright-python in the `dev` extra. The browser is taken from PATH.
"""

import html
import json
import re
import subprocess
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest

from ept_fed.config.experiment import Experiment
from ept_fed.reports.pages.gallery import GalleryItem
from ept_fed.reports.pages.pdf import find_browser
from ept_fed.reports.pages.write_reports import write_reports
from simulations.benchmark.analysis.feature_record import MOMENTS, FeatureRecord, ScalingExamples
from simulations.benchmark.analysis.folder import AnalysisFolder
from simulations.benchmark.grid import list_cells
from tests.needs import BROWSER

MakeRun = Callable[..., Path]
SETTINGS = {"local": 0.5, "federated": 2.0, "fine-tuned": 2.1, "interpolated": 1.9, "ditto": 1.0, "centralised": 2.5}
PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c4890000000d49444154789c6360606060000000050001a5f645400000000049454e44ae426082"
)


pytestmark = [pytest.mark.integration, BROWSER.mark]


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


@dataclass(frozen=True)
class Shown:
    """What was measured on a page in a frame of a given width.

    Attributes:
        wide: width of the page's content, in pixels.
        scrolling: number of tables that scroll within the page.
        faults: serious and critical faults that axe-core finds: impact, rule, and the elements.
    """

    wide: int
    scrolling: int
    faults: list[list[Any]]


def show(axe: str, pages: Iterable[Path], widths: Sequence[int]) -> dict[tuple[str, int], Shown]:
    """Return what is measured on every page at every width; one browser shows them all, each in a frame."""
    places = [(page, width) for page in pages for width in widths]
    # The widths are measured before axe-core runs.
    script = (
        "(async () => { const wide = document.documentElement.scrollWidth;"
        " const tables = [...document.querySelectorAll('.table')].filter(t => t.scrollWidth > t.clientWidth + 1);"
        " const found = await axe.run(document, {resultTypes: ['violations']});"
        " return [wide, tables.length,"
        " found.violations.map(v => [v.impact, v.id, v.nodes.map(n => n.html.slice(0, 90))])] })()"
    )
    frames = []
    for number, (page, width) in enumerate(places):
        text = re.sub(r"<meta http-equiv[^>]*>", "", page.read_text())
        told = f"{script}.then(found => parent.postMessage(JSON.stringify([{number}, found]), '*'))"
        framed = html.escape(text.replace("</body>", f"<script>{axe}</script><script>{told}</script></body>"))
        frames.append(f'<iframe style="width:{width}px;height:900px;border:0" srcdoc="{framed}"></iframe>')
    host = places[0][0].with_name("framed.html")
    host.write_text(
        "<!doctype html><title>test</title><script>const found = []; onmessage = event => {"
        f"found.push(JSON.parse(event.data)); if (found.length === {len(places)})"
        " document.title = encodeURIComponent(JSON.stringify(found)) }</script>" + "".join(frames)
    )
    flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=30000", "--dump-dom"]
    profile = f"--user-data-dir={host.parent / 'profile'}"
    done = subprocess.run(
        [find_browser(), *flags, profile, host.as_uri()], capture_output=True, timeout=240, check=True
    )
    title = re.search(rb"<title>(.*?)</title>", done.stdout)
    assert title is not None
    shown = {}
    for number, (wide, scrolling, faults) in json.loads(unquote(html.unescape(title.group(1).decode()))):
        page, width = places[number]
        serious = [fault for fault in faults if fault[0] in ("serious", "critical")]
        shown[str(page), width] = Shown(wide, scrolling, serious)
    return shown


def test_axe_finds_a_planted_fault(axe: str, tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text("<html lang=en><title>bad</title><body><main><h1>bad</h1><img src='a.png'></main></body></html>")
    (shown,) = show(axe, [page], [1280]).values()
    assert [fault[1] for fault in shown.faults] == ["image-alt"]


def test_a_page_that_is_too_wide_and_a_table_that_scrolls_are_seen(axe: str, tmp_path: Path) -> None:
    page = tmp_path / "wide.html"
    page.write_text(
        "<html lang=en><title>wide</title><body><main><h1>wide</h1><div style='width:600px'>a</div>"
        "<div class=table style='width:100px;overflow:auto'><div style='width:200px'>b</div></div></main></body></html>"
    )
    (shown,) = show(axe, [page], [390]).values()
    assert shown.wide >= 600
    assert shown.scrolling == 1


def test_pages_are_no_wider_than_the_screen_and_axe_finds_no_serious_fault(axe: str, pages: list[Path]) -> None:
    """On a phone, tables scroll within the page; on the desktop, no table needs to scroll."""
    phone, paper, desktop = 390, 700, 1280
    found = show(axe, pages, (phone, paper, desktop))
    assert len(found) == 3 * len(pages)
    for (page, width), shown in found.items():
        assert shown.wide <= width, (page, width)
        assert width < desktop or shown.scrolling == 0, page
        assert not shown.faults, (page, width)


def test_the_analysis_is_no_wider_than_the_screen_and_axe_finds_no_serious_fault(axe: str, analysis_page: Path) -> None:
    for (_, width), shown in show(axe, [analysis_page], (390, 1280)).items():
        assert shown.wide <= width
        assert not shown.faults
