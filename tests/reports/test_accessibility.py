"""Pages under axe-core in headless Chromium: no serious fault, and nothing wider than the screen or the paper.

axe-core is no dependency: `npm install axe-core` beside pyproject.toml, or name axe.min.js in AXE_CORE.
"""

import html
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest

from ept_fed.benchmark_cells import list_cells
from ept_fed.config import Experiment
from ept_fed.reports.analysis_folder import AnalysisFolder
from ept_fed.reports.feature_record import MOMENTS, FeatureRecord, ScalingExamples
from ept_fed.reports.gallery import GalleryItem
from ept_fed.reports.write_reports import write_reports

MakeRun = Callable[..., Path]
ROOT = Path(__file__).resolve().parents[2]
AXE = Path(os.environ.get("AXE_CORE", ROOT / "node_modules" / "axe-core" / "axe.min.js"))
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
SETTINGS = {"local": 0.5, "federated": 2.0, "fine-tuned": 2.1, "interpolated": 1.9, "ditto": 1.0, "centralised": 2.5}
PIXEL = bytes.fromhex(
    "89504e470d0a1a0a0000000d49484452000000010000000108060000001f15c4890000000d49444154789c6360606060000000050001a5f645400000000049454e44ae426082"
)

needs_browser = pytest.mark.skipif(BROWSER is None, reason="needs Chromium or Chrome on PATH")
needs_axe = pytest.mark.skipif(not AXE.exists(), reason="needs axe-core: npm install axe-core, or set AXE_CORE")


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


def evaluate(page: Path, script: str, *, width: int = 1280, library: str = "") -> Any:
    """Return what a promise in the page resolves to; the page is shown in a frame of the given width."""
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
    done = subprocess.run([str(BROWSER), *flags, profile, host.as_uri()], capture_output=True, timeout=120, check=True)
    title = re.search(rb"<title>(.*?)</title>", done.stdout)
    assert title is not None
    return json.loads(unquote(html.unescape(title.group(1).decode())))


@needs_browser
@needs_axe
def test_axe_finds_no_serious_fault(pages: list[Path]) -> None:
    for page in pages:
        for width in (390, 1280):
            assert not find_faults(page, width), (page.name, width)


@needs_browser
@needs_axe
def test_axe_would_find_one(tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text("<html lang=en><title>bad</title><body><main><h1>bad</h1><img src='a.png'></main></body></html>")
    assert [fault[1] for fault in find_faults(page, 1280)] == ["image-alt"]


def find_faults(page: Path, width: int) -> list[Any]:
    script = (
        "axe.run(document, {resultTypes: ['violations']})"
        ".then(r => r.violations.map(v => [v.impact, v.id, v.nodes.map(n => n.html.slice(0, 90))]))"
    )
    found = evaluate(page, script, width=width, library=AXE.read_text())
    return [fault for fault in found if fault[0] in ("serious", "critical")]


@needs_browser
@pytest.mark.parametrize("width", [390, 700, 1280], ids=["phone", "A4", "desktop"])
def test_pages_are_no_wider_than_the_screen(pages: list[Path], width: int) -> None:
    """On a phone tables scroll within the page; on the desktop none has to."""
    script = (
        "Promise.resolve([document.documentElement.scrollWidth,"
        " [...document.querySelectorAll('.table')].filter(t => t.scrollWidth > t.clientWidth + 1).length])"
    )
    for page in pages:
        wide, scrolling = evaluate(page, script, width=width)
        assert wide <= width, page
        assert width < 1280 or scrolling == 0, page


@needs_browser
def test_the_analysis_is_no_wider_than_the_screen_and_axe_finds_no_serious_fault(analysis_page: Path) -> None:
    for width in (390, 1280):
        wide = evaluate(analysis_page, "Promise.resolve(document.documentElement.scrollWidth)", width=width)
        assert wide <= width
        assert not AXE.exists() or not find_faults(analysis_page, width)
