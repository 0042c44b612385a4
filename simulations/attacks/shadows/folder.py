"""The finished shadow runs of an attack, in files that a later command continues from."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np

from ept_fed.errors import InputRefusedError, Problem
from ept_fed.storage.files import write_bytes
from simulations.attacks.shadows.train import Seen

__all__ = ["ShadowFolder"]

_SCHEMA = 1
_ARRAYS = ("member", "average", "own", "known")


class ShadowFolder:
    """shadows/000.npz, …: what the attacker saw in each shadow run, without the images."""

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        """Take a folder for shadow runs of this identity; the folder need not exist."""
        self.path = path
        self._identity = json.dumps({"schema": _SCHEMA, **identity}, sort_keys=True)

    def missing(self, count: int) -> list[int]:
        """Return the numbers below `count` of the shadow runs that have not been trained.

        Raises:
            InputRefusedError: if the folder has shadow runs of other settings.
        """
        return [number for number in range(count) if self.read(number) is None]

    def write(self, number: int, seen: Seen) -> None:
        """Store a shadow run."""
        self.path.mkdir(parents=True, exist_ok=True)
        content = io.BytesIO()
        arrays = {name: getattr(seen, name) for name in _ARRAYS}
        np.savez_compressed(content, allow_pickle=False, identity=np.array(self._identity), **arrays)
        write_bytes(self._file(number), content.getvalue())

    def read(self, number: int) -> Seen | None:
        """Return a shadow run; None if it was not trained, or if its file is damaged, so that it is trained again.

        Raises:
            InputRefusedError: if it has other settings.
        """
        try:
            with np.load(self._file(number), allow_pickle=False) as found:
                identity, arrays = str(found["identity"]), {name: found[name] for name in _ARRAYS}
        except (FileNotFoundError, BadZipFile, KeyError, ValueError, EOFError):
            return None
        if identity != self._identity:
            fix = "is of another run, version or seed; remove the folder, and all shadow runs are trained anew"
            raise InputRefusedError([Problem("shadows", str(self._file(number)), fix)])
        return Seen(**arrays)

    def _file(self, number: int) -> Path:
        return self.path / f"{number:03d}.npz"
