"""Tests of the store of frozen layers' outputs: nothing is computed twice, and a damaged file is never believed."""

import hashlib
import logging
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ept_fed.data.datasets.prefix_store import CHUNK, FrozenPrefix, PrefixStore

WIDTH = 6
ROW = 4 * WIDTH


class Counted:
    """A prefix that multiplies an image's first pixels, and counts how many images it saw."""

    def __init__(self, key: str = "prefix", factor: float = 2.0, kind: torch.dtype = torch.float32) -> None:
        self.batches: list[int] = []
        self.drawn = 0
        self.prefix = FrozenPrefix(key, self.run)
        self._factor, self._kind = factor, kind

    def run(self, images: Tensor) -> Tensor:
        self.batches.append(len(images))
        return (self._factor * images[:, 0, 0, :WIDTH]).to(self._kind)

    def fetch(self, store: PrefixStore, numbers: Sequence[int]) -> Tensor:
        def draw(places: Sequence[int]) -> Tensor:
            self.drawn += len(places)
            return torch.stack([image_of(numbers[place]) for place in places])

        return store.fetch(self.prefix, [key_of(number) for number in numbers], draw)

    def expect(self, numbers: Sequence[int]) -> Tensor:
        return torch.stack([self._factor * image_of(number)[0, 0, :WIDTH] for number in numbers])


def key_of(number: int) -> bytes:
    return hashlib.sha256(str(number).encode()).digest()


def image_of(number: int) -> Tensor:
    return torch.full((3, 8, 8), float(number)) + torch.arange(8)


@given(
    requests=st.lists(st.lists(st.integers(0, 40), min_size=1, max_size=30), min_size=1, max_size=5),
    rows=st.integers(0, 50),
)
def test_any_requests_return_every_row_and_compute_each_once_whatever_fits_into_memory(
    requests: list[list[int]], rows: int
) -> None:
    counted, store = Counted(), PrefixStore(rows * ROW, None)
    for numbers in requests:
        assert torch.equal(counted.fetch(store, numbers), counted.expect(numbers))
        assert store.used <= rows * ROW
    assert counted.drawn == len({number for numbers in requests for number in numbers})
    assert set(counted.batches) == {CHUNK}


def test_bfloat16_rows_return_in_float32(tmp_path: Path) -> None:
    counted, store = Counted(kind=torch.bfloat16), PrefixStore(ROW // 2, tmp_path)
    for _ in range(2):
        got = counted.fetch(store, [1, 2, 3])
        assert got.dtype == torch.float32
        assert torch.equal(got, counted.expect([1, 2, 3]))
    assert counted.drawn == 3


def test_rows_of_a_prefix_that_is_in_use_take_the_memory_of_others() -> None:
    first, second = Counted("first"), Counted("second", factor=3.0)
    store = PrefixStore(4 * ROW, None)
    first.fetch(store, [1, 2, 3])
    assert torch.equal(second.fetch(store, [1, 2, 3]), second.expect([1, 2, 3]))
    assert store.used == 3 * ROW
    assert torch.equal(first.fetch(store, [1, 2, 3]), first.expect([1, 2, 3]))
    assert first.drawn == 6


@pytest.fixture
def _left(tmp_path: Path) -> None:
    """A run has kept five rows in a file, and has ended."""
    Counted().fetch(PrefixStore(0, tmp_path), range(5))


@pytest.mark.usefixtures("_left")
def test_a_later_run_computes_nothing_again(tmp_path: Path) -> None:
    counted = Counted()
    assert torch.equal(counted.fetch(PrefixStore(0, tmp_path), range(7)), counted.expect(range(7)))
    assert counted.drawn == 2
    (file,) = tmp_path.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600


@pytest.mark.usefixtures("_left")
@pytest.mark.parametrize(
    ("damage", "again", "said"),
    [
        (lambda content: content[:-3], 1, "ends within a record"),
        (lambda content: content[:-3] + b"???", 1, "is damaged"),
        (lambda content: content.replace(b'"schema": 1', b'"schema": 9'), 5, "is made again"),
        (lambda content: b"\x00" * len(content), 5, "is made again"),
        (lambda content: content[:100], 5, "is made again"),
        (lambda content: b"", 5, "is made again"),
    ],
    ids=["truncated", "altered row", "another version", "zeros", "half a header", "empty"],
)
def test_a_damaged_file_is_computed_again_and_said(
    damage: object, again: int, said: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (file,) = tmp_path.iterdir()
    file.write_bytes(damage(file.read_bytes()))  # type: ignore[operator]
    for drawn in (again, 0):
        caplog.clear()
        counted = Counted()
        with caplog.at_level(logging.WARNING):
            assert torch.equal(counted.fetch(PrefixStore(0, tmp_path), range(5)), counted.expect(range(5)))
        assert counted.drawn == drawn
        assert (said in caplog.text) == bool(drawn)


@pytest.mark.usefixtures("_left")
def test_a_file_that_was_renamed_to_that_of_another_prefix_is_not_believed(tmp_path: Path) -> None:
    (file,) = tmp_path.iterdir()
    other = Counted("other", factor=5.0)
    other.fetch(PrefixStore(0, tmp_path), [0])
    (name,) = (path for path in tmp_path.iterdir() if path != file)
    file.replace(name)
    other = Counted("other", factor=5.0)
    assert torch.equal(other.fetch(PrefixStore(0, tmp_path), range(5)), other.expect(range(5)))
    assert other.drawn == 5


@pytest.mark.usefixtures("_left")
def test_a_file_in_use_is_left_to_the_store_that_uses_it(tmp_path: Path) -> None:
    first, second = PrefixStore(0, tmp_path), PrefixStore(0, tmp_path)
    counted, other = Counted(), Counted()
    counted.fetch(first, range(6))
    assert torch.equal(other.fetch(second, range(6)), other.expect(range(6)))
    assert (counted.drawn, other.drawn) == (1, 6)
    assert torch.equal(counted.fetch(first, range(8)), counted.expect(range(8)))


def test_files_of_prefixes_that_are_no_longer_used_are_removed(tmp_path: Path) -> None:
    for number in range(20):
        Counted(f"prefix {number}").fetch(PrefixStore(0, tmp_path), [1])
    assert len(list(tmp_path.iterdir())) == 8
