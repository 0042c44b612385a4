"""Intervals have their nominal coverage; simulations/benches/interval_coverage.py prints the full table."""

from simulations.benches.interval_coverage import QUANTITIES, measure_coverage


def test_intervals_cover_at_93_to_97_percent() -> None:
    coverage = measure_coverage(sites=800, patients=200, draws=300)
    assert set(coverage) == set(QUANTITIES)
    assert all(0.93 <= share <= 0.97 for share in coverage.values()), coverage
