"""Export of a site's model: its tensors, and the description that is needed to predict with it."""

from dataclasses import asdict
from typing import Any

import ept_fed
from client.site.site import Site
from ept_fed.evaluation.calibration import fit_temperature
from ept_fed.protocol.layout import Vector

__all__ = ["release_model"]


def release_model(site: Site) -> tuple[dict[str, Vector], dict[str, Any]]:
    """Return the current model for prediction at this site: tensors by name, and a description.

    The tensors are those of the payload and this site's own head. The description contains backbone and digest, input,
    method, classes, and the temperature fitted on the site's validation images.
    """
    model, data = site.model, site.data
    tensors = model.payload_tensors(share="prompts+head", payload=site.payload)
    probabilities, _ = site.assess(data.validation)
    labels = data.validation.labels.numpy()
    about = {
        "schema": 1,
        "run": site.run,
        "site": site.name,
        "backbone": {"name": model.backbone.name, "digest": model.backbone.digest},
        "input": asdict(model.backbone.input),
        **model.describe(),
        "classes": list(data.classes),
        "task": data.task,
        "temperature": fit_temperature(labels, probabilities, data.task),
        "validation_images": len(data.validation),
        "code": ept_fed.__version__,
    }
    return {name: tensor.float().cpu().numpy() for name, tensor in tensors.items()}, about
