"""The live view of a deployed run: rounds, sites with their last numbers and bytes, refusals and remaining time."""

import math
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

__all__ = ["RunDisplay", "draw_server"]

_STYLES = {"online": "green", "offline": "yellow", "revoked": "red", "not registered": "red"}


class RunDisplay:
    """A display of the server's status: a live table in a terminal; elsewhere each event once, as a line."""

    def __init__(self, console: Console | None = None) -> None:
        """Prepare a display, which is used as a context manager."""
        self._console = console or Console()
        self._live = Live(console=self._console, refresh_per_second=2, transient=True, auto_refresh=False)
        self._told: set[str] = set()

    def __enter__(self) -> "RunDisplay":
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self, document: Mapping[str, Any]) -> None:
        """Show a status document of `describe_server`."""
        if self._console.is_terminal:
            self._live.update(draw_server(document), refresh=True)
            return
        for line in _events(document):
            if line not in self._told:
                self._told.add(line)
                self._console.print(line, markup=False, highlight=False, soft_wrap=True)


def draw_server(document: Mapping[str, Any]) -> RenderableType:
    """Return the table and texts for a server's status document."""
    run = document["run"]
    state = f"process {document['process']}" if document["process"] else "not running"
    parts: list[RenderableType] = [Text(f"{document['federation']}: server {state}", style="bold")]
    if document["problem"]:
        parts.append(Text(document["problem"], style="red"))
    if run:
        parts.append(Text(_headline(run)))
    table = Table(box=None, padding=(0, 2))
    table.add_column("site", overflow="fold")
    table.add_column("node")
    for heading in ("round", "train loss", "validation AUC", "sent", "received", "refused"):
        table.add_column(heading, justify="right")
    for name, site in document["sites"].items():
        numbers = (run or {"sites": {}})["sites"].get(name, {})
        table.add_row(
            Text(name),
            Text(site["status"], style=_STYLES.get(site["status"], "")),
            str(numbers.get("round", "-")),
            _number(numbers.get("loss")),
            _number(numbers.get("auc")),
            _bytes(numbers.get("bytes_sent")),
            _bytes(numbers.get("bytes_received")),
            str(numbers.get("refusals", "-")),
        )
    parts.append(table)
    if run:
        parts += [Text(f"left out: {name}: {reason}", style="yellow") for name, reason in run["left_out"].items()]
        parts += [Text(_refusal(refusal), style="yellow") for refusal in run["refused"][-5:]]
    return Group(*parts)


def _events(document: Mapping[str, Any]) -> list[str]:
    run = document["run"]
    if not run:
        return []
    lines = [f"{run['name']}: {run['phase']}" + (f" ({run['ended']})" if run["ended"] else "")]
    if run["round"]:
        losses = " ".join(
            f"{name} loss={_number(site.get('loss'))} auc={_number(site.get('auc'))}"
            for name, site in run["sites"].items()
            if site.get("round") == run["round"]
        )
        complete = all(site.get("round") == run["round"] for site in run["sites"].values())
        lines += [f"round {run['round']}/{run['rounds']} {losses}"] if complete else []
    lines += [f"left out: {name}: {reason}" for name, reason in run["left_out"].items()]
    return [*lines, *map(_refusal, run["refused"])]


def _headline(run: Mapping[str, Any]) -> str:
    words = [f"run {run['name']}: {run['phase']}", f"round {run['round']}/{run['rounds']}"]
    if run["seconds_left"] is not None:
        words.append(f"{timedelta(seconds=round(run['seconds_left']))} left")
    if run["ended"]:
        words.append(str(run["ended"]))
    return ", ".join(words)


def _refusal(refusal: Mapping[str, Any]) -> str:
    return f"round {refusal['round']}: {refusal['site']} {refusal['reason']}"


def _number(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.3f}"


def _bytes(value: int | None) -> str:
    return "-" if value is None else f"{value / 1000:.1f} kB"
