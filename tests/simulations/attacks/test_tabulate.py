"""The table of attacks on the page is that of the committed results."""

import csv
from pathlib import Path

import pytest

from simulations.attacks.shadows.tabulate import PAGE, fill_page, tabulate

REPOSITORY = Path(__file__).parents[3]


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("results", sorted((REPOSITORY / "results/attacks").glob("*.csv")), ids=lambda path: path.stem)
def test_the_page_shows_the_committed_results(results: Path) -> None:
    page = (REPOSITORY / PAGE).read_text()
    assert fill_page(page, results.stem, read(results)) == page


def test_controls_and_targets_are_told_apart() -> None:
    rows = read(REPOSITORY / "results/attacks/ham10000.csv")
    lines = tabulate(rows).splitlines()[2:]
    shown = [r for r in rows if r["target"] == "each shadow run in turn" or r["part"] == "others"]
    assert len(lines) == sum(r["part"] != "known" or r["attack"] == "likelihood ratio, online" for r in shown)
    assert sum("*members at random*" in line for line in lines) == sum(r["part"] == "control" for r in shown)


def test_a_page_without_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="0 places"):
        fill_page("# A page", "ham10000", [])
