"""Reload the images and the backbone of a finished run from the paths in its config.yaml."""

from ept_fed.errors import InputRefusedError, Problem
from ept_fed.reports.run.read_run import RunResult
from ept_fed.validation.load_experiment import load_experiment
from simulations.engine.virtual_sites import VirtualFederation, prepare_federation

__all__ = ["reopen_run"]


def reopen_run(run: RunResult) -> VirtualFederation:
    """Return the federation of a finished run, with its images and its backbone.

    Raises:
        InputRefusedError: if images or weights cannot be read, or differ from those of the run.
    """
    federation = prepare_federation(load_experiment(run.folder / "config.yaml"))
    problems = []
    held, digest = run.report.get("backbone", {}).get("digest"), federation.backbone.digest
    if held != digest:
        fix = f"these are other weights than the run's ({digest} is not {held}); correct the path in its config.yaml"
        problems.append(Problem("model.weights", federation.experiment.model.weights, fix))
    if list(run.report["data"]) != federation.data.summary():
        fix = "these are other images than the run's; correct the path in its config.yaml"
        problems.append(Problem("data.root", str(federation.experiment.data.root), fix))
    for site, data in federation.data.sites.items() if not problems else ():
        if site in run.sites and sorted(run.sites[site].test.images) != sorted(r.image for r in data.test.records):
            problems.append(Problem("data", site, "its test images have other names than in its predictions.csv"))
    if problems:
        raise InputRefusedError(problems)
    return federation
