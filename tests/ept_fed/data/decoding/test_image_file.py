import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ept_fed.data.decoding.image_file import MAX_SIDE, UnreadableImageError, decode_image
from tests.effort import examples


def _encode(picture: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


_RGB = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8))


@pytest.mark.parametrize(
    "content",
    [
        _encode(_RGB.convert("L")),
        _encode(_RGB.convert("1")),
        _encode(_RGB.convert("P")),
        _encode(_RGB.convert("LA")),
        _encode(_RGB.convert("RGBA")),
        _encode(_RGB.convert("P"), transparency=b"\x00\x80"),
        _encode(_RGB.convert("CMYK"), "JPEG"),
        _encode(_RGB.convert("L"), "JPEG"),
        _encode(_RGB.convert("P"), "GIF"),
        _encode(_RGB.convert("F"), "TIFF"),
    ],
)
def test_every_mode_becomes_rgb_of_the_same_size(content: bytes) -> None:
    decoded = decode_image("x", content)
    assert decoded.shape == (12, 16, 3)
    assert decoded.dtype == np.uint8
    assert decoded.flags.writeable


def test_rgb_pixels_are_kept() -> None:
    assert np.array_equal(decode_image("x", _encode(_RGB)), np.asarray(_RGB))


def test_sixteen_bit_grayscale_is_scaled_by_its_own_maximum() -> None:
    deep = np.array([[0, 1000], [2000, 4000]], dtype=np.uint16)
    decoded = decode_image("x", _encode(Image.fromarray(deep)))
    assert decoded[:, :, 0].tolist() == [[0, 64], [128, 255]]
    assert np.ptp(decoded, axis=2).max() == 0


def test_black_sixteen_bit_image_stays_black() -> None:
    assert decode_image("x", _encode(Image.fromarray(np.zeros((3, 3), np.uint16)))).max() == 0


def test_exif_orientation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = decode_image("x", _encode(_RGB, "PNG", exif=exif))
    assert np.array_equal(turned, np.rot90(np.asarray(_RGB), -1))


def test_side_over_the_limit_is_refused() -> None:
    with pytest.raises(UnreadableImageError, match="more than 10,000 per side"):
        decode_image("wide", _encode(Image.new("1", (MAX_SIDE + 1, 1))))


def test_decompression_bomb_is_refused() -> None:
    header = _encode(Image.new("1", (8, 8)))
    start = header.index(b"IHDR") + 4
    bomb = header[:start] + (60_000).to_bytes(4, "big") * 2 + header[start + 8 :]
    with pytest.raises(UnreadableImageError):
        decode_image("bomb", bomb)


@pytest.mark.parametrize("content", [b"", b"not an image", _encode(_RGB)[:60], _encode(_RGB, "JPEG")[:200]])
def test_damaged_file_is_unreadable_and_named(content: bytes) -> None:
    with pytest.raises(UnreadableImageError) as caught:
        decode_image("folder/broken.jpg", content)
    assert caught.value.image == "folder/broken.jpg"
    assert "0x" not in caught.value.reason


@pytest.mark.filterwarnings("ignore::UserWarning")
@examples(40)
@given(
    kind=st.sampled_from(["PNG", "JPEG", "TIFF", "GIF", "BMP", "WEBP"]),
    flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=8),
    cut=st.integers(0, 30),
)
def test_a_damaged_file_gives_pixels_or_one_kind_of_error(kind: str, flips: list[tuple[int, int]], cut: int) -> None:
    content = bytearray(_encode(_RGB, kind))
    for position, value in flips:
        content[position % len(content)] = value
    try:
        decoded = decode_image("x", bytes(content[: len(content) - cut]))
    except UnreadableImageError:
        return
    assert decoded.ndim == 3
    assert decoded.shape[2] == 3
