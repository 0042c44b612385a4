"""A page as PDF through a Chromium that is already on this machine; it is started without any network of its own."""

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

__all__ = ["NoBrowserError", "find_browser", "print_pages"]

_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# --no-sandbox: Chromium's sandbox refuses root, as which containers run; the page is ours and loads nothing.
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-pdf-header-footer",
)
_SECONDS = 120


class NoBrowserError(RuntimeError):
    """No browser to print with, or it failed; the message says which."""


def find_browser() -> str:
    """Return the path of Chromium or Chrome.

    Raises:
        NoBrowserError: if neither is on PATH.
    """
    for name in _BROWSERS:
        found = shutil.which(name)
        if found:
            return found
    raise NoBrowserError("PDF needs Chromium or Chrome on PATH; install one, or print the HTML pages from any browser.")


def print_pages(pages: Sequence[Path]) -> list[Path]:
    """Print each HTML page to a PDF beside it, and return the PDFs.

    Raises:
        NoBrowserError: if there is no browser, or it makes no file within two minutes.
    """
    browser = find_browser()
    printed = []
    for page in pages:
        target = page.with_suffix(".pdf").resolve()
        with tempfile.TemporaryDirectory(prefix="ept-fed-pdf-") as scratch:
            made = Path(scratch) / "page.pdf"
            command = [browser, *_FLAGS, f"--user-data-dir={scratch}/profile", f"--print-to-pdf={made}"]
            try:
                subprocess.run([*command, page.resolve().as_uri()], capture_output=True, timeout=_SECONDS, check=True)
                shutil.copyfile(made, target)
            except (subprocess.SubprocessError, OSError) as error:
                raise NoBrowserError(f"{Path(browser).name} could not print {page.name}: {error}") from error
        printed.append(target)
    return printed
