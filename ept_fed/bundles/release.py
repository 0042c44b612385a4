"""Reading the model that a site released in a finished run, with its metadata."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import unquote

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ept_fed.bundles.bundle import MODEL, check_tensors
from ept_fed.bundles.description import BackboneIdentity, InputDescription
from ept_fed.bundles.members import Members, check_members
from ept_fed.errors import InputRefusedError, Problem
from ept_fed.protocol.layout import Vector
from ept_fed.reports.run.run_folder import RunFolder, site_folder

__all__ = ["About", "Release", "read_release"]


class About(BaseModel):
    """The metadata of sites/<site>/model.safetensors, as the site writes it.

    A site whose model is the weighted sum of several models' logits names them in `members`, with their shares.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    schema_version: Annotated[Literal[1], Field(alias="schema")]
    run: str
    site: str
    backbone: BackboneIdentity
    input: InputDescription
    prompt_layers: tuple[int, ...]
    embedding: Literal["concat", "add", "multiply", "multiply_concat"]
    classes: tuple[str, ...]
    task: Literal["single_label", "multi_label"]
    temperature: float
    validation_images: int
    code: str
    members: Members | None = None


@dataclass(frozen=True)
class Release:
    """One site's model of a run.

    Attributes:
        content: the bytes of model.safetensors.
        tensors: the tensors in these bytes, by name, which starts with the member's if there are members.
        about: metadata that the site wrote.
        experiment: name of the experiment.
        rounds: number of averaged rounds.
    """

    content: bytes
    tensors: dict[str, Vector]
    about: About
    experiment: str
    rounds: int


def read_release(run: Path, site: str) -> Release:
    """Return a site's model from a run folder.

    Raises:
        InputRefusedError: if the folder is missing, unfinished or of a failed run, or has no valid model of this site;
            also if the members of that model differ in their tensors.
    """
    report = _read_report(run)
    path = run / "sites" / site_folder(site) / MODEL
    if not path.is_file():
        known = sorted(unquote(found.parent.name) for found in run.glob(f"sites/*/{MODEL}"))
        fix = f"this run has models of: {', '.join(known)}" if known else "no site of this run left a model"
        raise _refusal("--site", site, fix)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise _refusal("RUN", str(path), f"cannot be read ({error.strerror})") from error
    tensors = check_tensors(content, None)
    about = _read_about(content, path)
    problems = [
        Problem(f"{MODEL}: {name}", have, f"but the run folder has '{want}'; this model is from another run or site")
        for name, have, want in (("site", about.site, site), ("run", about.run, report["run"]))
        if have != want
    ]
    problems += check_members({name: tensor.shape for name, tensor in tensors.items()}, about.members)
    if problems:
        raise InputRefusedError(problems)
    return Release(content, tensors, about, report["name"], _count_rounds(run))


def _read_report(run: Path) -> dict[str, str]:
    """Return the fields status, run and name of a run's report.json."""
    if not run.is_dir():
        raise _refusal("RUN", str(run), "no such folder; give the folder of a finished run")
    try:
        report = json.loads((run / "report.json").read_text(encoding="utf-8"))
        report = {key: str(report[key]) for key in ("status", "run", "name")}
    except FileNotFoundError as error:
        raise _refusal("RUN", str(run), "has no report.json: not a run folder, or the run has not finished") from error
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise _refusal("RUN", str(run / "report.json"), f"cannot be used ({type(error).__name__})") from error
    if report["status"] != "done":
        fix = f"the run ended as '{report['status']}', so there is nothing to release; see its run.log"
        raise _refusal("RUN", str(run), fix)
    return report


def _read_about(content: bytes, path: Path) -> About:
    """Return the metadata of a safetensors file that `check_tensors` accepted: 8 bytes of length, then JSON."""
    length = int.from_bytes(content[:8], "little")
    try:
        text = json.loads(content[8 : 8 + length])["__metadata__"]["ept_fed"]
        method = json.loads(text).get("method", "ept")
        if method != "ept":
            fix = "bundles hold models of method ept only; run the experiment with model.method=ept to export it"
            raise _refusal("model.method", method, fix)
        return About.model_validate_json(text)
    except ValidationError as error:
        found = [Problem(f"{MODEL}: {'.'.join(map(str, e['loc']))}", str(path), e["msg"]) for e in error.errors()]
        raise InputRefusedError(found) from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise _refusal(MODEL, str(path), "has no valid metadata of ept-fed; run the simulation again") from error


def _count_rounds(run: Path) -> int:
    """Return the number of rounds that changed the model, which are those with at least one averaged site."""
    return sum(bool(record.aggregated) for record in RunFolder(run).read_rounds())


def _refusal(field: str, value: object, fix: str) -> InputRefusedError:
    return InputRefusedError([Problem(field, value, fix)])
