"""Comparison of two sets of settings by dotted name, to decide whether a run can be resumed."""

from typing import Any

from ept_fed.config.experiment import LOCAL_SETTINGS, Experiment

__all__ = ["compare_settings", "flatten_settings"]


def compare_settings(held: Any, experiment: Experiment) -> list[tuple[str, Any, Any]]:
    """Return key, stored value and new value of every setting that differs and prevents resuming the run.

    Args:
        held: the content of a run's config.yaml.
        experiment: the experiment that is requested now.
    """
    theirs, ours = flatten_settings(held), flatten_settings(experiment.model_dump(mode="json"))
    local = {
        key if names is True else f"{key}.{name}" for key, names in LOCAL_SETTINGS.items() for name in _names(names)
    }
    return [
        (key, theirs.get(key), ours.get(key))
        for key in sorted(theirs.keys() | ours.keys())
        if theirs.get(key) != ours.get(key) and not any(key == name or key.startswith(f"{name}.") for name in local)
    ]


def _names(names: Any) -> list[str]:
    return [""] if names is True else sorted(names)


def flatten_settings(content: Any, prefix: str = "") -> dict[str, Any]:
    """Return the values by dotted name; a list or an empty mapping counts as a value."""
    if not isinstance(content, dict) or not content:
        return {prefix: content}
    return {
        key: value
        for name, inner in content.items()
        for key, value in flatten_settings(inner, f"{prefix}.{name}" if prefix else str(name)).items()
    }
