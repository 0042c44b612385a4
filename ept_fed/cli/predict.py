"""`ept-fed predict`: predicts calibrated probabilities for image files with a release bundle."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ept_fed.cli.refusals import DONE, FAILED, exit_on_refusal

if TYPE_CHECKING:
    from ept_fed.bundles.bundle import Bundle
    from ept_fed.bundles.predict import ImagePrediction

__all__ = ["EXAMPLES", "predict"]

EXAMPLES = (
    "Examples:\n\n  ept-fed predict runs/demo/sites/site-1/bundle images/\n\n"
    "  ept-fed predict vienna-bundle a.png b.dcm --weights dinov2.safetensors --trust vienna.pub.pem --out ab.csv"
)


class Device(StrEnum):
    """Devices that a prediction can run on."""

    AUTO = "auto"
    CPU = "cpu"
    CUDA = "cuda"


def predict(
    bundle: Annotated[Path, typer.Argument(help="Bundle folder, created by ept-fed export.")],
    images: Annotated[list[Path], typer.Argument(help="Image files, including DICOM, or folders with image files.")],
    weights: Annotated[
        str | None,
        typer.Option(help="Backbone weights: a file, or 'pretrained' (from timm). Not needed for the demo backbone."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="CSV file to write; must not exist yet. Default: predictions.csv; with --json: no file."),
    ] = None,
    trust: Annotated[
        Path | None, typer.Option(metavar="PUBLIC_KEY", help="Accept only a bundle signed by this key (PEM).")
    ] = None,
    device: Annotated[Device, typer.Option(help="Device to compute on.")] = Device.AUTO,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")] = False,
) -> None:
    """Predict on images with one site's model; an altered bundle or a different backbone is refused.

    The CSV has a row per image: status, predicted class, and calibrated probabilities. For research, not for diagnosis.
    Exit code 0: all images are predicted; 1: some images could not be read, the others are predicted; 2: nothing was
    predicted, something has to be corrected first.
    """
    with exit_on_refusal(as_json=as_json):
        target = out if as_json else out or Path("predictions.csv")
        opened, rows = _predict(bundle, images, weights=weights, out=target, trust=trust, device=device)
    refused = [row for row in rows if not row.probabilities]
    if as_json:
        typer.echo(json.dumps(_to_json(opened, rows)))
    else:
        for row in refused:
            typer.echo(f"  * {row.image}: {row.status}", err=True)
        if opened.description.members:
            from ept_fed.bundles.members import describe_members

            typer.echo(describe_members(opened.description.members), err=True)
        if not opened.trusted:
            note = (
                f"The bundle is unchanged since it was signed with key {opened.fingerprint}. "
                "Use --trust to check whose key that is."
            )
            typer.echo(note, err=True)
        typer.echo(f"{len(rows) - len(refused)} of {len(rows)} images predicted: {target}")
    raise typer.Exit(FAILED if refused else DONE)


def _predict(
    folder: Path, images: list[Path], *, weights: str | None, out: Path | None, trust: Path | None, device: Device
) -> tuple["Bundle", list["ImagePrediction"]]:
    from ept_fed.bundles.bundle import read_bundle
    from ept_fed.bundles.find_images import find_images
    from ept_fed.errors import InputRefusedError, Problem
    from ept_fed.pki.signing import read_public_key

    if out is not None and out.exists():
        raise InputRefusedError([Problem("--out", str(out), "already exists; name another file, or delete it")])
    bundle = read_bundle(folder, None if trust is None else read_public_key(trust))

    from ept_fed.bundles.model import load_model
    from ept_fed.bundles.predict import predict_images, write_predictions

    model = load_model(bundle, weights=weights, device=device.value)
    found = find_images(images)
    with _progress(len(found)) as advance:
        rows = predict_images(model, bundle.description, found, on_image=advance)
    if out is not None:
        try:
            write_predictions(out, rows, bundle.description.classes)
        except OSError as error:
            raise InputRefusedError([Problem("--out", str(out), f"cannot be written ({error.strerror})")]) from error
    return bundle, rows


@contextmanager
def _progress(total: int) -> Iterator[Callable[[], None]]:
    """Show the number of finished images and the remaining time on stderr, if it is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("images"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("images", total=total)
        yield lambda: progress.advance(task)


def _to_json(bundle: "Bundle", rows: list["ImagePrediction"]) -> dict[str, Any]:
    description = bundle.description
    done = sum(bool(row.probabilities) for row in rows)
    return {
        "schema": 1,
        "status": "done" if done == len(rows) else "incomplete",
        "bundle": {
            "run": description.run,
            "site": description.site,
            "members": description.members,
            "fingerprint": bundle.fingerprint,
            "trusted": bundle.trusted,
            "intended_use": description.intended_use,
        },
        "predicted": done,
        "refused": len(rows) - done,
        "images": [
            {
                "image": row.image,
                "status": row.status,
                "predicted": list(row.predicted),
                "probabilities": dict(zip(description.classes, row.probabilities, strict=True))
                if row.probabilities
                else {},
            }
            for row in rows
        ],
    }
