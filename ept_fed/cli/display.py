"""The live display of a simulation, and the table of results at its end."""

import math
import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from ept_fed.config.experiment import Experiment
from ept_fed.reports.run.settings import MIXED, PERSONALISED, verdict_setting

__all__ = ["LiveDisplay", "print_comparison"]


class LiveDisplay:
    """Shows stage, round, loss and validation AUC per site, and remaining time; plain lines without a terminal."""

    def __init__(self, experiment: Experiment | None, console: Console | None = None) -> None:
        """Prepare a display; `with` starts it and prints the description of the experiment, if one is given."""
        self._console = console or Console()
        self._experiment = experiment
        self._stage = "loading backbone and images"
        self._sites: dict[str, dict[str, float]] = {}
        self._round, self._finished, self._rounds, self._done_seconds = 0, 0, 0, 0.0
        self._stage_started = time.perf_counter()
        self._live = Live(self, console=self._console, refresh_per_second=4, transient=True)

    def __enter__(self) -> "LiveDisplay":
        """Start the display, and print the description of the run."""
        if self._experiment is not None:
            self._introduce(self._experiment)
        if self._console.is_terminal:
            self._live.start()
        return self

    def _introduce(self, experiment: Experiment) -> None:
        federation, baselines = experiment.federation, experiment.evaluation.baselines
        if experiment.about:
            self._console.print(experiment.about, markup=False, highlight=False)
        self._console.print(
            f"{experiment.name}: {federation.rounds} rounds of {federation.strategy}, sharing {federation.share} of "
            f"{experiment.model.method} in {experiment.model.backbone}; "
            f"compared with: {', '.join(baselines) or 'nothing'}",
            markup=False,
            highlight=False,
        )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the live display."""
        self._live.stop()

    def __rich__(self) -> RenderableType:
        """Return the current state as text and a table."""
        head = Text(f"{self._stage}  round {self._round}/{self._rounds}  {self._time_left()}", style="bold")
        if not self._sites:
            return head
        table = Table(box=None, padding=(0, 2))
        table.add_column("site")
        for column in ("train loss", "validation AUC"):
            table.add_column(column, justify="right")
        for site, numbers in self._sites.items():
            table.add_row(Text(site), _number(numbers.get("loss")), _number(numbers.get("auc")))
        return Group(head, table)

    def on_note(self, sentence: str) -> None:
        """Print a note above the live display."""
        self._console.print(f"note: {sentence}", style="yellow", markup=False, highlight=False)

    def on_stage(self, stage: str, sites: tuple[str, ...], rounds: int) -> None:
        """Start a stage with an empty table."""
        self._stage, self._rounds, self._round, self._finished = stage, rounds, 0, 0
        self._sites = {site: {} for site in sites}
        self._stage_started = time.perf_counter()

    def on_site(self, round_number: int, site: str, numbers: Mapping[str, float]) -> None:
        """Update the row of one site."""
        self._round = round_number
        self._sites[site].update(numbers)

    def on_round(self, round_number: int, seconds: float) -> None:
        """Print one line per round if the output is not a terminal."""
        self._finished, self._done_seconds = round_number, time.perf_counter() - self._stage_started
        if not self._console.is_terminal:
            losses = " ".join(
                f"{site} loss={_number(n.get('loss'))}" + (f" auc={_number(n.get('auc'))}" if "auc" in n else "")
                for site, n in self._sites.items()
            )
            self._console.print(
                f"{self._stage} {round_number}/{self._rounds} {seconds:.1f}s {losses}",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )

    def _time_left(self) -> str:
        if not self._finished:
            return ""
        left = self._done_seconds / self._finished * (self._rounds - self._finished)
        return f"{int(left // 60)}:{int(left % 60):02d} remaining in this stage"


def print_comparison(report: Mapping[str, Any], console: Console | None = None) -> None:
    """Print the table of a finished run: macro AUC per site on its own test split; report.csv has all numbers."""
    console = console or Console()
    if report["status"] == "failed":
        # The rest is not printed as markup: a reason may name sites, and these may have any name.
        console.print("[bold red]failed[/]:", end=" ")
        why = f"no round could be averaged ({report['ended']}); see the notes above and run.log for the reason"
        console.print(why, markup=False, highlight=False)
        console.print(f"Run folder: {report['folder']}", markup=False, highlight=False)
        return
    # The candidates of a site's choice are on its own page.
    settings = [name for name in report["settings"] if name not in (PERSONALISED, MIXED)]
    choices, compared = report.get("choices", {}), verdict_setting(settings)
    table = Table(title="macro AUC on each site's own test images")
    table.add_column("site", overflow="fold", min_width=6)
    # A terminal with 80 columns has no space for more.
    details = len(settings) <= 2 and not report.get("verdicts")
    difference = ["Δ AUC"] if "local" in settings else []
    for heading in (*(["images"] if details else []), *settings, *difference, *(["sent"] if details else [])):
        table.add_column(heading, justify="right", overflow="fold", min_width=6)
    verdicts = report.get("verdicts", {})
    for heading, shown in (("which is", choices), ("joining", verdicts)):
        if shown:
            table.add_column(heading, overflow="fold", min_width=9)
    for row in report["rows"]:
        cells: list[str | Text] = [Text(row["site"]), *([str(row["test_images"])] if details else [])]
        cells += [_number(row[f"{setting}_auc"]) for setting in settings]
        if "local" in settings:
            cells.append(_number(row[f"{compared}_auc"] - row["local_auc"], sign="+"))
        cells += [f"{row['bytes_from_site'] / 1000:.0f} kB"] if details else []
        if choices:
            cells.append(choices[row["site"]]["name"] if row["site"] in choices else "")
        if verdicts:
            cells.append(verdicts.get(row["site"], ""))
        table.add_row(*cells, end_section=row is report["rows"][-2])
    console.print(table)
    largest = max(traffic["largest_update"] for traffic in report["traffic"].values())
    if "local" in settings:
        console.print(f"Δ AUC = {compared} - local; one seed, no intervals.", markup=False, highlight=False)
    console.print(
        f"An update has {report['payload']['bytes']:,} bytes of payload; its message has at most {largest:,} bytes. "
        f"Total time: {report['seconds']:.0f} s.\n"
        f"Open {report['folder']}/report.html; the numbers are in report.csv in the same folder.",
        markup=False,
        highlight=False,
    )


def _number(value: float | None, *, sign: str = "") -> str:
    return "-" if value is None or math.isnan(value) else f"{value:{sign}.3f}"
