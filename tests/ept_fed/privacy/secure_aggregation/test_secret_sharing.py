"""Shamir's secret sharing: enough shares give the secret, fewer leave every secret equally likely."""

import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ept_fed.privacy.secure_aggregation.secret_sharing import PRIME, SharesRefusedError, join_secret, split_secret


@given(st.data())
def test_any_threshold_of_shares_gives_the_secret(data: st.DataObject) -> None:
    secret = data.draw(st.integers(0, (1 << 256) - 1))
    points = data.draw(st.lists(st.integers(1, 1000), min_size=1, max_size=20, unique=True))
    threshold = data.draw(st.integers(1, len(points)))
    shares = split_secret(secret, threshold, points)
    kept = data.draw(st.permutations(list(shares.items())))[: data.draw(st.integers(threshold, len(points)))]
    assert join_secret(kept, threshold, points=points) == secret


@pytest.mark.parametrize(("threshold", "prime"), [(2, 7), (3, 7), (4, 5)])
def test_fewer_shares_than_the_threshold_determine_nothing(threshold: int, prime: int) -> None:
    """Over all polynomials, each secret gives each view of any threshold - 1 points equally often."""
    points = range(1, prime)
    for held in itertools.combinations(points, threshold - 1):
        views = []
        for secret in range(prime):
            seen: Counter[tuple[int, ...]] = Counter()
            for coefficients in itertools.product(range(prime), repeat=threshold - 1):
                rest = iter(coefficients)
                shares = split_secret(
                    secret, threshold, list(points), prime=prime, draw=lambda _p, rest=rest: next(rest)
                )
                seen[tuple(shares[point] for point in held)] += 1
            views.append(seen)
        assert all(seen == views[0] for seen in views)
        assert len(views[0]) == prime ** (threshold - 1)


def test_coefficients_are_drawn_anew_from_the_whole_field() -> None:
    asked = []

    def draw(below: int) -> int:
        asked.append(below)
        return 5

    split_secret(1, 4, [1, 2, 3, 4], draw=draw)
    assert asked == [PRIME] * 3
    assert split_secret(1, 3, [1, 2, 3]) != split_secret(1, 3, [1, 2, 3])


def test_a_wrong_share_gives_another_secret() -> None:
    shares = split_secret(42, 3, [1, 2, 3])
    for point in shares:
        assert join_secret({**shares, point: (shares[point] + 1) % PRIME}, 3, points=[1, 2, 3]) != 42


@pytest.mark.parametrize(
    ("shares", "why"),
    [
        ([(1, 5), (2, 6)], "2 shares; the threshold is 3"),
        ([(1, 5), (2, 6), (2, 6)], "one point"),
        ([(0, 5), (1, 5), (2, 6)], "the secret is at 0"),
        ([(1, 5), (2, 6), (9, 6)], "never dealt"),
        ([(1, 5), (2, 6), (3, PRIME)], "field"),
        ([(1, 5), (2, 6), (3, -1)], "field"),
    ],
)
def test_shares_that_do_not_fit_together_are_refused(shares: list[tuple[int, int]], why: str) -> None:
    with pytest.raises(SharesRefusedError, match=why):
        join_secret(shares, 3, points=[1, 2, 3, 4])


@pytest.mark.parametrize(
    ("secret", "threshold", "points"),
    [(PRIME, 2, [1, 2]), (-1, 2, [1, 2]), (1, 3, [1, 2]), (1, 0, [1]), (1, 2, [1, 1]), (1, 2, [0, 1])],
)
def test_an_impossible_sharing_is_refused(secret: int, threshold: int, points: list[int]) -> None:
    with pytest.raises(SharesRefusedError):
        split_secret(secret, threshold, points)


def test_the_modulus_is_prime() -> None:
    """Run the Miller–Rabin test with forty bases."""
    odd, twos = PRIME - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    for base in range(2, 42):
        power = pow(base, odd, PRIME)
        assert power in (1, PRIME - 1) or any(pow(power, 1 << step, PRIME) == PRIME - 1 for step in range(1, twos))
