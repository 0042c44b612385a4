"""`ept-fed export`: exports one site's model of a run as a signed bundle."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from ept_fed.cli.refusals import exit_on_refusal

__all__ = ["EXAMPLES", "export"]

EXAMPLES = (
    "Examples:\n\n  ept-fed export runs/demo --site site-1\n\n"
    "  ept-fed export runs/ham10000 --site vienna --out vienna-bundle --weights FILE --onnx vienna.onnx"
)


def export(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    site: Annotated[str, typer.Option(help="Name of the site whose model is exported.")],
    out: Annotated[
        Path | None, typer.Option(help="Bundle folder; must not exist yet. Default: bundle in the site's folder.")
    ] = None,
    key: Annotated[
        Path | None,
        typer.Option(help="Private P-384 key in PEM. Default: the site's signing-key.pem, created if missing."),
    ] = None,
    torchscript: Annotated[
        Path | None, typer.Option(help="Also write the whole model, including the backbone, as TorchScript.")
    ] = None,
    onnx: Annotated[
        Path | None, typer.Option(help="Also write the whole model, including the backbone, as ONNX.")
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="Backbone weights for the whole model: a file, or 'pretrained'. Not needed for the demo backbone."
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document and nothing else.")] = False,
) -> None:
    """Export a site's model as a release bundle: bundle.json, model.safetensors and signature.json.

    The bundle contains the prompts, the site's head and its temperature. If the site's model is the weighted sum of the
    logits of several models, the bundle contains the prompts and the head of each, and their shares. It does not
    contain the backbone, but pins it by digest. Equal runs and keys give equal bundles. Exit code 0: done; 2: something
    has to be corrected first.
    """
    with exit_on_refusal(as_json=as_json):
        report = _export(run, site, out=out, key=key, torchscript=torchscript, onnx=onnx, weights=weights)
    if as_json:
        typer.echo(json.dumps(report))
        return
    typer.echo(f"Bundle of {site}: {report['bundle']}")
    if report["members"]:
        from ept_fed.bundles.members import describe_members

        typer.echo(describe_members(report["members"]))
    made = "created now; only you may read it; keep it safe" if report["key_created"] else "existing key"
    typer.echo(f"Signed with {report['key']} ({made}).")
    typer.echo(f"Key fingerprint: {report['fingerprint']}")
    if report["public_key"]:
        typer.echo(
            f"Others can check it with: ept-fed predict {report['bundle']} IMAGES --trust {report['public_key']}"
        )
    for kind in ("torchscript", "onnx"):
        if report[kind]:
            typer.echo(
                f"Whole model: {report[kind]} (input: pixels 0–255; output: calibrated logits and probabilities)"
            )


def _export(
    run: Path,
    site: str,
    *,
    out: Path | None,
    key: Path | None,
    torchscript: Path | None,
    onnx: Path | None,
    weights: str | None,
) -> dict[str, Any]:
    """Check all inputs, create all files in memory, then write them; return the JSON document."""
    from ept_fed.bundles.export import prepare_bundle
    from ept_fed.errors import InputRefusedError, Problem
    from ept_fed.pki.signing import public_key_path
    from ept_fed.storage.files import write_bytes

    problems, prepared, files = [], None, {}
    if torchscript or onnx:
        from ept_fed.bundles.deploy import check_targets

        problems += check_targets(torchscript, onnx)
    try:
        prepared = prepare_bundle(run, site, out=out, key=key)
    except InputRefusedError as refusal:
        problems += refusal.problems
    if problems or prepared is None:
        raise InputRefusedError(problems)
    description = prepared.bundle.description
    if torchscript or onnx:
        from ept_fed.bundles.deploy import to_onnx, to_torchscript
        from ept_fed.bundles.model import load_model

        model = load_model(prepared.bundle, weights=weights, device="cpu")
        files = {torchscript: to_torchscript(model, description)} if torchscript else {}
        files |= {onnx: to_onnx(model, description)} if onnx else {}
    prepared.write()
    public = public_key_path(prepared.key)
    for path, content in files.items():
        try:
            write_bytes(path, content)
        except OSError as error:
            raise InputRefusedError([Problem("FILE", str(path), f"cannot be written ({error.strerror})")]) from error
    return {
        "status": "done",
        "bundle": str(prepared.folder),
        "members": description.members,
        "fingerprint": prepared.bundle.fingerprint,
        "key": str(prepared.key),
        "key_created": prepared.new_key is not None,
        "public_key": str(public) if public.exists() else None,
        "torchscript": str(torchscript) if torchscript else None,
        "onnx": str(onnx) if onnx else None,
    }
