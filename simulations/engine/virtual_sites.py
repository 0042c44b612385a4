"""Virtual sites: data that is split as across real hospitals, and one frozen backbone in memory for all sites."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from pydantic import TypeAdapter, ValidationError

from client.gate.interface import GateInterface
from client.requests.respond import SitePart
from client.site.factory import create_site, create_start_model, load_backbone
from client.site.model_slot import ModelSlot
from client.site.secure_aggregation import SecureRounds, agree_on_sums
from client.site.site import Site
from client.site.state_store import StateFolder, StateStore
from ept_fed.config.base import Name
from ept_fed.config.experiment import Experiment
from ept_fed.data.datasets.input_spec import InputSpec
from ept_fed.data.datasets.prefix_store import PrefixStore
from ept_fed.data.datasets.prepare import (
    CachedDataset,
    PreparedData,
    SiteData,
    load_for_training,
    pool,
    prepare_data,
)
from ept_fed.data.records.records import ImageRecord
from ept_fed.errors import InputRefusedError, Problem
from ept_fed.models.backbones import Backbone
from ept_fed.models.device import choose_device
from ept_fed.models.tuned_vit import TunedViT
from ept_fed.protocol.proposal import Proposal, propose
from ept_fed.reports.run.run_folder import RunFolder
from ept_fed.run_plan.make_plan import make_plan
from ept_fed.run_plan.plan import Plan
from ept_fed.training.payload import export_payload, payload_layout
from ept_fed.validation.experiment import check_sites
from simulations.engine.pass_through_gate import PassThroughGate

__all__ = ["CENTRALISED_SITE", "VirtualFederation", "check_names", "prepare_federation"]

# Seeds derive from this name; another name would change the results of every centralised baseline.
CENTRALISED_SITE = "all sites pooled"
_NAME: TypeAdapter[str] = TypeAdapter(Name)
_FALLBACK_SPEC = InputSpec(size=32, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), interpolation="bilinear")


@dataclass(frozen=True)
class VirtualFederation:
    """The loaded and checked inputs of a simulation.

    Attributes:
        experiment: the settings.
        backbone: shared by every model that `create_site` makes.
        data: each site's splits.
        device: on which all models are.
        prefixes: outputs of the frozen layers, for every model of these images.
    """

    experiment: Experiment
    backbone: Backbone
    data: PreparedData
    device: torch.device
    prefixes: PrefixStore

    @cached_property
    def slot(self) -> ModelSlot:
        """The only model in memory, which all sites use in turn; it also keeps the run's start."""
        return ModelSlot(self._create_model())

    def create_site(self, data: SiteData, states: StateStore | None = None) -> Site:
        """Return a site that starts or continues from `states`; with None, its states are kept in memory."""
        run = self.experiment.run_id
        return create_site(self.experiment, data, self.slot, run=run, states=states, prefixes=self.prefixes)

    def keep_states(self, folder: RunFolder, setting: str, site: str) -> StateFolder:
        """Return the store in a run folder for a site's states under a setting (federated, local, centralised, …)."""
        return StateFolder(folder.states(setting, site), run=self.experiment.run_id, site=site)

    def load_alike(self, chosen: Mapping[str, Sequence[ImageRecord]]) -> dict[str, CachedDataset]:
        """Return images by site, all of them as they are kept for training.

        Images for training are kept larger than others, so their features differ a little from those of the same image
        in another split. An attack could tell the splits apart by that, and not by what was trained on.

        Raises:
            InputRefusedError: if an image can no longer be read.
        """
        experiment = self.experiment
        return load_for_training(experiment.data, self.backbone.input, experiment.data_seed, chosen)

    def centralised(self) -> SiteData:
        """Return the splits of all sites as those of one site, for centralised training."""
        sites = self.data.sites.values()
        return SiteData(
            name=CENTRALISED_SITE,
            classes=self.data.classes,
            task=self.data.task,
            train=pool(site.train for site in sites),
            validation=pool(site.validation for site in sites),
            test=pool(site.test for site in sites),
        )

    @cached_property
    def proposal(self) -> Proposal:
        """What a server would propose to these sites."""
        data = self.experiment.data.model_copy(update={"classes": self.data.classes})
        return propose(self.experiment.model_copy(update={"data": data}), tuple(self.data.sites))

    def take_part(
        self,
        site: Site,
        gate: GateInterface | None = None,
        rounds: SecureRounds | None = None,
    ) -> SitePart:
        """Return a site's part in the run of this experiment.

        Args:
            site: a site of this federation.
            gate: the site's gate; None lets everything pass.
            rounds: the site's part in secure aggregation; None without it.
        """
        proposal = self.proposal
        terms = None if rounds is None else agree_on_sums(site.settings.run, proposal, site.layout)
        return SitePart(
            site,
            proposal,
            PassThroughGate() if gate is None else gate,
            rounds=None if rounds is None else lambda: rounds,
            terms=terms,
        )

    def plan(self, agreed: Collection[str] | None = None) -> Plan:
        """Return the plan for the server, with the initial payload that every site starts from.

        `agreed` are the sites that take part; None: all of them.
        """
        federation = self.experiment.federation
        model = self._create_model()
        layout = payload_layout(
            model,
            share=federation.share,
            payload=federation.payload,
            classes=self.data.classes,
            statistics=self.experiment.shared_statistics,
        )
        return make_plan(
            self.experiment,
            self.experiment.run_id,
            examples={
                name: len(site.train) for name, site in self.data.sites.items() if agreed is None or name in agreed
            },
            backbone_digest=self.backbone.digest,
            layout=layout,
            initial=export_payload(model, layout),
            proposed_to=tuple(self.data.sites),
        )

    def _create_model(self) -> TunedViT:
        return create_start_model(self.experiment, self.backbone, len(self.data.classes), self.device)


def check_names(sites: Iterable[str]) -> list[Problem]:
    """Return a problem for each site whose name no site of a deployment could have."""
    fix = "certificates and proposals need 1 to 64 letters, digits, dots, dashes or underscores; rename the site"
    return [Problem("data", name, fix) for name in sites if not _is_name(name)]


def _is_name(text: str) -> bool:
    try:
        _NAME.validate_python(text)
    except ValidationError:
        return False
    return True


def prepare_federation(experiment: Experiment, *, cache: Path | None = None) -> VirtualFederation:
    """Load backbone and data, and find every problem before anything is written.

    Args:
        experiment: validated settings.
        cache: folder for what does not fit into `model.prefix_memory`; None uses an unnamed temporary file.

    Raises:
        InputRefusedError: with the problems of model and data together.
    """
    problems: list[Problem] = []
    device = backbone = None
    try:
        device = choose_device(experiment.model.device, "model.device")
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
        problems += check_sites(experiment.federation, data.sites)
        if experiment.federation.secure_aggregation is not None:
            problems += check_names(data.sites)
    if device is not None and backbone is not None and data is not None and not problems:
        prefixes = PrefixStore(experiment.model.prefix_memory * 2**20, cache)
        federation = VirtualFederation(experiment, backbone, data, device, prefixes)
        try:
            federation.plan()
        except InputRefusedError as refusal:
            problems += refusal.problems
        else:
            return federation
    raise InputRefusedError(problems)
