"""Export of the whole model as one file for other runtimes: TorchScript, or ONNX if its packages are installed.

Both formats take `pixels` (B, 3, size, size) float32 from 0 to 255 with any batch size B, and return calibrated
`logits` and `probabilities`, each (B, C). The caller resizes the images. The files contain bundle.json: as the extra
file `bundle.json` of the TorchScript archive, and under this key in the ONNX metadata. The files are not signed.

Attention is expressed in operations that every runtime supports, and the model is traced on the CPU in float32. A
backbone of more than about 500 M parameters exceeds the 2 GB limit of one ONNX file.
"""

import importlib.util
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from ept_fed.bundles.description import Description, serialize_description
from ept_fed.bundles.model import CalibratedModel
from ept_fed.errors import Problem

__all__ = ["check_targets", "to_onnx", "to_torchscript"]

_ONNX_PACKAGES = ("onnx", "onnxscript")


def check_targets(torchscript: Path | None, onnx: Path | None) -> list[Problem]:
    """Return the problems that prevent writing these files."""
    problems = [
        Problem(option, str(path), "already exists; name another file, or delete it")
        for option, path in (("--torchscript", torchscript), ("--onnx", onnx))
        if path is not None and path.exists()
    ]
    missing = [name for name in _ONNX_PACKAGES if importlib.util.find_spec(name) is None]
    if onnx is not None and missing:
        fix = f"needs what is not installed: {' and '.join(missing)}; run: pip install 'ept-fed[onnx]'"
        problems.append(Problem("--onnx", str(onnx), fix))
    return problems


def to_torchscript(model: CalibratedModel, description: Description) -> bytes:
    """Return a TorchScript archive for `torch.jit.load`; PyTorch deprecates the format but still supports it."""
    buffer = io.BytesIO()
    with _portable(model) as pixels, torch.no_grad():
        traced = torch.jit.trace(model, pixels, check_trace=False)
        torch.jit.save(traced, buffer, _extra_files={"bundle.json": serialize_description(description)})
    return buffer.getvalue()


def to_onnx(model: CalibratedModel, description: Description) -> bytes:
    """Return an ONNX model; `check_targets` checks the required packages."""
    with _portable(model) as pixels, torch.no_grad():
        program = torch.onnx.export(
            model,
            (pixels,),
            input_names=["pixels"],
            output_names=["logits", "probabilities"],
            dynamic_shapes=({0: torch.export.Dim("B")},),
            dynamo=True,
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program")
    program.model.metadata_props["bundle.json"] = serialize_description(description).decode()
    return bytes(program.model_proto.SerializeToString())


@contextmanager
def _portable(model: CalibratedModel) -> Iterator[Tensor]:
    """Switch to portable attention, and yield example pixels (2, 3, size, size).

    A batch of one is not used, because tracing would make the batch size 1 a constant.
    """
    size = model.model.backbone.input.size
    before = model.model.portable
    model.model.portable = True
    try:
        with warnings.catch_warnings():
            # The tracer warns about our shape checks, which are valid for every batch, and about its own deprecation.
            warnings.simplefilter("ignore")
            yield torch.zeros(2, 3, size, size)
    finally:
        model.model.portable = before
