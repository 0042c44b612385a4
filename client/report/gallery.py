"""Pictures of a site's most confident errors, with the attention scaling of their patches by the federated prompts."""

from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import load_file

from client.site.model_slot import ModelSlot
from ept_fed.data.datasets.prepare import CachedDataset
from ept_fed.models.embedding import FOLDABLE
from ept_fed.models.prompted_vit import PromptedViT
from ept_fed.models.scaling_map import scaling_map
from ept_fed.reports.charts.scaling_map import draw_beside
from ept_fed.reports.pages.gallery import GalleryItem, most_confident_errors
from ept_fed.reports.run.read_predictions import PredictionTable

__all__ = ["collect_errors"]

_MAX = 6


def collect_errors(
    slot: ModelSlot, released: Path, test: CachedDataset, predictions: PredictionTable, classes: Sequence[str]
) -> list[GalleryItem]:
    """Return a site's most confident errors of the setting "federated" with their pictures, for the site's own page.

    The scaling map is that of the site's released federated model. Prompt embeddings without such a map give only the
    picture. For multi-label tasks the list is empty, because an image is not simply right or wrong.

    Args:
        slot: a model of the run; its holder must load its own tensors again afterwards.
        released: model.safetensors of the site.
        test: the site's test images.
        predictions: the predictions for these images.
        classes: class names.
    """
    if test.task == "multi_label":
        return []
    # Only EPT's prompts scale the attention, so the pictures of the comparators have no map.
    model = slot.model
    prompted = model if isinstance(model, PromptedViT) and model.embedding in FOLDABLE else None
    if prompted is not None:
        slot.holder = None
        tensors = load_file(released)
        prompted.load_payload({name: tensor.to(prompted.prompts.device) for name, tensor in tensors.items()})
    position = {record.image: index for index, record in enumerate(test.records)}
    gallery = []
    for error in most_confident_errors(predictions, classes, _MAX):
        index = position[error.image]
        png, scaling = test.as_png(index), None
        if prompted is not None:
            ((image, _),) = test.batches(1, order=[index])
            factors = scaling_map(prompted, image.to(prompted.prompts.device))[0].cpu().numpy()
            png, scaling = draw_beside(png, factors), (float(factors.min()), float(factors.max()))
        gallery.append(GalleryItem(error.image, png, error.true, error.predicted, error.probability, scaling))
    return gallery
