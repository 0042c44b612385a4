"""Settings of federation.yaml: the sites and the server's address; `ept-fed provision` makes kits from them."""

import ipaddress
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from ept_fed.config.base import Settings
from ept_fed.config.yaml_reader import read_mapping, validate_settings
from ept_fed.errors import InputRefusedError, Problem

__all__ = ["Federation", "FederationSite", "SafeName", "ServerAddress", "is_address", "load_federation"]

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,39}")
_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_MAX_OF_A_HOST = 253
# On Windows such a name, with any extension, opens a device instead of a file. Kits are unpacked on Windows too.
_DEVICES = frozenset({"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(10))})


def _check_name(name: str) -> str:
    """Accept a name that is safe as a folder, as a certificate's common name and in a shell, on every system."""
    if not _NAME.fullmatch(name):
        raise ValueError("write 1 to 40 characters of a–z, 0–9, - and _, beginning with a letter or digit")
    if name in _DEVICES:
        raise ValueError("is the name of a device on Windows; choose another")
    return name


def _check_host(host: str) -> str:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        labels = host.split(".")
        if len(host) > _MAX_OF_A_HOST or not all(map(_LABEL.fullmatch, labels)) or labels[-1].isdigit():
            raise ValueError(
                "is neither an IP address nor a DNS name in lower case; write it without scheme, port and path, "
                "and a name with other letters as xn--…"
            ) from None
        return host
    if address.is_unspecified or address.is_multicast or "%" in host:
        raise ValueError("is not an address that a hospital can connect to")
    return address.compressed


def _check_location(location: str) -> str:
    try:
        latitude, longitude = map(float, location.split(","))
    except ValueError:
        raise ValueError("write latitude,longitude in degrees, for example '48.2,16.4'") from None
    if not (math.isfinite(latitude) and math.isfinite(longitude) and abs(latitude) <= 90 and abs(longitude) <= 180):
        raise ValueError("latitude is from -90 to 90, longitude from -180 to 180")
    return location


SafeName = Annotated[str, AfterValidator(_check_name)]
Days = Annotated[int, Field(ge=1, le=3650)]


class ServerAddress(Settings):
    """Address at which the hospitals reach the server's proxy; the server's certificate is for this host."""

    host: Annotated[str, AfterValidator(_check_host)] = Field(description="DNS name or IP address")
    port: Annotated[int, Field(ge=1, le=65535)] = Field(
        8443,
        description="the only outgoing port that hospitals open; a port below 1024 requires a privilege, which the "
        "systemd unit has",
    )


class FederationSite(Settings):
    """One hospital."""

    name: SafeName = Field(description="a–z, 0–9, - and _: names its folder, its certificate and its reports")
    location: Annotated[str, AfterValidator(_check_location)] | None = Field(
        None, description="latitude,longitude, shown in the server's list of sites"
    )
    keys: Literal["consortium", "site"] = Field(
        "consortium",
        description="who makes the private keys: consortium puts them into the kit; site makes them itself and "
        "requests its certificates with `ept-fed provision request`",
    )


class Federation(Settings):
    """The content of a federation.yaml."""

    name: SafeName = Field(description="name of the federation and of its certificate authority")
    about: Annotated[str, Field(max_length=500)] | None = Field(
        None, description="a sentence that is printed in the README of every kit"
    )
    server: ServerAddress
    sites: Annotated[tuple[FederationSite, ...], Field(min_length=1)] = Field(
        description="the hospitals; adding one later changes no other kit"
    )
    certificate_days: Days = Field(365, description="days for which the certificates of sites and server are valid")
    authority_days: Days = Field(3650, description="days for which the consortium's own certificate is valid")

    def site(self, name: str) -> FederationSite | None:
        """Return the site of this name, or None."""
        return next((site for site in self.sites if site.name == name), None)


def is_address(host: str) -> bool:
    """Return whether a checked host is an IP address and not a DNS name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def load_federation(path: Path) -> Federation:
    """Read and validate a federation.yaml.

    Raises:
        InputRefusedError: with every problem of the file.
    """
    raw = read_mapping(path, "federation", "a mapping with name, server and sites")
    federation, problems = validate_settings(Federation, raw, lambda _: [])
    problems += _find_problems(raw)
    if problems or federation is None:
        raise InputRefusedError(problems)
    return federation


def _find_problems(raw: Mapping[str, Any]) -> list[Problem]:
    """Return settings that do not fit together.

    The raw document is checked, so that these problems are reported together with invalid single values.
    """
    found = []
    sites = raw.get("sites")
    entries = [site for site in sites if isinstance(site, dict)] if isinstance(sites, list) else []
    names = [site.get("name") for site in entries]
    for name in dict.fromkeys(name for name in names if isinstance(name, str) and names.count(name) > 1):
        found.append(Problem("sites", name, f"{names.count(name)} sites have this name; every site needs its own"))
    days, authority_days = (raw.get(key, Federation.model_fields[key].default) for key in _DAYS)
    if isinstance(days, int) and isinstance(authority_days, int) and days > authority_days:
        fix = f"is longer than authority_days = {authority_days}: a certificate may not outlive the one that signed it"
        found.append(Problem("certificate_days", days, fix))
    return found


_DAYS = ("certificate_days", "authority_days")
