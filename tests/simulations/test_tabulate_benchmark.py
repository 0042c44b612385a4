"""The tables of the pages are those of the results, and nothing else of a page is touched."""

from collections.abc import Callable
from pathlib import Path

import pytest

from ept_fed.config import Experiment
from ept_fed.reports.progress import Silent
from simulations.benchmark import benchmark
from simulations.tabulate_benchmark import (
    PAGES,
    fill_page,
    read_results,
    tabulate_all,
    tabulate_methods,
    tabulate_sites,
)

REPOSITORY = Path(__file__).resolve().parents[2]
SITES_OF = ("ept", "ept+tokens", "ept fitted", "ept+tokens fitted", "linear", "lora", "vpt")


def test_a_table_has_every_cell_of_the_grid(micro: Callable[..., Experiment], tmp_path: Path) -> None:
    grid = "benchmark={methods: [ept, linear], settings: [local, federated, federated+head], seeds: [0, 1]}"
    report = benchmark(micro("federation.rounds=1", grid), tmp_path / "out", Silent())
    rows = read_results(tmp_path / "out" / "results.csv")
    table = tabulate_methods(rows).splitlines()
    assert [line.split(" | ")[0] for line in table[2:]] == ["| ept", "| linear"]
    mean = {(r["method"], r["setting"]): r for r in report["summary"] if r["metric"] == "auc"}
    assert f"{mean['ept', 'local']['mean']:.3f} ± {mean['ept', 'local']['sd']:.3f}" in table[2]
    assert f"({mean['ept', 'federated']['bytes_per_round']} B)" in table[2]
    assert table[3].split(" | ")[2] == "–"
    gains = tabulate_all(rows, "small")["small:gains"].splitlines()
    assert [line.count("|") for line in gains] == [7] * 4
    assert gains[3].split(" | ")[4] == "–"
    assert f"of 3 sites, {mean['ept', 'federated']['bytes_per_round']} B" in gains[2]
    sites = tabulate_sites(rows, ["ept"]).splitlines()
    assert len(sites) == 2 + 2
    assert "(−" in sites[2] or "(+" in sites[2]


def test_only_what_stands_between_the_marks_is_replaced() -> None:
    page = "before\n<!-- a:methods -->\nold\n<!-- end -->\nbetween\n<!-- b:methods -->\nkept\n<!-- end -->\n"
    filled = fill_page(page, {"a:methods": "| new |", "c:methods": "| nowhere |"})
    assert filled == page.replace("old", "| new |")
    assert fill_page(filled, {"a:methods": "| new |"}) == filled
    with pytest.raises(ValueError, match="has no"):
        fill_page("<!-- a:methods -->\n", {"a:methods": ""})


@pytest.mark.parametrize("results", sorted((REPOSITORY / "results").glob("*.csv")), ids=lambda path: path.stem)
def test_the_pages_show_the_committed_results(results: Path) -> None:
    rows = read_results(results)
    tables = tabulate_all(rows, results.stem, SITES_OF)
    pages = [(REPOSITORY / name).read_text() for name in PAGES]
    assert any(f"<!-- {mark} -->" in page for page in pages for mark in tables)
    for page in pages:
        assert fill_page(page, tables) == page
