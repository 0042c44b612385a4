"""Pictures of a site's most confident errors, with the attention scaling of their patches by the federated prompts."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from client.site.model_slot import ModelSlot
from ept_fed.data.datasets.prepare import CachedDataset
from ept_fed.models.embedding import FOLDABLE
from ept_fed.models.prompted_vit import PromptedViT
from ept_fed.models.scaling_map import scaling_map
from ept_fed.reports.charts.scaling_map import draw_beside
from ept_fed.reports.pages.gallery import GalleryItem, most_confident_errors
from ept_fed.reports.run.read_predictions import PredictionTable
from ept_fed.reports.run.settings import FEDERATED, verdict_setting

__all__ = ["collect_errors"]

_MAX = 6


def collect_errors(
    slot: ModelSlot, released: Path, test: CachedDataset, predictions: PredictionTable, classes: Sequence[str]
) -> list[GalleryItem]:
    """Return the most confident errors of the model that a site uses, with their pictures, for the site's own page.

    The scaling map is that of the site's released model, or of its federated part if it is a sum of two models. Prompt
    embeddings without such a map give only the picture. For multi-label tasks the list is empty, because an image is
    not simply right or wrong.

    Args:
        slot: a model of the run, which nobody holds.
        released: model.safetensors of the site.
        test: the site's test images.
        predictions: the predictions for these images.
        classes: class names.
    """
    if test.task == "multi_label":
        return []
    position = {record.image: index for index, record in enumerate(test.records)}
    gallery = []
    with slot.hold("the gallery", None) as model:
        # Only EPT's prompts scale the attention, so the pictures of the comparators have no map.
        prompted = model if isinstance(model, PromptedViT) and model.embedding in FOLDABLE else None
        if prompted is not None:
            tensors = _of_prompts(load_file(released))
            prompted.load_payload({name: tensor.to(prompted.prompts.device) for name, tensor in tensors.items()})
        for error in most_confident_errors(predictions, classes, _MAX, verdict_setting(predictions.scores)):
            index = position[error.image]
            png, scaling = test.as_png(index), None
            if prompted is not None:
                ((image, _),) = test.batches(1, order=[index])
                factors = scaling_map(prompted, image.to(prompted.prompts.device))[0].cpu().numpy()
                png, scaling = draw_beside(png, factors), (float(factors.min()), float(factors.max()))
            gallery.append(GalleryItem(error.image, png, error.true, error.predicted, error.probability, scaling))
    return gallery


def _of_prompts(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    prefix = f"{FEDERATED}/"
    members = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    return members or dict(tensors)
