"""`ept-fed doctor data`: exit codes 0, 2 and 3, tables, JSON and the picture; clean data are for the true process."""

import io
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from tests.command_line import call, start


@pytest.fixture
def hospital(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the working folder: images of two sites and two classes, and an experiment whose weights do not exist."""
    monkeypatch.chdir(tmp_path)
    for number in range(40):
        folder = tmp_path / "images" / ("north", "south")[number % 2] / ("benign", "[malignant]")[number // 2 % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (8, 9, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")
    document = {"data": {"source": "folder"}, "model": {"weights": "nowhere.safetensors"}}
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(document))
    return tmp_path


@pytest.mark.integration
def test_clean_data_exit_with_0_and_need_no_weights(hospital: Path) -> None:
    done = start("doctor", "data", "own.yaml", "--json", "out/data.json", "--plot", "out/partition.png", cwd=hospital)
    assert done.returncode == 0, done.stdout + done.stderr
    for word in ("north", "south", "[malignant]", "40 images of 40 groups", "9 × 8 (40)", "PNG RGB (40)", "clean"):
        assert word in done.stdout
    found = json.loads((hospital / "out" / "data.json").read_text())
    assert (found["schema"], found["status"], found["images"]) == (1, "clean", 40)
    with Image.open(io.BytesIO((hospital / "out" / "partition.png").read_bytes())) as picture:
        assert picture.format == "PNG"


def test_faults_exit_with_3_and_are_named(hospital: Path) -> None:
    north = hospital / "images" / "north" / "benign"
    (north / "00.png").write_bytes(b"broken")
    (hospital / "images" / "south" / "benign" / "01.png").write_bytes((north / "04.png").read_bytes())
    done = call("doctor", "data", "own.yaml")
    assert done.exit_code == 3
    assert "1 unreadable image(s):" in done.stdout
    assert "north/benign/00.png (north) is not an image" in done.stdout
    assert "north/benign/04.png = south/benign/01.png" in done.stdout
    assert "faults found" in done.stdout
    as_json = call("doctor", "data", "own.yaml", "--json", "-")
    assert as_json.exit_code == 3
    assert json.loads(as_json.stdout)["status"] == "faults"


@pytest.mark.usefixtures("hospital")
def test_invalid_settings_exit_with_2() -> None:
    settings = ("--set", "data.partition={kind: dirichlet, sites: 90, alpha: -1}", "--set", "data.images=nowhere")
    done = call("doctor", "data", "own.yaml", *settings)
    assert done.exit_code == 2
    assert "data.partition.alpha = -1" in done.stderr
    assert "data.images" in done.stderr
    more = call("doctor", "data", "own.yaml", "--set", "data.partition={kind: iid, sites: 90}", "--json", "-")
    assert more.exit_code == 2
    assert json.loads(more.stdout)["problems"][0]["field"] == "data.partition.sites"
    empty = call("doctor", "data", "own.yaml", "--set", "data.partition={kind: dirichlet, sites: 9, alpha: 0.01}")
    assert empty.exit_code == 2
    assert "site-" in empty.stderr
    assert "raise data.partition.alpha" in empty.stderr


def test_help_ends_with_two_examples() -> None:
    shown = call("doctor", "data", "--help")
    assert shown.stdout[shown.stdout.index("Examples:") :].count("ept-fed doctor data") == 2
