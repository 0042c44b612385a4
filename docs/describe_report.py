"""The page docs/report-schema.md: the documents that reports leave for programs, from the classes behind them."""

import dataclasses
import inspect
import re
from typing import Any, get_args, get_type_hints

from ept_fed.evaluation.histograms import LEAST_COUNT
from ept_fed.evaluation.subgroups import MIN_CASES
from ept_fed.reports.pages.site_report import SCHEMA, SiteReport

_INTRODUCTION = f"""# The report's documents

`sites/<site>/report.json`, schema {SCHEMA}, is what the site's page shows. A number that is undefined is `null`; a
list by class is in the order of `classes`; a mapping by setting has `local`, `federated` and whatever else the run
compared. Keys may be added within a schema; if one changes its meaning or goes, the number goes up, and a reader of
another schema refuses the document.

The document is the site's own. Of it the federation's page shows the verdict, the macro AUC with its interval, the
difference, and the counts; subgroups, curves, confusion matrices and pictures stay. A subgroup with fewer than
{MIN_CASES} cases has `"shown": false` and no numbers.

Not in schema {SCHEMA}: the site's ledger of what left it, and the privacy spent (epsilon). `traffic` counts
messages and bytes as the server saw them, or the site's worker in what `ept-fed site report` writes (`counted_by`);
the site's own signed record takes their place when there is one.

`sites/<site>/shared.json`, schema 1, is what a site shares of its single scores, beside the averages above: for
every setting and class, bins `[lower edge, upper edge, images, images with the class]`, the edges as positions in
`score_edges`; no bin has fewer than {LEAST_COUNT} images. `confidence` has the same over `confidence_edges` for the
top class and whether it was right, and `withheld` counts the images in none of its bins.

`predictions.csv` has a row per image and setting: `split`, `image`, `group`, `label`, `setting`, `predicted`, a
column `p[class]` per class, and a column `subgroup:name` per subgroup column of the manifest, empty where an image
states none.

`cross_site.csv`, at the top of a run with `evaluation.cross_site: true`, has a row per local model, site tested on
and class.

"""


def describe_report() -> str:
    """Return the page without its note: one table per class, in the order in which they are reached."""
    parts, waiting, done = [_INTRODUCTION], [SiteReport], set()
    while waiting:
        owner: Any = waiting.pop(0)
        if owner in done:
            continue
        done.add(owner)
        hints, meanings = get_type_hints(owner), _read_attributes(owner)
        rows = []
        for field in dataclasses.fields(owner):
            if owner is SiteReport and field.name == "shared":
                continue
            rows.append(f"| `{field.name}` | {_name_type(hints[field.name])} | {meanings.get(field.name, '')} |")
            waiting += _find_classes(hints[field.name])
        summary = (inspect.getdoc(owner) or "").split("\n\n")[0].replace("\n", " ")
        table = "\n".join(rows)
        parts.append(f"## {owner.__name__}\n\n{summary}\n\n| key | type | meaning |\n|---|---|---|\n{table}\n\n")
    return "".join(parts).rstrip("\n") + "\n"


def _read_attributes(owner: type) -> dict[str, str]:
    """Return attribute -> meaning from the docstring's section."""
    text = (inspect.getdoc(owner) or "").partition("Attributes:\n")[2]
    entries = re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", text, flags=re.MULTILINE)
    return {name: re.sub(r"\s+", " ", meaning).replace("|", "\\|") for name, meaning in entries}


def _find_classes(hint: Any) -> list[type]:
    if dataclasses.is_dataclass(hint):
        return [hint] if isinstance(hint, type) else []
    return [found for part in get_args(hint) for found in _find_classes(part)]


def _name_type(hint: Any) -> str:
    parts = [part for part in get_args(hint) if part is not Ellipsis]
    name = getattr(hint, "__name__", str(hint))
    if dataclasses.is_dataclass(hint):
        return f"[{name}](#{name.lower()})"
    if type(None) in parts:
        return " or ".join(_name_type(part) for part in parts if part is not type(None)) + " or null"
    if name == "Mapping":
        return f"by {'name' if parts[0] is str else _name_type(parts[0])}: {_name_type(parts[1])}"
    if name == "tuple":
        same = Ellipsis in get_args(hint)
        return f"list of {_name_type(parts[0])}" if same else f"[{', '.join(map(_name_type, parts))}]"
    if name == "Literal":
        return " or ".join(f"`{part}`" for part in parts)
    return {"str": "text", "int": "whole number", "float": "number", "bool": "true or false", "Any": "value"}[name]
