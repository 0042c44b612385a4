"""Virtual sites: real data split as in life, and one frozen backbone in memory for all of them."""

import json
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property

import torch

from client.build_site import choose_device, create_site, create_start_model, load_backbone
from client.site import ModelSlot, Site
from client.states import StateFolder, StateStore
from ept_fed.config import Experiment, FederationSettings
from ept_fed.data.datasets import PreparedData, SiteData, pool, prepare_data
from ept_fed.data.input_spec import InputSpec
from ept_fed.models.backbones import Backbone
from ept_fed.models.method import TunedViT
from ept_fed.models.payload import export_payload, payload_layout
from ept_fed.problems import InputRefusedError, Problem
from ept_fed.protocol.plan import Plan
from ept_fed.reports.run_folder import RunFolder
from ept_fed.strategies import STRATEGIES, count_asked, resolve_options

__all__ = ["POOLED_SITE", "VirtualFederation", "prepare_federation"]

POOLED_SITE = "all sites pooled"
_FALLBACK_SPEC = InputSpec(size=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), interpolation="bilinear")


@dataclass(frozen=True)
class VirtualFederation:
    """Everything a simulation needs, checked and loaded.

    Attributes:
        experiment: the settings.
        backbone: shared by every model that `create_site` makes.
        data: each site's splits.
        device: where models live.
    """

    experiment: Experiment
    backbone: Backbone
    data: PreparedData
    device: torch.device

    @cached_property
    def slot(self) -> ModelSlot:
        """The one model in memory, in which all sites take turns; it holds the run's start."""
        return ModelSlot(self._create_model())

    def create_site(self, data: SiteData, states: StateStore | None = None) -> Site:
        """Return a site that starts, or goes on, from its states; None keeps them in memory."""
        return create_site(self.experiment, data, self.slot, run=self.experiment.run_id, states=states)

    def keep_states(self, folder: RunFolder, setting: str, site: str) -> StateFolder:
        """Return where a site of a setting (federated, local, centralised) keeps its states in a run folder."""
        return StateFolder(folder.states(setting, site), run=self.experiment.run_id, site=site)

    def pooled(self) -> SiteData:
        """Return all sites' splits as one site's: what a central collection of the images would allow."""
        sites = self.data.sites.values()
        return SiteData(
            name=POOLED_SITE,
            classes=self.data.classes,
            task=self.data.task,
            train=pool(site.train for site in sites),
            validation=pool(site.validation for site in sites),
            test=pool(site.test for site in sites),
        )

    def plan(self) -> Plan:
        """Return what the server needs, with the initial payload that every site starts from."""
        federation = self.experiment.federation
        model = self._create_model()
        options = resolve_options(federation.strategy, federation.options)
        proximal = STRATEGIES[federation.strategy].proximal_option
        training = self.experiment.training.model_dump() | {"proximal_mu": options[proximal] if proximal else 0.0}
        layout = payload_layout(model, share=federation.share, payload=federation.payload, classes=self.data.classes)
        return Plan(
            run=self.experiment.run_id,
            seed=self.experiment.seed,
            backbone_digest=self.backbone.digest,
            layout=layout,
            initial=export_payload(model, layout),
            rounds=federation.rounds,
            sites=tuple(self.data.sites),
            training=json.dumps(training, separators=(",", ":")),
            strategy=federation.strategy,
            options=options,
            max_examples=self._max_examples(),
            **federation.model_dump(
                include={
                    "averaging",
                    "weights",
                    "weight_cap",
                    "sites_per_round",
                    "quorum",
                    "deadline",
                    "grace",
                    "norm_bound",
                    "patience",
                    "target_auc",
                }
            ),
        )

    def _max_examples(self) -> dict[str, int]:
        """Return what each site may claim: as the settings say, else what this process knows it has."""
        agreed = self.experiment.federation.max_examples
        if agreed is None:
            return {name: len(site.train) for name, site in self.data.sites.items()}
        return dict.fromkeys(self.data.sites, agreed) if isinstance(agreed, int) else dict(agreed)

    def _create_model(self) -> TunedViT:
        return create_start_model(self.experiment, self.backbone, len(self.data.classes), self.device)


def prepare_federation(experiment: Experiment) -> VirtualFederation:
    """Load backbone and data, and find out everything that stands in the way before anything is written.

    Raises:
        InputRefusedError: with the problems of model and data together.
    """
    problems: list[Problem] = []
    device = backbone = None
    try:
        device = choose_device(experiment.model.device)
    except InputRefusedError as refusal:
        problems += refusal.problems
    try:
        backbone = load_backbone(experiment)
    except InputRefusedError as refusal:
        problems += refusal.problems
    data = None
    try:
        data = prepare_data(experiment.data, backbone.input if backbone else _FALLBACK_SPEC, experiment.data_seed)
    except InputRefusedError as refusal:
        problems += refusal.problems
    if data is not None:
        problems += _check_sites(experiment.federation, data.sites)
    if device is not None and backbone is not None and data is not None and not problems:
        federation = VirtualFederation(experiment, backbone, data, device)
        try:
            federation.plan()
        except InputRefusedError as refusal:
            problems += refusal.problems
        else:
            return federation
    raise InputRefusedError(problems)


def _check_sites(federation: FederationSettings, names: Collection[str]) -> list[Problem]:
    """Return what these sites make impossible."""
    found = []
    sites = len(names)
    if isinstance(federation.max_examples, dict):
        unknown = sorted(set(federation.max_examples) - set(names))
        fix = f"the data has no such site; it has {', '.join(sorted(names))}"
        found += [Problem("federation.max_examples", name, fix) for name in unknown]
    needed = STRATEGIES[federation.strategy].minimum_sites(resolve_options(federation.strategy, federation.options))
    asked = count_asked(federation.sites_per_round, sites)
    if asked < needed:
        fix = f"needs {needed} sites in every round, and {asked} are asked; take another strategy or other options"
        found.append(Problem("federation.strategy", federation.strategy, fix))
    if federation.quorum is not None and federation.quorum > asked:
        fix = f"only {asked} sites are asked in a round; lower it"
        found.append(Problem("federation.quorum", federation.quorum, fix))
    if federation.sites_per_round > sites:
        found.append(Problem("federation.sites_per_round", federation.sites_per_round, f"there are {sites} sites"))
    return found
