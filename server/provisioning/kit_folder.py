"""Kits on disk: private keys are made once and kept, and other files are written only if they differ."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from ept_fed.errors import InputRefusedError, Problem
from ept_fed.pki.keys import (
    new_key,
    parse_openssh_private,
    parse_pkcs8,
    same_key,
    serialize_openssh_private,
    serialize_pkcs8,
)
from ept_fed.pki.kit_layout import EDITED, OTHERS_MAY, OTHERS_MAY_ENTER, PRIVATE_KEYS, KitFile
from ept_fed.storage.files import write_bytes

__all__ = ["delete_file", "make_key", "read_private_keys", "write_file", "write_kit"]

_OPENSSH_KEY = "keys/node"


def make_key(kit: Path, name: str, *, replace: bool = False) -> ec.EllipticCurvePrivateKey:
    """Return the private key of this name in a kit; make it if there is none.

    The key is written before a certificate is issued for it, so an interrupted `provision` continues with the same
    keys.

    Args:
        kit: its folder.
        name: keys/node in OpenSSH's format, any other in PKCS8 PEM.
        replace: make a new key in any case.

    Raises:
        InputRefusedError: if the file exists but is not such a key.
    """
    path = kit / name
    if path.exists() and not replace:
        return _parse(name)(path.read_bytes(), str(path))
    key = new_key()
    _make_key_folder(path.parent)
    write_bytes(path, (serialize_openssh_private if name == _OPENSSH_KEY else serialize_pkcs8)(key), mode=0o600)
    return key


def read_private_keys(kit: Path, public: Mapping[str, ec.EllipticCurvePublicKey]) -> dict[str, bytes]:
    """Return the private keys in a kit's folder: all or none, and each matches its certificate.

    Args:
        kit: its folder, which need not exist.
        public: the certified public key for each name.

    Raises:
        InputRefusedError: for a key that was not certified, or if only some of the keys exist.
    """
    found, problems = {}, []
    for name, certified in public.items():
        path = kit / name
        if not path.exists():
            continue
        found[name] = path.read_bytes()
        if not same_key(_parse(name)(found[name], str(path)).public_key(), certified):
            fix = "is not the key that was certified; restore your copy, or renew with --new-keys"
            problems.append(Problem("kit", str(path), fix))
    if found and len(found) < len(public):
        missing = ", ".join(sorted(set(public) - set(found)))
        fix = f"lacks {missing}; restore your copy, or renew with --new-keys"
        problems.append(Problem("kit", str(kit), fix))
    if problems:
        raise InputRefusedError(problems)
    return found


def write_kit(kit: Path, files: Mapping[str, KitFile], private: Iterable[str]) -> list[Path]:
    """Write the files that differ, and return their paths; files that the site edits are written only once.

    The folders of the names in `private` are closed to other users even if this kit has no keys, because it may be
    unpacked over a kit with keys.
    """
    for folder in {(kit / name).parent for name in private}:
        _make_key_folder(folder)
    changed = []
    for name, file in sorted(files.items()):
        if not (name in EDITED and (kit / name).exists()):
            changed += write_file(kit / name, file)
    return changed


def write_file(path: Path, file: KitFile) -> list[Path]:
    """Write one file if its content or permissions differ; return its path, or nothing if it was not written."""
    if path.exists() and path.read_bytes() == file.content:
        mode = path.stat().st_mode & 0o777
        if mode == file.mode or (file.secret and not mode & OTHERS_MAY):
            return []
    write_bytes(path, file.content, mode=file.mode)
    return [path]


def delete_file(path: Path) -> list[Path]:
    """Delete a file that a kit no longer has; return its path, or nothing if it did not exist."""
    if not path.exists():
        return []
    path.unlink()
    return [path]


def _make_key_folder(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if folder.stat().st_mode & OTHERS_MAY_ENTER:
        folder.chmod(0o700)


def _parse(name: str) -> Callable[[bytes, str], ec.EllipticCurvePrivateKey]:
    if name not in PRIVATE_KEYS:
        raise ValueError(f"{name} is not a private key of a kit")
    return parse_openssh_private if name == _OPENSSH_KEY else parse_pkcs8
