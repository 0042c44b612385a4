"""Settings and values that another release called otherwise: a refusal of the old name says the new one.

Old names are never accepted. An entry goes with the release after the one that renamed it.
"""

__all__ = ["describe_renamed_key", "describe_renamed_value"]

_SINCE = "since ept-fed 0.2"
_KEYS = {
    "outgoing.fewest_class_images": "outgoing.min_class_images",
    "outgoing.fewest_images": "outgoing.min_images",
    "outgoing.fewest_training_images": "outgoing.min_training_images",
    "outgoing.fewest_masked_sites": "outgoing.min_secure_aggregation_sites",
    "outgoing.masked_only": "outgoing.secure_aggregation_only",
}
_HEADS = {"common": "fixed", "common+own": "fixed+lda", "discriminant": "lda"}
_VALUES = {"training.head": _HEADS, "incoming.heads": _HEADS}


def describe_renamed_key(field: str) -> str | None:
    """Return what to do about a key, by its dotted name, that was renamed; None if it was not."""
    new = _KEYS.get(field)
    return None if new is None else f"is called {new} {_SINCE}; rename it"


def describe_renamed_value(field: str, value: object) -> str | None:
    """Return what to do about the value of a field, by its dotted name, that was renamed; None if it was not."""
    new = _VALUES.get(field, {}).get(value) if isinstance(value, str) else None
    return None if new is None else f"is called '{new}' {_SINCE}; write that"
