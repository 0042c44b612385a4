import pytest

from ept_fed.reports.benchmark_chart import pick_colours


@pytest.mark.parametrize("count", [0, 1, 10, 11, 20, 21, 200])
def test_every_method_has_a_colour_of_its_own(count: int) -> None:
    assert len(set(pick_colours(count))) == count
