"""The check finds kits that are damaged, readable by others, out of date or mixed from two kits, and no others."""

import os
import shutil
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from ept_fed.errors import InputRefusedError
from ept_fed.pki.check_kit import examine_kit
from ept_fed.pki.keys import new_key, serialize_openssh_private, serialize_pkcs8
from ept_fed.pki.kit_layout import parse_checksums, read_identity

KINDS = ("sites/north", "server", "authority")


@pytest.mark.parametrize("kit", KINDS)
def test_a_fresh_kit_is_sound(kit: str, kits: Path, now: datetime) -> None:
    found = examine_kit(kits / kit, now)
    assert (found.status, found.faults, found.notices) == ("sound", [], [])
    assert found.to_json()["certificates"]


@pytest.mark.parametrize(
    ("days", "status"), [(31, "sound"), (30, "notice"), (29, "notice"), (0, "notice"), (-1, "faults")]
)
@pytest.mark.parametrize("kit", ["sites/north", "server"])
def test_the_end_of_a_certificate_is_told_thirty_days_before(
    kit: str, days: int, status: str, kits: Path, now: datetime
) -> None:
    found = examine_kit(kits / kit, now + timedelta(days=365 - days))
    assert found.status == status
    told = found.faults + found.notices
    assert all("provision renew" in problem.fix for problem in told)
    if status == "notice":
        assert all(f"ends on 2027-11-23, in {days} days" in problem.fix for problem in told)
    if status == "faults":
        assert all("ended on 2027-11-23" in problem.fix for problem in told)


def test_a_clock_before_the_certificate_is_told(kits: Path, now: datetime) -> None:
    assert examine_kit(kits / "sites" / "north", now - timedelta(minutes=59)).status == "sound"
    found = examine_kit(kits / "sites" / "north", now - timedelta(minutes=61))
    assert all("correct this machine's clock" in fault.fix for fault in found.faults)
    assert found.status == "faults"


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("kit", ["sites/north", "server"])
def test_every_file_of_a_kit_is_watched(kit: str, kits: Path, now: datetime, tmp_path: Path) -> None:
    """Alter and remove each file separately; the files that the site edits may be altered but not missing."""
    names = [path.relative_to(kits / kit).as_posix() for path in (kits / kit).rglob("*") if path.is_file()]
    edited = {"site.yaml", "policy.yaml"}
    for number, name in enumerate(names):
        for act in (flip, Path.unlink):
            copy = tmp_path / f"{act.__name__}-{number}"
            shutil.copytree(kits / kit, copy)
            act(copy / name)
            try:
                found = examine_kit(copy, now)
            except InputRefusedError:
                assert name in ("federation.json", "sites.json", "federation.yaml")
                continue
            if act is flip and name in edited:
                assert found.status == "sound"
            else:
                assert found.faults, f"{act.__name__} {name}"
                assert name in {fault.field for fault in found.faults} | {"SHA256SUMS"}


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
@pytest.mark.parametrize(
    ("name", "mode", "fix"),
    [
        ("sites/north/keys/node", 0o640, "chmod 600 keys/node"),
        ("sites/north/keys/site.key", 0o604, "chmod 600 keys/site.key"),
        ("sites/north/keys", 0o755, "chmod 711 keys"),
        ("server/tls/proxy.key", 0o644, "chmod 600 tls/proxy.key"),
        ("authority/ca.key", 0o660, "chmod 600 ca.key"),
    ],
)
def test_keys_open_to_others_are_found(name: str, mode: int, fix: str, kits: Path, now: datetime) -> None:
    (kits / name).chmod(mode)
    kit = next(kits / kind for kind in KINDS if name.startswith(kind))
    found = examine_kit(kit, now)
    assert [fix in fault.fix for fault in found.faults] == [True]


def test_a_folder_that_two_users_may_enter_is_sound(kits: Path, now: datetime) -> None:
    (kits / "sites" / "north" / "keys").chmod(0o711)
    assert examine_kit(kits / "sites" / "north", now).status == "sound"


@pytest.mark.parametrize(
    ("name", "content"),
    [("keys/site.key", serialize_pkcs8(new_key())), ("keys/node", serialize_openssh_private(new_key()))],
)
def test_keys_of_another_certificate_are_found(name: str, content: bytes, kits: Path, now: datetime) -> None:
    kit = kits / "sites" / "north"
    (kit / name).write_bytes(content)
    assert [fault.field for fault in examine_kit(kit, now).faults] == [name]


def resum(kit: Path) -> None:
    """Recompute the checksums after an exchange of files, as a forger also does."""
    from hashlib import sha256

    names = parse_checksums((kit / "SHA256SUMS").read_bytes())
    lines = [f"{sha256((kit / name).read_bytes()).hexdigest()}  {name}\n" for name in names]
    (kit / "SHA256SUMS").write_text("".join(lines))


def test_another_sites_certificate_is_found_even_with_fitting_checksums(kits: Path, now: datetime) -> None:
    kit = kits / "sites" / "north"
    for name in ("tls/site.crt", "keys/site.key"):
        shutil.copy(kits / "sites" / "south" / name, kit / name)
    resum(kit)
    (fault,) = examine_kit(kit, now).faults
    assert (fault.field, fault.value) == ("tls/site.crt", "south")


def test_a_foreign_authority_is_found_even_with_fitting_checksums(
    kits: Path, federation_file: Path, now: datetime, tmp_path: Path
) -> None:
    from server.provisioning.provision import provision

    provision(federation_file, tmp_path / "other", now=now)
    for kit in (kits / "server", kits / "sites" / "north"):
        shutil.copy(tmp_path / "other" / "authority" / "ca.crt", kit / "tls" / "ca.crt")
        resum(kit)
        found = examine_kit(kit, now)
        assert found.faults
        assert all("was not issued for this by the authority of tls/ca.crt" in fault.fix for fault in found.faults)


@pytest.mark.parametrize(
    "line",
    ["nonsense", "0" * 64 + "  ../../etc/passwd", "0" * 64 + "  /etc/passwd", "0" * 64 + "  a//b", "0" * 63 + "  a"],
)
def test_checksums_of_files_outside_the_kit_are_refused(line: str) -> None:
    with pytest.raises(InputRefusedError, match="SHA256SUMS"):
        parse_checksums(line.encode())


@pytest.mark.parametrize(
    "alter",
    [
        lambda path: path.unlink(),
        lambda path: path.write_text("{"),
        lambda path: path.write_text('{"schema": 2}'),
        lambda path: path.write_text(path.read_text().replace('"schema": 1', '"schema": 1, "more": 1')),
        lambda path: path.write_text(path.read_text().replace('"north"', '"../north"')),
    ],
)
def test_another_federation_json_is_refused(alter: Callable[[Path], object], kits: Path) -> None:
    alter(kits / "sites" / "north" / "federation.json")
    with pytest.raises(InputRefusedError, match=r"federation\.json"):
        read_identity(kits / "sites" / "north")


def test_any_other_folder_is_refused(tmp_path: Path, now: datetime) -> None:
    with pytest.raises(InputRefusedError, match="is not a kit"):
        examine_kit(tmp_path, now)
