"""Shadow runs: federations like the attacked one on images that the attacker chose, and what he would see in each."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from client.site.factory import create_start_model
from client.site.site import Site
from ept_fed.config.experiment import Experiment
from ept_fed.data.datasets.cache import CachedDataset
from ept_fed.data.datasets.prepare import SiteData
from ept_fed.evaluation.metrics import Array
from ept_fed.models.tuned_vit import TunedViT
from ept_fed.privacy.attacks.shadow_ratios import true_margins
from ept_fed.protocol.layout import Vector
from ept_fed.run_plan.plan import Plan
from ept_fed.seeds import derive_seed
from ept_fed.training.payload import import_payload
from ept_fed.training.precision import use_bfloat16
from simulations.attacks.shadows.pool import ShadowPool
from simulations.engine.federate import QuietObserver, run_in_process
from simulations.engine.virtual_sites import VirtualFederation

__all__ = ["Seen", "ShadowTrainer"]

# Views of a candidate whose margins are averaged: as in an evaluation, and augmented as in training.
_AUGMENTED = 3
_BATCH = 32
_FIT_STEPS, _FIT_RATE = 300, 0.05


@dataclass(frozen=True)
class Seen:
    """What an attacker sees in one run, as margins of the n candidates; see `true_margins`.

    Attributes:
        member: (n,) bool, whether the run was trained on the candidate.
        average: (T, n) under the average after each of T rounds.
        own: (T, n) under the update of the candidate's own site in these rounds; NaN where nobody knows it.
        known: (n,) under a head that was fitted to the run's training images until it had memorised them.
    """

    member: Array
    average: Array
    own: Array
    known: Array

    def at(self, places: Array) -> "Seen":
        """Return what is seen of some of the candidates."""
        return Seen(self.member[places], self.average[:, places], self.own[:, places], self.known[places])


@dataclass(frozen=True)
class ShadowTrainer:
    """Trains shadow runs, and reads margins out of payloads as anybody could who has backbone, settings and seed.

    Attributes:
        federation: that of the attacked run.
        pool: its images.
        rounds: the T rounds that are looked at, ascending.
        seed: of the attack.
    """

    federation: VirtualFederation
    pool: ShadowPool
    rounds: Sequence[int]
    seed: int

    def train(self, number: int) -> Seen:
        """Train a shadow run with the images that its number draws."""
        drawn = self.pool.draw(self.seed, number)
        data = {name: self._site_data(name, places) for name, places in drawn.items()}
        shadow = replace(self.federation, data=replace(self.federation.data, sites=data), experiment=self._experiment)
        plan = shadow.plan()
        sites = {name: shadow.create_site(site) for name, site in data.items()}
        parts = {name: shadow.take_part(site) for name, site in sites.items()}
        watcher = _Watcher(self, plan, sites)
        run_in_process(plan, parts, watcher)
        member = self.pool.membership(drawn)
        return Seen(member, np.stack(watcher.average), np.stack(watcher.own), self.memorise(drawn))

    def margins(self, plan: Plan, payload: Vector, only: Array | None = None) -> Array:
        """Return margins under a payload, with the head that everybody knows, of all candidates or of some of them."""
        import_payload(self.model, payload, plan.layout)
        return self._read(np.arange(len(self.pool.candidates)) if only is None else only)

    def batch(self, places: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Return inputs and labels of some candidates of one site, as in an evaluation."""
        candidates = self.pool.candidates
        (site,) = set(candidates.site[list(places)].tolist())
        images = list(self._images.values())[site]
        return next(images.batches(len(places), order=candidates.place[list(places)].tolist()))

    def memorise(self, drawn: Mapping[str, Sequence[int]]) -> Array:
        """Return margins (n,) under a head on frozen features that was fitted to these images alone."""
        names = list(self.pool.images)
        trained = torch.cat([self._features[name][list(drawn[name])] for name in names])
        labels = torch.cat([self.pool.images[name].labels[list(drawn[name])] for name in names])
        single = self.federation.data.task == "single_label"
        with torch.enable_grad():
            head = torch.nn.Linear(trained.shape[1], len(self.federation.data.classes))
            torch.nn.init.zeros_(head.weight)
            torch.nn.init.zeros_(head.bias)
            optimizer = torch.optim.Adam(head.parameters(), lr=_FIT_RATE)
            for _ in range(_FIT_STEPS):
                optimizer.zero_grad()
                logits = head(trained)
                loss = F.cross_entropy(logits, labels) if single else F.binary_cross_entropy_with_logits(logits, labels)
                loss.backward()
                optimizer.step()
        found, candidates = np.empty(len(self.pool.candidates)), self.pool.candidates
        for index, name in enumerate(names):
            chosen = np.flatnonzero(candidates.site == index)
            places = candidates.place[chosen].tolist()
            with torch.no_grad():
                logits = head(self._features[name][places])
            found[chosen] = true_margins(logits.numpy(), self.pool.images[name].labels[places].numpy())
        return found

    @cached_property
    def _experiment(self) -> Experiment:
        """The settings without masks, as a sum says the same, and without limits that depend on the run's images."""
        experiment = self.federation.experiment
        plain = experiment.federation.model_copy(
            update={"secure_aggregation": None, "patience": None, "max_examples": None}
        )
        return experiment.model_copy(update={"federation": plain})

    @cached_property
    def model(self) -> TunedViT:
        """The attacker's model, as every site has it at the start; its tensors change."""
        return self._start()

    @cached_property
    def _images(self) -> dict[str, CachedDataset]:
        """The pool's images, with the outputs of the frozen layers where these are kept."""
        whole = {name: self._site_data(name, range(len(images))) for name, images in self.pool.images.items()}
        return {name: self.federation.create_site(data).data.train for name, data in whole.items()}

    @cached_property
    def _features(self) -> dict[str, Tensor]:
        """Frozen features (m, D) of the pool's images, standardised."""
        start, found = self._start(), {}
        with torch.no_grad():
            for name, images in self._images.items():
                parts = [start.forward_features(x.to(start.device)).float().cpu() for x, _ in images.batches(_BATCH)]
                found[name] = torch.cat(parts)
        everything = torch.cat(list(found.values()))
        centre, scale = everything.mean(0), everything.std(0) + 1e-6
        return {name: (features - centre) / scale for name, features in found.items()}

    def _start(self) -> TunedViT:
        federation = self.federation
        classes = len(federation.data.classes)
        return create_start_model(federation.experiment, federation.backbone, classes, federation.device).eval()

    def _site_data(self, name: str, places: Sequence[int]) -> SiteData:
        images = self.pool.images[name]
        none = images.without_images()
        return SiteData(name, images.classes, images.task, images.subset(places), none, none)

    @torch.no_grad()
    def _read(self, places: Array) -> Array:
        model, candidates, found = self.model, self.pool.candidates, np.empty(len(places))
        bfloat16 = use_bfloat16(self.federation.experiment.training.precision, model.device)
        for index, images in enumerate(self._images.values()):
            own = candidates.site[places] == index
            if not own.any():
                continue
            order = candidates.place[places[own]].tolist()
            margins = []
            for view in range(1 + min(_AUGMENTED, images.views or _AUGMENTED)):
                augment = derive_seed(self.seed, "view", view) if view else None
                kept = view - 1 if view and images.views else None
                with torch.autocast(model.device.type, torch.bfloat16, enabled=bfloat16):
                    answers = [
                        (model(x.to(model.device)).float().cpu().numpy(), labels.numpy())
                        for x, labels in images.batches(_BATCH, order=order, augment_seed=augment, view=kept)
                    ]
                margins.append(np.concatenate([true_margins(*answer) for answer in answers]))
            found[own] = np.mean(margins, axis=0)
        return found


@dataclass
class _Watcher(QuietObserver):
    """Reads the margins after the rounds that are looked at."""

    trainer: ShadowTrainer
    plan: Plan
    sites: Mapping[str, Site]
    average: list[Array] = field(default_factory=list)
    own: list[Array] = field(default_factory=list)

    def on_payload(self, round_number: int, payload: Vector, seconds: float) -> None:
        """Read the margins under the average and under each site's own update."""
        del seconds
        if round_number not in self.trainer.rounds:
            return
        trainer = self.trainer
        self.average.append(trainer.margins(self.plan, payload))
        own = np.empty(len(trainer.pool.candidates))
        for index, site in enumerate(self.sites.values()):
            places = np.flatnonzero(trainer.pool.candidates.site == index)
            own[places] = trainer.margins(self.plan, site.own_payload(), places)
        self.own.append(own)
