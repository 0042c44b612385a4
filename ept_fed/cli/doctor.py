"""`ept-fed doctor`: find faults before training; each sub-command checks one kind of input."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ept_fed.cli.refusals import DONE, FAILED, FAULTS, exit_on_refusal

if TYPE_CHECKING:
    from rich.console import Console

    from ept_fed.data.doctor import DataExamination

__all__ = ["EXAMPLES", "app", "examine"]

EXAMPLES = (
    "Examples:\n\n  ept-fed doctor data configs/own_images.yaml --set data.root=DIR\n\n"
    "  ept-fed doctor data my.yaml --json data.json --plot partition.png"
)
_SHOWN = 10
_MAX_ROWS = 60

app = typer.Typer(name="doctor", help="Find faults before training.", no_args_is_help=True)


@app.callback()
def _doctor() -> None:
    """Find faults before training."""


@app.command("data", epilog=EXAMPLES)
def examine(
    config: Annotated[Path, typer.Argument(help="Experiment in YAML; only its data section and seed are used.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override one setting; repeatable.")
    ] = None,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Also write all findings as JSON; - prints only the JSON."),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Also draw the number of images per site and class, as PNG.")
    ] = None,
) -> None:
    """Read every image of the data section, and report its contents and faults.

    Reported are counts per site, split and class; unreadable files; exact duplicates, within and across splits and
    sites; groups in several splits or at several sites; image sizes and modes. Nothing is trained, and no backbone is
    needed. Exit code 0: clean; 3: faults were found; 2: the settings or the lists must be corrected before images can
    be read.
    """
    only_json = json_file == Path("-")
    with exit_on_refusal(as_json=only_json):
        from ept_fed.data.doctor import examine_data
        from ept_fed.storage.files import dump_json, write_bytes, write_json
        from ept_fed.validation.data import validate_data
        from ept_fed.validation.load_experiment import load_experiment

        experiment = load_experiment(config, overrides or [], check=validate_data)
        with _progress() as (on_start, on_image):
            found = examine_data(experiment.data, experiment.data_seed, on_start=on_start, on_image=on_image)
        if plot is not None:
            from ept_fed.reports.charts.partition import draw_partition

            with _refused_if_unwritable("--plot", plot):
                write_bytes(plot, draw_partition(found.by_class))
        if only_json:
            typer.echo(dump_json(found.to_json()))
        elif json_file is not None:
            with _refused_if_unwritable("--json", json_file):
                write_json(json_file, found.to_json())
    if not only_json:
        from rich.console import Console

        _print_examination(found, Console())
    raise typer.Exit(DONE if found.clean else FAULTS)


@app.command(
    "kit", epilog="Examples:\n\n  ept-fed doctor kit kits/sites/north\n\n  ept-fed doctor kit kits/server --json"
)
def examine_kit(
    kit: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="The folder of a site's kit, of the server's kit, or of the authority."),
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")] = False,
) -> None:
    """Check a kit: checksums, permissions, dates, the certificate chain, and whether keys match certificates.

    A certificate that expires within 30 days is reported, but is not a fault. Exit code 0: no faults; 1: faults have to
    be corrected, for example an expired certificate; 2: the folder is not a kit.
    """
    with exit_on_refusal(as_json=as_json):
        from datetime import UTC, datetime

        from ept_fed.pki.check_kit import examine_kit as examine
        from ept_fed.storage.files import dump_json

        found = examine(kit, datetime.now(UTC))
    if as_json:
        typer.echo(dump_json(found.to_json()))
    else:
        for dates in found.certificates:
            typer.echo(f"  {dates.file:18}  until {dates.not_after.date()}  {dates.fingerprint}")
        for heading, problems in (("fault", found.faults), ("notice", found.notices)):
            for problem in problems:
                typer.echo(f"  * {heading}: {problem}")
        typer.echo(f"{found.kind} {found.name}: {found.status}")
    raise typer.Exit(FAILED if found.faults else DONE)


@contextmanager
def _refused_if_unwritable(option: str, path: Path) -> Iterator[None]:
    from ept_fed.errors import InputRefusedError, Problem

    try:
        yield
    except OSError as error:
        raise InputRefusedError([Problem(option, str(path), f"cannot be written ({error.strerror})")]) from error


@contextmanager
def _progress() -> Iterator[tuple[Callable[[int], None], Callable[[], None]]]:
    """Show the number of images read and the remaining time on stderr, if it is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("images"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("images", total=None)
        yield lambda total: progress.update(task, total=total), lambda: progress.advance(task)


def _print_examination(found: "DataExamination", console: "Console") -> None:
    _print_counts(found, console)
    sizes = [f"{width} × {height} ({n})" for (width, height), n in found.sizes]
    _say(console, f"{found.images} images of {found.groups} groups")
    _say(console, f"sizes: {_list(sizes)}")
    _say(console, f"modes: {_list([f'{mode} ({n})' for mode, n in found.modes])}")
    _print_list(console, "unreadable image(s)", [f"{bad.image} ({bad.site}) {bad.reason}" for bad in found.unreadable])
    for kind, heading in (
        ("splits", "set(s) of equal images across splits"),
        ("sites", "set(s) of equal images across sites"),
        ("groups", "set(s) of equal images in several groups of one site and split"),
        ("nothing", "set(s) of equal images within a group"),
    ):
        sets = [
            " = ".join(same.images)
            + f" ({', '.join(same.sites)}; {', '.join(same.splits)}"
            + ("; with different labels)" if len(same.labels) > 1 else ")")
            for same in found.duplicates
            if same.kind == kind
        ]
        _print_list(console, heading, sets)
    for groups, what in (
        (found.straddling_splits, "in more than one split"),
        (found.straddling_sites, "at several sites"),
    ):
        lines = [f"{group.group}: {group.images} images, {', '.join(group.across)}" for group in groups]
        _print_list(console, f"group(s) {what}", lines)
    _print_list(console, "refusal(s) to expect", found.refusals)
    _print_list(console, "remark(s)", found.remarks)
    verdict = (
        "[bold green]clean[/]" if found.clean else "[bold red]faults found[/]: a run would refuse, leak or miscount"
    )
    console.print(verdict)


def _print_counts(found: "DataExamination", console: "Console") -> None:
    from rich.table import Table
    from rich.text import Text

    per_class = {(row["site"], row["split"], row["class"]): str(row["images"]) for row in found.by_class}
    table = Table(title="images per site, split and class", box=None, padding=(0, 1))
    for heading in ("site", "split"):
        table.add_column(heading, no_wrap=True, max_width=24)
    for heading in ("images", "groups", *found.classes):
        table.add_column(Text(heading), justify="right", overflow="fold")
    rows = [row for row in found.by_split if row["images"]]
    for row in rows[:_MAX_ROWS]:
        counts = [per_class[row["site"], row["split"], name] for name in found.classes]
        cells = (str(row["site"]), str(row["split"]), str(row["images"]), str(row["groups"]), *counts)
        table.add_row(*(Text(cell) for cell in cells))
    console.print(table)
    if len(rows) > _MAX_ROWS:
        _say(console, f"… and {len(rows) - _MAX_ROWS} more rows; --json FILE has them all")


def _print_list(console: "Console", heading: str, lines: Sequence[str]) -> None:
    if not lines:
        return
    _say(console, f"{len(lines)} {heading}:")
    for line in lines[:_SHOWN]:
        _say(console, f"  * {line}")
    if len(lines) > _SHOWN:
        _say(console, f"  … and {len(lines) - _SHOWN} more; --json FILE has them all")


def _list(items: Sequence[str]) -> str:
    more = f" and {len(items) - _SHOWN} more" if len(items) > _SHOWN else ""
    return ", ".join(items[:_SHOWN]) + more


def _say(console: "Console", line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)
