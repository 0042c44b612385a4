import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ept_fed.catalog.methods import HEAD_TENSORS, METHODS
from ept_fed.protocol.layout import PayloadLayout, PayloadMismatchError

SHAPES = st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple)
NAMES = [(*info.tensors, *HEAD_TENSORS) for info in METHODS.values()]
LAYOUTS = (
    st.sampled_from(NAMES)
    .flatmap(lambda own: st.lists(st.sampled_from(own), min_size=1, unique=True))
    .flatmap(lambda names: st.tuples(*(st.tuples(st.just(name), SHAPES) for name in names)).map(PayloadLayout))
)


def draw_tensors(layout: PayloadLayout, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in layout.shapes}


@given(layout=LAYOUTS)
def test_flattening_and_unflattening_are_inverse(layout: PayloadLayout) -> None:
    tensors = draw_tensors(layout)
    vector = layout.flatten(tensors)
    assert vector.dtype == np.float32
    assert vector.shape == (layout.size,)
    back = layout.unflatten(vector)
    assert list(back) == list(tensors)
    assert all(np.array_equal(back[name], tensors[name]) for name in tensors)


@given(first=LAYOUTS, second=LAYOUTS)
def test_equal_hashes_mean_equal_layouts(first: PayloadLayout, second: PayloadLayout) -> None:
    assert (first.hash == second.hash) == (first.shapes == second.shapes)


def test_the_hash_covers_the_meaning_and_statistics_are_not_trained() -> None:
    shapes = (("sinks", (2, 3)), ("statistics.shares", (2,)))
    layout, without = PayloadLayout(shapes), PayloadLayout(shapes[:1])
    assert len({layout.hash, *(PayloadLayout(shapes, meaning).hash for meaning in (("a",), ("b",), ("a", "b")))}) == 4
    assert (layout.holds_statistics, without.holds_statistics) == (True, False)
    assert layout.trained.tolist() == [True] * 6 + [False] * 2
    assert without.trained.all()


def test_unflattened_tensors_do_not_share_the_vectors_memory() -> None:
    layout = PayloadLayout((("sinks", (2, 3)),))
    vector = np.zeros(6, np.float32)
    layout.unflatten(vector)["sinks"][:] = 1
    assert not vector.any()


LAYOUT = PayloadLayout((("sinks", (2, 3)), ("tokens", (2, 1, 4))))


@pytest.mark.parametrize(
    ("vector", "why"),
    [
        (np.zeros(13, np.float32), "layout has"),
        (np.zeros((14, 1), np.float32), "layout has"),
        (np.zeros(14, np.float64), "float64"),
        (np.zeros(14, np.int32), "int32"),
        (np.full(14, np.nan, np.float32), "14 values that are not finite"),
        (np.array([np.inf] + [0] * 13, np.float32), "1 values that are not finite"),
    ],
)
def test_a_vector_that_does_not_fit_is_refused(vector: np.ndarray, why: str) -> None:
    with pytest.raises(PayloadMismatchError, match=why):
        LAYOUT.check(vector)


def test_a_vector_of_another_size_has_no_tensors() -> None:
    with pytest.raises(PayloadMismatchError, match="layout has"):
        LAYOUT.unflatten(np.zeros(13, np.float32))


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.pop("tokens"),
        lambda t: t.update(extra=np.zeros(1)),
        lambda t: t.update(sinks=np.zeros((3, 2))),
        lambda t: t.update(sinks=t.pop("sinks")),
    ],
    ids=["missing", "extra", "transposed", "reordered"],
)
def test_tensors_that_do_not_match_the_layout_are_refused(change) -> None:
    tensors = draw_tensors(LAYOUT)
    change(tensors)
    with pytest.raises(PayloadMismatchError):
        LAYOUT.flatten(tensors)


@pytest.mark.parametrize(
    "shapes",
    [
        (),
        (("sinks", (2,)), ("sinks", (3,))),
        (("backbone", (2,)),),
        (("backbone.", (2,)),),
        (("blocks.0.norm1.bias", (2,)),),
        (("backbone.blocks.0.norm1.bias\n", (2,)),),
        (("sinks", (2,)), ("vpt.tokens", (2,))),
        (("sinks", ()),),
        (("sinks", (0, 3)),),
        (("sinks", (-1, 3)),),
        (("sinks", (2.0, 3)),),
    ],
)
def test_an_invalid_layout_is_refused(shapes) -> None:
    with pytest.raises(PayloadMismatchError):
        PayloadLayout(shapes)
