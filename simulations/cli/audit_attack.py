"""`ept-fed audit attack`: measure what a site's own updates leak, on a run of its own."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from ept_fed.cli.refusals import DONE, exit_on_refusal

__all__ = ["ATTACK_EXAMPLES", "attack"]

ATTACK_EXAMPLES = (
    "Examples:\n\n  ept-fed audit attack runs/demo\n\n"
    "  ept-fed audit attack runs/mine --sites north --rounds 1,8 --policy policy.yaml --steps 100\n\n"
    "  ept-fed audit attack runs/mine --strength full --jobs 2"
)
_TITLES = {
    "membership": "Which images were trained on? AUC of members against other images; 0.5 is guessing",
    "control": "The same images scored by the update of a site that trained on none of them",
    "known membership": "Do these scores work? The same images in a case where members leave the strongest trace",
    "crafted": "Which images were trained on, if the server crafts prompts?",
    "inversion": "What did the images look like? Reconstructions against the true ones",
    "known inversion": "Does this search work? Reconstructions where the gradient determines the image",
}
_INVERTED = ("inversion", "known inversion")


def attack(
    run: Annotated[Path, typer.Argument(help="The folder of a finished run of `ept-fed simulate`.", metavar="RUN")],
    rounds: Annotated[
        str, typer.Option(help="Rounds to attack, comma-separated; if empty, the first and the last.", metavar="N,N")
    ] = "",
    sites: Annotated[
        list[str] | None, typer.Option(help="Site to attack; repeatable. Default: the first site.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, max=100_000, help="Steps of every reconstruction.")] = 16,
    seed: Annotated[int, typer.Option(min=0, help="Seed of candidates, noise and starting points.")] = 0,
    noise: Annotated[
        float, typer.Option(min=0.0, max=1000.0, help="Gaussian noise of one row, in root mean squares of the update.")
    ] = 1.0,
    policy: Annotated[
        Path | None, typer.Option(help="The site's policy.yaml with its bound on prompts. Default: the default rules.")
    ] = None,
    images: Annotated[
        bool, typer.Option("--images", help="Also write pictures of true and reconstructed images: patients' data.")
    ] = False,
    strength: Annotated[
        Literal["quick", "full"],
        typer.Option(help="full: membership in all rounds and sites, with shadow runs."),
    ] = "quick",
    shadows: Annotated[
        int, typer.Option(min=1, max=999, help="Shadow runs of the full attack; each takes as long as the run.")
    ] = 64,
    targets: Annotated[
        int,
        typer.Option(min=0, max=999, help="Images for which the full attack crafts prompts, a round for each."),
    ] = 40,
    jobs: Annotated[int, typer.Option(min=1, max=256, help="Processes that train shadow runs.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")] = False,
) -> None:
    """Attack a site's updates: membership, reconstruction, and crafted prompts with the gate on and off.

    The updates are recomputed from the run's settings, images and prompts. Writes attack.json and attack.csv into the
    run folder. With --strength full, the attacker trains many runs like this one on images that he chose, which tell
    him what to expect with and without each image; that writes attack-full.json and attack-full.csv. If the command is
    stopped, run it again: it continues from there.

    Exit code 0: measured, with any result; 2: something has to be corrected first.
    """
    with exit_on_refusal(as_json=as_json):
        numbers = _parse_rounds(rounds)
        if strength == "full":
            _refuse_options({"--rounds": rounds, "--sites": sites, "--images": images})
        with _progress(shown=not as_json) as watch:
            # Both import torch, so after the checks.
            if strength == "full":
                from simulations.attacks.shadows.attack import attack_with_shadows

                report = attack_with_shadows(
                    run, watch, shadows=shadows, jobs=jobs, seed=seed, policy=policy, targets=targets
                )
            else:
                from simulations.attacks.run import attack_run

                report = attack_run(
                    run,
                    watch,
                    rounds=numbers,
                    sites=sites or (),
                    steps=steps,
                    seed=seed,
                    noise=noise,
                    policy=policy,
                    images=images,
                )
    show: dict[str, Callable[[Mapping[str, Any]], None]] = {"quick": _print_report, "full": _print_full_report}
    if as_json:
        from ept_fed.storage.files import dump_json

        typer.echo(dump_json(report))
    else:
        show[strength](report)
    raise typer.Exit(DONE)


def _parse_rounds(text: str) -> tuple[int, ...]:
    from ept_fed.errors import InputRefusedError, Problem

    try:
        return tuple(int(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise InputRefusedError([Problem("--rounds", text, "write numbers such as 1,8")]) from None


def _refuse_options(given: Mapping[str, object]) -> None:
    from ept_fed.errors import InputRefusedError, Problem

    problems = [
        Problem(name, str(value), "--strength full attacks all rounds and sites, and only membership; leave it out")
        for name, value in given.items()
        if value
    ]
    if problems:
        raise InputRefusedError(problems)


@contextmanager
def _progress(*, shown: bool) -> Iterator[Any]:
    """Yield a function of (activity, share of the work that is done) that shows both on stderr."""
    if not shown:
        yield lambda _what, _share: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = TextColumn("{task.description}", markup=False), BarColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=1.0)
        yield lambda what, share: progress.update(task, description=what, completed=share)


def _print_report(report: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    for part, title in _TITLES.items():
        rows = [row for row in report["rows"] if row["part"] == part]
        if not rows:
            continue
        table = Table(title=title)
        inverted = part in _INVERTED
        table.add_column("site, round", overflow="fold")
        table.add_column("seen by the attacker (* is sent)" if part != "crafted" else "prompts", overflow="fold")
        measures = list(dict.fromkeys(row["measure"] for row in rows))
        headings = (["images"] if not inverted else ["batch"]) + measures
        for heading in headings:
            table.add_column(heading, justify="right", overflow="fold")
        for cells in _lines(rows, measures, part):
            table.add_row(*(Text(cell) for cell in cells))
        console.print(table)
    for entry in report["gate"]:
        refused = entry["refused"]
        said = f"refuses them: {refused}" if refused else "accepts them"
        console.print(f"Crafted prompts at {entry['site']}, round {entry['round']}: the gate {said}.", markup=False)
    exact = sum(entry["difference"] == 0 for entry in report["replayed"])
    console.print(
        f"{exact} of {len(report['replayed'])} replayed rounds have the recorded loss, bit for bit.", markup=False
    )
    for note in report["notes"]:
        console.print(f"note: {note}", style="yellow", markup=False, highlight=False)
    found = {row["part"] for row in report["rows"]}
    for part, sentence in report["assumptions"].items():
        if part in found or part == "all":
            console.print(f"\nAssumed ({part}): {sentence}", markup=False, highlight=False)
    console.print(
        f"\n{report['seconds']:.0f} s. {report['folder']}/attack.json and attack.csv contain every number.",
        markup=False,
        highlight=False,
    )


def _print_full_report(report: Mapping[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    for target in dict.fromkeys(row["target"] for row in report["rows"]):
        table = Table(title=f"Which images were trained on? Target: {target}")
        for heading in ("seen by the attacker", "attack", "part"):
            table.add_column(heading, overflow="fold")
        for heading in ("AUC", "found at 1 %", "found at 0.1 %"):
            table.add_column(heading, justify="right", overflow="fold")
        for row in (row for row in report["rows"] if row["target"] == target):
            cells = (f"{row[name]:.2f}{_interval(row, f'{name}_', 2)}" for name in ("auc", "at_1", "at_01"))
            table.add_row(*map(Text, (row["seen"], row["attack"], row["part"], *cells)))
        console.print(table)
    console.print(
        "AUC: 0.5 is guessing. Found at 1 %: the share of members that are found if 1 % of the others is taken for "
        "members.",
        markup=False,
        highlight=False,
    )
    for note in report["notes"]:
        console.print(f"note: {note}", style="yellow", markup=False, highlight=False)
    found = {row["part"] for row in report["rows"]}
    for part in (part for part in report["assumptions"] if part in found):
        console.print(f"\nAssumed ({part}): {report['assumptions'][part]}", markup=False, highlight=False)
    console.print(
        f"\n{report['seconds']:.0f} s for what was missing of {report['shadows']} shadow runs. "
        f"{report['folder']}/attack-full.json and attack-full.csv contain every number.",
        markup=False,
        highlight=False,
    )


def _lines(rows: Sequence[Mapping[str, Any]], measures: Sequence[str], part: str) -> Iterator[list[str]]:
    """Yield a table's lines: the measures of one view side by side."""
    keys = list(dict.fromkeys((r["site"], r["round"], r["prompts"], r["payload"], r["batch"]) for r in rows))
    for key in keys:
        own = [r for r in rows if (r["site"], r["round"], r["prompts"], r["payload"], r["batch"]) == key]
        by_measure = {row["measure"]: row for row in own}
        site, number, prompts, payload, batch = key
        seen = prompts if part == "crafted" else f"{payload}{' *' if own[0]['sent'] else ''}"
        count = str(batch) if part in _INVERTED else str(own[0]["images"])
        yield [f"{site}, {number}", seen, count, *(_cell(by_measure.get(measure), part) for measure in measures)]


def _cell(row: Mapping[str, Any] | None, part: str) -> str:
    if row is None:
        return "–"
    digits = 1 if row["measure"] == "PSNR" else 2
    value = f"{row['value']:.{digits}f}"
    if part in _INVERTED:
        return f"{value} ({row['gain']:+.{digits}f}{_interval(row, 'gain_', digits)} to the mean image)"
    return f"{value}{_interval(row, '', digits)}"


def _interval(row: Mapping[str, Any], prefix: str, digits: int) -> str:
    low, high = row[f"{prefix}low"], row[f"{prefix}high"]
    return "" if math.isnan(low) else f" [{low:.{digits}f}, {high:.{digits}f}]"
