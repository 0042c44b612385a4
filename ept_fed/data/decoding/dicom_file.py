"""Decoding of one DICOM file to RGB pixels with pydicom (optional: pip install 'ept-fed[dicom]').

This module returns only the pixels and the attributes in `DicomHeader`, and no other content of the file. VOI lookup
tables, overlays and ICC profiles are not applied.
"""

import io
import logging
import struct
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ept_fed.data.decoding.image_file import MAX_SIDE, UnreadableImageError

__all__ = [
    "DICOM_SUFFIXES",
    "DicomHeader",
    "apply_window",
    "dicom_mode",
    "is_dicom",
    "read_dicom",
    "read_header",
]

DICOM_SUFFIXES = frozenset({".dcm", ".dicom"})

# Larger elements, such as pixel data, are skipped when only the header is read.
_HEADER_BYTES = 4096
# Warning filters apply to the whole process. Without the lock, a thread that restores them would let the warnings of
# another thread through.
_QUIET = threading.Lock()

_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_GRAYSCALE = ("MONOCHROME1", "MONOCHROME2")
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")

# Errors of pydicom and its decoders on damaged files (tests/ept_fed/data/decoding/test_dicom_file.py damages some).
_READER_ERRORS = (
    OSError,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    NotImplementedError,
    RuntimeError,
    OverflowError,
    MemoryError,
    EOFError,
    struct.error,
)


@dataclass(frozen=True)
class DicomHeader:
    """The attributes of a file that the DICOM source reads without its pixels.

    Attributes:
        uid: SOPInstanceUID; empty if there is none.
        patient: PatientID in plaintext, which must be hashed before it is passed on; empty if there is none.
        has_pixels: whether the file is an image, and not a report, presentation state or index.
        refusal: reason why the pixels cannot be used, as the end of a sentence; None if they can be used.
    """

    uid: str
    patient: str
    has_pixels: bool
    refusal: str | None


def is_dicom(content: bytes) -> bool:
    """Return whether the content is DICOM, by the mark after the preamble of 128 bytes; the name is not used."""
    return content[128:132] == b"DICM"


def read_dicom(image: str, content: bytes) -> np.ndarray:
    """Decode one DICOM image to (H, W, 3) uint8 RGB.

    For grayscale, the modality's rescale (or lookup table) is applied first, and then the first window (LINEAR,
    LINEAR_EXACT or SIGMOID). Without a window, the range from minimum to maximum without padding is used. MONOCHROME1
    is inverted. Colour is converted to RGB.

    Args:
        image: key of the image, for the error.
        content: content of the whole file.

    Raises:
        UnreadableImageError: if pydicom or a decoder for the compression is missing, or if the file has several
            frames, no pixels, more than `MAX_SIDE` pixels per side, an unknown photometric interpretation, or damage.
    """
    with _opened(image, io.BytesIO(content)) as dataset:
        _check(image, dataset)
        return _to_rgb(dataset)


def read_header(image: str, path: Path) -> DicomHeader:
    """Read the header of one file without its pixels.

    Raises:
        UnreadableImageError: if pydicom is missing, or if the file cannot be parsed.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise UnreadableImageError(image, f"cannot be read ({type(error).__name__})") from error
    with file, _opened(image, file, defer_size=_HEADER_BYTES) as dataset:
        uid, patient = (str(dataset.get(name) or "").strip() for name in ("SOPInstanceUID", "PatientID"))
        has_pixels = any(name in dataset for name in _PIXELS)
        return DicomHeader(uid, patient, has_pixels, _find_refusal(image, dataset))


def dicom_mode(content: bytes) -> str:
    """Return the photometric interpretation, e.g. "DICOM MONOCHROME2"; "unknown" if it cannot be determined."""
    try:
        with _opened("", io.BytesIO(content)) as dataset:
            kind = str(dataset.PhotometricInterpretation)
            return f"DICOM {kind}" if kind in (*_GRAYSCALE, *_COLOUR, "PALETTE COLOR") else "unknown"
    except UnreadableImageError:
        return "unknown"


@contextmanager
def _opened(image: str, file: BinaryIO, **options: Any) -> Iterator[Any]:
    """Parse a file as a context manager.

    Errors inside become an `UnreadableImageError` with the image's key and without any content of the file.
    """
    try:
        import pydicom
    except ImportError as error:
        raise UnreadableImageError(image, "is DICOM, which needs pydicom; run: pip install 'ept-fed[dicom]'") from error
    try:
        # Messages of pydicom on a damaged file quote its content, including the patient's name, so they are suppressed.
        logging.getLogger("pydicom").setLevel(logging.CRITICAL)
        with _QUIET, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield pydicom.dcmread(file, **options)
    except (pydicom.errors.InvalidDicomError, pydicom.errors.BytesLengthException, *_READER_ERRORS) as error:
        raise UnreadableImageError(image, f"is a DICOM file that cannot be decoded ({type(error).__name__})") from error


def apply_window(values: np.ndarray, centre: float, width: float, function: str = "LINEAR") -> np.ndarray:
    """Map values (H, W) to 0–1 through a window, as defined in DICOM PS3.3 C.11.2.1.2 and C.11.2.1.3.

    Raises:
        ValueError: for an unknown function, or a width below 1 (LINEAR) or not positive (the others).
    """
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        raise ValueError(f"window function '{function}' is unknown")
    if width <= 0 or (function == "LINEAR" and width < 1):
        raise ValueError(f"window width {width} is too small")
    if function == "SIGMOID":
        return np.asarray(1.0 / (1.0 + np.exp(np.clip(-4.0 * (values - centre) / width, -700.0, 700.0))))
    if function == "LINEAR":
        # PS3.3 adds half a step of integer pixels on each side; width 1 is a threshold.
        centre, width = centre - 0.5, max(width - 1.0, np.finfo(np.float64).tiny)
    with np.errstate(over="ignore"):
        return np.clip((values - centre) / width + 0.5, 0.0, 1.0)


def _check(image: str, dataset: Any) -> None:
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames > 1:
        raise UnreadableImageError(
            image, f"holds {frames} frames; save the frame that shows the finding as a separate file"
        )
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax.is_private:
        shown = str(syntax) if syntax.is_valid else "that cannot be read"
        raise UnreadableImageError(image, f"has the private transfer syntax {shown}; export it in a standard one")
    if not any(name in dataset for name in _PIXELS):
        raise UnreadableImageError(image, "is a DICOM file without pixel data")
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    if max(rows, columns) > MAX_SIDE:
        raise UnreadableImageError(image, f"is {columns} by {rows} pixels, more than {MAX_SIDE:,} per side")
    kind = dataset.PhotometricInterpretation
    if kind not in (*_GRAYSCALE, *_COLOUR, "PALETTE COLOR"):
        known = ", ".join((*_GRAYSCALE, *_COLOUR, "PALETTE COLOR"))
        raise UnreadableImageError(image, f"has an unknown photometric interpretation; known are {known}")
    if syntax.is_compressed and not _can_decode(syntax):
        advice = "install a decoder (pip install 'pydicom[pixeldata]') or export it uncompressed"
        raise UnreadableImageError(image, f"is compressed as {syntax.name}, which cannot be decoded here; {advice}")


def _find_refusal(image: str, dataset: Any) -> str | None:
    try:
        _check(image, dataset)
    except UnreadableImageError as error:
        return error.reason
    except _READER_ERRORS as error:
        return f"is a DICOM file that cannot be decoded ({type(error).__name__})"
    return None


def _can_decode(syntax: Any) -> bool:
    from pydicom.pixels import get_decoder

    try:
        return bool(get_decoder(syntax).is_available)
    except NotImplementedError:
        return False


def _to_rgb(dataset: Any) -> np.ndarray:
    from pydicom.pixels import apply_color_lut, apply_modality_lut

    pixels = dataset.pixel_array
    kind = dataset.PhotometricInterpretation
    if kind in _GRAYSCALE:
        shown = _show(np.asarray(apply_modality_lut(pixels, dataset), np.float64), pixels, dataset)
        shown = 1.0 - shown if kind == "MONOCHROME1" else shown
        return np.repeat(np.round(255.0 * shown).astype(np.uint8)[:, :, None], 3, axis=2)
    if kind == "PALETTE COLOR":
        pixels = apply_color_lut(pixels, dataset)[:, :, :3]
    maximum = float(np.iinfo(pixels.dtype).max) if kind == "PALETTE COLOR" else 2.0 ** int(dataset.BitsStored) - 1.0
    return np.round(np.clip(pixels * (255.0 / maximum), 0.0, 255.0)).astype(np.uint8)


def _show(values: np.ndarray, stored: np.ndarray, dataset: Any) -> np.ndarray:
    """Map rescaled values (H, W) to 0–1; `stored` are the pixels before rescaling, to which the padding refers."""
    if not np.isfinite(values).all():
        raise ValueError("pixels are not finite")
    centre, width = _first(dataset.get("WindowCenter")), _first(dataset.get("WindowWidth"))
    if centre is not None and width is not None:
        return apply_window(values, centre, width, str(dataset.get("VOILUTFunction") or "LINEAR"))
    padding = dataset.get("PixelPaddingValue")
    real = values[stored != padding] if padding is not None and (stored != padding).any() else values
    low, high = float(real.min()), float(real.max())
    return np.clip((values - low) / max(high - low, np.finfo(np.float64).tiny), 0.0, 1.0)


def _first(value: Any) -> float | None:
    """Return the first of one or several numbers; the standard allows several windows, and the first is the default."""
    if value is None or value == "":
        return None
    return float(value if isinstance(value, (int, float, str)) else next(iter(value)))
