"""Keys that are created at the site: the round trip, and the refusal of all altered or foreign requests."""

import json
import zipfile
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from ept_fed.errors import InputRefusedError
from ept_fed.pki.check_kit import examine_kit
from ept_fed.pki.keys import new_key
from ept_fed.pki.signing_request import make_key_request, parse_key_request
from ept_fed.pki.site_keys import request_certificate
from server.provisioning.provision import approve, provision, renew_site, revoke


@pytest.fixture
def hospital(tmp_path: Path) -> Path:
    request_certificate(tmp_path / "west", "west")
    return tmp_path / "west"


def lay_over(archive: Path, kit: Path) -> None:
    with zipfile.ZipFile(archive) as file:
        file.extractall(kit)


def test_a_request_becomes_a_sound_kit_without_its_keys_leaving_the_site(
    kits: Path, hospital: Path, now: datetime, snapshot: Callable[[Path], dict[str, Any]]
) -> None:
    before, keys = snapshot(kits), {path: path.read_bytes() for path in (hospital / "keys").iterdir()}
    assert {path.name for path in hospital.iterdir()} == {"keys", "request.json"}
    assert b"PRIVATE" not in (hospital / "request.json").read_bytes()
    done = approve(hospital / "request.json", kits, now=now)
    assert done.sites[2].state == "without keys"
    assert done.notices[0].startswith("west has to read out ")
    assert not any(b"PRIVATE" in path.read_bytes() for path in (kits / "sites" / "west").rglob("*") if path.is_file())
    others = {name for name in snapshot(kits) if before.get(name) != snapshot(kits)[name] and "west" not in name}
    assert others == {"authority/issued.jsonl", "server/sites.json", "server/SHA256SUMS"}
    lay_over(kits / "sites" / "west.zip", hospital)
    assert {path: path.read_bytes() for path in keys} == keys
    assert examine_kit(hospital, now).status == "sound"
    again = snapshot(kits)
    assert provision(kits / "server" / "federation.yaml", kits, now=now).changed == ()
    assert snapshot(kits) == again
    renew_site("west", kits, now=now + timedelta(days=300))
    lay_over(kits / "sites" / "west.zip", hospital)
    assert examine_kit(hospital, now + timedelta(days=600)).status == "sound"


def test_requesting_twice_changes_nothing_and_keeps_the_keys_private(
    hospital: Path, snapshot: Callable[[Path], dict[str, Any]]
) -> None:
    before = snapshot(hospital)
    again = request_certificate(hospital, "west")
    assert snapshot(hospital) == before
    assert not again.new
    assert before["keys/node"][1] == before["keys/site.key"][1] == 0o600
    assert (hospital / "keys").stat().st_mode & 0o777 == 0o700
    with pytest.raises(InputRefusedError, match="is a request of 'west'"):
        request_certificate(hospital, "south")
    with pytest.raises(InputRefusedError, match="--site"):
        request_certificate(hospital, "West Wing")
    assert snapshot(hospital) == before


def edit(**changes: Any) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda document: {**document, **changes}


def foreign_csr(document: dict[str, Any]) -> dict[str, Any]:
    """Replace the CSR by that of another key, which the sender of the request does not have."""
    return {**document, "csr": json.loads(make_key_request("west", new_key(), new_key()))["csr"]}


def swapped(document: dict[str, Any]) -> dict[str, Any]:
    signatures = document["signatures"]
    return {**document, "signatures": {"site": signatures["node"], "node": signatures["site"]}}


@pytest.mark.parametrize(
    ("alter", "field"),
    [
        (edit(site="south"), "names another site than the request"),
        (foreign_csr, "signature of the site key"),
        (edit(node=json.loads(make_key_request("west", new_key(), new_key()))["node"]), "signature of the site key"),
        (swapped, "signature of the site key"),
        (lambda d: {**d, "signatures": {**d["signatures"], "node": "AAAA"}}, "signature of the node key"),
        (lambda d: {**d, "signatures": {**d["signatures"], "node": "no base64!"}}, "signature of the node key"),
        (lambda d: {**d, "signatures": {**d["signatures"], "node": "é"}}, "signature of the node key"),
        (edit(node="ssh-ed25519 AAAA"), "request: node"),
        (edit(node="\ud800"), "request: node"),
        (edit(csr="\ud800"), "request: csr"),
        (edit(csr="nothing"), "request: csr"),
        (edit(schema=2), "is not a request of ept-fed provision request"),
        (edit(purpose="another"), "is not a request of ept-fed provision request"),
        (edit(more=1), "is not a request of ept-fed provision request"),
        (edit(signatures={}), "is not a request of ept-fed provision request"),
        (edit(signatures=[1]), "is not a request of ept-fed provision request"),
        (edit(site=7), "is not a request of ept-fed provision request"),
        (lambda _: [], "is not a request of ept-fed provision request"),
    ],
)
def test_an_altered_request_is_refused_by_name(
    alter: Callable[[Any], Any], field: str, kits: Path, hospital: Path, now: datetime
) -> None:
    file = hospital / "request.json"
    file.write_text(json.dumps(alter(json.loads(file.read_text()))))
    before = (kits / "authority" / "issued.jsonl").read_bytes()
    with pytest.raises(InputRefusedError, match=field):
        approve(file, kits, now=now)
    assert (kits / "authority" / "issued.jsonl").read_bytes() == before
    assert not (kits / "sites" / "west").exists()


def test_any_flipped_character_is_refused(hospital: Path) -> None:
    content = (hospital / "request.json").read_bytes()
    unaltered = parse_key_request(content).fingerprint
    for position in range(0, len(content), 7):
        flipped = content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]
        try:
            fingerprint = parse_key_request(flipped).fingerprint
        except InputRefusedError:
            continue
        # White space between the fields and inside the CSR's PEM has no meaning, so the signed content is equal.
        assert fingerprint == unaltered, position


def test_one_key_for_both_purposes_and_other_curves_are_refused() -> None:
    key = new_key()
    with pytest.raises(InputRefusedError, match="is the site's key too"):
        parse_key_request(make_key_request("west", key, key))
    with pytest.raises(InputRefusedError, match="not on P-384"):
        parse_key_request(make_key_request("west", ec.generate_private_key(ec.SECP256R1()), new_key()))


def test_unknown_sites_and_sites_that_do_not_ask_are_refused(kits: Path, tmp_path: Path, now: datetime) -> None:
    for site, sentence in (
        ("east", "'east': is not a site of three"),
        ("north", "'north': gets its keys from the cons"),
    ):
        request_certificate(tmp_path / site, site)
        with pytest.raises(InputRefusedError, match=sentence):
            approve(tmp_path / site / "request.json", kits, now=now)
    with pytest.raises(InputRefusedError, match="cannot be read"):
        approve(tmp_path / "nowhere.json", kits, now=now)


def test_the_fingerprint_on_the_telephone_decides(kits: Path, hospital: Path, now: datetime) -> None:
    right = parse_key_request((hospital / "request.json").read_bytes()).fingerprint
    for wrong in ("0" * 64, right[:8], right[:-1] + ("0" if right[-1] != "0" else "1")):
        with pytest.raises(InputRefusedError, match="--fingerprint"):
            approve(hospital / "request.json", kits, fingerprint=wrong, now=now)
    assert not approve(hospital / "request.json", kits, fingerprint=right[:16].upper(), now=now).notices


def test_keys_are_approved_once_and_never_again_after_revocation(
    kits: Path, hospital: Path, tmp_path: Path, now: datetime
) -> None:
    approve(hospital / "request.json", kits, now=now)
    with pytest.raises(InputRefusedError, match="approved already, for west"):
        approve(hospital / "request.json", kits, now=now)
    request_certificate(tmp_path / "second", "west")
    with pytest.raises(InputRefusedError, match="has a certificate for other keys"):
        approve(tmp_path / "second" / "request.json", kits, now=now)
    revoke("west", kits, now=now)
    with pytest.raises(InputRefusedError, match=r"were revoked on 2026-11-23"):
        approve(hospital / "request.json", kits, now=now)
    approve(tmp_path / "second" / "request.json", kits, now=now)
    lay_over(kits / "sites" / "west.zip", tmp_path / "second")
    assert examine_kit(tmp_path / "second", now).status == "sound"


def test_another_sites_keys_are_refused(
    kits: Path, hospital: Path, add_to: Callable[..., Path], now: datetime, tmp_path: Path
) -> None:
    """A request for west's own keys under another name would give two sites the same key."""
    approve(hospital / "request.json", kits, now=now)
    listed = yaml.safe_load((kits / "server" / "federation.yaml").read_text())["sites"]
    provision(add_to(sites=[*listed, {"name": "east", "keys": "site"}]), kits, now=now)
    (tmp_path / "east").mkdir()
    (hospital / "keys").rename(tmp_path / "east" / "keys")
    request_certificate(tmp_path / "east", "east")
    with pytest.raises(InputRefusedError, match="approved already, for west"):
        approve(tmp_path / "east" / "request.json", kits, now=now)


def test_a_csr_without_a_proof_of_possession_is_refused(hospital: Path) -> None:
    """The signature of the CSR is by another key; a certificate authority without this check would certify it."""
    document = json.loads((hospital / "request.json").read_text())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "west")])
    csr = x509.CertificateSigningRequestBuilder().subject_name(name).sign(new_key(), hashes.SHA384())
    from cryptography.hazmat.primitives.serialization import Encoding

    der = bytearray(csr.public_bytes(Encoding.DER))
    der[-1] ^= 1
    document["csr"] = x509.load_der_x509_csr(bytes(der)).public_bytes(Encoding.PEM).decode()
    with pytest.raises(InputRefusedError, match="signature of the site key"):
        parse_key_request(json.dumps(document).encode())
