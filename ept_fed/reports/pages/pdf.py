"""Printing of HTML pages to PDF with the installed Chromium, started without background network access."""

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

__all__ = ["NoBrowserError", "find_browser", "print_pages"]

_BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# --no-sandbox: Chromium's sandbox does not run as root, the usual user in containers; our page loads nothing.
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
    """Raised if no browser is installed or if printing failed; the message states the cause."""


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
    """Print each HTML page to a PDF in the same folder, and return the paths of the PDFs.

    Raises:
        NoBrowserError: if there is no browser, or if it writes no file within two minutes.
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
