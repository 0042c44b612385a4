"""Strict reading and validation of settings from YAML; every problem has its field, value and fix."""

import copy
import difflib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from ept_fed.config.renamed import describe_renamed_key, describe_renamed_value
from ept_fed.errors import InputRefusedError, Problem

__all__ = ["parse_yaml", "read_mapping", "validate_settings"]

_Model = TypeVar("_Model", bound=BaseModel)


class _StrictLoader(yaml.SafeLoader):
    """YAML's safe loader that also refuses repeated keys and keys that are not text.

    PyYAML itself would silently keep the last of two equal keys.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Build one mapping.

        Raises:
            yaml.constructor.ConstructorError: with the key and its line.
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


def parse_yaml(text: str) -> Any:
    """Return the content of a YAML document; a repeated key is an error.

    Raises:
        ValueError: for an invalid document. For some inputs, such as the date 2024-13-45, PyYAML itself raises it.
    """
    try:
        return yaml.load(text, Loader=_StrictLoader)
    except (RecursionError, yaml.YAMLError) as error:
        raise ValueError(str(error)) from error


def read_mapping(path: Path, field: str, wanted: str) -> dict[str, Any]:
    """Return the mapping in a YAML file.

    Args:
        path: the file.
        field: name of the file in the error message.
        wanted: description of the expected content for the error message.

    Raises:
        InputRefusedError: if the file cannot be read or does not contain a mapping.
    """
    try:
        raw = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise InputRefusedError([Problem(field, str(path), f"cannot be read as YAML ({reason})")]) from error
    if not isinstance(raw, dict):
        raise InputRefusedError([Problem(field, str(path), f"must be {wanted}")])
    return raw


def validate_settings(
    model: type[_Model], raw: dict[str, Any], check: Callable[[_Model], list[Problem]]
) -> tuple[_Model | None, list[Problem]]:
    """Validate settings; return the model, or None and all problems.

    If the model is invalid, each invalid value is replaced by its default, and the problems that `check` finds in the
    result are reported too.
    """
    try:
        return model.model_validate(raw), []
    except ValidationError as error:
        problems = [_describe(model, raw, dict(item)) for item in error.errors(include_url=False)]
        repaired = copy.deepcopy(raw)
        for item in error.errors(include_url=False):
            _remove(repaired, _location(raw, item["loc"]))
    try:
        rest = check(model.model_validate(repaired))
    except ValidationError:
        return None, problems
    named = {problem.field for problem in problems}
    return None, problems + [problem for problem in rest if problem.field not in named]


def _location(raw: dict[str, Any], loc: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """Remove the parts that pydantic adds for unions, and keep the keys of the document."""
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


def _describe(model: type[BaseModel], raw: dict[str, Any], item: dict[str, Any]) -> Problem:
    location = _location(raw, item["loc"])
    field = ".".join(str(part) for part in location) or "config"
    kind = item["type"]
    names = ".".join(part for part in location if isinstance(part, str))
    unknown = kind == "extra_forbidden"
    renamed = describe_renamed_key(names) if unknown else describe_renamed_value(names, item["input"])
    if renamed is not None:
        return Problem(field, item["input"], renamed)
    if unknown:
        known = _known_keys(model, location[:-1], raw)
        near = difflib.get_close_matches(str(location[-1]), known, n=1)
        hint = f"did you mean '{near[0]}'?" if near else f"known here: {', '.join(known)}"
        return Problem(field, item["input"], f"unknown setting; remove it, or {hint}")
    if kind == "missing":
        return Problem(field, None, "is required; add it")
    if kind == "union_tag_not_found":
        return Problem(field, item["input"], f"does not state its {item['ctx']['discriminator']}; add it")
    message = str(item["ctx"]["error"]) if kind == "value_error" else str(item["msg"])
    return Problem(field, item["input"], message[0].lower() + message[1:])


def _known_keys(model: type[BaseModel], section: tuple[int | str, ...], raw: dict[str, Any]) -> list[str]:
    """Return the keys of a section; for a union of sections, the keys of the section that the document selects."""
    node: Any = raw
    for part in section:
        node = node[part]
        if isinstance(part, int):
            continue
        members = [member for member in _flatten(model.model_fields[str(part)].annotation) if _is_section(member)]
        chosen = [member for member in members if _is_chosen(member, node)]
        if not members:
            return []
        model = (chosen or members)[0]
    return sorted(model.model_fields)


def _flatten(annotation: Any) -> list[Any]:
    """Return the members of a union, or the annotation itself if it is not a union."""
    parts = get_args(annotation)
    return [member for part in parts for member in _flatten(part)] if parts else [annotation]


def _is_section(member: Any) -> bool:
    return isinstance(member, type) and issubclass(member, BaseModel)


def _is_chosen(member: type[BaseModel], node: Any) -> bool:
    """Return whether the discriminators of a union's member (`source`, `kind`) match the document."""
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
