"""Export of a site's model: its tensors, and the description that is needed to predict with it."""

from dataclasses import asdict
from typing import Any

import ept_fed
from client.site.held_model import HeldModel
from ept_fed.evaluation.calibration import fit_temperature
from ept_fed.evaluation.metrics import Array
from ept_fed.protocol.layout import Vector

__all__ = ["describe_release", "release_model"]


def release_model(held: HeldModel) -> tuple[dict[str, Vector], dict[str, Any]]:
    """Return the current model for prediction at this site: tensors by name, and a description.

    The tensors are those of the payload and this site's own head. The description contains backbone and digest, input,
    method, classes, and the temperature fitted on the site's validation images.
    """
    tensors = held.model.payload_tensors(share="prompts+head", payload=held.settings.payload)
    about = describe_release(held, held.predict(held.data.validation))
    # Copies, because another model may be loaded into the slot before they are written.
    return {name: tensor.float().cpu().numpy().copy() for name, tensor in tensors.items()}, about


def describe_release(held: HeldModel, probabilities: Array) -> dict[str, Any]:
    """Return the description of a released model, given its probabilities (n, C) on the site's validation images."""
    model, data = held.model, held.data
    labels = data.validation.labels.numpy()
    return {
        "schema": 1,
        "run": held.settings.run,
        "site": data.name,
        "backbone": {"name": model.backbone.name, "digest": model.backbone.digest},
        "input": asdict(model.backbone.input),
        **model.describe(),
        "classes": list(data.classes),
        "task": data.task,
        "temperature": fit_temperature(labels, probabilities, data.task),
        "validation_images": len(data.validation),
        "code": ept_fed.__version__,
    }
