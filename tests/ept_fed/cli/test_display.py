"""The terminal display: site names are shown as plain text, and the remaining time is estimated correctly."""

import io
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from ept_fed.cli import display as module
from ept_fed.cli.display import LiveDisplay, print_comparison
from ept_fed.config.experiment import Experiment


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=80, force_terminal=False)


def text_of(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def report(site: str, auc: float) -> dict[str, Any]:
    row = {"site": site, "test_images": 3, "local_auc": auc, "federated_auc": 0.5, "bytes_from_site": 1000}
    return {
        "status": "done",
        "settings": ["local", "federated"],
        "rows": [row, row],
        "traffic": {site: {"largest_update": 10}},
        "payload": {"bytes": 8},
        "seconds": 1.0,
        "folder": "runs/[/x]",
    }


@pytest.mark.parametrize("site", ["[/b]", "[red]", "a" * 60, "Klinik [Nord]"])
def test_a_site_name_is_shown_as_text_and_never_as_markup(
    site: str, console: Console, micro: Callable[..., Experiment]
) -> None:
    with LiveDisplay(micro(), console) as shown:
        shown.on_stage("federated", (site,), 2)
        shown.on_site(1, site, {"loss": 1.0})
        shown.on_note(f"{site} left")
        console.print(shown)
    print_comparison(report(site, 0.25), console)
    assert site[:10] in text_of(console)
    assert "0.250" in text_of(console)
    assert "+0.250" in text_of(console)


def test_an_undefined_number_is_a_dash(console: Console) -> None:
    print_comparison(report("north", float("nan")), console)
    assert "nan" not in text_of(console)


def test_the_time_left_counts_finished_rounds_of_this_stage_only(
    console: Console, micro: Callable[..., Experiment], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: clock[0])
    shown = LiveDisplay(micro(), console)
    shown.on_stage("federated", ("north",), 8)
    assert shown._time_left() == ""
    clock[0] = 60
    shown.on_round(1, 60)
    assert shown._time_left().startswith("7:00")
    shown.on_site(2, "north", {"loss": 1.0})
    assert shown._time_left().startswith("7:00")
    shown.on_stage("local", ("north",), 8)
    assert shown._time_left() == ""
