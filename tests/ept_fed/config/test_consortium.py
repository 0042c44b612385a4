"""federation.yaml: all problems are reported together, and accepted names are safe in file names and certificates."""

import re
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ept_fed.config.consortium import FederationSite, ServerAddress, is_address, load_federation
from ept_fed.errors import InputRefusedError

ROOT = Path(__file__).resolve().parents[3]
GOOD: dict[str, Any] = {"name": "two", "server": {"host": "fl.example.org"}, "sites": [{"name": "a"}, {"name": "b"}]}


def load(tmp_path: Path, document: Any) -> Any:
    path = tmp_path / "federation.yaml"
    path.write_text(document if isinstance(document, str) else yaml.safe_dump(document))
    return load_federation(path)


def refusals(tmp_path: Path, document: Any) -> dict[str, str]:
    with pytest.raises(InputRefusedError) as refused:
        load(tmp_path, document)
    return {problem.field: problem.fix for problem in refused.value.problems}


def test_the_shipped_example_states_its_command_and_loads() -> None:
    path = ROOT / "configs" / "federation.yaml"
    assert path.read_text().startswith("# ept-fed provision configs/federation.yaml --out kits\n")
    federation = load_federation(path)
    assert [site.name for site in federation.sites] == ["north", "south", "west"]


def test_the_documented_defaults_apply(tmp_path: Path) -> None:
    federation = load(tmp_path, GOOD)
    assert (federation.server.port, federation.certificate_days, federation.authority_days) == (8443, 365, 3650)
    assert [site.keys for site in federation.sites] == ["consortium", "consortium"]


def test_all_problems_are_reported_together(tmp_path: Path) -> None:
    told = refusals(
        tmp_path,
        {
            "name": "Our Federation",
            "server": {"host": "https://fl.example.org/", "port": 0},
            "sites": [
                {"name": "a"},
                {"name": "a"},
                {"name": "../b", "location": "north"},
                {"name": "con", "locaton": "1,2"},
            ],
            "certificate_days": 5000,
            "authority_days": 100,
            "sties": [],
        },
    )
    assert set(told) == {
        "name",
        "server.host",
        "server.port",
        "sites",
        "sites.2.name",
        "sites.2.location",
        "sites.3.name",
        "sites.3.locaton",
        "certificate_days",
        "sties",
    }
    assert told["sites"] == "2 sites have this name; every site needs its own"
    assert "did you mean 'location'?" in told["sites.3.locaton"]
    assert "did you mean 'sites'?" in told["sties"]
    assert "device on Windows" in told["sites.3.name"]


@pytest.mark.parametrize("document", ["", "- a", "name: [", "name: a\nname: b", "1: a"])
def test_a_file_that_is_not_a_mapping_is_refused(tmp_path: Path, document: str) -> None:
    assert set(refusals(tmp_path, document)) == {"federation"}


@pytest.mark.parametrize("missing", ["name", "server", "sites"])
def test_missing_required_fields_are_named(tmp_path: Path, missing: str) -> None:
    assert refusals(tmp_path, {key: value for key, value in GOOD.items() if key != missing})[missing].startswith(
        "is req"
    )


def test_certificates_expire_no_later_than_their_authority(tmp_path: Path) -> None:
    told = refusals(tmp_path, {**GOOD, "authority_days": 100})
    assert "a certificate may not outlive the one that signed it" in told["certificate_days"]


@given(st.text(max_size=50))
def test_an_accepted_name_is_one_safe_file_name_on_every_system(name: str) -> None:
    try:
        FederationSite(name=name)
    except ValueError:
        return
    assert PurePosixPath(name).parts == PureWindowsPath(name).parts == (name,)
    assert not PureWindowsPath(name).is_reserved()
    assert re.fullmatch(r"[!-~]{1,64}", name)
    assert name == name.casefold()
    assert not name.startswith(("-", "."))


@given(st.from_regex(r"\A[a-z0-9][a-z0-9_-]{0,39}\Z"))
def test_a_name_of_allowed_characters_is_accepted_unless_windows_reserves_it(name: str) -> None:
    if not PureWindowsPath(name).is_reserved():
        try:
            assert FederationSite(name=name).name == name
        except ValueError:
            assert name in ("com0", "lpt0")


@pytest.mark.parametrize(
    ("host", "kept", "address"),
    [
        ("fl.example.org", "fl.example.org", False),
        ("localhost", "localhost", False),
        ("xn--mnchen-3ya.example", "xn--mnchen-3ya.example", False),
        ("127.0.0.1", "127.0.0.1", True),
        ("2001:DB8:0::1", "2001:db8::1", True),
    ],
)
def test_hosts_are_dns_names_or_addresses(host: str, kept: str, address: bool) -> None:
    server = ServerAddress(host=host)
    assert (server.host, is_address(server.host)) == (kept, address)


@pytest.mark.parametrize(
    "host",
    [
        "",
        "a b",
        "a:1",
        "-a.org",
        "a..b",
        "*.a.org",
        "münchen.de",
        "A.org",
        "0.0.0.0",
        "224.0.0.1",
        "1.2.3",
        "a" * 64,
        "a/",
        "fe80::1%eth0",
        "fe80::1%a\nrm x",
    ],
)
def test_other_hosts_are_refused(host: str) -> None:
    with pytest.raises(ValueError, match="host"):
        ServerAddress(host=host)


@pytest.mark.parametrize("location", ["48.2,16.4", "-90,180", "0,0"])
def test_accepted_locations_are_valid_for_flower(location: str) -> None:
    from flwr.supercore.utils import validate_node_location

    validate_node_location(location)
    assert FederationSite(name="a", location=location).location == location


@pytest.mark.parametrize("location", ["Vienna", "91,0", "0,181", "1", "1,2,3", "nan,0"])
def test_other_locations_are_refused(location: str) -> None:
    with pytest.raises(ValueError, match="location"):
        FederationSite(name="a", location=location)
