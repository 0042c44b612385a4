"""Intervals have their nominal coverage; simulations/benches/interval_coverage.py prints the full table."""

import pytest

from simulations.benches.interval_coverage import QUANTITIES, measure_coverage
from tests.effort import DEEP


@pytest.mark.integration
def test_intervals_cover_95_percent_within_the_error_of_the_number_of_sites() -> None:
    """The share that covers is binomial, with a standard error of √(0.95 · 0.05 / sites); 2.6 of them are accepted.

    That is 93 to 97 % at 800 sites, with CI_DEEP=1, and 91.3 to 98.7 % at 240 sites.
    """
    sites = 800 if DEEP else 240
    coverage = measure_coverage(sites=sites, patients=200, draws=300)
    error = (0.95 * 0.05 / sites) ** 0.5
    assert set(coverage) == set(QUANTITIES)
    assert all(abs(share - 0.95) <= 2.6 * error for share in coverage.values()), coverage
