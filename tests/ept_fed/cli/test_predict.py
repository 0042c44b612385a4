"""`ept-fed export` and `ept-fed predict`: once as separate processes, and each refusal within the test process."""

import csv
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from safetensors.torch import save_file

from ept_fed.models import create_backbone, frozen_tensors
from ept_fed.seeds import derive_seed
from tests.command_line import call, start
from tests.conftest import leave_charts_out
from tests.site_models import perturb, prefix, rewrite_model, site_tensors

SETTINGS: dict[str, Any] = {
    "name": "micro",
    "data": {
        "source": "phantoms",
        "phantom_sites": 2,
        "patients_per_class": 6,
        "shots": 2,
        "validation_shots": 1,
        "validation_fraction": 0.2,
    },
    "model": {"backbone": "test_vit", "image_size": 64, "prompt_length": 3},
    "federation": {"rounds": 1},
    "evaluation": {"baselines": []},
}


@dataclass(frozen=True)
class Workplace:
    folder: Path
    run: Path
    weights: Path
    images: Path
    text: Path
    bundle: Path


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """A finished run with one bundle, its backbone, two images, and a text file with an image's name."""
    folder = tmp_path_factory.mktemp("workplace")
    (folder / "micro.yaml").write_text(yaml.safe_dump(SETTINGS))
    with pytest.MonkeyPatch.context() as patch:
        leave_charts_out(patch)
        simulated = call("simulate", folder / "micro.yaml", "--out", folder / "run", "--json")
    assert simulated.exit_code == 0, simulated.output
    backbone = create_backbone("test_vit", weights=None, image_size=None, seed=derive_seed(0, "backbone"))
    save_file(frozen_tensors(backbone.vit), folder / "backbone.safetensors")
    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    for name in ("a.png", "b.png"):
        Image.fromarray(rng.integers(0, 256, (70, 60, 3), dtype=np.uint8)).save(folder / "images" / name)
    (folder / "notes.png").write_text("not an image")
    assert call("export", folder / "run", "--site", "site-2", "--out", folder / "bundle").exit_code == 0
    return Workplace(
        folder,
        folder / "run",
        folder / "backbone.safetensors",
        folder / "images",
        folder / "notes.png",
        folder / "bundle",
    )


@pytest.mark.integration
def test_export_and_predict_work_as_separate_processes(workplace: Workplace) -> None:
    whole = ("--torchscript", "whole.pt", "--weights", "backbone.safetensors")
    exported = start("export", "run", "--site", "site-1", *whole, cwd=workplace.folder)
    assert exported.returncode == 0, exported.stderr
    assert exported.stderr == ""
    home = "run/sites/site-1"
    for words in (f"{home}/bundle", f"{home}/signing-key.pem (created now", "Key fingerprint: ", "whole.pt"):
        assert words in exported.stdout
    assert (workplace.folder / home / "signing-key.pem").stat().st_mode & 0o777 == 0o600
    assert (workplace.folder / "whole.pt").is_file()

    trusted = ("--weights", "backbone.safetensors", "--trust", f"{home}/signing-key.pub.pem")
    done = start("predict", f"{home}/bundle", "images", *trusted, cwd=workplace.folder)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "2 of 2 images predicted: predictions.csv\n"
    assert done.stderr == ""
    with (workplace.folder / "predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["image"] for row in rows] == ["images/a.png", "images/b.png"]
    for row in rows:
        assert row["status"] == "predicted"
        assert sum(float(row[key]) for key in row if key.startswith("p[")) == pytest.approx(1, abs=1e-5)


def test_export_as_json_is_one_document_that_names_every_file(workplace: Workplace, tmp_path: Path) -> None:
    done = call("export", workplace.run, "--site", "site-2", "--out", tmp_path / "b", "--json")
    assert done.exit_code == 0
    report = json.loads(done.stdout)
    assert not report["key_created"]
    assert len(report["fingerprint"]) == 64
    assert all(Path(report[key]).exists() for key in ("bundle", "key", "public_key"))


def test_export_refusals_are_reported_together_and_exit_with_2(workplace: Workplace) -> None:
    arguments = ("export", workplace.run, "--site", "nowhere", "--out", workplace.run, "--key", "none.pem")
    refused = call(*arguments)
    assert refused.exit_code == 2
    assert "3 problems" in refused.stderr
    assert "site-1, site-2" in refused.stderr
    as_json = call(*arguments, "--json")
    assert {problem["field"] for problem in json.loads(as_json.stdout)["problems"]} == {"--out", "--site", "--key"}


def test_a_torchscript_export_without_a_backbone_leaves_no_files(workplace: Workplace, tmp_path: Path) -> None:
    target, out = tmp_path / "whole.pt", tmp_path / "bundle"
    refused = call("export", workplace.run, "--site", "site-2", "--out", out, "--torchscript", target)
    assert refused.exit_code == 2
    assert "--weights" in refused.stderr
    assert not target.exists()
    assert not out.exists()


def test_unreadable_images_exit_with_1_and_the_others_are_predicted(workplace: Workplace, tmp_path: Path) -> None:
    images = (workplace.images, workplace.text, tmp_path / "gone.png")
    arguments = (workplace.bundle, *images, "--weights", workplace.weights, "--out", tmp_path / "some.csv")
    done = call("predict", *arguments)
    assert done.exit_code == 1
    assert "notes.png: is not an image" in done.stderr
    assert "gone.png: is missing" in done.stderr
    assert "--trust" in done.stderr
    assert "2 of 4 images predicted" in done.stdout
    with (tmp_path / "some.csv").open() as file:
        assert [row["status"] for row in csv.DictReader(file)].count("predicted") == 2


def test_json_is_one_document_and_writes_no_csv_by_default(
    workplace: Workplace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    images = (workplace.images / "a.png", workplace.text)
    done = call("predict", workplace.bundle, *images, "--weights", workplace.weights, "--json")
    assert done.exit_code == 1
    report = json.loads(done.stdout)
    assert (report["status"], report["predicted"], report["refused"]) == ("incomplete", 1, 1)
    assert not report["bundle"]["trusted"]
    assert [len(image["probabilities"]) for image in report["images"]] == [5, 0]
    assert not list(tmp_path.iterdir())


def test_the_members_of_a_model_are_named_with_their_shares(workplace: Workplace, tmp_path: Path) -> None:
    shutil.copytree(workplace.run, tmp_path / "run")
    own = site_tensors(tmp_path / "run", "site-1")
    shares = {"federated": 0.625, "local": 0.375}
    rewrite_model(tmp_path / "run", "site-1", prefix({"local": own, "federated": perturb(own, seed=1)}), members=shares)
    sentence = (
        "The logits of this model are the weighted sum of the logits of 2 models: 0.625 × federated + 0.375 × local."
    )
    whole = ("--torchscript", tmp_path / "whole.pt", "--weights", workplace.weights)
    exported = call("export", tmp_path / "run", "--site", "site-1", "--out", tmp_path / "bundle", *whole)
    assert exported.exit_code == 0, exported.stderr
    assert sentence in exported.stdout.splitlines()
    assert (tmp_path / "whole.pt").is_file()

    arguments = ("predict", tmp_path / "bundle", workplace.images, "--weights", workplace.weights)
    done = call(*arguments, "--out", tmp_path / "out.csv")
    assert done.exit_code == 0, done.stderr
    assert sentence in done.stderr.splitlines()
    assert done.stdout == f"2 of 2 images predicted: {tmp_path / 'out.csv'}\n"
    assert json.loads(call(*arguments, "--json").stdout)["bundle"]["members"] == shares


def test_a_single_model_is_not_described_as_a_sum(workplace: Workplace, tmp_path: Path) -> None:
    exported = call("export", workplace.run, "--site", "site-2", "--out", tmp_path / "bundle")
    done = call(
        "predict", workplace.bundle, workplace.images, "--weights", workplace.weights, "--out", tmp_path / "out.csv"
    )
    assert (exported.exit_code, done.exit_code) == (0, 0)
    assert "weighted sum" not in exported.stdout + done.stdout + done.stderr


def test_an_existing_csv_is_refused_before_any_work(workplace: Workplace, tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text("keep me")
    refused = call("predict", workplace.bundle, workplace.images, "--out", tmp_path / "mine.csv")
    assert refused.exit_code == 2
    assert (tmp_path / "mine.csv").read_text() == "keep me"


def test_a_bundle_that_cannot_be_used_exits_with_2(workplace: Workplace, tmp_path: Path) -> None:
    for arguments, named in (
        ((workplace.run, workplace.images), "bundle.json"),
        ((workplace.bundle, workplace.images), "--weights"),
        ((workplace.bundle, workplace.images, "--trust", workplace.text), "is not a public key"),
    ):
        refused = call("predict", *arguments, "--out", tmp_path / "never.csv")
        assert refused.exit_code == 2
        assert named in refused.stderr
        assert not (tmp_path / "never.csv").exists()


@pytest.mark.parametrize("arguments", [("export",), ("export", "run"), ("predict",), ("predict", "bundle")])
def test_wrong_usage_exits_with_2(arguments: tuple[str, ...]) -> None:
    assert call(*arguments).exit_code == 2


@pytest.mark.parametrize("verb", ["export", "predict"])
def test_help_ends_with_two_examples(verb: str) -> None:
    shown = call(verb, "--help")
    assert shown.exit_code == 0
    assert shown.stdout[shown.stdout.index("Examples:") :].count(f"ept-fed {verb}") == 2
