import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from safetensors.numpy import load_file, save_file

from ept_fed.bundles.bundle import DESCRIPTION, MODEL, SIGNATURE
from ept_fed.bundles.export import prepare_bundle
from ept_fed.config.experiment import Experiment
from ept_fed.errors import InputRefusedError
from ept_fed.pki.signing import write_key
from ept_fed.progress import Silent
from simulations.engine.simulate import simulate
from tests.ept_fed.bundles.conftest import SMALL

SITES = ("site-1", "site-2", "site-3")


@pytest.fixture
def run(finished: Any, tmp_path: Path) -> Path:
    """A copy of the run that a test may damage, without the files of the first export."""
    copy = Path(shutil.copytree(finished.folder, tmp_path / "run"))
    shutil.rmtree(copy / "sites" / "site-1" / "bundle")
    for key in copy.glob("sites/site-1/*.pem"):
        key.unlink()
    return copy


def model_of(run: Path, site: str) -> Path:
    return run / "sites" / site / MODEL


def test_the_first_export_makes_a_key_and_the_second_uses_it(run: Path, tmp_path: Path) -> None:
    first = prepare_bundle(run, "site-1")
    first.write()
    second = prepare_bundle(run, "site-1", out=tmp_path / "second")
    second.write()
    assert first.new_key is not None
    assert second.new_key is None
    assert first.bundle.fingerprint == second.bundle.fingerprint
    assert first.key.stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in first.folder.iterdir()) == sorted([DESCRIPTION, MODEL, SIGNATURE])


def test_nothing_is_written_before_write_or_left_after_a_failed_write(run: Path, tmp_path: Path) -> None:
    before = sorted(run.rglob("*"))
    prepared = prepare_bundle(run, "site-1")
    assert sorted(run.rglob("*")) == before
    prepared.folder.mkdir()
    (prepared.folder / "someone's.txt").write_text("keep me")
    with pytest.raises(InputRefusedError, match="cannot be written"):
        prepared.write()
    assert [path.name for path in prepared.folder.iterdir()] == ["someone's.txt"]
    assert not list(run.rglob(".*"))


def test_an_unknown_site_is_refused_with_the_known_sites(run: Path) -> None:
    with pytest.raises(InputRefusedError, match="models of: site-1, site-2"):
        prepare_bundle(run, "site-7")
    with pytest.raises(InputRefusedError, match="models of"):
        prepare_bundle(run, "../site-1")


def test_all_problems_are_reported_together(run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputRefusedError) as refusal:
        prepare_bundle(run, "site-7", out=run, key=tmp_path / "no-key.pem")
    assert [problem.field for problem in refusal.value.problems] == ["--out", "--site", "--key"]


def fail(run: Path) -> None:
    report = json.loads((run / "report.json").read_text()) | {"status": "failed"}
    (run / "report.json").write_text(json.dumps(report))


def rename(run: Path) -> None:
    report = json.loads((run / "report.json").read_text()) | {"run": "another"}
    (run / "report.json").write_text(json.dumps(report))


def strip(run: Path) -> None:
    save_file(load_file(model_of(run, "site-1")), model_of(run, "site-1"))


def poison(run: Path) -> None:
    content = bytearray(model_of(run, "site-1").read_bytes())
    content[-4:] = b"\x00\x00\xc0\x7f"
    model_of(run, "site-1").write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (shutil.rmtree, "no such folder"),
        (lambda run: (run / "report.json").unlink(), "has not finished"),
        (lambda run: (run / "report.json").write_text("{"), "cannot be used"),
        (lambda run: (run / "rounds.jsonl").write_text("nothing\n"), "rounds.jsonl"),
        (fail, "ended as 'failed'"),
        (rename, "from another run"),
        (lambda run: model_of(run, "site-1").unlink(), "models of: site-2"),
        (lambda run: [model_of(run, name).unlink() for name in SITES], "no site of this run"),
        (lambda run: shutil.copy(model_of(run, "site-2"), model_of(run, "site-1")), "from another run"),
        (lambda run: model_of(run, "site-1").write_bytes(b"garbage"), "is not a safetensors file"),
        (strip, "has no valid metadata"),
        (poison, "finite"),
    ],
)
def test_a_damaged_run_is_refused_and_nothing_is_created(run: Path, damage: Callable[[Path], None], named: str) -> None:
    damage(run)
    with pytest.raises(InputRefusedError) as refusal:
        prepare_bundle(run, "site-1")
    assert named in str(refusal.value)
    assert not list(run.glob("sites/site-1/*.pem"))
    assert not (run / "sites" / "site-1" / "bundle").exists()


def test_a_given_key_is_used_and_not_copied_into_the_run(run: Path, tmp_path: Path) -> None:
    write_key(tmp_path / "mine.pem", ec.generate_private_key(ec.SECP384R1()))
    prepared = prepare_bundle(run, "site-1", key=tmp_path / "mine.pem")
    prepared.write()
    assert not list(run.glob("sites/site-1/*.pem"))


@pytest.mark.usefixtures("undrawn")
def test_a_model_of_another_method_is_not_exported(micro: Callable[..., Experiment], tmp_path: Path) -> None:
    simulate(micro(*SMALL, "model.tokens=0", "model.method=lora", "federation.payload=raw"), tmp_path / "run", Silent())
    with pytest.raises(InputRefusedError) as refusal:
        prepare_bundle(tmp_path / "run", "site-1")
    assert [problem.field for problem in refusal.value.problems] == ["model.method"]
    assert "method ept only" in str(refusal.value)
