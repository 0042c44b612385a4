"""The images from which an attacker draws the training images of shadow runs, and the candidates among them."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ept_fed.data.datasets.cache import CachedDataset
from ept_fed.data.datasets.prepare import SiteData
from ept_fed.data.records.records import ImageRecord
from ept_fed.evaluation.metrics import Array
from ept_fed.seeds import numpy_generator
from simulations.engine.virtual_sites import VirtualFederation

__all__ = ["Candidates", "ShadowPool", "build_pool"]


@dataclass(frozen=True)
class Candidates:
    """The images of which the attacker wants to know whether they were trained on, in the order of the sites.

    Attributes:
        site: (n,) index of each candidate's site.
        place: (n,) its place among the images of its site.
        member: (n,) bool, whether the attacked run was trained on it.
        group: (n,) its patient or lesion.
        label: (n,) its class; 0 for several labels per image.
    """

    site: Array
    place: Array
    member: Array
    group: Array
    label: Array

    def __len__(self) -> int:
        return len(self.member)

    def at(self, places: Array) -> "Candidates":
        """Return some of the candidates."""
        return Candidates(*(column[places] for column in (self.site, self.place, self.member, self.group, self.label)))


@dataclass(frozen=True)
class ShadowPool:
    """The training images of a run, and as many others of the same sites and classes, of other patients.

    Attributes:
        images: by site, as they would be kept for training.
        trained: by site, the places of the run's own training images.
        strata: by site, lists of patients' places, one list for each class.
        candidates: equally many members and others of each site and class.
    """

    images: Mapping[str, CachedDataset]
    trained: Mapping[str, Sequence[int]]
    strata: Mapping[str, Sequence[Sequence[Sequence[int]]]]
    candidates: Candidates

    def draw(self, seed: int, number: int) -> dict[str, list[int]]:
        """Return the places of the training images of a shadow run, by site, ascending.

        Each site has as many of each class as in the attacked run, if the patients' numbers of images allow it. All
        images of a patient are drawn together. Shadow runs come in pairs: the second starts with the patients that the
        first has left out, so that each image is in about half of the runs.
        """
        drawn = {}
        for site, strata in self.strata.items():
            own = set(self.trained[site])
            found: list[int] = []
            for position, patients in enumerate(strata):
                left = sum(place in own for places in patients for place in places)
                order = numpy_generator(seed, "shadow", number // 2, site, position).permutation(len(patients))
                if number % 2:
                    order = order[::-1]
                for places in (patients[index] for index in order):
                    if len(places) <= left:
                        left -= len(places)
                        found += places
            drawn[site] = sorted(found)
        return drawn

    def membership(self, drawn: Mapping[str, Sequence[int]]) -> Array:
        """Return (n,) bool, whether each candidate is among these training images."""
        sets = [set(drawn[site]) for site in self.images]
        pairs = zip(self.candidates.site.tolist(), self.candidates.place.tolist(), strict=True)
        return np.array([place in sets[site] for site, place in pairs])


def build_pool(federation: VirtualFederation, *, seed: int, most: int) -> ShadowPool:
    """Return the pool of a run's federation.

    Args:
        federation: the reopened run.
        seed: draws the other images and the candidates.
        most: maximum number of candidates per site; more are trained on, but not asked for.

    Raises:
        InputRefusedError: if an image can no longer be read.
    """
    chosen, trained, strata, candidates = {}, {}, {}, []
    for index, (name, data) in enumerate(federation.data.sites.items()):
        members, others = _by_class(data.train.records, data), _choose_others(data, seed)
        records: list[ImageRecord] = []
        of_class = []
        total = sum(min(len(members[label]), len(others[label])) for label in members)
        share = min(1.0, most / (2 * total)) if total else 0.0
        for label in sorted(members):
            first = len(records)
            rng = numpy_generator(seed, name, "candidates", label)
            count = min(len(members[label]), len(others[label]))
            kept = others[label][:count]
            records += [*members[label], *kept]
            of_class.append(_by_patient(records, first))
            asked = round(count * share)
            inside = first + rng.permutation(len(members[label]))[:asked]
            outside = first + len(members[label]) + rng.permutation(count)[:asked]
            candidates += [
                (index, int(place), place < first + len(members[label]), records[place].group, label)
                for place in sorted([*inside, *outside])
            ]
        own = {record.image for record in data.train.records}
        trained[name] = [place for place, record in enumerate(records) if record.image in own]
        chosen[name], strata[name] = records, of_class
    images = federation.load_alike(chosen)
    columns = list(zip(*candidates, strict=True)) if candidates else [()] * 5
    found = Candidates(*(np.array(column) for column in columns))
    return ShadowPool(images, trained, strata, replace(found, member=found.member.astype(bool)))


def _by_class(records: Sequence[ImageRecord], data: SiteData) -> dict[int, list[ImageRecord]]:
    found: dict[int, list[ImageRecord]] = defaultdict(list)
    for record in records:
        found[record.labels[0] if data.task == "single_label" else 0].append(record)
    return found


def _choose_others(data: SiteData, seed: int) -> dict[int, list[ImageRecord]]:
    """Return one image of each patient that the site did not train on, by class, in random order."""
    rng = numpy_generator(seed, data.name, "others")
    records = [*data.validation.records, *data.test.records]
    taken, kept = {record.group for record in data.train.records}, []
    for index in rng.permutation(len(records)):
        if records[index].group not in taken:
            taken.add(records[index].group)
            kept.append(records[index])
    return defaultdict(list, _by_class(kept, data))


def _by_patient(records: Sequence[ImageRecord], first: int) -> list[list[int]]:
    """Return the places from `first` on, those of a patient together."""
    found: dict[str, list[int]] = defaultdict(list)
    for place in range(first, len(records)):
        found[records[place].group].append(place)
    return list(found.values())
