import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save

from ept_fed.bundles.bundle import DESCRIPTION, MODEL, SIGNATURE, check_tensors, open_bundle, read_bundle
from ept_fed.bundles.export import prepare_bundle
from ept_fed.errors import InputRefusedError
from ept_fed.pki.signing import public_key_path, read_public_key
from tests.effort import examples

FILES = (DESCRIPTION, MODEL, SIGNATURE)


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES}


def test_a_bundle_contains_the_released_tensors_and_their_description(finished: Any) -> None:
    bundle = read_bundle(finished.bundle, read_public_key(public_key_path(finished.key)))
    released = load_file(finished.folder / "sites" / "site-1" / "model.safetensors")
    report = json.loads((finished.folder / "report.json").read_text())
    assert bundle.trusted
    assert set(bundle.tensors) == set(released) == {"sinks", "tokens", "head.weight", "head.bias"}
    assert all(np.array_equal(bundle.tensors[name], released[name]) for name in released)
    said = bundle.description
    assert (said.site, said.run, said.experiment, said.rounds) == ("site-1", report["run"], "micro", 2)
    assert list(said.classes) == report["classes"]
    assert said.backbone.digest == report["backbone"]["digest"]
    assert (said.tokens, said.input.size, said.validation_images) == (1, 64, 10)
    assert "Not a medical device" in said.intended_use


def test_equal_runs_and_keys_give_equal_bundles(finished: Any, tmp_path: Path) -> None:
    again = prepare_bundle(finished.folder, "site-1", out=tmp_path / "again", key=finished.key)
    again.write()
    assert contents(again.folder) == contents(finished.bundle)


@examples(40)
@given(name=st.sampled_from(FILES), where=st.floats(0, 1, exclude_max=True), mask=st.integers(1, 255))
def test_one_changed_byte_anywhere_is_refused(finished: Any, name: str, where: float, mask: int) -> None:
    files = contents(finished.bundle)
    changed = bytearray(files[name])
    changed[int(where * len(changed))] ^= mask
    with pytest.raises(InputRefusedError):
        open_bundle(files | {name: bytes(changed)}, None)


@pytest.mark.parametrize("name", [DESCRIPTION, SIGNATURE])
def test_every_byte_of_the_json_files_is_checked(finished: Any, name: str) -> None:
    files = contents(finished.bundle)
    for position in range(len(files[name])):
        changed = bytearray(files[name])
        changed[position] ^= 0x20
        with pytest.raises(InputRefusedError):
            open_bundle(files | {name: bytes(changed)}, None)


@examples(40)
@given(name=st.sampled_from(FILES), share=st.floats(0, 1, exclude_max=True))
def test_a_truncated_or_extended_file_is_refused(finished: Any, name: str, share: float) -> None:
    files = contents(finished.bundle)
    for altered in (files[name][: int(share * len(files[name]))], files[name] + b"\n"):
        with pytest.raises(InputRefusedError):
            open_bundle(files | {name: altered}, None)


def test_missing_files_are_named_together(bundle_copy: Path) -> None:
    (bundle_copy / MODEL).unlink()
    (bundle_copy / SIGNATURE).unlink()
    with pytest.raises(InputRefusedError) as refusal:
        read_bundle(bundle_copy)
    assert [problem.field for problem in refusal.value.problems] == [f"BUNDLE/{MODEL}", f"BUNDLE/{SIGNATURE}"]


def test_a_path_that_is_not_a_bundle_is_refused(tmp_path: Path, bundle_copy: Path) -> None:
    for path in (tmp_path / "nowhere", bundle_copy / MODEL):
        with pytest.raises(InputRefusedError, match="is not a folder"):
            read_bundle(path)
    (bundle_copy / DESCRIPTION).write_bytes(b" " * (2 << 20))
    with pytest.raises(InputRefusedError, match="is larger than"):
        read_bundle(bundle_copy)


@pytest.mark.parametrize("swapped", FILES)
def test_files_of_two_bundles_cannot_be_mixed(finished: Any, bundle_copy: Path, tmp_path: Path, swapped: str) -> None:
    other = prepare_bundle(finished.folder, "site-2", out=tmp_path / "other", key=finished.key)
    other.write()
    shutil.copy(other.folder / swapped, bundle_copy / swapped)
    with pytest.raises(InputRefusedError):
        read_bundle(bundle_copy)


def test_a_forged_bundle_is_accepted_only_without_a_trusted_key(finished: Any, resign: Callable[..., Path]) -> None:
    """A signature reveals damage to every reader, but a forgery only to a reader who names a trusted key."""
    forged = resign(temperature=1.0)
    assert not read_bundle(forged).trusted
    with pytest.raises(InputRefusedError, match="--trust"):
        read_bundle(forged, read_public_key(public_key_path(finished.key)))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"schema": 2}, "schema"),
        ({"temperature": 0.0}, "temperature"),
        ({"temperature": "1.0"}, "temperature"),
        ({"task": "regression"}, "task"),
        ({"embedding": "eval"}, "embedding"),
        ({"classes": []}, "classes"),
        ({"classes": ["a", "b", "c", "d", "a"]}, "classes must differ"),
        ({"classes": ["a", "b"]}, "2 classes"),
        ({"prompt_layers": [0, -1]}, "prompt_layers"),
        ({"tokens": 2}, "tokens has shape"),
        ({"tokens": 0}, "need"),
        ({"tensors": {"sinks": [6, 18]}}, "head"),
        ({"model_sha256": "0" * 64}, "SHA-256"),
        ({"backbone": {"name": "test_vit", "digest": "short"}}, "backbone.digest"),
        ({"rounds": 1.5}, "rounds"),
        ({"plugin": "os.system"}, "plugin"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_signed_but_invalid_description_is_refused(
    resign: Callable[..., Path], changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(InputRefusedError) as refusal:
        read_bundle(resign(**changes))
    assert named in str(refusal.value)


def test_all_problems_of_a_description_are_reported_together(resign: Callable[..., Path]) -> None:
    with pytest.raises(InputRefusedError) as refusal:
        read_bundle(resign(temperature=-1.0, task="other", plugin="x"))
    assert len(refusal.value.problems) == 3


@pytest.mark.parametrize(
    ("tensors", "reason"),
    [
        ({"a": np.full((2, 2), np.nan, np.float32)}, "finite"),
        ({"a": np.zeros((2, 2), np.float64)}, "need float32"),
        ({"a": np.zeros((2, 3), np.float32)}, "need float32"),
        ({"b": np.zeros((2, 2), np.float32)}, "is missing"),
        ({"a": np.zeros((2, 2), np.float32), "b": np.zeros(1, np.float32)}, "is not in bundle.json"),
    ],
)
def test_tensors_must_match_their_description(tensors: dict[str, np.ndarray], reason: str) -> None:
    with pytest.raises(InputRefusedError, match=reason):
        check_tensors(save(tensors), {"a": (2, 2)})


def test_a_pickle_is_never_loaded() -> None:
    with pytest.raises(InputRefusedError, match="is not a safetensors file"):
        check_tensors(b"\x80\x04\x95cos\nsystem\n(S'exit 1'\ntR.", None)
