"""What some tests need and a machine may lack: each is skipped with one reason, and the last lines count them."""

import importlib.util
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"
_SYSTEM = "/usr/sbin:/usr/local/sbin:/sbin:/usr/bin:/usr/local/bin:/opt/homebrew/bin"


@dataclass(frozen=True)
class Need:
    """Something that tests use; `how` says how to get it."""

    name: str
    how: str
    is_here: Callable[[], bool]

    @property
    def reason(self) -> str:
        return f"needs {self.name}: {self.how}"

    @property
    def mark(self) -> pytest.MarkDecorator:
        return pytest.mark.skipif(not self.is_here(), reason=self.reason)


def _program(name: str, package: str) -> Need:
    return Need(name, f"apt install {package}", lambda: shutil.which(name, path=_SYSTEM) is not None)


def _module(name: str, how: str = "pip install --editable '.[dev]'") -> Need:
    return Need(name, how, lambda: importlib.util.find_spec(name) is not None)


def _has_browser() -> bool:
    from ept_fed.reports.pages.pdf import NoBrowserError, find_browser

    try:
        find_browser()
    except NoBrowserError:
        return False
    return True


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


NGINX = _program("nginx", "nginx-light")
UNZIP = _program("unzip", "unzip")
OPENSSL = _program("openssl", "openssl")
SYSTEMD = _program("systemd-analyze", "systemd")
BROWSER = Need("a browser", "apt install chromium, or put Chromium or Chrome on PATH", _has_browser)
RAY = _module("ray")
PYDICOM = _module("pydicom")
GPU = Need("a GPU", "run the tests on a machine with a CUDA device", _has_gpu)
REAL_DATA = Need("real data", "put HAM10000 and the ViT-S/14 weights into ../shared", (SHARED / "weights").is_dir)
ROOT = Need("root", "run the tests as root, because only root can become another user", lambda: os.getuid() == 0)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say in the last lines what was not tested here, and how to change that."""
    reasons = Counter(
        report.longrepr[2].removeprefix("Skipped: ") for report in terminalreporter.stats.get("skipped", ())
    )
    if not reasons:
        terminalreporter.write_line("No test was skipped.")
    for reason, count in reasons.most_common():
        found = re.fullmatch(r"needs ([^:]+): (.+)", reason)
        lack = f"for want of {found[1]}. To run them: {found[2]}" if found else f"because: {reason}"
        tests = "1 test was" if count == 1 else f"{count} tests were"
        terminalreporter.write_line(f"{tests} skipped {lack}", yellow=True)
