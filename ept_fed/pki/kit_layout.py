"""Layout of a kit: file names, permissions, checksums and identity; the consortium writes it, everybody reads it."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field, ValidationError

from ept_fed.config.base import Settings
from ept_fed.config.consortium import SafeName, ServerAddress
from ept_fed.errors import InputRefusedError, Problem

__all__ = [
    "CHECKSUMS",
    "EDITED",
    "KEYS_OF_SERVER",
    "KEYS_OF_SITE",
    "OTHERS_MAY",
    "OTHERS_MAY_ENTER",
    "PRIVATE_KEYS",
    "SUPERLINK_HOSTS",
    "KitFile",
    "KitIdentity",
    "parse_checksums",
    "read_identity",
    "serialize_checksums",
]

CHECKSUMS = "SHA256SUMS"
EDITED = ("site.yaml", "policy.yaml")
KEYS_OF_SITE = ("keys/node", "keys/site.key")
KEYS_OF_SERVER = {"proxy": "tls/proxy.key", "superlink": "tls/superlink.key"}
SUPERLINK_HOSTS = ("localhost", "127.0.0.1")
PRIVATE_KEYS = (*KEYS_OF_SITE, *KEYS_OF_SERVER.values(), "ca.key")
OTHERS_MAY = 0o077
# Others may enter a folder with keys of two users (worker and SuperNode), but not list or change it.
OTHERS_MAY_ENTER = 0o066
_LINE = re.compile(r"([0-9a-f]{64})  ([A-Za-z0-9._-]+(?:/[A-Za-z0-9._-]+)*)")


@dataclass(frozen=True)
class KitFile:
    """One file of a kit: its bytes and its permissions."""

    content: bytes
    mode: int = 0o644

    @property
    def secret(self) -> bool:
        """Whether only the owner may read the file."""
        return not self.mode & OTHERS_MAY


class KitIdentity(Settings):
    """Content of a site kit's federation.json: the kit's site, and the server's address."""

    model_config = ConfigDict(populate_by_name=True)

    schema_version: Literal[1] = Field(1, alias="schema")
    federation: SafeName
    site: SafeName
    server: ServerAddress
    version: str = Field(description="version of ept-fed that made the kit")

    def serialize(self) -> bytes:
        """Return the content of federation.json."""
        return (json.dumps(self.model_dump(by_alias=True), indent=2) + "\n").encode()


def read_identity(kit: Path) -> KitIdentity:
    """Read a site kit's federation.json.

    Raises:
        InputRefusedError: if it is missing or not valid.
    """
    path = kit / "federation.json"
    try:
        document: Any = json.loads(path.read_text(encoding="utf-8"))
        return KitIdentity.model_validate(document)
    except OSError as error:
        fix = f"cannot be read ({error.strerror}); name the folder of a site's kit"
    except ValidationError as error:
        fix = f"is not from a kit of this version ({error.errors()[0]['msg']}); get the kit again"
    except (ValueError, RecursionError):
        fix = "is not JSON; get the kit again"
    raise InputRefusedError([Problem("federation.json", str(path), fix)])


def serialize_checksums(files: Mapping[str, KitFile]) -> bytes:
    """Return the SHA256SUMS of a kit, in the format of `sha256sum -c`.

    It lists neither private keys nor the files that the site edits. Edited files would always differ. A kit for keys
    made at the site has no private keys, and every private key is checked against its certificate instead.
    """
    listed = sorted(set(files) - {CHECKSUMS, *EDITED, *PRIVATE_KEYS})
    return "".join(f"{hashlib.sha256(files[name].content).hexdigest()}  {name}\n" for name in listed).encode()


def parse_checksums(content: bytes) -> dict[str, str]:
    """Return the SHA-256, in hex, of each file that a SHA256SUMS lists.

    Raises:
        InputRefusedError: for a line of another form, a repeated path, or a path outside the kit.
    """
    found = {}
    for line in content.decode(errors="replace").splitlines():
        match = _LINE.fullmatch(line)
        if match is None or ".." in match[2].split("/") or match[2] in found:
            fix = "is not a line of sha256sum for a file of this kit; get the kit again"
            raise InputRefusedError([Problem(CHECKSUMS, line[:100], fix)])
        found[match[2]] = match[1]
    return found
