"""Names of the models that a report compares, as they are in report.json and predictions.csv."""

from collections.abc import Iterable

__all__ = [
    "BASELINE",
    "CANDIDATES",
    "CHOSEN",
    "FEDERATED",
    "MIXED",
    "PERSONALISED",
    "compared_settings",
    "main_settings",
    "verdict_setting",
]

BASELINE = "local"
FEDERATED = "federated"
PERSONALISED = "personalised"
MIXED = "sum of both"
CHOSEN = "chosen"
# The models among which a site chooses, in the order of preference.
CANDIDATES = (FEDERATED, PERSONALISED, MIXED, BASELINE)


def verdict_setting(settings: Iterable[str]) -> str:
    """Return the setting that the verdict is about: the model that the site chose, or else the federated one."""
    return CHOSEN if CHOSEN in settings else FEDERATED


def compared_settings(settings: Iterable[str]) -> tuple[str, str]:
    """Return the two settings of the verdict: the local model, and the one that it is compared with."""
    return BASELINE, verdict_setting(settings)


def main_settings(settings: Iterable[str]) -> tuple[str, ...]:
    """Return the settings of the tables and charts: those that are only candidates have a table of their own."""
    settings = tuple(settings)
    hidden = {FEDERATED, PERSONALISED, MIXED} if CHOSEN in settings else set()
    return tuple(setting for setting in settings if setting not in hidden)
