"""Tests of augmented views, and of datasets whose frozen layers run once per view."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from ept_fed.config.data import AugmentationSettings, PhantomSettings
from ept_fed.data.datasets.cache import CachedDataset
from ept_fed.data.datasets.input_spec import InputSpec
from ept_fed.data.datasets.prefix_store import FrozenPrefix, PrefixStore
from ept_fed.data.datasets.prefixed import PrefixedDataset
from ept_fed.data.datasets.prepare import prepare_data

SPEC = InputSpec(16, (0.5,) * 3, (0.5,) * 3, "bicubic")
VIEWS = 3
FOLDED = FrozenPrefix("folded", lambda images: images.flatten(1)[:, ::7])


def prepare(views: int, **augmentation: object) -> CachedDataset:
    chosen = AugmentationSettings(views=views, **augmentation)  # type: ignore[arg-type]
    settings = PhantomSettings(phantom_sites=2, patients_per_class=8, shots=2, augmentation=chosen)
    return prepare_data(settings, SPEC, seed=0).sites["site-1"].train


@pytest.fixture(scope="module")
def train() -> CachedDataset:
    return prepare(VIEWS)


def join(images: CachedDataset, **options: object) -> Tensor:
    return torch.cat([batch for batch, _ in images.batches(4, **options)])  # type: ignore[arg-type]


def test_an_image_has_as_many_views_as_asked_for_and_each_epoch_chooses_one(train: CachedDataset) -> None:
    views = torch.stack([join(train, augment_seed=0, view=view) for view in range(VIEWS)])
    assert all(len({bytes(view.numpy()) for view in views[:, index]}) == VIEWS for index in range(len(train)))
    seen = set()
    for seed in range(20):
        equal = (join(train, augment_seed=seed) == views).flatten(2).all(-1)
        assert (equal.sum(0) == 1).all()
        seen |= {(index, view) for view, index in equal.nonzero().tolist()}
    assert len(seen) == VIEWS * len(train)


def test_a_view_is_the_same_in_every_order_batch_and_run(train: CachedDataset) -> None:
    order = [3, 1, 1]
    expected = join(train, augment_seed=1, view=2)[order]
    assert torch.equal(join(train, order=order, augment_seed=8, view=2), expected)
    ((batch, _),) = prepare(VIEWS + 2).batches(99, order=order, augment_seed=0, view=2)
    assert torch.equal(batch, expected)


def test_a_view_that_there_is_not_is_refused(train: CachedDataset) -> None:
    for options in ({"view": VIEWS, "augment_seed": 0}, {"view": -1, "augment_seed": 0}, {"view": 0}):
        with pytest.raises(ValueError, match="there are 3 augmented views"):
            join(train, **options)


@given(
    order=st.lists(st.integers(0, 9), min_size=1, max_size=12),
    seed=st.one_of(st.none(), st.integers(0, 2**60)),
    batch=st.integers(1, 5),
)
def test_batches_are_the_prefix_of_the_images_that_would_be_in_them(
    train: CachedDataset, order: list[int], seed: int | None, batch: int
) -> None:
    prefixed = PrefixedDataset(train, FOLDED, PrefixStore(10**6, None))
    pairs = zip(
        prefixed.batches(batch, order=order, augment_seed=seed),
        train.batches(batch, order=order, augment_seed=seed),
        strict=True,
    )
    for (ours, labels), (images, theirs) in pairs:
        assert torch.equal(ours, FOLDED.run(images))
        assert torch.equal(labels, theirs)


def test_fresh_augmentation_stays_images_and_the_evaluation_does_not() -> None:
    fresh = prepare(0)
    prefixed = PrefixedDataset(fresh, FOLDED, PrefixStore(10**6, None))
    assert torch.equal(join(prefixed, augment_seed=3), join(fresh, augment_seed=3))
    assert torch.equal(join(prefixed), FOLDED.run(join(fresh)))


def test_another_augmentation_is_not_taken_for_the_same_view() -> None:
    store = PrefixStore(10**6, None)
    drawn = [
        join(PrefixedDataset(prepare(VIEWS, crop_scale=scale), FOLDED, store), augment_seed=0, view=0)
        for scale in ((0.08, 1.0), (0.5, 1.0))
    ]
    assert not torch.equal(*drawn)
