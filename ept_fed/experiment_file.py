"""Read an experiment from YAML and overrides, and report everything wrong with it at once."""

import copy
import difflib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from ept_fed.config import Experiment
from ept_fed.contradictions import find_contradictions
from ept_fed.problems import InputRefusedError, Problem

__all__ = ["load_experiment", "override_experiment"]


class _StrictLoader(yaml.SafeLoader):
    """YAML's safe loader, but a key given twice, or one that is no text, is an error instead of the last one
    winning."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build one mapping.

        Raises:
            yaml.constructor.ConstructorError: naming the key and its line.
        """
        seen: set[str] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag != "tag:yaml.org,2002:str":
                raise yaml.constructor.ConstructorError(None, None, "a key must be text", key_node.start_mark)
            if key_node.value in seen:
                text = f"'{key_node.value}' is given twice; keep one"
                raise yaml.constructor.ConstructorError(None, None, text, key_node.start_mark)
            seen.add(key_node.value)
        return super().construct_mapping(node, deep=deep)


def load_experiment(
    path: Path,
    overrides: Sequence[str] = (),
    *,
    check: Callable[[Experiment], list[Problem]] = find_contradictions,
) -> Experiment:
    """Read and validate an experiment.

    Args:
        path: YAML file.
        overrides: `key.path=value` strings; values are read as YAML (`8`, `null`, `[0, 1]`).
        check: what the sections are held against beyond their own types; a command that needs the data only checks
            that only.

    Raises:
        InputRefusedError: with every problem of the file, the overrides and the paths they name.
    """
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), Loader=_StrictLoader)
    except (OSError, UnicodeDecodeError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise InputRefusedError([Problem("config", str(path), f"cannot be read as YAML ({reason})")]) from error
    if not isinstance(raw, dict):
        raise InputRefusedError([Problem("config", str(path), "must be a mapping with a 'data' section")])
    return _build(raw, overrides, check)


def override_experiment(
    experiment: Experiment,
    overrides: Sequence[str],
    *,
    check: Callable[[Experiment], list[Problem]] = find_contradictions,
) -> Experiment:
    """Return an experiment with other settings; arguments and refusals as in `load_experiment`."""
    return _build(experiment.model_dump(mode="json"), overrides, check)


def _build(raw: dict[str, Any], overrides: Sequence[str], check: Callable[[Experiment], list[Problem]]) -> Experiment:
    problems = _apply_overrides(raw, overrides)
    experiment, invalid = _validate(raw, check)
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
            value = yaml.load(text, Loader=_StrictLoader)
        except (RecursionError, yaml.YAMLError):
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


def _validate(
    raw: dict[str, Any], check: Callable[[Experiment], list[Problem]]
) -> tuple[Experiment | None, list[Problem]]:
    """Validate; on errors also report the contradictions that remain once each bad value falls back to its default."""
    data = raw.get("data")
    if isinstance(data, dict):
        data.setdefault("source", "manifest")
    try:
        return Experiment.model_validate(raw), []
    except ValidationError as error:
        problems = [_describe(raw, dict(item)) for item in error.errors(include_url=False)]
        repaired = copy.deepcopy(raw)
        for item in error.errors(include_url=False):
            _remove(repaired, _location(raw, item["loc"]))
    try:
        rest = check(Experiment.model_validate(repaired))
    except ValidationError:
        return None, problems
    named = {problem.field for problem in problems}
    return None, problems + [problem for problem in rest if problem.field not in named]


def _location(raw: dict[str, Any], loc: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """Drop the parts that pydantic adds for unions, keeping those that are keys of the document."""
    node: Any = raw
    kept: list[int | str] = []
    for index, part in enumerate(loc):
        children = dict(enumerate(node)) if isinstance(node, list) else node
        if isinstance(children, dict) and part in children:
            node = children[part]
            kept.append(part)
        elif index == len(loc) - 1 and isinstance(node, dict):
            kept.append(part)
    return tuple(kept)


def _describe(raw: dict[str, Any], item: dict[str, Any]) -> Problem:
    location = _location(raw, item["loc"])
    field = ".".join(str(part) for part in location) or "config"
    kind = item["type"]
    if kind == "extra_forbidden":
        known = _known_keys(location[:-1], raw)
        near = difflib.get_close_matches(str(location[-1]), known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known here: {', '.join(known)}"
        return Problem(field, item["input"], f"unknown setting; remove it, or {hint}")
    if kind == "missing":
        return Problem(field, None, "is required; add it")
    if kind == "union_tag_not_found":
        return Problem(field, item["input"], f"does not say which it is; give its {item['ctx']['discriminator']}")
    message = str(item["msg"])
    return Problem(field, item["input"], message[0].lower() + message[1:])


def _known_keys(section: tuple[int | str, ...], raw: dict[str, Any]) -> list[str]:
    """Return the keys of a section; in a union of sections, those of the one that the document chooses."""
    model: type[BaseModel] = Experiment
    node: Any = raw
    for part in section:
        node = node[part]
        members = [member for member in _flatten(model.model_fields[str(part)].annotation) if _is_section(member)]
        chosen = [member for member in members if _is_chosen(member, node)]
        if not members:
            return []
        model = (chosen or members)[0]
    return sorted(model.model_fields)


def _flatten(annotation: Any) -> list[Any]:
    """Return the members of a union, or of none: the annotation itself."""
    parts = get_args(annotation)
    return [member for part in parts for member in _flatten(part)] if parts else [annotation]


def _is_section(member: Any) -> bool:
    return isinstance(member, type) and issubclass(member, BaseModel)


def _is_chosen(member: type[BaseModel], node: Any) -> bool:
    """Whether the discriminators of a union's member (`source`, `kind`) are what the document says."""
    for name in ("source", "kind"):
        field = member.model_fields.get(name)
        if field is not None and isinstance(node, dict) and node.get(name, field.default) != field.default:
            return False
    return True


def _remove(document: Any, location: tuple[int | str, ...]) -> None:
    for part in location[:-1]:
        if isinstance(document, dict) and part in document:
            document = document[part]
        else:
            return
    if isinstance(document, dict) and location:
        document.pop(location[-1], None)
