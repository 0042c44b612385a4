"""How many inputs hypothesis draws: few by default, because developers run the tests all day; many with CI_DEEP=1."""

import os

from hypothesis import HealthCheck, settings

DEEP = os.environ.get("CI_DEEP") == "1"
_FACTOR = 20
_DEFAULT = 25

# No deadline: the tests do not measure speed, so a busy machine must not make them fail.
settings.register_profile("small", deadline=None, max_examples=_DEFAULT)
settings.register_profile("deep", deadline=None, max_examples=_FACTOR * _DEFAULT)
settings.load_profile("deep" if DEEP else "small")


def examples(number: int, *, suppress: tuple[HealthCheck, ...] = ()) -> settings:
    """Draw `number` inputs by default, and 20 times as many with CI_DEEP=1."""
    return settings(max_examples=_FACTOR * number if DEEP else number, suppress_health_check=suppress)
