"""Settings: all problems are reported together, and unknown keys are refused."""

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ept_fed.config.experiment import Experiment
from ept_fed.errors import InputRefusedError
from ept_fed.validation.data import validate_data
from ept_fed.validation.load_experiment import load_experiment
from tests.effort import examples

ROOT = Path(__file__).resolve().parents[3]
PHANTOMS = {"data": {"source": "phantoms"}}


def write(tmp_path: Path, document: object) -> Path:
    path = tmp_path / "experiment.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def problems(path: Path, *overrides: str) -> dict[str, str]:
    """Return the fix of each refused field."""
    with pytest.raises(InputRefusedError) as refusal:
        load_experiment(path, overrides)
    return {problem.field: problem.fix for problem in refusal.value.problems}


def test_all_problems_are_reported_together_with_field_value_and_fix(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        {
            "data": {"root": str(tmp_path / "nowhere"), "shots": 0, "shotz": 3},
            "model": {"embedding": "add", "prompt_layers": [1, 1], "tokens": -2},
            "modle": {},
            "federation": {"rounds": "many"},
        },
    )
    found = problems(path, "seed=abc", "model.weights=/nowhere/w.safetensors", "noise")
    assert set(found) == {
        "--set",
        "seed",
        "data.shots",
        "data.shotz",
        "data.manifest",
        "data.images",
        "model.tokens",
        "model.prompt_layers",
        "model.weights",
        "modle",
        "federation.rounds",
        "federation.payload",
    }
    assert "did you mean 'shots'?" in found["data.shotz"]
    assert "did you mean 'model'?" in found["modle"]
    assert "has no fold" in found["federation.payload"]


@pytest.mark.parametrize(
    ("overrides", "field"),
    [
        (("model.embedding=multiply_concat",), "federation.payload"),
        (("data.test_fraction=0.6", "data.validation_fraction=0.5"), "data.test_fraction"),
        (("data.augmentation.crop_scale=[0.9, 0.1]",), "data.augmentation.crop_scale"),
        (("data.classes=[a, a]",), "data.classes"),
        (("data.classes=[a]",), "data.classes"),
        (("data.task=multi_label", "training.class_balanced=true"), "training.class_balanced"),
        (("data.task=multi_label", "data.test_shots=5"), "data.test_shots"),
        (("model.prompt_layers=[0, 0]",), "model.prompt_layers"),
        (("data={source: medmnist, archive: none.npz}",), "data.archive"),
        (("data={source: manifest, columns: {label: null}}",), "data.columns"),
        (("data.partition.kind=iid",), "data.partition.sites"),
        (("data.partition={sites: 3}",), "data.partition"),
        (("data.partition={kind: sites, feature_shift: {gain: [2, 1]}}",), "data.partition.feature_shift.gain"),
        (("data={source: manifest, columns: {site: null}}",), "data.columns.site"),
        (("data={source: manifest, image_name: x.png}",), "data.image_name"),
        (("data={source: manifest, task: multi_label}",), "data.columns.labels"),
        (("data={source: medfmc, dataset: chest}",), "data.task"),
        (("data={source: medfmc, sampling: exp1, shots: 10}",), "data.shots"),
        (("data={source: medfmc, sampling: exp1, test_list: null}",), "data.test_list"),
        (("data={source: medfmc, group_pattern: '('}",), "data.group_pattern"),
        (("data={source: medfmc, group_pattern: abc}",), "data.group_pattern"),
        (("data={source: isic2018, task: multi_label}",), "data.task"),
        (("data={source: isic2018, parts: [training, validation]}",), "data.parts"),
        (("data={source: dicom, columns: {label: a, labels: [b]}}",), "data.columns"),
        (("data={source: dicom, patient_key: nowhere}",), "data.patient_key"),
        (("federation.options={mu: 1}",), "federation.options.mu"),
        (("federation.strategy=fedprox", "federation.options={proximal_mu: -1}"), "federation.options.proximal_mu"),
        (
            ("federation.strategy=krum", "federation.options={num_malicious_nodes: 1.5}"),
            "federation.options.num_malicious_nodes",
        ),
        (("federation.weights=capped",), "federation.weight_cap"),
        (("federation.weight_cap=10",), "federation.weight_cap"),
        (("federation.averaging=log_mean_exp", "federation.strategy=krum"), "federation.averaging"),
        (("federation.averaging=log_mean_exp", "federation.payload=raw"), "federation.averaging"),
        (("federation.sites_per_round=2.5",), "federation.sites_per_round"),
        (("training.proximal_mu=1",), "training.proximal_mu"),
        (("data.sites=[]",), "data.sites"),
    ],
)
def test_settings_that_do_not_fit_together_are_refused(tmp_path: Path, overrides: tuple[str, ...], field: str) -> None:
    assert field in problems(write(tmp_path, PHANTOMS), *overrides)


@pytest.mark.parametrize(
    ("overrides", "field"),
    [
        (("data.source=pacs",), "data"),
        (("data.partition.kind=random",), "data.partition"),
        (("training.prompt_lr=.nan",), "training.prompt_lr"),
        (("training.head_lr=.inf",), "training.head_lr"),
        (("name=../escape",), "name"),
        (("federation.strategy=fedmagic",), "federation.strategy"),
        (("federation.share=everything",), "federation.share"),
        (("seed=-1",), "seed"),
        (("data.columns.image=x",), "data.columns"),
        (("seed.more=1",), "seed.more"),
        (("=1",), "--set"),
        (("model.image_size={",), "model.image_size"),
    ],
)
def test_invalid_values_are_refused(tmp_path: Path, overrides: tuple[str, ...], field: str) -> None:
    assert field in problems(write(tmp_path, {**PHANTOMS, "seed": 0}), *overrides)


@pytest.mark.parametrize(
    "content",
    [
        "data: {source: phantoms}\nseed: 1\nseed: 2\n",
        "data: {source: phantoms}\nfederation: {rounds: 1, rounds: 2}\n",
        "data: {source: phantoms}\n2026-01-01: x\n",
        "data: &loop {source: phantoms, more: *loop}\n",
        "[" * 20_000,
        "data: {source: phantoms}\nname: 2024-13-45\n",
        "data: {source: phantoms}\nseed: 0x_\n",
    ],
    ids=["seed twice", "rounds twice", "a date as key", "a loop", "too deep", "no date", "no number"],
)
def test_yaml_with_duplicate_keys_loops_or_invalid_values_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "experiment.yaml"
    path.write_text(content)
    with pytest.raises(InputRefusedError):
        load_experiment(path)


def test_file_locations_are_not_part_of_the_run_id(tmp_path: Path) -> None:
    path = write(tmp_path, PHANTOMS)
    same = {load_experiment(path, [change]).run_id for change in ("name=a", "data.root=/x", "model.device=cpu")}
    assert same == {load_experiment(path).run_id}
    assert load_experiment(path, ["training.head_lr=0.5"]).run_id not in same


def test_the_run_id_does_not_change_with_a_new_setting_that_is_not_given() -> None:
    class Later(Experiment):
        added: int | None = None

    now, later = Experiment.model_validate(PHANTOMS), Later.model_validate(PHANTOMS)
    assert later.run_id == now.run_id
    assert Later.model_validate({**PHANTOMS, "added": 0}).run_id != now.run_id


def test_a_null_that_is_a_setting_is_part_of_the_run_id(tmp_path: Path) -> None:
    path = write(tmp_path, PHANTOMS)
    runs = {load_experiment(path, [f"data.validation_shots={shots}"]).run_id for shots in ("null", "10")}
    assert len(runs) == 2


def test_the_partition_is_part_of_the_run_id(tmp_path: Path) -> None:
    path = write(tmp_path, PHANTOMS)
    partitions = (
        "{kind: sites}",
        "{kind: iid, sites: 3}",
        "{kind: iid, sites: 4}",
        "{kind: dirichlet, sites: 3}",
        "{kind: dirichlet, sites: 3, alpha: 0.1}",
        "{kind: dirichlet, sites: 3, feature_shift: {}}",
    )
    runs = {load_experiment(path, [f"data.partition={partition}"]).run_id for partition in partitions}
    assert len(runs) == len(partitions)
    assert load_experiment(path).run_id in runs


def test_a_check_of_only_the_data_does_not_require_weights(tmp_path: Path) -> None:
    path = write(tmp_path, {**PHANTOMS, "model": {"weights": "/nowhere/w.safetensors"}})
    assert load_experiment(path, check=validate_data).model.weights == "/nowhere/w.safetensors"
    with pytest.raises(InputRefusedError):
        load_experiment(path, ["data.classes=[a, a]"], check=validate_data)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.partition={kind: dirichlet, sites: 3, alfa: 1}", "did you mean 'alpha'?"),
        ("data.partition={kind: iid, sites: 3, alpha: 1}", "known here: feature_shift, kind, sites"),
        ("data.partition={kind: sites, feature_shift: {gian: [1, 1]}}", "did you mean 'gain'?"),
        ("data.phantom_site=2", "did you mean 'phantom_sites'?"),
    ],
)
def test_unknown_keys_are_checked_against_the_selected_section(tmp_path: Path, override: str, said: str) -> None:
    assert any(said in fix for fix in problems(write(tmp_path, PHANTOMS), override).values())


@pytest.mark.parametrize("content", ["", "[1, 2]", "data: [", "\x00", "just text"])
def test_a_file_that_is_not_an_experiment_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "experiment.yaml"
    path.write_text(content)
    assert "config" in problems(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    assert "config" in problems(tmp_path / "absent.yaml")


def test_resolved_settings_read_back_as_they_were(tmp_path: Path) -> None:
    experiment = load_experiment(write(tmp_path, PHANTOMS), ["model.prompt_layers=[3, 1]", "federation.rounds=3"])
    (tmp_path / "resolved.yaml").write_text(experiment.to_yaml())
    assert load_experiment(tmp_path / "resolved.yaml") == experiment


@examples(10)
@given(first=st.integers(0, 5), second=st.integers(0, 5), rounds=st.sampled_from([1, 8]))
def test_run_ids_are_equal_exactly_for_equal_settings(first: int, second: int, rounds: int) -> None:
    runs = [
        Experiment.model_validate({**PHANTOMS, "seed": seed, "federation": {"rounds": rounds}})
        for seed in (first, second)
    ]
    assert (runs[0].run_id == runs[1].run_id) == (first == second)
