"""site.yaml: the settings of a site, and the experiment that they form together with a proposal."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from ept_fed.config.data import SharedDataSettings
from ept_fed.config.experiment import Experiment
from ept_fed.errors import InputRefusedError
from ept_fed.protocol.proposal import propose
from ept_fed.validation.load_site import SiteSettings, check_site, join_proposal, load_site_settings

DATA = {"source": "folder", "root": "images", "images": ".", "levels": "class/group"}


def load(folder: Path, document: dict[str, Any]) -> SiteSettings:
    path = folder / "site.yaml"
    path.write_text(yaml.safe_dump(document))
    return load_site_settings(path)


def refused(folder: Path, document: dict[str, Any]) -> dict[str, str]:
    with pytest.raises(InputRefusedError) as refusal:
        load(folder, document)
    return {problem.field: problem.fix for problem in refusal.value.problems}


def test_paths_are_relative_to_the_kit_and_need_not_exist(tmp_path: Path) -> None:
    settings = load(tmp_path, {"site": "north", "data": DATA, "model": {"weights": "vit.safetensors"}})
    assert settings.data.root == tmp_path / "images"
    assert settings.model.weights == str(tmp_path / "vit.safetensors")
    assert settings.worker.socket == tmp_path / "run" / "worker.sock"
    assert settings.worker.state == tmp_path / "state"
    assert settings.policy == tmp_path / "policy.yaml"
    assert [problem.field for problem in check_site(settings)] == ["model.weights", "data.root"]


def test_absolute_paths_and_names_of_weights_are_kept(tmp_path: Path) -> None:
    settings = load(tmp_path, {"site": "north", "data": {**DATA, "root": "/data"}, "model": {"weights": "pretrained"}})
    assert (settings.data.root, settings.model.weights) == (Path("/data"), "pretrained")


@pytest.mark.parametrize("name", [*sorted(SharedDataSettings.model_fields), "partition"])
def test_a_site_cannot_set_what_the_consortium_proposes(tmp_path: Path, name: str) -> None:
    value = Experiment.model_validate({"data": {"source": "phantoms"}}).model_dump(mode="json")["data"][name]
    assert (
        "proposed by the consortium" in refused(tmp_path, {"site": "n", "data": {**DATA, name: value}})[f"data.{name}"]
    )


def test_all_problems_are_reported_together(tmp_path: Path) -> None:
    document = {
        "site": "../north",
        "data": {**DATA, "shots": 5, "levls": "class"},
        "model": {"device": "tpu", "backbone": "vit"},
        "worker": {"threads": 0},
        "node": {"runtime_port": 70000},
        "extra": 1,
    }
    found = refused(tmp_path, document)
    assert set(found) == {
        "site",
        "data.shots",
        "data.levls",
        "model.device",
        "model.backbone",
        "worker.threads",
        "node.runtime_port",
        "extra",
    }
    assert "did you mean 'levels'" in found["data.levls"]


@pytest.mark.parametrize("text", ["", "[]", "site: a\nsite: b", "data: {source: folder}", "site: n"])
def test_other_files_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "site.yaml").write_text(text)
    with pytest.raises(InputRefusedError):
        load_site_settings(tmp_path / "site.yaml")


def test_a_socket_path_too_long_for_the_system_is_refused_with_advice(tmp_path: Path) -> None:
    found = refused(tmp_path, {"site": "n", "data": DATA, "worker": {"socket": "x" * 120}})
    assert "use a shorter path" in found["worker.socket"]


def test_a_proposal_and_a_site_make_the_experiment_they_came_from(
    micro: Callable[..., Experiment], tmp_path: Path
) -> None:
    whole = micro("data.classes=[a, b]", "model.tokens=1", "seed=7")
    phantoms = {"source": "phantoms", "phantom_sites": 3, "patients_per_class": 8}
    joined = join_proposal(load(tmp_path, {"site": "site-1", "data": phantoms}), propose(whole))
    assert joined.run_id == whole.run_id
    assert joined.model.weights is None


def test_a_manifest_without_a_site_column_is_one_site(micro: Callable[..., Experiment], tmp_path: Path) -> None:
    (tmp_path / "manifest.csv").write_text("image,label\n")
    (tmp_path / "images").mkdir()
    data = {"source": "manifest", "columns": {"site": None}}
    joined = join_proposal(load(tmp_path, {"site": "n", "data": data}), propose(micro("data.classes=[a, b]")))
    assert (joined.data.partition.kind, joined.data.partition.sites) == ("iid", 1)  # type: ignore[union-attr]


def test_a_backbone_from_a_network_needs_the_sites_consent(micro: Callable[..., Experiment], tmp_path: Path) -> None:
    proposal = propose(micro("data.classes=[a, b]", "model.backbone=hf-hub:somebody/vit"))
    phantoms = {"source": "phantoms"}
    with pytest.raises(InputRefusedError, match="fetched from a network"):
        join_proposal(load(tmp_path, {"site": "n", "data": phantoms}), proposal)
    join_proposal(load(tmp_path, {"site": "n", "data": phantoms, "model": {"weights": "pretrained"}}), proposal)


def test_proposed_settings_that_do_not_fit_together_are_refused_at_the_site(
    micro: Callable[..., Experiment], tmp_path: Path
) -> None:
    proposal = propose(micro("data.classes=[a, b]"))
    crooked = proposal.model_copy(update={"training": proposal.training.model_copy(update={"proximal_mu": 1.0})})
    with pytest.raises(InputRefusedError, match=r"training\.proximal_mu"):
        join_proposal(load(tmp_path, {"site": "n", "data": {"source": "phantoms"}}), crooked)
