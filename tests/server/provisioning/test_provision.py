"""Kits: provisioning is idempotent, an act on one site changes only that site, and other tools accept the content."""

import json
import os
import re
import shlex
import shutil
import socket
import ssl
import stat
import subprocess
import threading
import zipfile
from collections.abc import Callable
from datetime import datetime, timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store

from ept_fed.errors import InputRefusedError
from ept_fed.pki.check_kit import examine_kit
from ept_fed.pki.keys import new_key, serialize_pkcs8
from ept_fed.pki.kit_layout import read_identity
from server.provisioning.provision import provision, renew_server, renew_site, revoke
from tests.needs import OPENSSL, SYSTEMD, UNZIP

Snapshot = Callable[[Path], dict[str, tuple[str, int]]]


def changed(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


def certificate(path: Path) -> x509.Certificate:
    return x509.load_pem_x509_certificate(path.read_bytes())


def issued(kits: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (kits / "authority" / "issued.jsonl").read_text().splitlines()]


def sites(kits: Path) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((kits / "server" / "sites.json").read_text())
    return document["sites"]


def test_provisioning_twice_changes_no_byte_and_no_permission(
    kits: Path, federation_file: Path, now: datetime, snapshot: Snapshot
) -> None:
    before = snapshot(kits)
    again = provision(federation_file, kits, now=now + timedelta(days=100))
    assert snapshot(kits) == before
    assert again.changed == ()
    assert [site.state for site in again.sites] == ["complete", "complete", "waits for its request"]


def test_the_layout_is_what_was_agreed(kits: Path, snapshot: Snapshot) -> None:
    site = {"site.yaml", "policy.yaml", "federation.json", "README.md", "SHA256SUMS", "tls/ca.crt", "tls/site.crt"}
    site |= {"keys/node", "keys/node.pub", "keys/site.key", "start-worker.sh", "start-supernode.sh"}
    site |= {"ept-fed-worker.service", "ept-fed-supernode.service"}
    server = {"federation.yaml", "sites.json", "nodes/north.pub", "nodes/south.pub", "README.md", "start.sh"}
    server |= {f"tls/{name}" for name in ("ca.crt", "proxy.crt", "proxy.key", "superlink.crt", "superlink.key")}
    server |= {"ept-fed-server.service", "SHA256SUMS"}
    assert set(snapshot(kits / "sites" / "north")) == site
    assert set(snapshot(kits / "server")) == server
    assert set(snapshot(kits / "authority")) == {"ca.crt", "ca.key", "issued.jsonl"}
    assert {path.name for path in (kits / "sites").iterdir()} == {"north", "north.zip", "south", "south.zip"}
    identity = read_identity(kits / "sites" / "north")
    assert (identity.federation, identity.site, identity.server.host, identity.server.port) == (
        "three",
        "north",
        "localhost",
        8443,
    )


def test_only_owners_can_read_private_keys_in_folders_and_zips(kits: Path, snapshot: Snapshot) -> None:
    secret = {name for name, (_, mode) in snapshot(kits).items() if not mode & 0o077}
    keys = {
        "server/tls/proxy.key",
        "server/tls/superlink.key",
        "authority/ca.key",
        "sites/north.zip",
        "sites/south.zip",
    }
    assert secret == keys | {f"sites/{name}/keys/{key}" for name in ("north", "south") for key in ("node", "site.key")}
    for folder in ("authority", "server/tls", "sites/north/keys"):
        assert (kits / folder).stat().st_mode & 0o777 == 0o700
    for path in kits.rglob("*"):
        assert not (path.is_file() and b"PRIVATE" in path.read_bytes()) or path.relative_to(kits).as_posix() in secret
    with zipfile.ZipFile(kits / "sites" / "north.zip") as archive:
        modes = {entry.filename: entry.external_attr >> 16 for entry in archive.infolist()}
    assert modes["keys/"] == stat.S_IFDIR | 0o700
    assert modes["keys/node"] == modes["keys/site.key"] == stat.S_IFREG | 0o600
    assert modes["start-worker.sh"] == stat.S_IFREG | 0o755


def test_the_zip_is_the_folder(kits: Path, snapshot: Snapshot) -> None:
    with zipfile.ZipFile(kits / "sites" / "north.zip") as archive:
        held = {entry.filename: archive.read(entry) for entry in archive.infolist() if not entry.is_dir()}
    folder = kits / "sites" / "north"
    assert held == {name: (folder / name).read_bytes() for name in snapshot(folder)}


def test_a_site_added_later_touches_no_other_site(
    kits: Path, add_to: Callable[..., Path], now: datetime, snapshot: Snapshot
) -> None:
    before = snapshot(kits)
    provision(add_to(sites=[{"name": name} for name in ("north", "south", "east")]), kits, now=now)
    touched = changed(before, snapshot(kits))
    others = {name for name in touched if not name.startswith("sites/east")}
    assert others == {
        "authority/issued.jsonl",
        "server/federation.yaml",
        "server/sites.json",
        "server/nodes/east.pub",
        "server/SHA256SUMS",
    }
    assert {"sites/east/keys/node", "sites/east.zip"} <= touched


def test_what_the_site_edits_is_written_once(kits: Path, federation_file: Path, now: datetime) -> None:
    edited = kits / "sites" / "north" / "site.yaml"
    edited.write_text("site: north\n")
    assert provision(federation_file, kits, now=now).changed == ()
    assert edited.read_text() == "site: north\n"


def test_renewing_a_site_keeps_its_keys_and_touches_no_other(kits: Path, now: datetime, snapshot: Snapshot) -> None:
    before, old = snapshot(kits), certificate(kits / "sites" / "north" / "tls" / "site.crt")
    later = now + timedelta(days=350)
    renew_site("north", kits, now=later)
    new = certificate(kits / "sites" / "north" / "tls" / "site.crt")
    assert changed(before, snapshot(kits)) == {
        "authority/issued.jsonl",
        "server/sites.json",
        "server/SHA256SUMS",
        "sites/north.zip",
        "sites/north/README.md",
        "sites/north/SHA256SUMS",
        "sites/north/tls/site.crt",
    }
    assert new.public_key() == old.public_key()
    assert new.serial_number != old.serial_number
    assert new.not_valid_after_utc == later + timedelta(days=365)


@pytest.mark.integration
@UNZIP.mark
def test_the_readmes_command_lays_a_renewed_kit_over_an_edited_one(kits: Path, now: datetime, tmp_path: Path) -> None:
    site, archive = tmp_path / "hospital", kits / "sites" / "north.zip"
    subprocess.run(["unzip", "-q", archive, "-d", site], check=True)
    assert examine_kit(site, now).status == "sound"
    (site / "site.yaml").write_text("edited")
    (site / "keys").chmod(0o711)
    renew_site("north", kits, now=now + timedelta(days=340))
    (command,) = re.findall(r"`(unzip -o .*)`", (site / "README.md").read_text())
    words = [
        {"north.zip": str(archive), "/opt/ept-fed/kit": str(site)}.get(word, word) for word in shlex.split(command)
    ]
    before = {path: path.stat().st_ino for path in (site / "keys").iterdir()}
    subprocess.run([words[0], "-q", *words[1:]], check=True)
    assert (site / "site.yaml").read_text() == "edited"
    assert {path: path.stat().st_ino for path in (site / "keys").iterdir()} == before
    assert (site / "keys").stat().st_mode & 0o777 == 0o711
    assert examine_kit(site, now + timedelta(days=600)).status == "sound"


def test_a_kit_that_was_handed_over_and_deleted_stays_deleted_until_it_is_renewed(
    kits: Path, federation_file: Path, now: datetime, snapshot: Snapshot, tmp_path: Path
) -> None:
    site = tmp_path / "hospital"
    shutil.move(kits / "sites" / "north", site)
    (kits / "sites" / "north.zip").unlink()
    done = provision(federation_file, kits, now=now)
    assert done.changed == ()
    assert done.sites[0].state == "handed over"
    assert renew_site("north", kits, now=now + timedelta(days=300)).sites[0].state == "without keys"
    assert not set(snapshot(kits / "sites" / "north")) & {"keys/node", "keys/site.key"}
    with zipfile.ZipFile(kits / "sites" / "north.zip") as archive:
        archive.extractall(site, [name for name in archive.namelist() if name not in ("site.yaml", "policy.yaml")])
    assert examine_kit(site, now + timedelta(days=600)).status == "sound"


def test_a_server_kit_that_was_handed_over_is_kept_up_without_its_keys(
    kits: Path, add_to: Callable[..., Path], now: datetime, tmp_path: Path
) -> None:
    server = tmp_path / "machine"
    shutil.move(kits / "server", server)
    sites_now = [{"name": name} for name in ("north", "south", "east")]
    done = provision(add_to(sites=sites_now), kits, now=now)
    assert done.server_state == "without keys"
    assert not [path for path in (kits / "server" / "tls").iterdir() if path.suffix == ".key"]
    shutil.copytree(kits / "server", server, dirs_exist_ok=True)
    assert examine_kit(server, now).status == "sound"
    assert {path.stem for path in (server / "nodes").iterdir()} == {"north", "south", "east"}


def test_renewing_the_server_touches_no_site(kits: Path, now: datetime, snapshot: Snapshot) -> None:
    before = snapshot(kits)
    renew_server(kits, now=now + timedelta(days=1))
    touched = changed(before, snapshot(kits))
    assert {"server/tls/proxy.crt", "server/tls/superlink.crt"} <= touched
    assert not any(name.startswith("sites/") or name.endswith(".key") for name in touched)
    renew_server(kits, new_keys=True, now=now + timedelta(days=2))
    assert {"server/tls/proxy.key", "server/tls/superlink.key"} <= changed(before, snapshot(kits))
    assert examine_kit(kits / "server", now + timedelta(days=2)).status == "sound"


def test_a_new_host_gets_a_certificate_and_tells_every_site(
    kits: Path, add_to: Callable[..., Path], now: datetime
) -> None:
    provision(add_to(server={"host": "10.0.0.7", "port": 443}), kits, now=now)
    names = certificate(kits / "server" / "tls" / "proxy.crt").extensions.get_extension_for_class(
        x509.SubjectAlternativeName
    )
    assert [str(name.value) for name in names.value] == ["10.0.0.7"]
    for site in ("north", "south"):
        assert read_identity(kits / "sites" / site).server.host == "10.0.0.7"
        assert "TCP to **10.0.0.7:443**" in (kits / "sites" / site / "README.md").read_text()
    assert "CAP_NET_BIND_SERVICE" in (kits / "server" / "ept-fed-server.service").read_text()


def test_a_revoked_site_is_shut_out_and_comes_back_with_new_keys_only(
    kits: Path, federation_file: Path, now: datetime, snapshot: Snapshot
) -> None:
    before, node = snapshot(kits), sites(kits)["north"]["node"]
    revoke("north", kits, now=now)
    assert sites(kits)["north"]["revoked"] is True
    assert sites(kits)["south"]["revoked"] is False
    assert not (kits / "server" / "nodes" / "north.pub").exists()
    assert not any(name.startswith("sites/") for name in changed(before, snapshot(kits)))
    assert provision(federation_file, kits, now=now).sites[0].state == "revoked"
    assert not (kits / "server" / "nodes" / "north.pub").exists()
    with pytest.raises(InputRefusedError, match="--new-keys readmits a revoked site"):
        renew_site("north", kits, now=now)
    with pytest.raises(InputRefusedError, match="has no certificate to revoke; sites with certificates: north, south"):
        revoke("north", kits, now=now)
    assert renew_site("north", kits, new_keys=True, now=now).sites[0].state == "complete"
    assert sites(kits)["north"]["revoked"] is False
    assert sites(kits)["north"]["node"] != node
    assert examine_kit(kits / "sites" / "north", now).status == "sound"


def test_a_site_may_leave_the_file_only_once_it_is_revoked(
    kits: Path, add_to: Callable[..., Path], now: datetime
) -> None:
    fewer = add_to(sites=[{"name": "south"}])
    with pytest.raises(InputRefusedError, match="'north': has a certificate but is not listed any more"):
        provision(fewer, kits, now=now)
    revoke("north", kits, now=now)
    provision(fewer, kits, now=now)
    assert sites(kits)["north"]["revoked"] is True


@pytest.mark.parametrize(
    ("act", "sentence"),
    [
        (lambda kits, now: renew_site("nord", kits, now=now), r"'nord': is not a site of three \(north, south, west\)"),
        (lambda kits, now: renew_site("west", kits, now=now), "approve its request"),
        (lambda kits, now: renew_site("west", kits, new_keys=True, now=now), "makes its own keys"),
        (lambda kits, now: renew_server(kits / "server", now=now), "holds no kits and authority"),
        (lambda kits, now: renew_server(kits, now=now + timedelta(days=4000)), "ended on 2036-11-20"),
    ],
)
def test_acts_that_cannot_be_done_are_refused_by_name(
    act: Callable[[Path, datetime], object], sentence: str, kits: Path, now: datetime, snapshot: Snapshot
) -> None:
    before = snapshot(kits)
    with pytest.raises(InputRefusedError, match=sentence):
        act(kits, now)
    assert snapshot(kits) == before


def test_another_federations_folder_and_a_broken_authority_are_refused(
    kits: Path, federation_file: Path, add_to: Callable[..., Path], now: datetime
) -> None:
    with pytest.raises(InputRefusedError, match="'three authority': is not 'four authority'"):
        provision(add_to(name="four"), kits, now=now)
    add_to(name="three")
    key = (kits / "authority" / "ca.key").read_bytes()
    (kits / "authority" / "ca.key").write_bytes(serialize_pkcs8(new_key()))
    with pytest.raises(InputRefusedError, match=r"ca\.key is not the key of ca\.crt"):
        provision(federation_file, kits, now=now)
    (kits / "authority" / "ca.key").unlink()
    with pytest.raises(InputRefusedError, match=r"only one of ca\.key and ca\.crt"):
        provision(federation_file, kits, now=now)
    (kits / "authority" / "ca.key").write_bytes(key)
    (kits / "authority" / "issued.jsonl").open("a").write('{"schema": 2}\n')
    with pytest.raises(InputRefusedError, match=r"issued\.jsonl, line 5"):
        provision(federation_file, kits, now=now)


def test_a_private_key_is_never_replaced_by_accident(kits: Path, federation_file: Path, now: datetime) -> None:
    (kits / "sites" / "north" / "keys" / "site.key").write_bytes(serialize_pkcs8(new_key()))
    with pytest.raises(InputRefusedError, match="is not the key that was certified"):
        provision(federation_file, kits, now=now)
    (kits / "sites" / "north" / "keys" / "site.key").unlink()
    with pytest.raises(InputRefusedError, match=r"lacks keys/site\.key"):
        provision(federation_file, kits, now=now)


def test_an_interrupted_provision_goes_on_with_the_keys_it_had_made(
    federation_file: Path, tmp_path: Path, now: datetime
) -> None:
    kits = tmp_path / "kits"
    provision(federation_file, kits, now=now)
    key = (kits / "sites" / "north" / "keys" / "site.key").read_bytes()
    (kits / "authority" / "issued.jsonl").unlink()
    shutil.rmtree(kits / "sites" / "north" / "tls")
    provision(federation_file, kits, now=now)
    assert (kits / "sites" / "north" / "keys" / "site.key").read_bytes() == key
    assert examine_kit(kits / "sites" / "north", now).status == "sound"


def test_every_certificate_verifies_for_its_purpose_only(kits: Path, now: datetime) -> None:
    builder = PolicyBuilder().store(Store([certificate(kits / "authority" / "ca.crt")])).time(now)
    site = certificate(kits / "sites" / "north" / "tls" / "site.crt")
    proxy = certificate(kits / "server" / "tls" / "proxy.crt")
    superlink = certificate(kits / "server" / "tls" / "superlink.crt")
    builder.build_client_verifier().verify(site, [])
    builder.build_server_verifier(x509.DNSName("localhost")).verify(proxy, [])
    for host in (x509.DNSName("localhost"), x509.IPAddress(ip_address("127.0.0.1"))):
        builder.build_server_verifier(host).verify(superlink, [])
    for verifier, wrong in (
        (builder.build_server_verifier(x509.DNSName("localhost")), site),
        (builder.build_server_verifier(x509.DNSName("example.org")), proxy),
        (builder.build_client_verifier(), proxy),
    ):
        with pytest.raises(x509.verification.VerificationError):
            verifier.verify(wrong, [])
    serials = [line["serial"] for line in issued(kits)]
    assert len(set(serials)) == len(serials) == 4
    assert all(len(serial) == 40 and int(serial, 16) >= 2**64 for serial in serials)


@pytest.mark.integration
@OPENSSL.mark
def test_openssl_agrees_about_the_chain(kits: Path) -> None:
    for path in (*kits.glob("sites/*/tls/site.crt"), *(kits / "server" / "tls" / f"{n}.crt" for n in _SERVER)):
        at = str(int(certificate(path).not_valid_before_utc.timestamp()) + 3600)
        command = ["openssl", "verify", "-x509_strict", "-attime", at, "-CAfile"]
        done = subprocess.run(
            [*command, kits / "authority" / "ca.crt", path], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr


_SERVER = ("proxy", "superlink")


@pytest.mark.integration
@pytest.mark.parametrize("name", _SERVER)
def test_a_tls_handshake_succeeds_with_the_kits_files_and_with_nothing_else(
    name: str, federation_file: Path, tmp_path: Path
) -> None:
    kits = tmp_path / "kits"
    provision(federation_file, kits, now=datetime.now().astimezone())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(kits / "server" / "tls" / f"{name}.crt", kits / "server" / "tls" / f"{name}.key")

    def greet(listener: socket.socket) -> None:
        for _ in range(2):
            connection, _address = listener.accept()
            try:
                with context.wrap_socket(connection, server_side=True) as secured:
                    secured.sendall(b"hello")
            except OSError:
                connection.close()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=greet, args=(listener,))
        thread.start()
        trusting = ssl.create_default_context(cafile=kits / "sites" / "north" / "tls" / "ca.crt")
        with (
            socket.create_connection(listener.getsockname(), timeout=30) as plain,
            trusting.wrap_socket(plain, server_hostname="localhost") as secured,
        ):
            assert secured.recv(5) == b"hello"
        with (
            socket.create_connection(listener.getsockname(), timeout=30) as plain,
            pytest.raises(ssl.SSLCertVerificationError),
        ):
            ssl.create_default_context().wrap_socket(plain, server_hostname="localhost")
        thread.join(timeout=30)
        assert not thread.is_alive()


def test_flowers_own_loaders_take_the_node_keys(kits: Path) -> None:
    import argparse

    from flwr.cli.supernode.register import try_load_public_key
    from flwr.supercore.primitives.asymmetric import public_key_to_bytes, uses_nist_ec_curve
    from flwr.supernode.cli.flower_supernode import _try_setup_client_authentication

    path = kits / "sites" / "north" / "keys" / "node"
    arguments = argparse.Namespace(auth_supernode_private_key=str(path), auth_supernode_public_key=None)
    loaded = _try_setup_client_authentication(arguments)
    assert loaded is not None
    assert uses_nist_ec_curve(loaded[1])
    registered = try_load_public_key(kits / "server" / "nodes" / "north.pub")
    assert registered == public_key_to_bytes(loaded[1])
    assert sites(kits)["north"]["node"] in (kits / "server" / "nodes" / "north.pub").read_text()


@pytest.mark.integration
def test_the_start_scripts_start_one_process_each_from_their_own_kit(kits: Path, tmp_path: Path) -> None:
    """The scripts run unchanged; only `ept-fed` is replaced by a script that records its arguments."""
    stand_in = tmp_path / "bin" / "ept-fed"
    stand_in.parent.mkdir()
    stand_in.write_text(f'#!/bin/sh\necho "$@" > "{tmp_path}/arguments"\nenv > "{tmp_path}/environment"\n')
    stand_in.chmod(0o755)
    north, server = kits / "sites" / "north", kits / "server"
    for script, arguments, home in (
        (north / "start-worker.sh", f"site start {north} --worker-only", None),
        (north / "start-supernode.sh", f"site start {north} --node-only", north / "node" / "flwr-home"),
        (server / "start.sh", f"server start {server}", server / "state" / "flwr-home"),
    ):
        environment = {"PATH": f"{stand_in.parent}:{os.environ['PATH']}"}
        subprocess.run([script], check=True, env=environment, cwd=tmp_path)
        assert (tmp_path / "arguments").read_text() == f"{arguments}\n"
        seen = dict(line.split("=", 1) for line in (tmp_path / "environment").read_text().splitlines() if "=" in line)
        assert {name: seen[name] for name in _SWITCHES} == _SWITCHES
        assert seen.get("FLWR_HOME") == (None if home is None else str(home))
    assert (server / "state").stat().st_mode & 0o777 == 0o700


_SWITCHES = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
}


@pytest.mark.integration
def test_every_start_script_sets_every_switch_and_is_a_shell_script(kits: Path) -> None:
    scripts = [*kits.glob("sites/*/*.sh"), *kits.glob("server/*.sh")]
    assert len(scripts) == 5
    for script in scripts:
        assert subprocess.run(["sh", "-n", script], check=False).returncode == 0
        text = script.read_text()
        assert all(f"export {name}={value}\n" in text for name, value in _SWITCHES.items())


@pytest.mark.integration
@SYSTEMD.mark
def test_systemd_finds_nothing_wrong_with_the_units(kits: Path) -> None:
    units = [*kits.glob("sites/north/*.service"), *kits.glob("server/*.service")]
    assert len(units) == 3
    command = ["systemd-analyze", "verify", "--man=no", *units]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not [line for line in done.stderr.splitlines() if "ept-fed" in line]


def test_every_unit_is_hardened_and_the_two_processes_of_a_site_are_two_users(kits: Path) -> None:
    units = {path.stem: path.read_text().splitlines() for path in kits.rglob("*.service") if "south" not in str(path)}
    assert set(units) == {"ept-fed-worker", "ept-fed-supernode", "ept-fed-server"}
    for lines in units.values():
        assert {"NoNewPrivileges=yes", "ProtectSystem=strict", "PrivateTmp=yes", "ReadOnlyPaths=/opt/ept-fed"} <= {
            *lines
        }
        assert len([line for line in lines if line.startswith("User=ept-fed-")]) == 1
    assert len({line for lines in units.values() for line in lines if line.startswith("User=")}) == 3
    assert "PrivateNetwork=yes" in units["ept-fed-worker"]


@pytest.mark.integration
def test_checksums_pass_where_they_are_checked_by_hand(kits: Path) -> None:
    for kit in (kits / "server", kits / "sites" / "north"):
        lines = (kit / "SHA256SUMS").read_text().splitlines()
        names = [re.split(r"  ", line)[1] for line in lines]
        assert not {"site.yaml", "policy.yaml", "keys/node", "keys/site.key", "tls/proxy.key"} & {*names}
        if shutil.which("sha256sum"):
            done = subprocess.run(["sha256sum", "-c", "--quiet", "--strict", "SHA256SUMS"], cwd=kit, check=False)
            assert done.returncode == 0
