"""The pictures of a simulation's most confident errors, with what each site's prompts did to their patches."""

from pathlib import Path

from client.report.gallery import collect_errors
from ept_fed.reports.pages.gallery import GalleryItem
from ept_fed.reports.run.read_run import read_run
from ept_fed.reports.run.run_folder import site_folder
from simulations.engine.reopen_run import reopen_run
from simulations.engine.virtual_sites import VirtualFederation

__all__ = ["collect_gallery", "load_gallery"]


def load_gallery(out: Path) -> dict[str, list[GalleryItem]]:
    """Return what `collect_gallery` does for an earlier run, from where its config.yaml says images and weights lie.

    Raises:
        InputRefusedError: if they cannot be read, or are not those of the run.
    """
    run = read_run(out)
    if run.report["status"] != "done":
        return {}
    return collect_gallery(out, reopen_run(run))


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
