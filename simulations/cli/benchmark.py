"""`ept-fed benchmark`: compare methods with each other, each in local, federated and centralised settings."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ept_fed.cli.refusals import DONE, FAILED, exit_on_refusal

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["EXAMPLES", "benchmark"]

EXAMPLES = (
    "Examples:\n\n  ept-fed benchmark configs/demo.yaml --method ept --method linear --setting federated+head\n\n"
    "  ept-fed benchmark configs/benchmark_ham10000.yaml --set data.root=DIR --set model.weights=FILE "
    "--out out/methods --analyse --jobs 2"
)


def benchmark(
    config: Annotated[Path, typer.Argument(help="Experiment in YAML; its section `benchmark` is the grid.")],
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override one setting; repeatable.")
    ] = None,
    methods: Annotated[
        list[str] | None, typer.Option("--method", help="Train this method, variant or pattern now; repeatable.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--setting",
            help="Train local, federated, federated+head, centralised or centralised-prompts now; repeatable.",
        ),
    ] = None,
    shots: Annotated[list[int] | None, typer.Option("--shots", help="Images per class and site; repeatable.")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Number of seeds, counted from 0.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Results; an earlier benchmark there is continued. Default: benchmarks/<name>.")
    ] = None,
    analyse: Annotated[
        bool, typer.Option("--analyse", help="Also compare each method's features before and after tuning.")
    ] = False,
    jobs: Annotated[
        int, typer.Option(min=1, help="Cells that train in parallel, each in a process with its share of the cores.")
    ] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as one JSON document only.")] = False,
) -> None:
    """Train methods × shots × samplings × seeds × settings cell by cell, and test them on every site's own images.

    A finished cell is one line of cells.jsonl and is not trained again. The same command continues where it was
    stopped, and a larger grid adds cells. --method and --setting train a part of the grid, or add to it; the tables
    contain all finished cells of the whole grid. --shots and --seeds replace those of the grid: with fewer of them, the
    tables contain fewer cells. results.csv has a row per cell and site, summary.csv the means, gains.csv federated
    minus local at each site, and accuracy.png is the chart. --analyse examines the features of each method's first
    shots, sampling and seed, in setting federated+head if a cell has it, else in the first setting; for this, a
    finished cell is trained once more. Its page, analysis.html, contains images. --jobs trains cells in parallel; each
    process has its own copy of images and backbone in memory. Only one benchmark can use a folder at a time. Exit code
    0: done; 1: a cell averaged nothing, or could not be trained; 2: something has to be corrected first.
    """
    with exit_on_refusal(as_json=as_json):
        from ept_fed.progress import Silent
        from ept_fed.storage.files import dump_json
        from ept_fed.validation.load_experiment import load_experiment

        axes = {"shots": shots, "seeds": range(seeds or 0)}
        grid = [f"benchmark.{axis}={json.dumps(list(values))}" for axis, values in axes.items() if values]
        experiment = load_experiment(config, [*(overrides or []), *grid])
        folder = out or Path("benchmarks") / experiment.name

        class Notes(Silent):
            def on_note(self, sentence: str) -> None:
                typer.echo(sentence, err=as_json)

        from simulations.benchmark.run import benchmark as run_benchmark  # imports torch, so after the checks

        report = run_benchmark(
            experiment, folder, Notes(), methods=methods or (), settings=settings or (), analyse=analyse, jobs=jobs
        )
        if as_json:
            typer.echo(dump_json(report))
        else:
            from rich.console import Console

            Console().print(_tabulate(report["summary"], experiment.benchmark.reference))
            typer.echo(f"{report['trained']} of {report['cells']} cells of this request were trained now.")
            typer.echo(f"Open {folder}/accuracy.png; the numbers are in summary.csv and results.csv next to it.")
            if report["analysis"] is not None:
                typer.echo(f"Effect of tuning on the features: {report['analysis']}; it contains images, keep it here.")
    raise typer.Exit(DONE if report["status"] == "done" else FAILED)


def _tabulate(summary: list[Mapping[str, Any]], reference: str) -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table(title="macro AUC, mean over sites: mean ± standard deviation over runs")
    for heading in ("method", "shots", "setting"):
        table.add_column(heading, overflow="fold")
    for heading in ("bytes/round", "AUC", f"Δ {reference}", "runs"):
        table.add_column(heading, justify="right")
    for row in (row for row in summary if row["metric"] == "auc"):
        unpaired = row["method"] == reference or not row["pairs"]
        difference = "" if unpaired else _spread(row["difference"], row["difference_sd"], "+")
        table.add_row(
            Text(row["method"]),
            "all" if row["shots"] is None else str(row["shots"]),
            row["setting"],
            f"{row['bytes_per_round']:,}",
            _spread(row["mean"], row["sd"]),
            difference,
            str(row["runs"]),
        )
    return table


def _spread(mean: float, sd: float, sign: str = "") -> str:
    if math.isnan(mean):
        return "-"
    return f"{mean:{sign}.3f}" if math.isnan(sd) else f"{mean:{sign}.3f} ± {sd:.3f}"
