"""Pictures of a simulation's most confident errors, with the effect of each site's prompts on their patches."""

from pathlib import Path

from client.report.gallery import collect_errors
from ept_fed.reports.pages.gallery import GalleryItem
from ept_fed.reports.run.read_run import read_run
from ept_fed.reports.run.run_folder import site_folder
from simulations.engine.reopen_run import reopen_run
from simulations.engine.virtual_sites import VirtualFederation

__all__ = ["collect_gallery", "load_gallery"]


def load_gallery(out: Path) -> dict[str, list[GalleryItem]]:
    """Return the result of `collect_gallery` for an earlier run, with images and weights from the paths in config.yaml.

    Raises:
        InputRefusedError: if they cannot be read, or are not those of the run.
    """
    run = read_run(out)
    if run.report["status"] != "done":
        return {}
    return collect_gallery(out, reopen_run(run))


def collect_gallery(out: Path, federation: VirtualFederation) -> dict[str, list[GalleryItem]]:
    """Return each site's most confident errors with pictures, see `collect_errors`; nothing for multi-label tasks."""
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
