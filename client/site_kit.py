"""Where a kit's federation.json says the server is."""

import json
from pathlib import Path
from typing import Any

from ept_fed.problems import InputRefusedError, Problem

__all__ = ["read_server"]


def read_server(kit: Path) -> tuple[str, int]:
    """Return host and port of the server's proxy.

    Raises:
        InputRefusedError: if federation.json is missing or anything else.
    """
    path = kit / "federation.json"
    try:
        document: Any = json.loads(path.read_text(encoding="utf-8"))
        host, port = document["server"]["host"], document["server"]["port"]
        if document["schema"] == 1 and isinstance(host, str) and type(port) is int and 1 <= port <= 65535:
            return host, port
        fix = "is not that of a kit of this version; get the kit again"
    except OSError as error:
        fix = f"cannot be read ({error.strerror}); name the folder of a site's kit"
    except (ValueError, KeyError, TypeError, RecursionError):
        fix = "is not that of a kit of this version; get the kit again"
    raise InputRefusedError([Problem("federation.json", str(path), fix)])
