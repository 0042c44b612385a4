"""Kits on disk: private keys made once and never replaced, everything else written only where it differs."""

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
    """Return the private key of this name in a kit, making it if there is none yet.

    Written before any certificate is issued for it: a provision that is interrupted goes on with the same keys.

    Args:
        kit: its folder.
        name: keys/node in OpenSSH's format, any other in PKCS8 PEM.
        replace: make a fresh one in any case.

    Raises:
        InputRefusedError: if there is a file that is no such key.
    """
    path = kit / name
    if path.exists() and not replace:
        return _parse(name)(path.read_bytes(), str(path))
    key = new_key()
    _make_key_folder(path.parent)
    write_bytes(path, (serialize_openssh_private if name == _OPENSSH_KEY else serialize_pkcs8)(key), mode=0o600)
    return key


def read_private_keys(kit: Path, public: Mapping[str, ec.EllipticCurvePublicKey]) -> dict[str, bytes]:
    """Return the private keys that lie in a kit's folder; all or none, and each the one that was certified.

    Args:
        kit: its folder, which need not exist.
        public: the certified public key for each name.

    Raises:
        InputRefusedError: for a key of another certificate, or if only some are there.
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
    """Write what differs, and return what was written; what the site edits is written once.

    The folders of the names in `private` are closed even without those keys: this kit may be laid over one that has
    them.
    """
    for folder in {(kit / name).parent for name in private}:
        _make_key_folder(folder)
    changed = []
    for name, file in sorted(files.items()):
        if not (name in EDITED and (kit / name).exists()):
            changed += write_file(kit / name, file)
    return changed


def write_file(path: Path, file: KitFile) -> list[Path]:
    """Write one file if its content or permissions differ, and return its path if so."""
    if path.exists() and path.read_bytes() == file.content:
        mode = path.stat().st_mode & 0o777
        if mode == file.mode or (file.secret and not mode & OTHERS_MAY):
            return []
    write_bytes(path, file.content, mode=file.mode)
    return [path]


def delete_file(path: Path) -> list[Path]:
    """Delete a file that a kit no longer has, and return its path if it was there."""
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
        raise ValueError(f"{name} is no private key of a kit")
    return parse_openssh_private if name == _OPENSSH_KEY else parse_pkcs8
