"""Shamir's secret sharing (1979) over a prime field: `threshold` shares give the secret, fewer reveal nothing.

Arithmetic on Python's integers takes time that depends on their values. That is safe here: only the site itself can
time the splitting, and the server learns the joined secrets anyway. Do not use this code for other purposes.
"""

import secrets
from collections.abc import Callable, Mapping, Sequence

__all__ = ["PRIME", "SHARE_BYTES", "SharesRefusedError", "join_secret", "split_secret"]

PRIME = (1 << 256) + 297  # the smallest prime above all secrets of 32 bytes
SHARE_BYTES = 33


class SharesRefusedError(ValueError):
    """Shares that cannot belong to one secret, or arguments with which no secret can be shared."""


def split_secret(
    secret: int,
    threshold: int,
    points: Sequence[int],
    *,
    prime: int = PRIME,
    draw: Callable[[int], int] = secrets.randbelow,
) -> dict[int, int]:
    """Return the shares by point: values of a polynomial of degree threshold - 1 whose value at 0 is the secret.

    Args:
        secret: 0 to prime - 1.
        threshold: number of shares that recover the secret.
        points: one for each holder, 1 to prime - 1.
        prime: order of the field.
        draw: returns a random number below its argument; only tests replace the cryptographic source.

    Raises:
        SharesRefusedError: for a secret or points outside the field, repeated points, or too few points.
    """
    if not 0 <= secret < prime:
        raise SharesRefusedError("the secret is not an element of the field")
    _check_points(points, threshold, prime)
    coefficients = [secret, *(draw(prime) for _ in range(threshold - 1))]
    shares = {}
    for point in points:
        value = 0
        for coefficient in reversed(coefficients):
            value = (value * point + coefficient) % prime
        shares[point] = value
    return shares


def join_secret(
    shares: Mapping[int, int] | Sequence[tuple[int, int]],
    threshold: int,
    *,
    points: Sequence[int],
    prime: int = PRIME,
) -> int:
    """Return the secret by Lagrange interpolation at 0, from the first `threshold` shares.

    A wrong share gives a wrong secret, which only a check against the owner's commitment detects.

    Args:
        shares: pairs of point and value.
        threshold: as in `split_secret`.
        points: all points for which shares were made.
        prime: order of the field.

    Raises:
        SharesRefusedError: for fewer shares than the threshold, a repeated point, a point for which no share was made,
            or a value outside the field.
    """
    pairs = list(shares.items()) if isinstance(shares, Mapping) else list(shares)
    found = [point for point, _ in pairs]
    _check_points(found, threshold, prime)
    if not set(found) <= set(points):
        raise SharesRefusedError(f"shares at {sorted(set(found) - set(points))} were never dealt")
    if any(not 0 <= value < prime for _, value in pairs):
        raise SharesRefusedError("a share is not an element of the field")
    chosen = pairs[:threshold]
    secret = 0
    for point, value in chosen:
        above, below = 1, 1
        for other, _ in chosen:
            if other != point:
                above = above * other % prime
                below = below * (other - point) % prime
        secret += value * above * pow(below, -1, prime)
    return secret % prime


def _check_points(points: Sequence[int], threshold: int, prime: int) -> None:
    if len(set(points)) != len(points):
        raise SharesRefusedError("two shares are for one point")
    if any(not 1 <= point < prime for point in points):
        raise SharesRefusedError("a share's point must be between 1 and the prime; the secret is at 0")
    if not 1 <= threshold <= len(points):
        raise SharesRefusedError(f"{len(points)} shares; the threshold is {threshold}")
