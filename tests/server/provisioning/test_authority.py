"""Certificates and keys in files: every altered file is refused with a sentence, never with a traceback."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from ept_fed.errors import InputRefusedError
from ept_fed.pki.certificates import check_validity, common_name, find_chain_problems, parse_certificate, public_key
from ept_fed.pki.keys import (
    new_key,
    parse_openssh_private,
    parse_openssh_public,
    parse_pkcs8,
    same_key,
    serialize_openssh_private,
    serialize_openssh_public,
    serialize_pkcs8,
)
from server.provisioning.authority import Authority

NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)
KEY = new_key()


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"), "three", NOW, 3650)


def test_keys_survive_both_serializations() -> None:
    for serialized in (
        parse_pkcs8(serialize_pkcs8(KEY), "a"),
        parse_openssh_private(serialize_openssh_private(KEY), "b"),
    ):
        assert same_key(serialized.public_key(), KEY.public_key())
    line = serialize_openssh_public(KEY.public_key())
    assert line.startswith("ecdsa-sha2-nistp384 ")
    assert same_key(parse_openssh_public(f"{line} north\n".encode(), "c"), KEY.public_key())
    assert not same_key(new_key().public_key(), KEY.public_key())


PARSERS: dict[str, tuple[Callable[[bytes, str], Any], bytes]] = {
    "pkcs8": (parse_pkcs8, serialize_pkcs8(KEY)),
    "openssh": (parse_openssh_private, serialize_openssh_private(KEY)),
    "public": (parse_openssh_public, serialize_openssh_public(KEY.public_key()).encode()),
}


@pytest.mark.parametrize("name", PARSERS)
@pytest.mark.parametrize("bit", [1, 32, 128])
def test_a_flipped_bit_in_a_key_is_refused_or_harmless(name: str, bit: int) -> None:
    parse, content = PARSERS[name]
    for position in range(len(content)):
        try:
            parse(content[:position] + bytes([content[position] ^ bit]) + content[position + 1 :], name)
        except InputRefusedError as refusal:
            assert refusal.problems[0].field == name


@pytest.mark.filterwarnings("ignore:Parsed a serial number")
@pytest.mark.parametrize("bit", [1, 32, 128])
def test_a_flipped_bit_in_a_certificate_is_refused_or_breaks_the_chain(authority: Authority, bit: int) -> None:
    issued = authority.issue_site("north", KEY.public_key(), "node", now=NOW, days=365)
    content, original = issued.certificate.encode(), issued.parse()
    for position in range(len(content)):
        flipped = content[:position] + bytes([content[position] ^ bit]) + content[position + 1 :]
        try:
            read = parse_certificate(flipped, "site.crt")
        except InputRefusedError:
            continue
        check_validity(read, NOW)
        assert read == original or find_chain_problems(read, authority.certificate, "site.crt"), position


def test_two_certificates_and_none_are_refused(authority: Authority) -> None:
    pem = authority.issue_site("north", KEY.public_key(), "node", now=NOW, days=365).certificate.encode()
    for content in (pem + pem, b"", b"text"):
        with pytest.raises(InputRefusedError, match=r"site\.crt"):
            parse_certificate(content, "site.crt")


def test_no_certificate_outlives_its_authority(tmp_path: Path) -> None:
    short = Authority(tmp_path, "three", NOW, 10)
    issued = short.issue_site("north", KEY.public_key(), "node", now=NOW + timedelta(days=5), days=365).parse()
    assert issued.not_valid_after_utc == short.certificate.not_valid_after_utc == NOW + timedelta(days=10)
    assert not find_chain_problems(issued, short.certificate, "site.crt")


def test_what_was_issued_is_there_after_reopening(tmp_path: Path) -> None:
    first = Authority(tmp_path, "three", NOW, 3650)
    issued = first.issue_site("north", KEY.public_key(), "node", now=NOW, days=365)
    first.revoke("north", "site", NOW + timedelta(days=1))
    again = Authority(tmp_path, "three", NOW, 3650)
    (line,) = again.issued
    assert (line.who, line.what, line.fingerprint) == ("north", "site", issued.fingerprint)
    assert line.revoked == "2026-11-24T12:00:00+00:00"
    assert again.current("north", "site") is None
    assert again.latest("north", "site") == line
    assert again.knows(KEY.public_key()) == line
    assert again.knows(new_key().public_key()) is None
    assert common_name(line.parse()) == "north"
    assert same_key(public_key(line.parse()), KEY.public_key())


def test_authorities_of_equal_name_do_not_vouch_for_each_other(authority: Authority, tmp_path: Path) -> None:
    other = Authority(tmp_path, "three", NOW, 3650)
    issued = other.issue_server("proxy", ["localhost"], KEY.public_key(), now=NOW, days=365).parse()
    assert not find_chain_problems(issued, other.certificate, "proxy.crt", hosts=["localhost"])
    assert find_chain_problems(issued, authority.certificate, "proxy.crt", hosts=["localhost"])
    assert find_chain_problems(issued, other.certificate, "proxy.crt", hosts=["localhost", "127.0.0.1"])
