"""Reading an experiment from YAML and overrides; all problems are reported together."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ept_fed.config.experiment import Experiment
from ept_fed.config.yaml_reader import parse_yaml, read_mapping, validate_settings
from ept_fed.errors import InputRefusedError, Problem
from ept_fed.validation.experiment import validate_experiment

__all__ = ["load_experiment", "override_experiment"]


def load_experiment(
    path: Path,
    overrides: Sequence[str] = (),
    *,
    check: Callable[[Experiment], list[Problem]] = validate_experiment,
) -> Experiment:
    """Read and validate an experiment.

    Args:
        path: YAML file.
        overrides: `key.path=value` strings; values are read as YAML (`8`, `null`, `[0, 1]`).
        check: validator of the sections beyond their types. A command that uses only the data passes a validator of
            only the data.

    Raises:
        InputRefusedError: with every problem of the file, the overrides and the paths they name.
    """
    raw = read_mapping(path, "config", "a mapping with a 'data' section")
    return _build(raw, overrides, check)


def override_experiment(
    experiment: Experiment,
    overrides: Sequence[str],
    *,
    check: Callable[[Experiment], list[Problem]] = validate_experiment,
) -> Experiment:
    """Return an experiment with changed settings; arguments and errors as in `load_experiment`."""
    return _build(experiment.model_dump(mode="json"), overrides, check)


def _build(raw: dict[str, Any], overrides: Sequence[str], check: Callable[[Experiment], list[Problem]]) -> Experiment:
    problems = _apply_overrides(raw, overrides)
    data = raw.get("data")
    if isinstance(data, dict):
        data.setdefault("source", "manifest")
    experiment, invalid = validate_settings(Experiment, raw, check)
    problems += invalid
    if experiment is not None:
        problems += check(experiment)
    if problems or experiment is None:
        raise InputRefusedError(problems)
    return experiment


def _apply_overrides(raw: dict[str, Any], overrides: Sequence[str]) -> list[Problem]:
    found = []
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not all(key.split(".")):
            found.append(Problem("--set", override, "write key.path=value"))
            continue
        try:
            value = parse_yaml(text)
        except ValueError:
            found.append(Problem(key, text, "is not valid YAML; quote it"))
            continue
        node = raw
        *parents, last = key.split(".")
        for parent in parents:
            child = node.setdefault(parent, {})
            if not isinstance(child, dict):
                found.append(Problem(key, text, f"'{parent}' is not a section"))
                break
            node = child
        else:
            node[last] = value
    return found
