"""The pictures of a simulation's most confident errors, with what each site's prompts did to their patches."""

from pathlib import Path

from client.gallery import collect_errors
from ept_fed.experiment_file import load_experiment
from ept_fed.problems import InputRefusedError, Problem
from ept_fed.reports.gallery import GalleryItem
from ept_fed.reports.read_run import read_run
from ept_fed.reports.run_folder import site_folder
from simulations.virtual_sites import VirtualFederation, prepare_federation

__all__ = ["collect_gallery", "load_gallery"]


def load_gallery(out: Path) -> dict[str, list[GalleryItem]]:
    """Return what `collect_gallery` does for an earlier run, from where its config.yaml says images and weights lie.

    Raises:
        InputRefusedError: if they cannot be read, or are not those of the run.
    """
    run = read_run(out)
    if run.report["status"] != "done":
        return {}
    federation = prepare_federation(load_experiment(out / "config.yaml"))
    problems = []
    held, digest = run.report.get("backbone", {}).get("digest"), federation.backbone.digest
    if held != digest:
        fix = f"these are other weights than the run's ({digest} is not {held}); name the run's in its config.yaml"
        problems.append(Problem("model.weights", federation.experiment.model.weights, fix))
    if list(run.report["data"]) != federation.data.summary():
        fix = "these are other images than the run's; name the run's in its config.yaml"
        problems.append(Problem("data.root", str(federation.experiment.data.root), fix))
    for site, data in federation.data.sites.items() if not problems else ():
        if site in run.sites and sorted(run.sites[site].test.images) != sorted(r.image for r in data.test.records):
            problems.append(Problem("data", site, "its test images have other names than in its predictions.csv"))
    if problems:
        raise InputRefusedError(problems)
    return collect_gallery(out, federation)


def collect_gallery(out: Path, federation: VirtualFederation) -> dict[str, list[GalleryItem]]:
    """Return each site's most confident errors with their pictures, see `collect_errors`; none for multi-label."""
    if federation.data.task == "multi_label":
        return {}
    run = read_run(out)
    return {
        site: collect_errors(
            federation.slot,
            out / "sites" / site_folder(site) / "model.safetensors",
            data.test,
            run.sites[site].test,
            federation.data.classes,
        )
        for site, data in federation.data.sites.items()
    }
