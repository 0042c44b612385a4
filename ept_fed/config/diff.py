"""Settings by dotted name, and in what two sets of them differ where it matters to going on with a run."""

from typing import Any

from ept_fed.config.experiment import LOCAL_SETTINGS, Experiment

__all__ = ["compare_settings", "flatten_settings"]


def compare_settings(held: Any, experiment: Experiment) -> list[tuple[str, Any, Any]]:
    """Return key, held value and the experiment's value of every setting that differs and matters for resuming.

    Args:
        held: the content of a run's config.yaml.
        experiment: what is asked for now.
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
    """Return values by dotted name; lists and empty mappings are values."""
    if not isinstance(content, dict) or not content:
        return {prefix: content}
    return {
        key: value
        for name, inner in content.items()
        for key, value in flatten_settings(inner, f"{prefix}.{name}" if prefix else str(name)).items()
    }
