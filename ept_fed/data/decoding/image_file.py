"""Decoding of an image file in any mode to RGB pixels; invalid files are refused."""

import io
import struct
import zlib

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

__all__ = ["MAX_SIDE", "UnreadableImageError", "decode_image", "image_mode"]

MAX_SIDE = 10_000
_SIXTEEN_BIT_MODES = frozenset({"I", "I;16", "I;16B", "I;16L", "I;16N", "F"})

# Errors of Pillow's decoders on damaged files (tests/ept_fed/data/decoding/test_image_file.py damages some).
_DECODER_ERRORS = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)


class UnreadableImageError(Exception):
    """An image that cannot be used.

    Attributes:
        image: key of the image in the store.
        reason: the reason, as the end of a sentence.
    """

    def __init__(self, image: str, reason: str) -> None:
        super().__init__(f"{image}: {reason}")
        self.image = image
        self.reason = reason


def decode_image(image: str, content: bytes) -> np.ndarray:
    """Decode one file (JPEG, PNG, TIFF, BMP, WebP or another format of Pillow) to (H, W, 3) uint8 RGB.

    The EXIF orientation is applied. Grayscale is repeated over the channels. Palette and CMYK are converted. Alpha is
    dropped, so transparent pixels show the colour that is stored under them. Grayscale deeper than 8 bit (16-bit,
    32-bit integer or float) is multiplied by 255 / its own maximum, and negative values become 0. The reason is that
    the value of white differs between scanners, and most files use a small part of the range. Of several frames, the
    first is read.

    Args:
        image: key of the image, for the error.
        content: content of the whole file.

    Raises:
        UnreadableImageError: if the file is truncated, damaged or not an image, or has more than `MAX_SIDE` pixels
            per side. The size is read from the header, before any pixel is decompressed.
    """
    try:
        with Image.open(io.BytesIO(content)) as opened:
            if max(opened.size) > MAX_SIDE:
                width, height = opened.size
                raise UnreadableImageError(image, f"is {width} by {height} pixels, more than {MAX_SIDE:,} per side")
            return _to_rgb(ImageOps.exif_transpose(opened))
    except UnidentifiedImageError as error:
        raise UnreadableImageError(image, "is not an image, or has a format that Pillow does not support") from error
    except _DECODER_ERRORS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UnreadableImageError(image, f"cannot be decoded ({reason})") from error


def image_mode(content: bytes) -> str:
    """Return Pillow's name of the storage mode, e.g. "JPEG RGB" or "PNG I;16"; "unknown" if Pillow cannot read it."""
    try:
        with Image.open(io.BytesIO(content)) as opened:
            return f"{opened.format} {opened.mode}"
    except _DECODER_ERRORS:
        return "unknown"


def _to_rgb(picture: Image.Image) -> np.ndarray:
    if picture.mode in _SIXTEEN_BIT_MODES:
        deep = np.nan_to_num(np.asarray(picture, dtype=np.float64), posinf=0.0, neginf=0.0)
        scaled = np.clip(deep * (255.0 / max(float(deep.max()), 1e-12)), 0.0, 255.0)
        return np.repeat(np.round(scaled).astype(np.uint8)[:, :, None], 3, axis=2)
    if picture.mode == "P" and "transparency" in picture.info:
        picture = picture.convert("RGBA")
    return np.array(picture.convert("RGB"))
