import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from hypothesis import given
from hypothesis import strategies as st

from ept_fed.errors import InputRefusedError
from ept_fed.pki.signing import (
    fingerprint,
    public_key_path,
    read_private_key,
    read_public_key,
    sign,
    verify,
    write_key,
)
from ept_fed.storage.canonical_json import parse_canonical, serialize_canonical
from tests.effort import examples

KEY = ec.generate_private_key(ec.SECP384R1())
PEM, PKCS8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8


def test_a_new_key_is_readable_only_by_its_owner_and_never_replaces_another(tmp_path: Path) -> None:
    path = tmp_path / "site" / "signing-key.pem"
    write_key(path, KEY)
    assert path.stat().st_mode & 0o777 == 0o600
    assert fingerprint(read_private_key(path, "--key").public_key()) == fingerprint(KEY.public_key())
    assert fingerprint(read_public_key(public_key_path(path))) == fingerprint(KEY.public_key())
    assert b"PRIVATE" not in public_key_path(path).read_bytes()
    with pytest.raises(FileExistsError):
        write_key(path, ec.generate_private_key(ec.SECP384R1()))
    assert fingerprint(read_private_key(path, "--key").public_key()) == fingerprint(KEY.public_key())


def test_a_key_that_others_may_read_is_refused_with_the_chmod_command(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    write_key(path, KEY)
    path.chmod(0o640)
    with pytest.raises(InputRefusedError, match="chmod 600"):
        read_private_key(path, "--key")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a key",
        ec.generate_private_key(ec.SECP256R1()).private_bytes(PEM, PKCS8, serialization.NoEncryption()),
        ed25519.Ed25519PrivateKey.generate().private_bytes(PEM, PKCS8, serialization.NoEncryption()),
        KEY.private_bytes(PEM, PKCS8, serialization.BestAvailableEncryption(b"secret")),
        KEY.public_key().public_bytes(PEM, serialization.PublicFormat.SubjectPublicKeyInfo),
    ],
    ids=["empty", "text", "P-256", "Ed25519", "encrypted", "public"],
)
def test_keys_of_other_kinds_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(InputRefusedError, match="--key"):
        read_private_key(path, "--key")


def test_a_private_key_given_as_the_key_to_trust_is_refused(tmp_path: Path) -> None:
    write_key(tmp_path / "key.pem", KEY)
    with pytest.raises(InputRefusedError, match="--trust"):
        read_public_key(tmp_path / "key.pem")
    with pytest.raises(InputRefusedError, match="No such file"):
        read_public_key(tmp_path / "nothing.pem")


@examples(10)
@given(content=st.binary(max_size=200), other=st.binary(max_size=200))
def test_a_signature_is_valid_only_for_its_own_content(content: bytes, other: bytes) -> None:
    signature = sign(content, KEY)
    assert signature == sign(content, KEY)
    assert verify(content, signature, KEY.public_key()) == fingerprint(KEY.public_key())
    if other != content:
        with pytest.raises(InputRefusedError, match="was altered"):
            verify(other, signature, None)


def test_a_signature_of_another_key_is_refused_with_both_fingerprints() -> None:
    stranger = ec.generate_private_key(ec.SECP384R1())
    with pytest.raises(InputRefusedError) as refusal:
        verify(b"x", sign(b"x", stranger), KEY.public_key())
    for key in (stranger, KEY):
        assert fingerprint(key.public_key()) in str(refusal.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"schema": 2},
        {"schema": True},
        {"algorithm": "none"},
        {"signature": ""},
        {"signature": "AAAA"},
        {"signature": "é"},
        {"signature": 7},
        {"public_key": "-----BEGIN PUBLIC KEY-----\n-----END PUBLIC KEY-----\n"},
        {"fingerprint": "0" * 64},
        {"comment": "hello"},
    ],
    ids=lambda changes: ",".join(f"{key}={value!r:.12}" for key, value in changes.items()),
)
def test_a_signature_file_of_another_form_is_refused(changes: dict[str, object]) -> None:
    document = json.loads(sign(b"x", KEY)) | changes
    with pytest.raises(InputRefusedError, match=r"signature\.json"):
        verify(b"x", serialize_canonical(document), None)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"\xff",
        b'{"a": NaN}',
        b'{"a":1}',
        b'{\n  "a": 1,\n  "a": 1\n}\n',
        b'{\n  "b": 1,\n  "a": 1\n}\n',
        b'{\n  "a": "\\u0041"\n}\n',
        b"[" * 100_000,
    ],
)
def test_only_the_canonical_serialization_is_read(content: bytes) -> None:
    with pytest.raises(InputRefusedError, match="unaltered copy"):
        parse_canonical("file.json", content)
