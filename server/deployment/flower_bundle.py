"""The app bundle that Flower sends to every site for a run: it only refers to the code that is installed there."""

from flwr.cli.build import build_fab_from_files

import ept_fed
from server.deployment.run_state import RUN_KEY

__all__ = ["build_bundle"]

_PROJECT = f"""
[project]
name = "ept-fed-run"
version = "{ept_fed.__version__}"
description = "Names the ept-fed that is installed."
requires-python = ">=3.11,<4.0"
dependencies = []
license = {{ text = "" }}

[tool.flwr.app]
publisher = "ept-fed"
fab-include = ["ept_fed_run_server.py", "ept_fed_run_site.py"]

[tool.flwr.app.components]
serverapp = "ept_fed_run_server:app"
clientapp = "ept_fed_run_site:app"

[tool.flwr.app.config]
{RUN_KEY} = ""
"""
_FILES = {
    "pyproject.toml": _PROJECT,
    "ept_fed_run_server.py": '"""The installed server."""\n\nfrom server.deployment.app import app as app\n',
    "ept_fed_run_site.py": '"""The installed forwarder."""\n\nfrom client.app import app as app\n',
}


def build_bundle() -> bytes:
    """Return the bundle; it has the same bytes for the same version of ept-fed."""
    content, _ = build_fab_from_files({name: text.encode() for name, text in _FILES.items()})
    return content
