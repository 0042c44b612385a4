"""Every partitioner: no image is lost or duplicated, groups stay whole, and the seed determines the result."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ept_fed.config.partition import (
    AnyPartition,
    DirichletPartition,
    IIDPartition,
    QuantityPartition,
    ShardsPartition,
    SitesPartition,
    VirtualPartition,
)
from ept_fed.data.records.records import ImageRecord
from ept_fed.data.splits.partition import keep_sites, name_sites, partition_records
from ept_fed.data.splits.partitioners import PARTITIONERS
from ept_fed.errors import InputRefusedError
from tests.effort import examples

MakeRecords = Callable[..., list[ImageRecord]]

# These settings can partition most small data sets. A new partitioner needs an entry.
EASY: dict[str, Callable[[int], VirtualPartition]] = {
    "iid": lambda sites: IIDPartition(sites=sites),
    "dirichlet": lambda sites: DirichletPartition(sites=sites, alpha=5.0, min_images=1),
    "shards": lambda sites: ShardsPartition(sites=sites, shards_per_site=2),
    "quantity": lambda sites: QuantityPartition(sites=sites, sigma=0.3, min_images=1),
}
EVERY = sorted(PARTITIONERS)


def singles(count: int, classes: int = 10, split: str | None = None) -> list[ImageRecord]:
    return [ImageRecord(f"{split}{n:06d}", (n % classes,), "all", f"{split}{n:06d}", split) for n in range(count)]


def tabulate(records: Sequence[ImageRecord], sites: int, classes: int = 10) -> np.ndarray:
    """Return the number of images per site and class (S, C)."""
    counts = Counter((record.site, record.labels[0]) for record in records)
    return np.array([[counts[site, label] for label in range(classes)] for site in name_sites(sites)])


def test_every_settings_class_has_a_partitioner() -> None:
    kinds = {member.model_fields["kind"].default for member in get_args(get_args(AnyPartition)[0])}
    assert kinds == {*PARTITIONERS, "sites"} == {*EASY, "sites"}


@pytest.mark.parametrize("kind", EVERY)
@examples(15)
@given(
    rows=st.lists(
        st.tuples(st.integers(0, 40), st.lists(st.integers(0, 3), max_size=2, unique=True)), min_size=12, max_size=80
    ),
    sites=st.integers(1, 4),
    seed=st.integers(0, 5),
    split=st.booleans(),
)
def test_no_image_is_lost_and_groups_stay_whole(
    kind: str, rows: list[tuple[int, list[int]]], sites: int, seed: int, split: bool
) -> None:
    records = [
        ImageRecord(f"i{n}", tuple(sorted(labels)), "xy"[n % 2], f"g{g}", ("train", "test")[g % 2] if split else None)
        for n, (g, labels) in enumerate(rows)
    ]
    partition = EASY[kind](sites)
    try:
        dealt = partition_records(records, partition, seed)
    except InputRefusedError as refusal:
        assert refusal.problems[0].field.startswith("data.partition")
        return
    assert [record.image for record in dealt] == [record.image for record in records]
    assert [(record.labels, record.group, record.split) for record in dealt] == [
        (record.labels, record.group, record.split) for record in records
    ]
    assert len({(record.group, record.site) for record in dealt}) == len({record.group for record in records})
    assert {record.site for record in dealt} == set(name_sites(sites))
    assert partition_records(records[::-1], partition, seed)[::-1] == dealt
    assert partition_records(records, partition, seed) == dealt


@pytest.mark.parametrize("kind", EVERY)
def test_the_seed_determines_the_partition(kind: str) -> None:
    records, partition = singles(400), EASY[kind](5)
    assert partition_records(records, partition, 0) == partition_records(records, partition, 0)
    assert partition_records(records, partition, 0) != partition_records(records, partition, 1)


@pytest.mark.parametrize("kind", EVERY)
def test_a_site_has_the_same_skew_in_every_split(kind: str) -> None:
    train, test = singles(4000, split="train"), singles(2000, split="test")
    dealt = partition_records([*train, *test], EASY[kind](5), seed=0)
    shares = [
        tabulate([record for record in dealt if record.split == split], 5) / (400 if split == "train" else 200)
        for split in ("train", "test")
    ]
    np.testing.assert_allclose(shares[0], shares[1], atol=0.02)


def test_the_sites_of_the_source_are_kept() -> None:
    records = singles(5)
    assert partition_records(records, SitesPartition(), 0) == tuple(records)


def test_iid_gives_every_site_the_same_mix(make_records: MakeRecords) -> None:
    records = make_records([(f"g{n}", n % 3, "all", ("train", "test")[n % 2]) for n in range(120)])
    dealt = partition_records(records, IIDPartition(sites=4), 0)
    assert set(Counter((record.site, record.split, record.labels) for record in dealt).values()) == {5}


def test_shards_give_each_site_few_classes_and_equal_numbers() -> None:
    counts = tabulate(partition_records(singles(1000), ShardsPartition(sites=10, shards_per_site=2), 0), 10)
    assert set(counts.sum(axis=1)) == {100}
    assert ((counts > 0).sum(axis=1) <= 2).all()
    odd = tabulate(partition_records(singles(1007), ShardsPartition(sites=10, shards_per_site=2), 0), 10)
    assert odd.sum() == 1007


def test_quantity_sizes_are_log_normal_and_class_mixes_are_equal() -> None:
    logs, records = [], singles(2500)
    for seed in range(40):
        partition = QuantityPartition(sites=20, sigma=0.7, min_images=1)
        counts = tabulate(partition_records(records, partition, seed), 20)
        sizes = counts.sum(axis=1)
        logs += [np.log(sizes) - np.log(sizes).mean()]
        large = counts[sizes > 200] / sizes[sizes > 200, None]
        np.testing.assert_allclose(large, 0.1, atol=0.02)
    # Centring 20 draws on their own mean removes one twentieth of the variance.
    assert abs(np.std(logs) - 0.7 * np.sqrt(19 / 20)) < 0.04
    flat = tabulate(partition_records(singles(1000), QuantityPartition(sites=4, sigma=0.0), 0), 4)
    assert set(flat.sum(axis=1)) == {250}


def deal_as_flwr_does(labels: np.ndarray, sites: int, alpha: float, *, balancing: bool, seed: int) -> np.ndarray:
    """Return the images (S, C) of flwr-datasets 0.6.1's DirichletPartitioner with min_partition_size=0.

    This is its arithmetic step by step, restated from its source to avoid the dependency.
    """
    rng = np.random.default_rng(seed)
    counts = np.zeros((sites, labels.max() + 1), dtype=int)
    for label in range(labels.max() + 1):
        available = int((labels == label).sum())
        shares = rng.dirichlet(np.full(sites, alpha))
        if balancing:
            shares = np.where(counts.sum(axis=1) > len(labels) / sites, 0, shares)
            shares = shares / shares.sum()
        cuts = (np.cumsum(shares) * available).astype(int)[:-1]
        counts[:, label] = np.diff(np.concatenate([[0], cuts, [available]]))
    return counts


@pytest.mark.parametrize("alpha", [0.1, 10.0])
@pytest.mark.parametrize("balancing", [False, True])
def test_dirichlet_agrees_with_flwr_datasets_in_distribution(alpha: float, balancing: bool) -> None:
    """Two-sample Kolmogorov–Smirnov tests over the shares of each class and over the sizes of sites, 60 seeds each."""
    from scipy.stats import ks_2samp

    records, labels = singles(2000), np.arange(2000) % 10
    ours, theirs = [], []
    for seed in range(60):
        partition = DirichletPartition(sites=8, alpha=alpha, min_images=1, self_balancing=balancing)
        try:
            ours.append(tabulate(partition_records(records, partition, seed), 8))
        except InputRefusedError:
            continue
        counts = deal_as_flwr_does(labels, 8, alpha, balancing=balancing, seed=seed)
        again = 1000
        while counts.sum(axis=1).min() < 1:
            counts = deal_as_flwr_does(labels, 8, alpha, balancing=balancing, seed=seed + again)
            again += 1000
        theirs.append(counts)
    assert len(ours) > 50
    for label in range(10):
        mine, other = (np.concatenate([counts[:, label] for counts in draws]) / 200 for draws in (ours, theirs))
        assert ks_2samp(mine, other).pvalue > 1e-4, f"class {label}"
    assert ks_2samp(*(np.concatenate([c.sum(axis=1) for c in draws]) for draws in (ours, theirs))).pvalue > 1e-4


# Images (S, C) that flwr-datasets 0.6.1 (numpy 2.4) gave 8 sites out of 2,000 images of the classes 0, 1, … 9, 0, 1, …:
# `DirichletPartitioner(8, "label", 0.5, min_partition_size=0, self_balancing=…, shuffle=False, seed=3)`, then
# `np.bincount(load_partition(site)["label"], minlength=10)` for every site.
OF_FLWR_DATASETS = {
    False: [
        [0, 37, 3, 29, 0, 30, 51, 8, 129, 1],
        [68, 0, 22, 7, 0, 43, 3, 13, 1, 135],
        [1, 6, 37, 8, 2, 21, 9, 43, 6, 0],
        [49, 107, 18, 1, 1, 20, 8, 24, 17, 10],
        [12, 14, 7, 15, 11, 69, 74, 74, 1, 3],
        [13, 1, 51, 43, 159, 0, 19, 3, 29, 10],
        [51, 32, 42, 26, 2, 4, 29, 21, 16, 33],
        [6, 3, 20, 71, 25, 13, 7, 14, 1, 8],
    ],
    True: [
        [0, 37, 3, 29, 0, 30, 56, 8, 151, 0],
        [68, 0, 22, 7, 0, 43, 4, 13, 1, 153],
        [1, 6, 37, 8, 2, 21, 9, 44, 8, 0],
        [49, 107, 18, 1, 1, 20, 10, 25, 20, 0],
        [12, 14, 7, 15, 11, 69, 82, 75, 0, 0],
        [13, 1, 51, 43, 159, 0, 0, 0, 0, 0],
        [51, 32, 42, 26, 2, 4, 31, 20, 19, 38],
        [6, 3, 20, 71, 25, 13, 8, 15, 1, 9],
    ],
}


@pytest.mark.parametrize("balancing", OF_FLWR_DATASETS)
def test_the_restated_dirichlet_equals_flwr_datasets(balancing: bool) -> None:
    restated = deal_as_flwr_does(np.arange(2000) % 10, 8, 0.5, balancing=balancing, seed=3)
    np.testing.assert_array_equal(OF_FLWR_DATASETS[balancing], restated)


def test_dirichlet_extremes_are_one_class_per_site_and_the_same_mix() -> None:
    alike = tabulate(partition_records(singles(4000), DirichletPartition(sites=4, alpha=1e5), 0), 4)
    np.testing.assert_allclose(alike, 100, atol=5)
    apart = tabulate(partition_records(singles(4000), DirichletPartition(sites=4, alpha=0.02, min_images=1), 0), 4)
    assert (apart.max(axis=0) > 380).mean() > 0.7


def test_self_balancing_evens_the_sizes() -> None:
    spreads = {
        balancing: np.mean(
            [
                tabulate(
                    partition_records(
                        singles(2000), DirichletPartition(sites=8, alpha=0.5, self_balancing=balancing), s
                    ),
                    8,
                )
                .sum(axis=1)
                .std()
                for s in range(10)
            ]
        )
        for balancing in (False, True)
    }
    assert spreads[True] < 0.7 * spreads[False]


def test_a_site_with_too_few_images_is_named_with_advice() -> None:
    with pytest.raises(InputRefusedError) as refusal:
        partition_records(singles(100), DirichletPartition(sites=30, alpha=0.05), 0)
    (problem,) = refusal.value.problems
    assert problem.field == "data.partition"
    assert "site-" in problem.fix
    assert "raise data.partition.alpha" in problem.fix


def test_a_site_left_empty_by_a_large_group_is_named(make_records: MakeRecords) -> None:
    records = make_records([("big", 0, "all", None)] * 50 + [("small", 1, "all", None), ("tiny", 1, "all", None)])
    with pytest.raises(InputRefusedError, match=r"empty; lower data\.partition\.sites or"):
        partition_records(records, ShardsPartition(sites=3, shards_per_site=1), 0)


@pytest.mark.parametrize("kind", EVERY)
def test_more_sites_than_groups_is_refused(make_records: MakeRecords, kind: str) -> None:
    with pytest.raises(InputRefusedError, match="at most 2"):
        partition_records(make_records([("g", 0, "all", None), ("h", 0, "all", None)]), EASY[kind](3), 0)


def test_names_sort_as_numbers() -> None:
    assert name_sites(3) == ("site-1", "site-2", "site-3")
    assert list(name_sites(12)) == sorted(name_sites(12))


def test_unknown_sites_are_all_named(make_records: MakeRecords) -> None:
    with pytest.raises(InputRefusedError) as caught:
        keep_sites(make_records([("g", 0, "x", None)]), ["x", "y", "z"])
    assert [problem.value for problem in caught.value.problems] == ["y", "z"]


def test_selected_sites_are_kept(make_records: MakeRecords) -> None:
    records = make_records([("g", 0, "x", None), ("h", 0, "y", None)])
    assert keep_sites(records, None) == tuple(records)
    assert keep_sites(records, ["y"]) == (records[1],)
