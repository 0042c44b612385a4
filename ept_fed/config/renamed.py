"""Settings and values that were renamed; the refusal of an old name states the new one.

Old names are never accepted. An entry is removed in the release after the one that renamed it.
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
    """Return the fix for a renamed key, given its dotted name; None if the key was not renamed."""
    new = _KEYS.get(field)
    return None if new is None else f"is called {new} {_SINCE}; rename it"


def describe_renamed_value(field: str, value: object) -> str | None:
    """Return the fix for a renamed value, given its field's dotted name; None if the value was not renamed."""
    new = _VALUES.get(field, {}).get(value) if isinstance(value, str) else None
    return None if new is None else f"is called '{new}' {_SINCE}; write that"
