"""Decoding of DICOM files that the tests make; tests that need pydicom (extra `dicom`) are skipped without it."""

import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from ept_fed.data.decoding.dicom_file import apply_window, is_dicom, read_dicom
from ept_fed.data.decoding.image_file import UnreadableImageError
from tests.needs import PYDICOM

GRAY = np.arange(48, dtype=np.uint16).reshape(6, 8) * 10


def gray(content: bytes) -> np.ndarray:
    pixels = read_dicom("x.dcm", content)
    assert pixels.dtype == np.uint8
    assert pixels.shape[2] == 3
    assert (pixels == pixels[:, :, :1]).all()
    return pixels[:, :, 0]


def test_a_linear_window_follows_the_standard() -> None:
    """PS3.3 C.11.2.1.2.1: centre 2048, width 4096 maps 0 to the minimum and 4095 to the maximum."""
    shown = apply_window(np.array([[-5.0, 0.0, 2047.5, 4095.0, 9999.0]]), 2048, 4096)
    np.testing.assert_allclose(shown, [[0, 0, 0.5, 1, 1]], atol=1e-12)
    threshold = apply_window(np.array([[1.0, 2.0, 3.0]]), 2.5, 1)
    np.testing.assert_allclose(threshold[:, [0, 2]], [[0, 1]])


def test_exact_and_sigmoid_windows_follow_the_standard() -> None:
    values = np.array([[0.0, 50.0, 100.0]])
    np.testing.assert_allclose(apply_window(values, 50, 100, "LINEAR_EXACT"), [[0, 0.5, 1]])
    np.testing.assert_allclose(apply_window(values, 50, 100, "SIGMOID"), 1 / (1 + np.exp([[2.0, 0.0, -2.0]])))


@pytest.mark.parametrize(("width", "function"), [(0.5, "LINEAR"), (0, "SIGMOID"), (-1, "LINEAR_EXACT"), (9, "CUBIC")])
def test_an_invalid_window_is_refused(width: float, function: str) -> None:
    with pytest.raises(ValueError, match="window"):
        apply_window(np.zeros((1, 1)), 0, width, function)


def test_dicom_is_recognised_by_its_magic_bytes() -> None:
    assert is_dicom(b"\0" * 128 + b"DICM")
    assert not is_dicom(b"DICM")
    assert not is_dicom(b"")


def test_without_pydicom_the_message_states_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydicom", None)
    with pytest.raises(UnreadableImageError, match=r"pip install 'ept-fed\[dicom\]'"):
        read_dicom("x.dcm", b"\0" * 128 + b"DICM")


@PYDICOM.mark
def test_without_a_window_grayscale_spans_from_minimum_to_maximum(encode_dicom: Callable[..., bytes]) -> None:
    np.testing.assert_array_equal(gray(encode_dicom(GRAY)), np.round(GRAY / GRAY.max() * 255))
    assert (gray(encode_dicom(np.full((4, 4), 7, np.uint16))) == 0).all()


@PYDICOM.mark
def test_rescale_comes_before_the_window(encode_dicom: Callable[..., bytes]) -> None:
    hounsfield = GRAY * 2.0 - 100.0
    content = encode_dicom(GRAY, RescaleSlope=2, RescaleIntercept=-100, WindowCenter=300, WindowWidth=200)
    np.testing.assert_array_equal(gray(content), np.round(255 * apply_window(hounsfield, 300, 200)))
    several = encode_dicom(GRAY, RescaleSlope=2, RescaleIntercept=-100, WindowCenter=[300, 9], WindowWidth=[200, 1])
    np.testing.assert_array_equal(gray(content), gray(several))


@PYDICOM.mark
def test_monochrome1_is_monochrome2_inverted(encode_dicom: Callable[..., bytes]) -> None:
    for window in ({}, {"WindowCenter": 200, "WindowWidth": 300}):
        upright = gray(encode_dicom(GRAY, **window)).astype(int)
        inverted = gray(encode_dicom(GRAY, PhotometricInterpretation="MONOCHROME1", **window)).astype(int)
        assert abs(upright + inverted - 255).max() <= 1


@PYDICOM.mark
def test_signed_pixels_and_padding(encode_dicom: Callable[..., bytes]) -> None:
    signed = GRAY.astype(np.int16) - 200
    np.testing.assert_array_equal(gray(encode_dicom(signed)), gray(encode_dicom(GRAY)))
    padded = signed.copy()
    padded[0, :4] = -2000
    shown = gray(encode_dicom(padded, PixelPaddingValue=-2000))
    assert (shown[0, :4] == 0).all()
    assert shown[0, 4] == 0
    assert shown[5, 7] == 255
    assert len(np.unique(shown)) == 44


@PYDICOM.mark
def test_colour_pixels_are_unchanged(encode_dicom: Callable[..., bytes]) -> None:
    colour = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    np.testing.assert_array_equal(read_dicom("x.dcm", encode_dicom(colour)), colour)


@PYDICOM.mark
def test_ybr_becomes_rgb(encode_dicom: Callable[..., bytes]) -> None:
    colour = np.zeros((8, 8, 3), np.uint8) + np.array([200, 40, 90], np.uint8)
    ybr = np.array(Image.fromarray(colour).convert("YCbCr"))
    shown = read_dicom("x.dcm", encode_dicom(ybr, PhotometricInterpretation="YBR_FULL"))
    assert abs(shown.astype(int) - colour).max() <= 2


@PYDICOM.mark
def test_a_palette_becomes_rgb(encode_dicom: Callable[..., bytes]) -> None:
    indices = np.array([[0, 1], [2, 3]], np.uint8)
    tables = {
        f"{name}PaletteColorLookupTable{part}": value
        for name, step in (("Red", 0x1111), ("Green", 0x2222), ("Blue", 0x3333))
        for part, value in (("Descriptor", [4, 0, 16]), ("Data", (np.arange(4) * step).astype("<u2").tobytes()))
    }
    shown = read_dicom("x.dcm", encode_dicom(indices, PhotometricInterpretation="PALETTE COLOR", **tables))
    np.testing.assert_array_equal(shown[1, 1], [0x33, 0x66, 0x99])


@PYDICOM.mark
def test_a_jpeg_inside_is_decoded(encode_dicom: Callable[..., bytes]) -> None:
    from pydicom.encaps import encapsulate

    smooth = np.tile(np.arange(64, dtype=np.uint8) * 3, (64, 1))
    jpeg = io.BytesIO()
    Image.fromarray(smooth).save(jpeg, "JPEG", quality=95)
    content = encode_dicom(smooth, "1.2.840.10008.1.2.4.50", PixelData=encapsulate([jpeg.getvalue()]))
    expected = np.round((smooth - smooth.min()) / np.ptp(smooth) * 255.0)
    assert abs(gray(content) - expected).max() <= 8


@PYDICOM.mark
@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"NumberOfFrames": 12}, "holds 12 frames; save the frame"),
        ({"PixelData": None}, "without pixel data"),
        ({"Rows": 20_000}, "8 by 20000 pixels"),
        ({"PhotometricInterpretation": "CIELAB"}, "unknown photometric interpretation"),
        ({"PhotometricInterpretation": None}, "cannot be decoded"),
        ({"WindowCenter": 5, "WindowWidth": 0}, "cannot be decoded"),
        ({"PixelData": b"\0\0"}, "cannot be decoded"),
        ({"BitsAllocated": 13}, "cannot be decoded"),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_images_that_cannot_be_shown_are_refused_with_the_reason(
    encode_dicom: Callable[..., bytes], changes: dict[str, Any], reason: str
) -> None:
    with pytest.raises(UnreadableImageError, match=reason) as refusal:
        read_dicom("x.dcm", encode_dicom(GRAY, **changes))
    assert str(refusal.value).startswith("x.dcm: ")
    assert "Secret" not in str(refusal.value)


@PYDICOM.mark
@pytest.mark.parametrize(
    ("syntax", "name"), [("1.2.840.10008.1.2.4.80", "JPEG-LS"), ("1.2.840.10008.1.2.4.100", "MPEG2")]
)
def test_a_compression_without_a_decoder_is_named(
    encode_dicom: Callable[..., bytes], syntax: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pydicom.encaps import encapsulate

    monkeypatch.setattr("pydicom.pixels.decoders.base.Decoder.is_available", property(lambda _: False))
    content = encode_dicom(GRAY, syntax, PixelData=encapsulate([b"\0" * 16]))
    with pytest.raises(UnreadableImageError, match=f"compressed as {name}.*install a decoder"):
        read_dicom("x.dcm", content)


@PYDICOM.mark
def test_a_damaged_file_is_read_or_refused_and_its_content_never_leaks(
    encode_dicom: Callable[..., bytes], caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    content = encode_dicom(GRAY, WindowCenter=200, WindowWidth=300)
    rng = np.random.default_rng(0)
    for _ in range(150):
        damaged = bytearray(content[: int(rng.integers(100, len(content) + 1))])
        for position in rng.integers(0, len(damaged), 3):
            damaged[position] = int(rng.integers(256))
        try:
            assert read_dicom("x.dcm", bytes(damaged)).shape[2] == 3
        except UnreadableImageError as error:
            assert "Secret" not in str(error)
    assert not caplog.records
    assert not list(recwarn)


@PYDICOM.mark
def test_prediction_reads_dicom_by_content_and_by_name(encode_dicom: Callable[..., bytes], tmp_path: Path) -> None:
    from ept_fed.bundles.predict import read_image

    (tmp_path / "IM0001").write_bytes(encode_dicom(GRAY))
    assert read_image("IM0001", tmp_path / "IM0001").shape == (6, 8, 3)
    (tmp_path / "fake.dcm").write_bytes(b"no mark")
    with pytest.raises(UnreadableImageError, match="is a DICOM file that cannot be decoded"):
        read_image("fake.dcm", tmp_path / "fake.dcm")
