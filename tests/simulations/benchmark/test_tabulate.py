"""The tables in the pages equal those of the results, and the other parts of a page do not change."""

from collections.abc import Callable
from pathlib import Path

import pytest

from ept_fed.config.benchmark import SETTINGS
from ept_fed.config.experiment import Experiment
from ept_fed.evaluation.benchmark_summary import SUMMARY_METRICS
from ept_fed.progress import Silent
from simulations.benchmark.run import benchmark
from simulations.benchmark.tabulate import (
    PAGES,
    TABLES,
    fill_page,
    main,
    read_results,
    tabulate_gains,
    tabulate_methods,
    tabulate_paired,
    tabulate_pooled,
    tabulate_sites,
    tabulate_worth,
)

REPOSITORY = Path(__file__).resolve().parents[3]


def test_a_table_has_every_cell_of_the_grid(micro: Callable[..., Experiment], tmp_path: Path) -> None:
    grid = "benchmark={methods: [ept, linear], settings: [local, federated, federated+head], seeds: [0, 1]}"
    report = benchmark(micro("federation.rounds=1", "data.phantom_sites=2", grid), tmp_path / "out", Silent())
    rows = read_results(tmp_path / "out" / "results.csv")
    table = tabulate_methods(rows).splitlines()
    assert [line.split(" | ")[0] for line in table[2:]] == ["| ept", "| linear"]
    mean = {(r["method"], r["setting"]): r for r in report["summary"] if r["metric"] == "auc"}
    assert f"{mean['ept', 'local']['mean']:.3f} ± {mean['ept', 'local']['sd']:.3f}" in table[2]
    assert f"({mean['ept', 'federated']['bytes_per_round']} B)" in table[2]
    assert table[3].split(" | ")[2] == "–"
    gains = tabulate_gains(rows).splitlines()
    assert [line.count("|") for line in gains] == [7] * 4
    assert gains[3].split(" | ")[4] == "–"
    assert f"of 2 sites, {mean['ept', 'federated']['bytes_per_round']} B" in gains[2]
    sites = tabulate_sites([row for row in rows if row["method"] == "ept"]).splitlines()
    assert len(sites) == 2 + 2
    assert "(−" in sites[2] or "(+" in sites[2]
    (paired,) = tabulate_paired(rows).splitlines()[2:]
    assert paired.split(" | ")[0] == "| linear, 2 shots"
    assert f"{mean['linear', 'local']['difference']:+.3f} (".replace("-", "−") in paired


def row(method: str, value: float, setting: str = "local") -> dict[str, object]:
    metrics = dict.fromkeys(SUMMARY_METRICS, value)
    return {
        "method": method, "shots": "5", "sampling": "", "seed": 0, "setting": setting, "site": "a",
        "bytes_per_round": 0, "training": "ended", "home": False, "validation_auc": value, **metrics,
    }  # fmt: skip


ROWS = [row("ept", 0.5), row("vpt", 0.75), row("lora", 0.25)]


def test_shots_are_told_and_no_number_is_all_images() -> None:
    rows = [row("ept", value, setting) | {"shots": shots} for shots in ("5", "") for value, setting in PAIR]
    told = [line.split(" | ")[0] for line in tabulate_methods(rows).splitlines()[2:]]
    assert told == ["| **5 images per class and site**", "| ept", "| **all images**", "| ept"]
    assert [line.split(" | ")[0] for line in tabulate_sites(rows).splitlines()[2:]] == [
        "| ept, 5 shots",
        "| ept, all images",
    ]


def test_every_setting_has_a_column() -> None:
    rows = [row("ept", 0.5, setting) for setting in SETTINGS]
    headings = [info.heading for info in SETTINGS.values()]
    assert tabulate_methods(rows).splitlines()[0] == f"| method | {' | '.join(headings)} |"


PAIR = ((0.5, "local"), (0.75, "federated"))


def test_only_what_stands_between_the_marks_is_replaced() -> None:
    page = "before\n<!-- a:methods -->\nold\n<!-- end -->\nbetween\n<!-- b:methods -->\nkept\n<!-- end -->\n"
    filled = fill_page(page, "a", ROWS)
    assert filled == page.replace("old", tabulate_methods(ROWS))
    assert fill_page(filled, "a", ROWS) == filled
    assert fill_page(page, "c", ROWS) == page


def test_a_mark_that_names_methods_has_them_in_its_order() -> None:
    filled = fill_page("<!-- a:paired of vpt, ept -->\n<!-- end -->\n", "a", ROWS)
    assert filled.splitlines()[1:-1] == ["| minus vpt | local only |", "|---|---|", "| ept, 5 shots | −0.250 |"]


def test_a_name_with_a_comma_is_quoted() -> None:
    rows = [*ROWS, row("12 sites, 2 tokens", 0.7)]
    named = fill_page('<!-- a:methods of "12 sites, 2 tokens", ept -->\n<!-- end -->\n', "a", rows)
    assert [line.split(" | ")[0] for line in named.splitlines()[3:-1]] == ["| 12 sites, 2 tokens", "| ept"]


@pytest.mark.parametrize(
    ("page", "said"),
    [
        ("<!-- a:methods -->\n", "has no"),
        ("<!-- a:methods -->\n<!-- b:methods -->\n<!-- end -->\n", "a:methods --> has no"),
        ("<!-- a:means -->\n<!-- end -->\n", "is none of methods, accuracy, sites"),
        ("<!-- a:methods of ept, vptt -->\n<!-- end -->\n", "no results of 'vptt'"),
        ('<!-- a:methods of "12 sites, ept -->\n<!-- end -->\n', "names are separated as in CSV"),
    ],
)
def test_a_mark_that_cannot_be_filled_is_refused(page: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        fill_page(page, "a", ROWS)


@pytest.mark.parametrize("results", sorted((REPOSITORY / "results").glob("*.csv")), ids=lambda path: path.stem)
def test_the_pages_show_the_committed_results(results: Path) -> None:
    rows = read_results(results)
    pages = [(REPOSITORY / name).read_text() for name in PAGES]
    assert any(f"<!-- {results.stem}:{table}" in page for page in pages for table in TABLES)
    for page in pages:
        assert fill_page(page, results.stem, rows) == page


def test_the_picture_is_drawn_from_the_results(tmp_path: Path) -> None:
    picture = tmp_path / "accuracy.png"
    main(REPOSITORY / "results" / "privacy_ham10000.csv", check=True, picture=picture)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_worth_of_joining_is_told_against_the_best_local_model() -> None:
    def site(name: str, method: str, setting: str, value: float, validation: float) -> dict[str, object]:
        home = setting == "local"
        return row(method, value, setting) | {"site": name, "validation_auc": validation, "home": home}

    rows = [
        # Each site has another best local model: b at the first site by its validation AUC, and a at the second.
        site("s", "a", "local", 0.5, 0.5), site("s", "b", "local", 0.6, 0.9),
        site("t", "a", "local", 0.7, 0.8), site("t", "b", "local", 0.9, 0.7),
        site("s", "a", "federated+head", 0.8, 0.5), site("t", "a", "federated+head", 0.9, 0.5),
        site("s", "a", "federated", 0.0, 0.5), site("t", "a", "federated", 0.0, 0.5),
        site("s", "a", "chosen", 0.8, 0.5), site("t", "a", "chosen", 0.65, 0.5),
        site("s", "b", "federated", 0.7, 0.5), site("t", "b", "federated", 0.5, 0.5),
        site("s", "b", "chosen", 0.6, 0.5), site("t", "b", "chosen", 0.7, 0.5),
    ]  # fmt: skip
    first, second = tabulate_worth(rows).splitlines()[2:]
    alone = fill_page("<!-- x:worth of a -->\n<!-- end -->\n", "x", rows)
    assert alone.splitlines()[3] == first
    assert first == "| a, 0 B per round | 5 | 0.650 | 0.850 | +0.200, 2 of 2 sites | +0.200 | +0.075 | −0.050 |"
    assert second == "| b, 0 B per round | 5 | 0.650 | 0.600 | −0.050, 1 of 2 sites | −0.050 | 0.000 | 0.000 |"
    pooled = tabulate_pooled(rows).splitlines()[2:]
    assert pooled[0] == "| a | 5 | 0.650 | 0.850 | +0.200 | 0.650 | 0.850 | +0.200 |"
    assert fill_page("<!-- x:pooled of b -->\n<!-- end -->\n", "x", rows).splitlines()[3] == pooled[1]
