"""The pictures of a simulation's most confident errors, with what each site's prompts did to their patches."""

from pathlib import Path

from safetensors.torch import load_file

from ept_fed.models.embedding import FOLDABLE
from ept_fed.models.scaling_map import scaling_map
from ept_fed.models.vit import PromptedViT
from ept_fed.reports.gallery import GalleryItem, most_confident_errors
from ept_fed.reports.read_run import read_run
from ept_fed.reports.run_folder import site_folder
from ept_fed.reports.scaling_picture import draw_beside
from simulations.reopen_run import reopen_run
from simulations.virtual_sites import VirtualFederation

__all__ = ["collect_gallery", "load_gallery"]

_MOST = 6


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
    """Return each site's most confident errors with their pictures, for the site's own page.

    The scaling map is that of the site's federated model as the run wrote it; where prompts are embedded in a way that
    has no such map, the picture stands alone. None for multi-label, where an image is not simply right or wrong.
    """
    if federation.data.task == "multi_label":
        return {}
    run, classes, model = read_run(out), federation.data.classes, federation.slot.model
    # Only EPT's prompts scale the attention; the comparators' pictures stand alone.
    prompted = model if isinstance(model, PromptedViT) and model.embedding in FOLDABLE else None
    # The slot gets tensors of its own below; the next site to take its turn must load its own again.
    federation.slot.holder = None
    gallery: dict[str, list[GalleryItem]] = {}
    for site, data in federation.data.sites.items():
        if prompted is not None:
            tensors = load_file(out / "sites" / site_folder(site) / "model.safetensors")
            prompted.load_payload({name: tensor.to(prompted.prompts.device) for name, tensor in tensors.items()})
        position = {record.image: index for index, record in enumerate(data.test.records)}
        gallery[site] = []
        for error in most_confident_errors(run.sites[site].test, classes, _MOST):
            index = position[error.image]
            png, scaling = data.test.as_png(index), None
            if prompted is not None:
                ((image, _),) = data.test.batches(1, order=[index])
                factors = scaling_map(prompted, image.to(prompted.prompts.device))[0].cpu().numpy()
                png, scaling = draw_beside(png, factors), (float(factors.min()), float(factors.max()))
            item = GalleryItem(error.image, png, error.true, error.predicted, error.probability, scaling)
            gallery[site].append(item)
    return gallery
