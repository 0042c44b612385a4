"""The content of bundle.json: all that inference needs except the backbone and the tensors."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ept_fed.bundles.members import TENSORS, Members, check_members, tensors_by_member
from ept_fed.config.base import Digest, Positive
from ept_fed.data.datasets.input_spec import InputSpec
from ept_fed.errors import InputRefusedError, Problem
from ept_fed.storage.canonical_json import parse_canonical, serialize_canonical

__all__ = [
    "BackboneIdentity",
    "Description",
    "InputDescription",
    "parse_description",
    "schema_of",
    "serialize_description",
]

_SCHEMAS = (1, 2)

Name = Annotated[str, Field(min_length=1, max_length=1000)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0)]
Extent = Annotated[int, Field(ge=1)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class BackboneIdentity(_Section):
    """Identity of the frozen backbone: its timm name, and the SHA-256 of its tensors."""

    name: Name
    digest: Digest


class InputDescription(_Section):
    """Input size, normalisation and interpolation of the model; see `InputSpec`."""

    size: Annotated[int, Field(ge=1, le=4096)]
    mean: tuple[Finite, Finite, Finite]
    std: tuple[Positive, Positive, Positive]
    interpolation: Literal["bicubic", "bilinear"]

    def to_spec(self) -> InputSpec:
        """Return the `InputSpec` that the transforms use."""
        return InputSpec(self.size, self.mean, self.std, self.interpolation)


class Description(_Section):
    """The content of bundle.json. It contains no date, so that equal runs give equal bundles.

    Schema 1 is that of a single model. Schema 2 adds the members of a model, so that a version of this package that
    does not know them refuses the bundle instead of misreading its tensors.

    Attributes:
        intended_use: the intended use in plain text, for people who open the file.
        experiment: name of the experiment; `run` is the id of the run, `rounds` the number of averaged rounds.
        tokens: T, the number of context tokens per prompted layer.
        temperature: divisor of the logits, fitted on `validation_images` images of the site.
        members: share of each member's logits, if the model's logits are the weighted sum of those of several models;
            the names of the tensors then start with the member's. None for a single model.
        tensors: shapes by name of the tensors in model.safetensors; `model_sha256` is the digest of that file.
        versions: versions of this package that trained (`site`) and exported (`export`) the model.
    """

    schema_version: Annotated[Literal[1, 2], Field(alias="schema")] = 1
    intended_use: Name
    experiment: Name
    run: Name
    rounds: Count
    site: Name
    classes: Annotated[tuple[Name, ...], Field(min_length=1)]
    task: Literal["single_label", "multi_label"]
    backbone: BackboneIdentity
    input: InputDescription
    prompt_layers: Annotated[tuple[Count, ...], Field(min_length=1)]
    embedding: Literal["concat", "add", "multiply", "multiply_concat"]
    tokens: Count
    temperature: Positive
    validation_images: Count
    members: Members | None = None
    tensors: dict[str, tuple[Extent, ...]]
    model_sha256: Digest
    versions: dict[Literal["site", "export"], Name]

    @model_validator(mode="after")
    def _agree(self) -> "Description":
        """Check that the fields are consistent with each other."""
        schema = schema_of(self.members)
        if self.schema_version != schema:
            raise ValueError(f"schema is {self.schema_version}, need {schema}: schema 2 has members, schema 1 has none")
        if problems := check_members(self.tensors, self.members):
            raise ValueError("; ".join(map(str, problems)))
        # The members have equal tensors, so the checks of one are those of all.
        tensors = next(iter(tensors_by_member(self.tensors, self.members).values()))
        prompts = "sinks" if "sinks" in tensors else "prompts"
        wanted = {prompts, "head.weight", "head.bias"} | ({"tokens"} if self.tokens else set())
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("classes must differ")
        if set(tensors) != wanted:
            raise ValueError(f"tensors are {sorted(tensors)}, need {sorted(wanted)}")
        L, C = len(self.prompt_layers), len(self.classes)
        firsts = {prompts: L, "tokens": L, "head.weight": C, "head.bias": C}
        for name, shape in tensors.items():
            if len(shape) != TENSORS[name] or shape[0] != firsts[name]:
                raise ValueError(f"{name} has shape {shape}, which does not fit {L} layers and {C} classes")
        if self.tokens and tensors["tokens"][1] != self.tokens:
            raise ValueError(f"tokens has shape {tensors['tokens']}, need {self.tokens} per layer")
        return self


def schema_of(members: Mapping[str, float] | None) -> Literal[1, 2]:
    """Return the schema of the bundle of a model with these members."""
    return 1 if members is None else 2


def serialize_description(description: Description) -> bytes:
    """Return the bytes of bundle.json; `members` is left out if it is None, because schema 1 does not have it."""
    return serialize_canonical(description.model_dump(mode="json", by_alias=True, exclude_none=True))


def parse_description(content: bytes) -> Description:
    """Read the bytes of bundle.json.

    Raises:
        InputRefusedError: with all problems of the content.
    """
    document = parse_canonical("bundle.json", content)
    if document.get("schema") not in _SCHEMAS:
        fix = "this version of ept-fed reads schemas 1 and 2; update ept-fed, or export the bundle again"
        raise InputRefusedError([Problem("bundle.json: schema", document.get("schema"), fix)])
    try:
        return Description.model_validate_json(content)
    except ValidationError as error:
        problems = [
            Problem(
                f"bundle.json: {'.'.join(map(str, each['loc'])) or 'content'}", _shorten(each["input"]), each["msg"]
            )
            for each in error.errors()
        ]
        raise InputRefusedError(problems) from error


def _shorten(value: object) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:79]}…"
