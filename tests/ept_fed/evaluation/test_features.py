"""Feature measures against closed forms, numpy and scikit-learn, and their invariances."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.metrics import silhouette_score

from ept_fed.evaluation.features import CLASS_MEASURES, MEASURES, embed_tsne, find_axis, measure_features
from ept_fed.evaluation.metrics import Array
from tests.effort import examples

CLASSES = ("a", "b", "c")
SCALE_FREE = (
    "relative_intra_class_distance",
    "fisher_ratio",
    "nearest_centres",
    "silhouette",
    "first_component_share",
)


def measure(features: Array, labels: Array, classes: tuple[str, ...] = CLASSES) -> dict[tuple[str, str], float]:
    found, _ = measure_features(features, labels, classes)
    assert len(found) == len(MEASURES) + len(classes) * len(CLASS_MEASURES)
    return {(label, name): value for label, name, value in found}


def notes(features: Array, labels: Array) -> str:
    return "; ".join(measure_features(features, labels, CLASSES)[1])


def clouds(seed: int, counts: tuple[int, ...] = (9, 5, 13), D: int = 4) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(len(counts)), counts)
    return rng.normal(size=(len(labels), D)) * rng.uniform(0.2, 2, D) + rng.normal(size=(len(counts), D))[
        labels
    ], labels


def test_points_on_a_line_have_the_hand_computed_measures() -> None:
    features = np.array([[0.0, 1], [2, 1], [10, 1], [14, 1]])
    found = measure(features, np.array([0, 0, 1, 1]), ("a", "b"))
    within, between = (1 + 4) / 2, (1 - 12) ** 2 / 4
    assert found["", "intra_class_distance"] == pytest.approx(within)
    assert found["", "between_class_separation"] == pytest.approx(between)
    assert found["", "fisher_ratio"] == pytest.approx(between / within)
    assert found["", "relative_intra_class_distance"] == pytest.approx(within / (within + between))
    assert found["", "nearest_centres"] == pytest.approx(11 / math.sqrt(within))
    assert found["", "first_component_share"] == pytest.approx(1)
    assert (found["a", "intra_class_distance"], found["b", "intra_class_distance"]) == pytest.approx((1, 4))


@given(seed=st.integers(0, 10**6))
def test_traces_equal_those_of_numpy_and_of_lda_with_equal_priors(seed: int) -> None:
    features, labels = clouds(seed)
    found = measure(features, labels)
    for c, name in enumerate(CLASSES):
        covariance = np.cov(features[labels == c].T, bias=True)
        assert found[name, "intra_class_distance"] == pytest.approx(np.trace(covariance))
        largest = np.linalg.eigvalsh(covariance)[-1]
        assert found[name, "first_component_share"] == pytest.approx(largest / np.trace(covariance))
    lda = LinearDiscriminantAnalysis(solver="eigen", priors=[1 / 3] * 3, store_covariance=True).fit(features, labels)
    assert found["", "intra_class_distance"] == pytest.approx(np.trace(lda.covariance_))
    assert found["", "between_class_separation"] == pytest.approx(np.trace(np.cov(lda.means_.T, bias=True)))


def test_with_equally_many_images_total_and_silhouette_are_those_of_all_images() -> None:
    features, labels = clouds(3, (8, 8, 8))
    found = measure(features, labels)
    total = np.trace(np.cov(features.T, bias=True))
    assert found["", "intra_class_distance"] + found["", "between_class_separation"] == pytest.approx(total)
    assert found["", "silhouette"] == pytest.approx(silhouette_score(features, labels))


@given(seed=st.integers(0, 10**6), scale=st.floats(1e-3, 1e3))
@examples(10)
def test_rotation_and_shift_change_nothing_and_scaling_only_measures_with_units(seed: int, scale: float) -> None:
    features, labels = clouds(seed)
    rng = np.random.default_rng(seed)
    rotation, _ = np.linalg.qr(rng.normal(size=(4, 4)))
    before = measure(features, labels)
    moved = measure(features @ rotation + rng.normal(size=4), labels)
    scaled = measure(scale * features, labels)
    for key, value in before.items():
        assert moved[key] == pytest.approx(value, rel=1e-6, abs=1e-9), key
        factor = 1 if key[1] in SCALE_FREE else scale**2
        assert scaled[key] == pytest.approx(factor * value, rel=1e-6, abs=1e-9), key


@given(seed=st.integers(0, 10**6), factor=st.floats(0.1, 0.9))
def test_tightening_classes_around_their_centres_changes_every_measure_as_defined(seed: int, factor: float) -> None:
    features, labels = clouds(seed)
    centres = np.stack([features[labels == c].mean(axis=0) for c in range(3)])[labels]
    loose, tight = measure(features, labels), measure(centres + factor * (features - centres), labels)
    assert tight["", "intra_class_distance"] == pytest.approx(factor**2 * loose["", "intra_class_distance"])
    assert tight["", "between_class_separation"] == pytest.approx(loose["", "between_class_separation"])
    assert tight["", "fisher_ratio"] == pytest.approx(loose["", "fisher_ratio"] / factor**2)
    assert tight["", "nearest_centres"] == pytest.approx(loose["", "nearest_centres"] / factor)
    assert tight["", "relative_intra_class_distance"] < loose["", "relative_intra_class_distance"]


def test_a_rare_class_counts_as_much_as_a_common_one() -> None:
    features, labels = clouds(1, (4, 6, 5))
    common = np.concatenate([features, *[features[labels == 1]] * 20])
    more = np.concatenate([labels, np.ones(120, dtype=int)])
    before, after = measure(features, labels), measure(common, more)
    for name in MEASURES[:5]:
        assert after["", name] == pytest.approx(before["", name]), name


def test_classes_of_one_image_or_none_are_left_out_and_reported() -> None:
    features, labels = clouds(5, (9, 5))
    alone = measure(features, labels, ("a", "b"))
    found = measure(np.concatenate([features, [[50.0] * 4]]), np.append(labels, 2))
    for name in MEASURES:
        assert found["", name] == pytest.approx(alone["", name]), name
    assert all(math.isnan(found["c", name]) for name in CLASS_MEASURES)
    assert notes(np.concatenate([features, [[50.0] * 4]]), np.append(labels, 2)) == "only one image of c, left out"
    assert notes(features, labels) == "no image of c"


def test_with_one_class_there_is_a_spread_but_no_separation() -> None:
    features, labels = clouds(5, (9,))
    found = measure(features, labels)
    assert found["", "intra_class_distance"] == found["a", "intra_class_distance"] > 0
    assert math.isnan(found["a", "relative_intra_class_distance"])
    assert all(math.isnan(found["", name]) for name in MEASURES[1:6])
    assert "only a has two images or more" in notes(features, labels)


@pytest.mark.parametrize(
    ("features", "labels", "said"),
    [
        (np.full((7, 3), 0.1), [0, 0, 1, 1, 2, 2, 2], "all images have the same features"),
        (np.ones((6, 3)), [0, 0, 1, 1, 2, 2], "all images have the same features"),
        (np.where(np.eye(6, 3) > 0, np.nan, 1.0), [0, 0, 1, 1, 2, 2], "3 of 6 images have features that are not"),
        (np.eye(3), [0, 1, 2], "no class has two images"),
        (np.empty((0, 3)), [], "no class has two images"),
    ],
    ids=["constant", "ones", "not finite", "one each", "none"],
)
def test_features_that_cannot_be_measured_are_undefined_and_reported(
    features: Array, labels: list[int], said: str
) -> None:
    y = np.array(labels, dtype=np.int64)
    assert all(math.isnan(value) for value in measure(features, y).values())
    assert said in notes(features, y)


def test_distinct_points_are_infinitely_separate() -> None:
    found = measure(np.repeat(np.eye(3), 2, axis=0), np.repeat(np.arange(3), 2))
    assert found["", "fisher_ratio"] == found["", "nearest_centres"] == math.inf
    assert (found["", "relative_intra_class_distance"], found["", "silhouette"]) == (0, 1)


@pytest.mark.parametrize("labels", [[0, 1, 3], [0, -1, 1], [0, 1], [0.0, 1.0, 2.0]])
def test_labels_that_do_not_fit_are_refused(labels: list[int]) -> None:
    with pytest.raises(ValueError, match="labels"):
        measure_features(np.eye(3), np.array(labels), CLASSES)


@given(seed=st.integers(0, 10**6))
def test_the_axis_is_the_covariances_first_eigenvector(seed: int) -> None:
    features, _ = clouds(seed)
    axis, share = find_axis(features)
    values, vectors = np.linalg.eigh(np.cov(features.T, bias=True))
    assert share == pytest.approx(values[-1] / values.sum())
    assert abs(axis @ vectors[:, -1]) == pytest.approx(1)
    np.testing.assert_array_equal(axis, find_axis(features)[0])
    np.testing.assert_allclose(axis, find_axis(3 * features + 1)[0], atol=1e-9)


def test_features_without_variance_have_an_axis_with_an_undefined_share() -> None:
    axis, share = find_axis(np.full((7, 3), 0.1))
    assert np.linalg.norm(axis) == 1
    assert math.isnan(share)


@pytest.mark.parametrize("n", [4, 5, 40])
def test_a_map_of_few_images_is_computed_and_repeats_exactly(n: int) -> None:
    features, _ = clouds(0, (n,))
    placed = embed_tsne(features, 7)
    assert placed is not None
    assert placed.shape == (n, 2)
    assert np.isfinite(placed).all()
    np.testing.assert_array_equal(placed, embed_tsne(features, 7))


def test_too_few_equal_or_infinite_features_have_no_map() -> None:
    assert embed_tsne(np.eye(3), 0) is None
    assert embed_tsne(np.ones((9, 3)), 0) is None
    assert embed_tsne(np.full((9, 3), np.inf), 0) is None
