from collections import Counter
from collections.abc import Callable

import pytest
import torch

from ept_fed.config.data import ManifestSettings, PhantomSettings
from ept_fed.data.datasets.cache import CachedDataset, pool
from ept_fed.data.datasets.input_spec import InputSpec
from ept_fed.data.datasets.prepare import PreparedData, prepare_data
from ept_fed.data.datasets.transforms import build_pipelines
from ept_fed.data.records.records import ImageRecord
from ept_fed.errors import InputRefusedError, Problem
from ept_fed.seeds import derive_seed

SPEC = InputSpec(16, (0.5,) * 3, (0.5,) * 3, "bicubic")
PHANTOMS = PhantomSettings(phantom_sites=2, patients_per_class=8, shots=3)
Write = Callable[..., ManifestSettings]


@pytest.fixture(scope="module")
def prepared() -> PreparedData:
    return prepare_data(PHANTOMS, SPEC, seed=0)


def _images(dataset: CachedDataset, **options: object) -> torch.Tensor:
    return torch.cat([images for images, _ in dataset.batches(4, **options)])


def _refuse(settings: ManifestSettings) -> tuple[Problem, ...]:
    with pytest.raises(InputRefusedError) as caught:
        prepare_data(settings, SPEC, seed=0)
    return caught.value.problems


def test_every_site_gets_k_shots_and_all_its_test_images(prepared: PreparedData) -> None:
    assert list(prepared.sites) == ["site-1", "site-2"]
    for site in prepared.sites.values():
        assert Counter(site.train.labels.tolist()) == dict.fromkeys(range(5), 3)
        assert Counter(site.test.labels.tolist()) == dict.fromkeys(range(5), 4)
        groups = [{record.group for record in part.records} for part in (site.train, site.validation, site.test)]
        assert not groups[0] & groups[1]
        assert not groups[0] & groups[2]
        assert not groups[1] & groups[2]
    assert prepared.notes == ()


def test_summary_counts_images_and_groups(prepared: PreparedData) -> None:
    rows = prepared.summary()
    assert len(rows) == 2 * 3 * 5
    assert rows[0] == {"site": "site-1", "split": "train", "class": "nodules", "images": 3, "groups": 3}
    test = next(row for row in rows if row["split"] == "test")
    assert (test["images"], test["groups"]) == (4, 2)


def test_a_single_site_draws_the_same_images_as_among_all_sites(prepared: PreparedData) -> None:
    alone = prepare_data(PHANTOMS.model_copy(update={"sites": ("site-2",)}), SPEC, seed=0)
    assert list(alone.sites) == ["site-2"]
    for split in ("train", "validation", "test"):
        assert getattr(alone.sites["site-2"], split).records == getattr(prepared.sites["site-2"], split).records


def test_another_seed_draws_other_images(prepared: PreparedData) -> None:
    other = prepare_data(PHANTOMS, SPEC, seed=1)
    assert other.sites["site-1"].train.records != prepared.sites["site-1"].train.records


def test_a_split_seed_keeps_the_test_images_fixed_while_the_shots_change() -> None:
    held = PHANTOMS.model_copy(update={"split_seed": 0})
    first, second = (prepare_data(held, SPEC, seed=seed) for seed in (1, 2))
    for name, site in first.sites.items():
        other = second.sites[name]
        assert site.test.records == other.test.records
        assert site.train.records != other.train.records
        assert not {record.group for record in other.train.records} & {record.group for record in site.test.records}
        assert torch.equal(_images(site.test), _images(other.test))


def test_batches_cover_all_images_in_order(prepared: PreparedData) -> None:
    train = prepared.sites["site-1"].train
    batches = list(train.batches(4))
    assert [len(labels) for _, labels in batches] == [4, 4, 4, 3]
    assert torch.equal(torch.cat([labels for _, labels in batches]), train.labels)
    assert batches[0][0].shape == (4, 3, 16, 16)
    assert batches[0][0].dtype == torch.float32


def test_order_selects_and_repeats_images(prepared: PreparedData) -> None:
    train = prepared.sites["site-1"].train
    chosen = _images(train, order=[3, 3, 0])
    assert torch.equal(chosen, _images(train)[[3, 3, 0]])


def test_augmentation_depends_on_seed_and_position_only(prepared: PreparedData) -> None:
    train = prepared.sites["site-1"].train
    first = _images(train, augment_seed=5)
    assert torch.equal(first, torch.cat([images for images, _ in train.batches(7, augment_seed=5)]))
    assert torch.equal(first[:2], _images(train, order=[0, 1], augment_seed=5))
    assert not torch.equal(first, _images(train, augment_seed=6))
    assert not torch.equal(*_images(train, order=[0, 0], augment_seed=5))


def test_augmented_batch_equals_the_random_pipeline_per_image(prepared: PreparedData) -> None:
    train = prepared.sites["site-1"].train
    random = build_pipelines(SPEC, PHANTOMS.augmentation).random
    alone = []
    for position, image in enumerate(train._images):
        random.set_random_state(seed=derive_seed(5, "augment", position) % 2**32)
        alone.append(random({"image": image})["image"])
    assert torch.equal(_images(train, augment_seed=5), torch.stack(alone))


def test_interleaved_epochs_do_not_disturb_each_other(prepared: PreparedData) -> None:
    train = prepared.sites["site-1"].train
    expected = _images(train, augment_seed=5)
    pairs = zip(train.batches(4, augment_seed=5), train.batches(4, augment_seed=6), strict=True)
    assert torch.equal(torch.cat([images for (images, _), _ in pairs]), expected)


def test_cached_evaluation_equals_the_whole_pipeline(prepared: PreparedData) -> None:
    from ept_fed.data.sources.phantoms import generate_phantoms

    test, store = prepared.sites["site-1"].test, generate_phantoms(PHANTOMS, seed=0).store
    evaluation = build_pipelines(SPEC, PHANTOMS.augmentation).evaluation
    whole = torch.stack([evaluation({"image": store.read(record.image)})["image"] for record in test.records])
    assert torch.equal(_images(test), whole)


def test_pool_concatenates_without_copying(prepared: PreparedData) -> None:
    parts = [site.train for site in prepared.sites.values()]
    pooled = pool(parts)
    assert len(pooled) == sum(map(len, parts))
    assert torch.equal(pooled.labels, torch.cat([part.labels for part in parts]))
    assert all(ours is theirs for ours, theirs in zip(pooled._images, parts[0]._images, strict=False))


def test_pool_refuses_empty_and_mixed_inputs(prepared: PreparedData) -> None:
    train = prepared.sites["site-1"].train
    other = CachedDataset([], [], classes=("a", "b"), task="single_label", pipelines=train._pipelines)
    for parts in ([], [train, other]):
        with pytest.raises(ValueError, match="can pool"):
            pool(parts)


@pytest.mark.parametrize(("task", "shape"), [("single_label", (0,)), ("multi_label", (0, 2))])
def test_empty_datasets_have_labels_and_no_batches(task: str, shape: tuple[int, ...]) -> None:
    pipelines = build_pipelines(SPEC, PHANTOMS.augmentation)
    empty = CachedDataset([], [], classes=("a", "b"), task=task, pipelines=pipelines)
    assert (len(empty), tuple(empty.labels.shape), list(empty.batches(4))) == (0, shape, [])


def test_multi_labels_are_multi_hot() -> None:
    pipelines = build_pipelines(SPEC, PHANTOMS.augmentation)
    records = [ImageRecord("1", (), "x", "1", "train"), ImageRecord("2", (0, 2), "x", "2", "train")]
    images = [torch.zeros(3, 8, 8, dtype=torch.uint8)] * 2
    dataset = CachedDataset(records, images, classes=("a", "b", "c"), task="multi_label", pipelines=pipelines)
    assert dataset.labels.tolist() == [[0.0, 0.0, 0.0], [1.0, 0.0, 1.0]]


def test_records_and_images_must_match(prepared: PreparedData) -> None:
    train = prepared.sites["site-1"].train
    with pytest.raises(ValueError, match="15 records but 0 images"):
        CachedDataset(train.records, [], classes=("a",), task="single_label", pipelines=train._pipelines)
    with pytest.raises(ValueError, match="batch_size"):
        next(train.batches(0))


def test_without_shots_the_whole_training_split_is_used(write_hospital: Write) -> None:
    whole = prepare_data(write_hospital(shots=None, validation_shots=None), SPEC, seed=0)
    assert sum(int(str(row["images"])) for row in whole.summary()) == 96


def test_validation_may_be_empty(write_hospital: Write) -> None:
    data = prepare_data(write_hospital(validation_fraction=0.0), SPEC, seed=0)
    assert [len(site.validation) for site in data.sites.values()] == [0, 0]


@pytest.mark.parametrize("test_shots", [1, 3])
def test_thinned_test_images_do_not_depend_on_the_training_sample(write_hospital: Write, test_shots: int) -> None:
    settings = write_hospital(test_fraction=0.4, split_seed=7)
    whole = prepare_data(settings, SPEC, seed=0)
    thin, other = (
        prepare_data(settings.model_copy(update={"test_shots": test_shots}), SPEC, seed=seed) for seed in (0, 1)
    )
    for name, site in whole.sites.items():
        held, images = site.test.labels.bincount(), [data.sites[name].test.records for data in (whole, thin, other)]
        assert thin.sites[name].test.labels.bincount().tolist() == held.clamp(max=test_shots).tolist()
        assert set(images[0]) > set(images[1]) == set(images[2])
        assert thin.sites[name].train.records == site.train.records
        said = f"{name} is tested on {len(images[1])} of its {len(images[0])} test images, at most {test_shots} per"
        assert thin.thinned[name].startswith(said)
        assert thin.thinned[name] in thin.notes
    assert whole.thinned == {}
    assert not any("is tested on" in note for note in whole.notes)


def test_the_count_of_thinned_test_images_excludes_unreadable_ones(write_hospital: Write) -> None:
    settings = write_hospital(test_fraction=0.4, test_shots=1, max_unreadable=0.9)
    (site, whole), *_ = prepare_data(settings, SPEC, seed=0).sites.items()
    lost = whole.test.records[0].image
    (settings.root / "images" / lost).write_bytes(b"no image")
    data = prepare_data(settings, SPEC, seed=0)
    assert len(data.sites[site].test) == len(whole.test) - 1
    assert data.thinned[site].startswith(f"{site} is tested on {len(whole.test) - 1} of its ")


def test_unreadable_images_are_not_reported_as_thinned(write_hospital: Write) -> None:
    settings = write_hospital(test_fraction=0.4, max_unreadable=0.9)
    (_, whole), *_ = prepare_data(settings, SPEC, seed=0).sites.items()
    (settings.root / "images" / whole.test.records[0].image).write_bytes(b"no image")
    assert prepare_data(settings, SPEC, seed=0).thinned == {}


def test_scarce_classes_are_refused_with_the_shots_that_fit(write_hospital: Write) -> None:
    problems = _refuse(write_hospital(shots=1000))
    assert len(problems) == 4
    assert all(problem.field == "data.shots" and "lower data.shots to at most 1" in problem.fix for problem in problems)


def test_scarce_classes_are_used_and_noted_on_request(write_hospital: Write) -> None:
    settings = write_hospital(shots=1000, scarce_classes="use_all", classes=("a", "b", "c"))
    data = prepare_data(settings, SPEC, seed=0)
    assert "x has no c to train on" in data.notes
    assert "x has no c to test on" in data.notes
    assert any(note.startswith("y has fewer than 1000 training images per class") for note in data.notes)


def test_sites_without_test_images_are_refused_together(write_hospital: Write) -> None:
    problems = _refuse(write_hospital(test_fraction=0.0))
    assert [(problem.field, problem.value) for problem in problems] == [("data.sites", "x"), ("data.sites", "y")]
    assert all("no test images" in problem.fix for problem in problems)


def test_unusable_images_are_refused_and_named(write_hospital: Write) -> None:
    settings = write_hospital(shots=None, validation_shots=None)
    (settings.root / "images" / "p00-0.png").unlink()
    (settings.root / "images" / "p01-1.png").write_bytes(b"not an image")
    (problem,) = _refuse(settings)
    assert problem.field == "data.max_unreadable"
    assert "2 of 96" in problem.fix
    assert "p00-0.png is missing" in problem.fix
    assert "p01-1.png is not an image" in problem.fix
    assert "data.max_unreadable=0.021" in problem.fix

    allowed = prepare_data(settings.model_copy(update={"max_unreadable": 0.021}), SPEC, seed=0)
    assert sum(int(str(row["images"])) for row in allowed.summary()) == 94
    assert allowed.notes[-1].startswith("2 image(s) dropped: p00-0.png is missing")


def test_many_unusable_images_are_counted(write_hospital: Write) -> None:
    settings = write_hospital(shots=None, validation_shots=None)
    for image in (settings.root / "images").iterdir():
        image.unlink()
    (problem,) = _refuse(settings)
    assert "and 86 more; restore them" in problem.fix
    assert "data.max_unreadable=" not in problem.fix


def test_problems_of_all_kinds_are_reported_together(write_hospital: Write) -> None:
    settings = write_hospital(shots=1000, test_fraction=0.0)
    for image in (settings.root / "images").iterdir():
        image.unlink()
    assert {problem.field for problem in _refuse(settings)} == {"data.shots", "data.sites", "data.max_unreadable"}


def test_site_emptied_by_dropping_is_refused(write_hospital: Write) -> None:
    settings = write_hospital(shots=None, max_unreadable=0.9)
    names = prepare_data(settings, SPEC, seed=0).sites["x"].test.records
    for record in names:
        (settings.root / "images" / record.image).unlink()
    (problem,) = _refuse(settings)
    assert (problem.value, problem.fix.split(";")[0]) == ("x", "has no test images")
