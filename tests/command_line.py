"""`ept-fed` in the test process, and as a process of its own.

Most tests of a command call it in the test process. Of every verb one test starts the process that a user starts: only
that one shows what imports and libraries write to the streams, and that the exit code reaches the shell.
"""

import logging
import os
import subprocess
import sys
from pathlib import Path

import torch
from click.testing import Result
from typer.testing import CliRunner

from ept_fed.cli.main import app


def call(*words: object) -> Result:
    """Call a command in this process; what would end a process with a traceback is raised."""
    flower, threads = logging.getLogger("flwr"), torch.get_num_threads()
    level = flower.level
    try:
        return CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    finally:
        # All that commands set for their whole process.
        flower.setLevel(level)
        torch.set_num_threads(threads)


def start(*words: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a command as a process of its own."""
    command = [sys.executable, "-m", "ept_fed.cli", *map(str, words)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False, env=environment)
