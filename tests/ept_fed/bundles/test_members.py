"""What bundle.json and a site's file may say about the members of a model, and what is refused."""

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import assume, given
from hypothesis import strategies as st

from ept_fed.bundles.bundle import DESCRIPTION, MODEL, SIGNATURE, Bundle, open_bundle
from ept_fed.bundles.description import parse_description, serialize_description
from ept_fed.bundles.members import check_members, describe_members, tensors_by_member
from ept_fed.errors import InputRefusedError
from ept_fed.pki.signing import sign
from ept_fed.storage.canonical_json import serialize_canonical
from tests.effort import examples
from tests.ept_fed.bundles.conftest import SHARES, FinishedRun, MemberModels, any_shares, normalise
from tests.site_models import prefix

# As schema 1 was written before bundles could have members.
SCHEMA_1 = b"""{
  "backbone": {
    "digest": "%s",
    "name": "test_vit"
  },
  "classes": [
    "a",
    "b"
  ],
  "embedding": "concat",
  "experiment": "micro",
  "input": {
    "interpolation": "bicubic",
    "mean": [
      0.5,
      0.5,
      0.5
    ],
    "size": 64,
    "std": [
      0.5,
      0.5,
      0.5
    ]
  },
  "intended_use": "Research use.",
  "model_sha256": "%s",
  "prompt_layers": [
    0
  ],
  "rounds": 2,
  "run": "run-1",
  "schema": 1,
  "site": "site-1",
  "task": "single_label",
  "temperature": 1.5,
  "tensors": {
    "head.bias": [
      2
    ],
    "head.weight": [
      2,
      64
    ],
    "sinks": [
      1,
      17
    ]
  },
  "tokens": 0,
  "validation_images": 10,
  "versions": {
    "export": "0.2.0",
    "site": "0.2.0"
  }
}
""" % (b"0" * 64, b"1" * 64)


def test_a_bundle_without_members_has_the_bytes_that_it_had_before(finished: FinishedRun) -> None:
    for content in (SCHEMA_1, (finished.bundle / DESCRIPTION).read_bytes()):
        assert parse_description(content).members is None
        assert serialize_description(parse_description(content)) == content
    document = json.loads((finished.bundle / DESCRIPTION).read_bytes())
    assert document["schema"] == 1
    assert "members" not in document


@examples(30)
@given(
    weights=st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/"), min_size=1, max_size=20),
        st.floats(0.01, 1.0),
        min_size=2,
        max_size=6,
    )
)
def test_every_description_with_members_is_read_back(weights: dict[str, float]) -> None:
    shares = normalise(weights)
    content = with_members(SCHEMA_1, shares)
    assert parse_description(content).members == shares
    assert serialize_description(parse_description(content)) == content


def with_members(content: bytes, shares: Mapping[str, Any], **changes: Any) -> bytes:
    """Return the bytes of bundle.json of members that each have the tensors of the single model in `content`."""
    document = json.loads(content)
    tensors = {f"{member}/{own}": shape for member in shares for own, shape in document["tensors"].items()}
    return serialize_canonical(document | {"schema": 2, "members": shares, "tensors": tensors} | changes)


BAD_SHARES: dict[str, tuple[dict[str, Any], str]] = {
    "share of zero": ({"federated": 1.0, "local": 0.0}, "members.local"),
    "negative share": ({"federated": 1.5, "local": -0.5}, "members.local"),
    "share that is text": ({"federated": 0.5, "local": "0.5"}, "members.local"),
    "shares above 1": ({"federated": 0.6, "local": 0.6}, "sum to 1.2, need 1"),
    "shares below 1": ({"federated": 0.6, "local": 0.399998}, "need 1"),
    "one member": ({"local": 1.0}, "need two or more"),
    "no member": ({}, "need two or more"),
    "separator in a name": ({"federated": 0.6, "lo/cal": 0.4}, "include 'lo/cal'"),
    "empty name": ({"federated": 0.6, "": 0.4}, "at least 1 character"),
}


@pytest.mark.parametrize("case", BAD_SHARES)
def test_members_and_shares_that_give_no_weighted_sum_are_refused(members: MemberModels, case: str) -> None:
    shares, named = BAD_SHARES[case]
    of_member = dict(zip(shares, members.tensors.values(), strict=False))
    with pytest.raises(InputRefusedError) as refusal:
        members.bundle(prefix(of_member), members=shares)
    assert named in str(refusal.value)
    assert all(problem.field.startswith(f"{MODEL}: members") for problem in refusal.value.problems)
    with pytest.raises(InputRefusedError) as refusal:
        parse_description(with_members(SCHEMA_1, shares))
    assert named in str(refusal.value)
    assert all(problem.field.startswith("bundle.json: members") for problem in refusal.value.problems)


@pytest.mark.parametrize("share", [math.nan, math.inf, -math.inf])
def test_a_share_that_is_not_finite_is_refused(members: MemberModels, share: float) -> None:
    with pytest.raises(InputRefusedError, match=r"members\.local"):
        members.summed({"federated": 0.5, "local": share})


@given(shares=any_shares(), factor=st.floats(0.1, 10.0))
def test_shares_must_sum_to_1(shares: dict[str, float], factor: float) -> None:
    assume(abs(factor - 1) > 2e-6)
    scaled = {name: share * factor for name, share in shares.items()}
    with pytest.raises(InputRefusedError, match="need 1"):
        parse_description(with_members(SCHEMA_1, scaled))


def test_shares_may_differ_from_1_by_their_rounding() -> None:
    thirds = {"federated": 0.3333333, "local": 0.3333333, "third": 0.3333333}
    assert parse_description(with_members(SCHEMA_1, thirds)).members == thirds


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"schema": 1}, "schema is 1, need 2"),
        ({"schema": 3}, "reads schemas 1 and 2; update ept-fed"),
        ({"members": None}, "schema is 2, need 1"),
        ({"tensors": {"sinks": [1, 17], "head.weight": [2, 64], "head.bias": [2]}}, "belongs to no member"),
        ({"tokens": 2}, "need ['head.bias', 'head.weight', 'sinks', 'tokens']"),
        ({"classes": ["a", "b", "c"]}, "3 classes"),
    ],
)
def test_a_description_that_does_not_fit_its_members_is_refused(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(InputRefusedError) as refusal:
        parse_description(with_members(SCHEMA_1, SHARES, **changes))
    assert named in str(refusal.value)


def damage(tensors: dict[str, np.ndarray], kind: str, name: str) -> tuple[dict[str, np.ndarray], str]:
    """Return the tensors with one of them damaged, and the name that the refusal must have."""
    value, others = tensors[name], {key: value for key, value in tensors.items() if key != name}
    member, own = name.split("/")
    added = {
        "missing": ({}, name),
        "without prefix": ({name: value, own: value}, own),
        "of an unknown member": ({name: value, f"{member}s/{own}": value}, f"{member}s/{own}"),
        "unknown": ({name: value, f"{name}s": value}, f"{name}s"),
        "nested": ({name: value, f"{member}/{name}": value}, f"{member}/{name}"),
        "of another shape": ({name: np.concatenate([value, value])}, own),
        "of another size": ({name: np.concatenate([value, value], axis=-1)}, own),
    }[kind]
    return others | added[0], added[1]


@examples(30)
@given(
    kind=st.sampled_from(
        [
            *("missing", "without prefix", "of an unknown member", "unknown", "nested"),
            *("of another shape", "of another size"),
        ]
    ),
    position=st.integers(0, 7),
)
def test_a_member_without_exactly_the_tensors_of_the_others_is_refused(
    members: MemberModels, kind: str, position: int
) -> None:
    tensors = prefix({name: members.tensors[name] for name in SHARES})
    damaged, named = damage(tensors, kind, sorted(tensors)[position])
    with pytest.raises(InputRefusedError) as refusal:
        members.bundle(damaged, members=SHARES)
    assert named in str(refusal.value)
    assert all(problem.field.startswith(MODEL) for problem in refusal.value.problems)
    # The same in a signed bundle.json, as a faulty program would write it.
    files = sign_again(members.summed(SHARES), {key: list(value.shape) for key, value in damaged.items()})
    with pytest.raises(InputRefusedError, match=r"bundle\.json: content") as refusal:
        open_bundle(files, None)
    assert named in refusal.value.problems[0].fix


def sign_again(bundle: Bundle, shapes: Mapping[str, list[int]]) -> dict[str, bytes]:
    document = json.loads(serialize_description(bundle.description)) | {"tensors": shapes}
    content = serialize_canonical(document)
    return {DESCRIPTION: content, MODEL: b"", SIGNATURE: sign(content, ec.generate_private_key(ec.SECP384R1()))}


def test_all_problems_of_the_members_are_reported_together(members: MemberModels) -> None:
    tensors = prefix({name: members.tensors[name] for name in SHARES})
    del tensors["local/tokens"]
    tensors["sinks"] = tensors["local/sinks"]
    with pytest.raises(InputRefusedError) as refusal:
        members.bundle(tensors, members=SHARES)
    assert [problem.value for problem in refusal.value.problems] == ["sinks", "local/tokens"]


def test_prefixed_tensors_without_members_are_refused(members: MemberModels) -> None:
    with pytest.raises(InputRefusedError, match="tensors are"):
        members.bundle(prefix({name: members.tensors[name] for name in SHARES}), members=None)


def test_a_single_model_has_one_unnamed_member() -> None:
    assert tensors_by_member({"sinks": 1, "a/b": 2}, None) == {"": {"sinks": 1, "a/b": 2}}
    assert check_members({"anything": (1,)}, None) == []


def test_the_description_for_people_names_each_model_with_its_share() -> None:
    assert describe_members(SHARES) == (
        "The logits of this model are the weighted sum of the logits of 2 models: 0.6 × federated + 0.4 × local."
    )
