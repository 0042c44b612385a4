"""Reports of ordinary and unusual runs: verdict first, undefined values stated, names escaped, nothing loaded."""

import json
import math
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from ept_fed.reports.pages.gallery import GalleryItem, most_confident_errors
from ept_fed.reports.pages.site_report import build_site_report
from ept_fed.reports.pages.wording import signed
from ept_fed.reports.pages.write_reports import MAX_PAGES, make_reports, write_reports
from ept_fed.reports.run.read_run import read_run
from ept_fed.reports.run.run_folder import site_folder

MakeRun = Callable[..., Path]
PNG = b"\x89PNG\r\n\x1a\n" + b"0" * 8
NASTY = ("<script>alert(1)</script>", "a&b \"c\" 'd'", "$\\frac{1}{2}$")


class _Page(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.words: list[str] = []
        self.addresses: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attributes:
            if name == "id":
                self.ids.append(str(value))
            if name in {"src", "href", "xlink:href", "action", "data"}:
                self.addresses.append(str(value))

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def verdicts(folder: Path, **options: Any) -> dict[str, str]:
    return {site: headline.verdict for site, headline in make_reports(folder, **options).headlines.items()}


def report_of(folder: Path, site: str = "north") -> dict[str, Any]:
    return json.loads((folder / "sites" / site / "report.json").read_text())


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("gains", "verdict", "word"),
    [
        ({"local": 0.3, "federated": 2.5}, "helped", "Joining helped"),
        ({"local": 2.5, "federated": 0.3}, "harmed", "Joining harmed"),
        ({"local": 1.0, "federated": 1.0}, "no clear difference", "No clear difference"),
    ],
)
def test_the_verdict_comes_first(make_run: MakeRun, gains: dict[str, float], verdict: str, word: str) -> None:
    folder = make_run(sites=("north",), gains=gains)
    assert verdicts(folder) == {"north": verdict}
    differences = {row["metric"]: row["differences"]["federated"] for row in report_of(folder)["statistics"]["metrics"]}
    assert {differences[name]["verdict"] for name in ("auc", "accuracy", "loss", "brier")} == {verdict}
    text = " ".join(_Page((folder / "sites" / "north" / "report.html").read_text()).words)
    assert text.index(word) < text.index("How good are the models here?")


@pytest.mark.usefixtures("undrawn")
def test_every_file_is_in_its_place_and_the_runs_own_report_is_unchanged(make_run: MakeRun) -> None:
    folder = make_run()
    before = (folder / "report.json").read_bytes()
    written = {str(path.relative_to(folder)) for path in write_reports(folder)}
    expected = {f"sites/{site}/report.{kind}" for site in ("north", "south") for kind in ("html", "json")}
    expected |= {f"sites/{site}/shared.json" for site in ("north", "south")}
    assert written == {*expected, "report.html"}
    assert (folder / "report.json").read_bytes() == before
    assert report_of(folder)["schema"] == 1


def test_the_same_run_gives_the_same_bytes(make_run: MakeRun) -> None:
    folder = make_run(sites=("north",))
    first = {path: path.read_bytes() for path in write_reports(folder)}
    assert {path: path.read_bytes() for path in write_reports(folder)} == first


def test_pages_load_nothing_and_link_nowhere(make_run: MakeRun) -> None:
    folder = make_run(validation=(10, 10, 10))
    for path in write_reports(folder, gallery={"north": [GalleryItem("a.png", PNG, "nv", "bcc", 0.9)]}):
        if path.suffix != ".html":
            continue
        text = path.read_text()
        page = _Page(text)
        assert not re.search(r"https?:|url\((?!#)|@import", text)
        assert not {"script", "link", "iframe", "object", "embed", "a"} & set(page.tags)
        assert all(address.startswith(("#", "data:image/png;base64,")) for address in page.addresses)
        assert len(page.ids) == len(set(page.ids))
        assert {address[1:] for address in page.addresses if address.startswith("#")} <= set(page.ids)


def test_names_are_escaped_everywhere(make_run: MakeRun) -> None:
    refused = [{"site": NASTY[0], "phase": "train", "reason": "<b>no</b>"}]
    folder = make_run(sites=NASTY, classes=NASTY, name=NASTY[0], notes=NASTY, refused=refused)
    for path in write_reports(folder):
        if path.suffix == ".html":
            page = _Page(path.read_text())
            assert not {"script", "b", "frac"} & set(page.tags)
            assert any(NASTY[0] in words for words in page.words)
            assert any(NASTY[1] in words for words in page.words)
    page = _Page((folder / "sites" / site_folder(NASTY[2]) / "report.html").read_text())
    assert sum(NASTY[2] in words for words in page.words) > 5


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"patients": (20, 0, 20)}, "Not among this site's test images: bcc"),
        ({"patients": (20, 20, 4)}, "nv (4)"),
        ({"patients": (1, 1, 0)}, "2 test cases at this site are too few"),
        ({"patients": (30, 0, 0)}, "all test images of this site show akiec"),
        ({"patients": (0, 0, 0)}, "no test image with usable predictions"),
        ({"gains": {"federated": 1.0}}, "no local model to compare with"),
        ({"gains": {}}, "the run failed before any model could be tested"),
        ({"rounds": 0}, "No round was finished"),
        ({"task": "multi_label"}, "no confusion matrix"),
        ({"validation": (5, 5, 5), "task": "multi_label"}, "At a sensitivity of 90 %"),
        ({"validation": (10, 10, 2)}, "In every set"),
        ({}, "contains no validation predictions"),
    ],
    ids=str,
)
def test_values_that_cannot_be_computed_are_explained_in_words(
    make_run: MakeRun, options: dict[str, Any], said: str
) -> None:
    if options.get("gains") == {}:
        options = options | {"patients": (0, 0, 0)}
    folder = make_run(sites=("north",), **options)
    if options.get("rounds") == 0:
        (folder / "rounds.jsonl").touch()
    write_reports(folder)
    text = " ".join(" ".join(_Page((folder / "sites" / "north" / "report.html").read_text()).words).split())
    assert said in text
    assert "nan" not in re.findall(r"[a-z]+", text)


@pytest.mark.usefixtures("undrawn")
def test_equal_probabilities_have_an_auc_of_one_half_and_are_reported(make_run: MakeRun) -> None:
    folder = make_run(sites=("north",), patients=(10, 10, 10))
    path = folder / "sites" / "north" / "predictions.csv"
    header, *lines = path.read_text().splitlines()
    flat = [",".join([*line.split(",")[:6], "0.4", "0.3", "0.3"]) for line in lines]
    path.write_text("\n".join([header, *flat]) + "\n")
    assert verdicts(folder)["north"] == "no clear difference"
    document = report_of(folder)
    assert document["statistics"]["metrics"][0]["values"]["federated"]["value"] == 0.5
    assert any("same probabilities" in sentence for sentence in document["limits"])


@pytest.mark.usefixtures("undrawn")
def test_pictures_are_only_on_their_own_sites_page(make_run: MakeRun) -> None:
    folder = make_run()
    write_reports(folder, gallery={"north": [GalleryItem("secret.png", PNG, "nv", "bcc", 0.9)]})
    assert "secret.png" in (folder / "sites" / "north" / "report.html").read_text()
    for path in folder.rglob("report.*"):
        if path.parent.name != "north" or path.suffix != ".html":
            assert "secret.png" not in path.read_text()


def test_the_gallery_has_only_errors_and_the_most_confident_first(make_run: MakeRun) -> None:
    run = read_run(make_run())
    found = most_confident_errors(run.sites["north"].test, run.report["classes"], 5, "federated")
    assert len(found) == 5
    assert [error.probability for error in found] == sorted((error.probability for error in found), reverse=True)
    assert all(error.true != error.predicted for error in found)
    with pytest.raises(ValueError, match="not a PNG"):
        GalleryItem("a", b"<svg>", "a", "b", 0.5)


def test_temperature_and_sets_need_validation_images(make_run: MakeRun) -> None:
    statistics = build_site_report(read_run(make_run(validation=(12, 12, 12))), "north", draws=50).statistics
    assert statistics.calibration["federated"].temperature > 0
    assert statistics.conformal["federated"].coverage > 0.8
    for point in statistics.operating["federated"]:
        assert point.validation_positives == 24
        assert 0 < point.sensitivity.value <= 1


def test_messages_are_counted_as_rounds_exchange_them(make_run: MakeRun) -> None:
    """One reply per round, and the evaluation that ends the run."""
    traffic = build_site_report(read_run(make_run(rounds=5)), "north", draws=50).traffic
    assert (traffic.messages_from_site, traffic.bytes_from_site) == (6, 10_000)


@pytest.mark.usefixtures("undrawn")
def test_a_page_states_first_that_it_has_pictures_or_states_why_it_has_none(make_run: MakeRun) -> None:
    folder = make_run(sites=("north",))
    page = folder / "sites" / "north" / "report.html"

    def read(**options: Any) -> str:
        write_reports(folder, **options)
        return " ".join(" ".join(_Page(page.read_text()).words).split())

    shown = read(gallery={"north": [GalleryItem("a.png", PNG, "nv", "bcc", 0.9)]})
    assert shown.index("contains pictures of patients") < shown.index("Joining helped")
    assert "written without the images" in read()
    assert "classified every test image correctly" in read(gallery={"north": []})
    assert "contains pictures" not in read()


def test_a_value_that_rounds_to_zero_has_no_sign() -> None:
    assert [signed(x) for x in (0.0004, -0.0004, -0.0006, 0.0, math.nan)] == ["0.000", "0.000", "−0.001", "0.000", "–"]


@pytest.mark.usefixtures("undrawn")
def test_sites_beyond_the_limit_get_rows_but_no_pages_of_their_own(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert 50 <= MAX_PAGES <= 1000
    monkeypatch.setattr("ept_fed.reports.pages.write_reports.MAX_PAGES", 10)
    folder = make_run(sites=[f"site-{i}" for i in range(11)], patients=(4, 4, 4))
    written = write_reports(folder)
    assert [path.name for path in written].count("report.html") == 1
    assert (folder / "report.html").read_text().count("<tr>") > 2 * 10
    (page,) = [path for path in write_reports(folder, site="site-7") if path.suffix == ".html"]
    assert page.parent.name == "site-7"


def test_drawing_does_not_change_the_matplotlib_settings(make_run: MakeRun) -> None:
    import matplotlib as mpl

    before = dict(mpl.rcParams)
    write_reports(make_run(sites=("north",)))
    assert dict(mpl.rcParams) == before
