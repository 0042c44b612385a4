"""Write docs/{configuration,cli,methods,strategies,report-schema}.md from the code; `--check` only compares.

python docs/generate_reference.py [--check]
"""

import sys
import types
from collections.abc import Mapping
from inspect import getdoc
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import typer
from describe_report import describe_report
from pydantic import BaseModel
from pydantic_core import PydanticUndefined
from typer.main import get_command

from client.gate import policy
from ept_fed.catalog.methods import METHODS
from ept_fed.catalog.options import Option
from ept_fed.catalog.strategies import STRATEGIES
from ept_fed.cli.main import app
from ept_fed.config import consortium as federation_file
from ept_fed.config import data as data_settings
from ept_fed.config import experiment as config
from ept_fed.config import partition as partition_settings
from ept_fed.config import privacy as privacy_settings
from ept_fed.config.benchmark import BenchmarkSettings
from ept_fed.validation import load_site as site_settings

DOCS = Path(__file__).resolve().parent
_NAMES = {
    str: "text",
    int: "whole number",
    float: "number",
    bool: "true or false",
    Path: "path",
}
_SECTIONS: dict[str, type[BaseModel]] = {
    "model": config.ModelSettings,
    "training": config.TrainingSettings,
    "training.privacy": privacy_settings.PrivacySettings,
    "federation": config.FederationSettings,
    "federation.secure_aggregation": privacy_settings.SecureAggregationSettings,
    "federation.site_privacy": privacy_settings.SitePrivacySettings,
    "federation.site_privacy.adaptive": privacy_settings.AdaptiveClipSettings,
    "personalisation": config.PersonalisationSettings,
    "evaluation": config.EvaluationSettings,
    "benchmark": BenchmarkSettings,
}
NOTE = "<!-- Written by docs/generate_reference.py; edit the code instead. -->\n\n"


def main() -> None:
    """Write the pages, or exit with 1 and their names if they are stale."""
    pages = {
        "configuration.md": describe_configuration(),
        "cli.md": describe_command_line(),
        "methods.md": describe_methods(),
        "strategies.md": describe_strategies(),
        "report-schema.md": NOTE + describe_report(),
    }
    stale = [name for name, text in pages.items() if not _is_current(DOCS / name, text)]
    if "--check" in sys.argv[1:]:
        sys.exit(f"stale: {', '.join(stale)}; run python docs/generate_reference.py" if stale else 0)
    for name, text in pages.items():
        (DOCS / name).write_text(text, encoding="utf-8")


def _is_current(path: Path, text: str) -> bool:
    return path.exists() and path.read_text(encoding="utf-8") == text


def describe_configuration() -> str:
    """Return every setting of an experiment with type, default and meaning."""
    parts = [
        NOTE,
        "# Configuration\n\nAn experiment is one YAML file. Unknown keys are refused, a key given twice too, and "
        "what is wrong is listed together. `--set section.key=value` overrides one setting; paths are relative to the "
        "folder the command runs in.\n\n",
        "## Top level\n\n",
        _table(config.Experiment, skip={"data", *_SECTIONS}),
        "\n## data\n\nShared by every source:\n\n",
        _table(data_settings.DataSettings),
        "\nAugmentation, under `data.augmentation`:\n\n",
        _table(data_settings.AugmentationSettings),
        *_describe_partitions(),
    ]
    shared = set(data_settings.DataSettings.model_fields)
    for source in _members(data_settings.AnyDataSettings):
        name = source.model_fields["source"].default
        parts.append(f"\n### source: {name}\n\n{getdoc(source)}\n\n{_table(source, skip=shared | {'source'})}")
        columns = source.model_fields.get("columns")
        if columns is not None:
            parts.append(f"\nColumns, under `data.columns`:\n\n{_table(type(columns.default))}")
    for name, model in _SECTIONS.items():
        parts.append(f"\n## {name}\n\n{getdoc(model)}\n\n{_table(model)}")
    return "".join([*parts, *_describe_site_file(), *_describe_policy(), *_describe_federation()])


def _describe_federation() -> list[str]:
    return [
        "\n## federation.yaml\n\nA file of its own, not a section of an experiment: what `ept-fed provision` makes "
        f"[kits](provisioning.md) from.\n\n{_table(federation_file.Federation)}",
        f"\nUnder `server`:\n\n{_table(federation_file.ServerAddress)}",
        f"\nEach of `sites`:\n\n{_table(federation_file.FederationSite)}",
    ]


def _describe_site_file() -> list[str]:
    sections = {
        "model": config.LocalModelSettings,
        "worker": site_settings.WorkerSettings,
        "node": site_settings.NodeSettings,
    }
    parts = [
        "\n## A site's site.yaml\n\nWhat a hospital decides for itself; relative paths start at its folder. `data` has "
        "a source's settings as above, without what the consortium proposes: "
        f"{', '.join(f'`{name}`' for name in data_settings.SharedDataSettings.model_fields)} and `partition`.\n\n",
        _table(site_settings.SiteSettings, skip=set(sections)),
    ]
    return parts + [f"\nUnder `{name}`:\n\n{_table(model)}" for name, model in sections.items()]


def _describe_policy() -> list[str]:
    sections = {
        "outgoing": policy.Outgoing,
        "outgoing.update": policy.UpdateBound,
        "outgoing.budget": policy.Budget,
        "incoming": policy.Incoming,
        "incoming.training": policy.TrainingRanges,
    }
    parts = [
        "\n## A site's policy.yaml\n\nWhat may leave a hospital and what may come in; only the hospital edits it, and "
        "what it leaves out keeps the default. A range is [least, most]. [privacy.md](privacy.md) says what each rule "
        "answers.\n\n",
        _table(policy.Policy, skip={"outgoing", "incoming"}).replace("`schema_version`", "`schema`"),
    ]
    nested = {"update", "budget", "training"}
    return parts + [f"\nUnder `{name}`:\n\n{_table(model, skip=nested)}" for name, model in sections.items()]


def _describe_partitions() -> list[str]:
    shared = set(partition_settings.PartitionSettings.model_fields)
    parts = [
        "\n### partition\n\nUnder `data.partition`; `kind` says which. Every kind may have:\n\n",
        _table(partition_settings.PartitionSettings),
        "\nFeature shift, under `data.partition.feature_shift`:\n\n",
        _table(partition_settings.FeatureShiftSettings),
    ]
    for kind in _members(partition_settings.AnyPartition):
        name, fields = kind.model_fields["kind"].default, set(kind.model_fields) - shared - {"kind"}
        parts.append(f"\n`kind: {name}`: {getdoc(kind)}\n")
        if fields:
            parts.append(f"\n{_table(kind, skip=shared | {'kind'})}")
    return parts


def _members(union: Any) -> tuple[type[BaseModel], ...]:
    """Return the settings classes of an annotated union."""
    return get_args(get_args(union)[0])


def _table(model: type[BaseModel], skip: set[str] | None = None) -> str:
    rows = ["| setting | type | default | meaning |\n|---|---|---|---|\n"]
    for name, field in model.model_fields.items():
        if name in (skip or set()):
            continue
        default = "required" if field.default is PydanticUndefined else _show(field.default)
        cells = (f"`{name}`", _serialize(field.annotation), default, (field.description or "").replace("|", "\\|"))
        rows.append("| " + " | ".join(cells) + " |\n")
    return "".join(rows)


def _serialize(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(dict.fromkeys("null" if part is type(None) else _serialize(part) for part in arguments))
    if origin is tuple:
        return f"list of {_serialize(arguments[0])}"
    if origin is dict:
        return f"{_serialize(arguments[0])} to {_serialize(arguments[1])}"
    if hasattr(annotation, "__metadata__"):
        return _serialize(arguments[0])
    section = isinstance(annotation, type) and issubclass(annotation, BaseModel)
    return "section" if section else _NAMES.get(annotation, str(annotation))


def _show(default: Any) -> str:
    if isinstance(default, BaseModel):
        return "see below"
    if default is None:
        return "null"
    if isinstance(default, bool):
        return "true" if default else "false"
    if isinstance(default, tuple):
        return f"`[{', '.join(str(value) for value in default)}]`"
    return f"`{default}`"


def describe_command_line() -> str:
    """Return every verb with its arguments, options and examples."""
    group = get_command(app)
    context = typer.Context(group, info_name="ept-fed")
    codes = "Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 faults found (doctor data)."
    parts = [NOTE, f"# Command line\n\n{codes}\n"]
    for name, command in _list_commands(group, context, "ept-fed"):
        parts.append(f"\n## {name}\n\n{_paragraphs(command.help)}\n\n")
        parts.append("| argument | default | meaning |\n|---|---|---|\n")
        for parameter in command.params:
            serialized = ", ".join(f"`{option}`" for option in parameter.opts)
            if parameter.param_type_name == "argument":
                serialized = f"`{parameter.human_readable_name}`"
            if parameter.name == "help":
                continue
            default = "" if parameter.default in (None, False) or callable(parameter.default) else parameter.default
            meaning = " ".join((getattr(parameter, "help", None) or "").split()).replace("|", "\\|")
            parts.append(f"| {serialized} | {default or ('required' if parameter.required else '')} | {meaning} |\n")
        examples = [line.strip() for line in (command.epilog or "").splitlines() if line.strip().startswith("ept-fed")]
        parts.append("\n```\n" + "\n".join(examples) + "\n```\n")
    return "".join(parts)


def _list_commands(group: Any, context: typer.Context, prefix: str) -> list[tuple[str, Any]]:
    """Return every verb, and every sub-command of a verb that has some, by the name a person types."""
    found = []
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        typed = f"{prefix} {name}"
        found += _list_commands(command, context, typed) if hasattr(command, "list_commands") else [(typed, command)]
    return found


def _paragraphs(text: str | None) -> str:
    blocks = (text or "").split("\n\n")
    return "\n\n".join(" ".join(block.split()) for block in blocks)


def describe_strategies() -> str:
    """Return every strategy with its paper, options and caveat."""
    parts = [
        NOTE,
        "# Strategies\n\n`federation.strategy` names one, `federation.options` gives its numbers. All average what "
        "travels: folded prompts by default. `federation.weights` (examples, uniform, capped) applies wherever the "
        "strategy uses weights.\n",
    ]
    for name, info in STRATEGIES.items():
        parts.append(f"\n## {name}\n\n{info.summary} ({info.paper})\n\nWhen not to: {info.caveat}\n")
        defaults = {key: option.default for key, option in info.options.items()}
        parts.append(f"\nSites needed in every round: {info.minimum_sites(defaults)} with the defaults.\n")
        parts.append(_options(info.options))
    return "".join(parts)


def describe_methods() -> str:
    """Return every method with its paper, what it would send, its options and caveat."""
    parts = [
        NOTE,
        "# Methods\n\n`model.method` names one, `model.method_options` gives its numbers. All train around the same "
        "frozen backbone and a linear head, federate through the same protocol, and send what they train: "
        "`federation.share: prompts` without the head, `prompts+head` with it. Only ept folds; the others need "
        "`federation.payload: raw`. They train at `training.method_lr`, ept at `prompt_lr` and `token_lr`. Bundles "
        "(`ept-fed export`) hold models of ept only.\n",
    ]
    for name, info in METHODS.items():
        sent = [f"`{tensor}`" for tensor in info.tensors]
        sent += [f"`backbone.<name>` for names like `{info.backbone_tensors}`"] if info.backbone_tensors else []
        parts.append(f"\n## {name}\n\n{info.summary} ({info.paper})\n\nMind: {info.caveat}\n")
        parts.append(f"\nTrains and sends, beside the head: {', '.join(sent) or 'nothing'}.\n")
        parts.append(_options(info.options))
    return "".join(parts)


def _options(options: Mapping[str, Option]) -> str:
    if not options:
        return ""
    rows = ["\n| option | default | range | meaning |\n|---|---|---|---|\n"]
    for key, option in options.items():
        span = f"{option.low:g} to {option.high:g}"
        rows.append(f"| `{key}` | {option.default:g} | {span} | {option.meaning} |\n")
    return "".join(rows)


if __name__ == "__main__":
    main()
