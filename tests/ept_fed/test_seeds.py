from hypothesis import given
from hypothesis import strategies as st

from ept_fed.seeds import derive_seed, numpy_generator

PART = st.one_of(st.text(max_size=5), st.integers(0, 100))
SCOPE = st.lists(PART, max_size=4).map(tuple)


@given(first=SCOPE, second=SCOPE, seed=st.integers(0, 2**63 - 1))
def test_scopes_collide_only_when_equal(first: tuple[str | int, ...], second: tuple[str | int, ...], seed: int) -> None:
    typed = [tuple((type(part), part) for part in scope) for scope in (first, second)]
    assert (derive_seed(seed, *first) == derive_seed(seed, *second)) == (typed[0] == typed[1])
    assert 0 <= derive_seed(seed, *first) < 2**63


def test_seeds_are_the_same_in_another_process() -> None:
    # Printed by other processes with other PYTHONHASHSEEDs. A new number means that no earlier run can be repeated.
    assert derive_seed(1, "site-1", 2, "order") == 6490417214216492348


def test_generators_of_one_scope_draw_the_same() -> None:
    first, second, other = (numpy_generator(0, "site", number).random(4) for number in (1, 1, 2))
    assert (first == second).all()
    assert (first != other).any()
