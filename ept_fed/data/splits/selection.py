"""Selection of the images that each site uses, and sentences on missing or scarce images."""

from collections import Counter
from collections.abc import Iterable, Sequence

from ept_fed.config.data import DataSettings
from ept_fed.data.records.records import ImageRecord
from ept_fed.data.splits.few_shot import find_shortages, sample_shots
from ept_fed.errors import Problem
from ept_fed.seeds import derive_seed

__all__ = ["describe_scarcity", "describe_thinning", "find_empty_splits", "find_lost_shots", "select_records"]

_REMEDIES = {
    "train": "give it images, lower the fractions held out, or leave it out of data.sites",
    "test": "give it images, raise data.test_fraction, or leave it out of data.sites",
}


def select_records(
    records: Sequence[ImageRecord], classes: tuple[str, ...], settings: DataSettings, seed: int
) -> tuple[tuple[ImageRecord, ...], list[Problem]]:
    """Draw every site's K-shot samples.

    Args:
        records: records of all sites to use, each with a split.
        classes: C class names.
        settings: `shots`, `validation_shots`, `test_shots`, `scarce_classes` and `split_seed` are read.
        seed: the run's seed. Each site and split draws with its own derived seed. Test images are drawn with the seed
            of the splits, so that runs with equal splits are evaluated on the same images.

    Returns:
        The selected records, sorted by site and image; and a problem for every site without training or test images,
        and for every class and site with too few training images if `scarce_classes` is "refuse".
    """
    sites = sorted({record.site for record in records})
    problems = find_empty_splits(records, sites)
    shots = {"train": settings.shots, "validation": settings.validation_shots, "test": settings.test_shots}
    selected: list[ImageRecord] = []
    shortages: list[tuple[str, str, int]] = []
    for site in sites:
        for split, count in shots.items():
            candidates = [record for record in records if record.site == site and record.split == split]
            if count is None:
                selected += candidates
                continue
            scope = derive_seed(settings.place_by(seed) if split == "test" else seed, site, split, "shots")
            sample = sample_shots(candidates, shots=count, num_classes=len(classes), seed=scope)
            selected += sample.records
            if split == "train" and settings.scarce_classes == "refuse" and candidates:
                short = find_shortages(sample, count)
                shortages += [(site, classes[label], have) for label, have in short.items()]
    problems += _refuse_shortages(shortages, settings.shots)
    return tuple(sorted(selected, key=lambda record: (record.site, record.image))), problems


def find_empty_splits(records: Iterable[ImageRecord], sites: Iterable[str]) -> list[Problem]:
    """Return a problem for every site that has no training or no test images."""
    there = {(record.site, record.split) for record in records}
    names = {"train": "training", "test": "test"}
    return [
        Problem("data.sites", site, f"has no {names[split]} images; {remedy}")
        for site in sites
        for split, remedy in _REMEDIES.items()
        if (site, split) not in there
    ]


def find_lost_shots(
    selected: Sequence[ImageRecord], kept: Sequence[ImageRecord], classes: tuple[str, ...], shots: int | None
) -> list[Problem]:
    """Return a problem for every site and class that has too few training images because some are unreadable."""
    if shots is None:
        return []
    before, after = (
        Counter((record.site, label) for record in records if record.split == "train" for label in record.labels)
        for records in (selected, kept)
    )
    short = [
        (site, classes[label], after[site, label])
        for site, label in sorted(before)
        if after[site, label] < min(shots, before[site, label])
    ]
    return _refuse_shortages(short, shots)


def describe_scarcity(records: Sequence[ImageRecord], classes: tuple[str, ...], shots: int | None) -> tuple[str, ...]:
    """Return sentences on classes with no or fewer than K training images, and with no test images, per site."""
    counts = Counter((record.site, record.split, label) for record in records for label in record.labels)
    notes = []
    for site in sorted({record.site for record in records}):
        trained = {name: counts[site, "train", label] for label, name in enumerate(classes)}
        absent = [name for name, have in trained.items() if have == 0]
        scarce = [f"{have} of {name}" for name, have in trained.items() if 0 < have < (shots or 0)]
        untested = [name for label, name in enumerate(classes) if counts[site, "test", label] == 0]
        if absent:
            notes.append(f"{site} has no {', '.join(absent)} to train on")
        if scarce:
            notes.append(f"{site} has fewer than {shots} training images per class: {', '.join(scarce)}")
        if untested:
            notes.append(f"{site} has no {', '.join(untested)} to test on")
    return tuple(notes)


def describe_thinning(
    records: Iterable[ImageRecord],
    selected: Iterable[ImageRecord],
    kept: Iterable[ImageRecord],
    test_shots: int | None,
) -> dict[str, str]:
    """Return, for every site that is not tested on all of its test images, the effect on its numbers.

    Args:
        records: records of all sites to use, each with a split.
        selected: the K-shot samples.
        kept: the selected records whose images are readable.
        test_shots: maximum test images per class and site.

    Returns:
        A sentence by site.
    """
    held, drawn, used = (
        Counter(record.site for record in some if record.split == "test") for some in (records, selected, kept)
    )
    what = (
        f"at most {test_shots} per class: sensitivities are as on all of them; AUC, average precision, specificity, "
        "predictive values, accuracy, loss and calibration are for other class proportions"
    )
    return {
        site: f"{site} is tested on {used[site]} of its {held[site]} test images, {what}."
        for site in sorted(held)
        if drawn[site] < held[site]
    }


def _refuse_shortages(shortages: Sequence[tuple[str, str, int]], shots: int | None) -> list[Problem]:
    maximum = min((have for _, _, have in shortages), default=0)
    remedy = "set data.scarce_classes=use_all" + (f", or lower data.shots to at most {maximum}" if maximum else "")
    return [
        Problem("data.shots", shots, f"site '{site}' has {have} training image(s) of '{name}'; {remedy}")
        for site, name, have in shortages
    ]
