"""`ept-fed simulate`: a whole federation on this machine."""

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from ept_fed.cli.refusals import DONE, FAILED, exit_on_refusal

__all__ = ["DEMO_CONFIG", "EXAMPLES", "simulate"]

DEMO_CONFIG = Path(__file__).resolve().parents[2] / "configs" / "demo.yaml"

EXAMPLES = (
    "Examples:\n\n  ept-fed simulate\n\n"
    "  ept-fed simulate configs/ham10000.yaml --set data.root=DIR --set model.weights=FILE --set data.shots=10\n\n"
    "  ept-fed simulate configs/ham10000.yaml --policy kits/sites/north/policy.yaml"
)


def simulate(
    config: Annotated[
        Path | None,
        typer.Argument(help="Experiment in YAML; copy one from configs/ and edit it. Default: the offline demo."),
    ] = None,
    overrides: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override one setting; repeatable.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Run folder; must be new. Default: runs/<name>-<time>.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the interrupted run in --out; without CONFIG, with its settings.")
    ] = False,
    track: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Also write rounds for tensorboard or mlflow; repeatable.")
    ] = None,
    policy: Annotated[
        Path | None,
        typer.Option(help="Policy of a site that every virtual site applies; the ledgers are in the run folder."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the report as one JSON document and nothing else.")
    ] = False,
) -> None:
    """Tune prompts across virtual sites in one process, and compare with local training at every site.

    The run folder holds the resolved settings, a line per round, the prompts after each round, each site's predictions
    and the report. Exit code 0: done; 1: no round could be averaged, or too few sites agreed; 2: something has to be
    corrected first.
    """
    with exit_on_refusal(as_json=as_json):
        from ept_fed.errors import InputRefusedError, Problem
        from ept_fed.reports.run.run_folder import RunFolder
        from ept_fed.storage.files import dump_json
        from ept_fed.validation.load_experiment import load_experiment

        if resume:
            if out is None:
                raise InputRefusedError([Problem("--resume", "", "needs --out with the folder of the run to continue")])
            RunFolder(out).require_version()
        source = config or (out / "config.yaml" if resume and out is not None else DEMO_CONFIG)
        experiment = load_experiment(source, overrides or [])
        from simulations.engine.simulate import simulate as run_simulation  # imports torch, so after the checks

        folder = out or Path("runs") / f"{experiment.name}-{datetime.now():%Y%m%d-%H%M%S}"
        if as_json:
            from ept_fed.progress import Silent

            report = run_simulation(experiment, folder, Silent(), resume=resume, track=track or (), policy=policy)
            typer.echo(dump_json(report))
        else:
            from ept_fed.cli.display import LiveDisplay, print_comparison

            with LiveDisplay(experiment) as display:
                report = run_simulation(experiment, folder, display, resume=resume, track=track or (), policy=policy)
            print_comparison(report)
    raise typer.Exit(DONE if report["status"] == "done" else FAILED)
