"""Creating a release bundle from a run folder and a site; all checks are done in memory before writing."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

import ept_fed
from ept_fed.bundles.bundle import DESCRIPTION, MODEL, SIGNATURE, Bundle, open_bundle
from ept_fed.bundles.description import Description, schema_of, serialize_description
from ept_fed.bundles.members import tensors_by_member
from ept_fed.bundles.release import Release, read_release
from ept_fed.errors import InputRefusedError, Problem
from ept_fed.pki.signing import read_private_key, sign, write_key
from ept_fed.reports.run.run_folder import site_folder
from ept_fed.storage.files import write_bytes

__all__ = ["PreparedBundle", "prepare_bundle"]

_USE = (
    "Research use at {site}: class probabilities for images of the kind it trained on, from its own devices. "
    "Not a medical device; not validated for diagnosis."
)


@dataclass(frozen=True)
class PreparedBundle:
    """A bundle that passed the checks of `open_bundle` and is ready to be written.

    Attributes:
        bundle: the bundle as `read_bundle` will return it.
        files: content by file name.
        folder: the bundle's future folder, which does not exist yet.
        key: path of the private key, which may not exist yet.
        new_key: the key to write to that path, or None if the file exists.
    """

    bundle: Bundle
    files: Mapping[str, bytes]
    folder: Path
    key: Path
    new_key: ec.EllipticCurvePrivateKey | None

    def write(self) -> None:
        """Write the key if it is new, then the folder.

        The folder is first written under a temporary name, so that a partly written bundle never appears.

        Raises:
            InputRefusedError: if a file or folder cannot be written.
        """
        try:
            if self.new_key is not None:
                write_key(self.key, self.new_key)
            _write_folder(self.folder, self.files)
        except OSError as error:
            fix = f"cannot be written ({error.strerror})"
            raise InputRefusedError([Problem("--out", str(self.folder), fix)]) from error


def prepare_bundle(run: Path, site: str, *, out: Path | None = None, key: Path | None = None) -> PreparedBundle:
    """Check a run and one of its sites, and return a signed bundle of the site's model in memory.

    Args:
        run: folder of a finished run.
        site: name of one of its sites.
        out: folder to create; None: RUN/sites/<site>/bundle.
        key: existing private key; None: RUN/sites/<site>/signing-key.pem, which is created if it does not exist.

    Raises:
        InputRefusedError: with all problems of run, site, folder and key together.
    """
    problems: list[Problem] = []
    home = run / "sites" / site_folder(site)
    folder, key_path = out or home / "bundle", key or home / "signing-key.pem"
    if folder.exists() or folder.is_symlink():
        problems.append(Problem("--out", str(folder), "already exists; name another folder, or delete it"))
    release, private, is_new = None, None, key is None and not key_path.exists()
    try:
        release = read_release(run, site)
    except InputRefusedError as refusal:
        problems += refusal.problems
    try:
        private = ec.generate_private_key(ec.SECP384R1()) if is_new else read_private_key(key_path, "--key")
    except InputRefusedError as refusal:
        problems += refusal.problems
    if problems or release is None or private is None:
        raise InputRefusedError(problems)
    description = serialize_description(_describe(release))
    files = {DESCRIPTION: description, MODEL: release.content, SIGNATURE: sign(description, private)}
    bundle = open_bundle(files, private.public_key())
    return PreparedBundle(bundle, files, folder, key_path, private if is_new else None)


def _describe(release: Release) -> Description:
    about = release.about
    # The members have the same number of tokens: `read_release` checked their shapes.
    tokens = next(iter(tensors_by_member(release.tensors, about.members).values())).get("tokens")
    # Not validated here: `open_bundle` parses the serialized form and refuses invalid values.
    return Description.model_construct(
        schema_version=schema_of(about.members),
        intended_use=_USE.format(site=about.site),
        experiment=release.experiment,
        run=about.run,
        rounds=release.rounds,
        site=about.site,
        classes=about.classes,
        task=about.task,
        backbone=about.backbone,
        input=about.input,
        prompt_layers=about.prompt_layers,
        embedding=about.embedding,
        tokens=0 if tokens is None else int(tokens.shape[1]),
        temperature=about.temperature,
        validation_images=about.validation_images,
        members=about.members,
        tensors={name: tensor.shape for name, tensor in sorted(release.tensors.items())},
        model_sha256=hashlib.sha256(release.content).hexdigest(),
        versions={"site": about.code, "export": ept_fed.__version__},
    )


def _write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        for name, content in files.items():
            write_bytes(temporary / name, content)
        temporary.chmod(0o755)
        os.rename(temporary, folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
