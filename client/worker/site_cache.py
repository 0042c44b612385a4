"""The worker's cache between messages and runs: one backbone, one set of images, one model, frozen layers' outputs.

Each object is kept with a key of the settings that it depends on, and is made anew only if the key changes. The old
object is dropped first, so that there are never two in memory. Images that change on disk require a restart of the
worker.
"""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from client.site.factory import create_site, create_start_model, load_backbone
from client.site.model_slot import ModelSlot
from client.site.site import Site
from client.site.state_store import StateStore
from ept_fed.config.experiment import Experiment
from ept_fed.data.datasets.prefix_store import PrefixStore
from ept_fed.data.datasets.prepare import PreparedData, prepare_data
from ept_fed.errors import InputRefusedError, Problem
from ept_fed.models.backbones import Backbone
from ept_fed.models.device import choose_device
from ept_fed.protocol.proposal import Proposal
from ept_fed.validation.load_site import SiteSettings, join_proposal

__all__ = ["WarmSite"]

_PREFIXES = "prefixes"

_Made = TypeVar("_Made")


class _Kept(Generic[_Made]):
    """One value, and the key that it was made for."""

    def __init__(self) -> None:
        self.value: _Made | None = None
        self._key = ""

    def fits(self, key: str) -> bool:
        return self.value is not None and self._key == key

    def get(self, key: str, make: Callable[[], _Made]) -> _Made:
        value = self.value
        if value is None or self._key != key:
            self.drop()
            value = make()
            self.value, self._key = value, key
        return value

    def drop(self) -> None:
        self.value, self._key = None, ""


class WarmSite:
    """Makes the site of a run, with the objects in memory as far as they fit."""

    def __init__(self, settings: SiteSettings) -> None:
        """Take the site's own settings; nothing is loaded yet."""
        self._settings = settings
        self._backbone: _Kept[Backbone] = _Kept()
        self._data: _Kept[PreparedData] = _Kept()
        self._slot: _Kept[ModelSlot] = _Kept()
        self._prefixes = PrefixStore(settings.model.prefix_memory * 2**20, settings.worker.state / _PREFIXES)

    @property
    def backbone_digest(self) -> str | None:
        """Digest of the backbone in memory; None if there is none."""
        backbone = self._backbone.value
        return None if backbone is None else backbone.digest

    @property
    def training_images(self) -> int | None:
        """Number of training images in memory; None if no images are loaded."""
        data = self._data.value
        return None if data is None else len(data.sites[self._settings.site].train)

    @property
    def data(self) -> PreparedData:
        """The images in memory, which are those of this one site.

        Raises:
            RuntimeError: before the first `open`.
        """
        if self._data.value is None:
            raise RuntimeError("no images are loaded yet; open a run first")
        return self._data.value

    @property
    def slot(self) -> ModelSlot:
        """The model in memory, which the sites that `open` returns use in turn.

        Raises:
            RuntimeError: before the first `open`.
        """
        if self._slot.value is None:
            raise RuntimeError("no model is loaded yet; open a run first")
        return self._slot.value

    def open(self, run: str, proposal: Proposal, states: StateStore) -> Site:
        """Return the site for a run; load the objects that are not in memory.

        Raises:
            InputRefusedError: with the problems of proposal, settings, weights or images.
        """
        experiment = join_proposal(self._settings, proposal)
        model, seed = experiment.model, experiment.seed
        backbone_key = json.dumps(
            [model.backbone, model.image_size, model.weights, _stamp(model.weights), None if model.weights else seed]
        )
        if not self._backbone.fits(backbone_key):
            self._slot.drop()
        device = choose_device(model.device, "model.device")
        backbone = self._backbone.get(backbone_key, lambda: load_backbone(experiment))
        data_key = json.dumps([experiment.data.model_dump(mode="json"), experiment.data_seed, repr(backbone.input)])
        data = self._data.get(data_key, lambda: self._prepare(experiment, backbone))
        slot_key = json.dumps([backbone_key, model.model_dump(mode="json"), seed, list(data.classes)])
        slot = self._slot.get(
            slot_key, lambda: ModelSlot(create_start_model(experiment, backbone, len(data.classes), device))
        )
        site = data.sites[self._settings.site]
        return create_site(experiment, site, slot, run=run, states=states, prefixes=self._prefixes)

    def _prepare(self, experiment: Experiment, backbone: Backbone) -> PreparedData:
        prepared = prepare_data(experiment.data, backbone.input, experiment.data_seed)
        if len(prepared.sites) != 1:
            fix = "this worker is one site; name only the site whose images it has"
            raise InputRefusedError([Problem("data.sites", ", ".join(prepared.sites), fix)])
        site = dataclasses.replace(next(iter(prepared.sites.values())), name=self._settings.site)
        return dataclasses.replace(prepared, sites={site.name: site})


def _stamp(weights: str | None) -> list[int] | None:
    """Return modification time and size of a weights file, which identify its version."""
    if weights in (None, "pretrained"):
        return None
    found = Path(str(weights)).stat()
    return [found.st_mtime_ns, found.st_size]
