"""The server's proposal of a run and the site's introduction: the two halves of the agreement on a run.

A proposal is the consortium's part of an experiment. The site's part is the location of images and weights, and the
device; `ept_fed.validation.load_site` joins the two.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Self

from pydantic import Field, model_validator

import ept_fed
from ept_fed.config.base import Name, Seed, Settings
from ept_fed.config.data import SharedDataSettings
from ept_fed.config.experiment import (
    Experiment,
    FederationSettings,
    PersonalisationSettings,
    SharedModelSettings,
    TrainingSettings,
)
from ept_fed.errors import InputRefusedError, Problem
from ept_fed.protocol.layout import PayloadLayout, Vector
from ept_fed.protocol.messages import PROTOCOL_VERSION, MessageRefusedError
from ept_fed.storage.canonical_json import serialize_canonical

__all__ = ["PlanIntroduction", "Proposal", "ProposedData", "SiteIntroduction", "propose"]


class ProposedData(SharedDataSettings):
    """Classes, splits and few-shot sample; classes must be named, because no site sees the classes of another."""

    classes: Annotated[tuple[str, ...], Field(min_length=1)]


class Proposal(Settings):
    """The settings of a proposed run, without any setting of a machine.

    Attributes:
        sites: names of all selected sites, sorted, under secure aggregation; otherwise empty, because a site needs no
            names of other sites.
    """

    name: Name
    seed: Seed
    data: ProposedData
    model: SharedModelSettings
    training: TrainingSettings
    federation: FederationSettings
    personalisation: PersonalisationSettings
    sites: tuple[Name, ...] = ()

    @model_validator(mode="after")
    def _check_sites(self) -> Self:
        if bool(self.sites) != (self.federation.secure_aggregation is not None):
            raise ValueError("sites must be named if, and only if, federation.secure_aggregation is set")
        if list(self.sites) != sorted(set(self.sites)):
            raise ValueError("sites must be distinct names, sorted")
        return self

    @property
    def digest(self) -> str:
        """SHA-256, in hex, of the canonical JSON; it shows that every site runs the proposal that its IT accepted."""
        return hashlib.sha256(serialize_canonical(self.model_dump(mode="json"))).hexdigest()


@dataclass(frozen=True)
class SiteIntroduction:
    """A site's answer to a proposal.

    Attributes:
        site: the name in the site's own settings; only its registered key proves its identity.
        run: the run of the request.
        proposal: digest of the proposal that the site would follow.
        backbone_digest: SHA-256 of the site's copy of the backbone.
        layout: layout of the payload that the site would send and accept.
        initial: the payload of round 0, layout.size float32, the same at every site.
        examples: number of the site's training images.
        protocol: protocol version.
        code: code version.
    """

    site: str
    run: str
    proposal: str
    backbone_digest: str
    layout: PayloadLayout
    initial: Vector
    examples: int
    protocol: int = PROTOCOL_VERSION
    code: str = ept_fed.__version__

    def check(self, run: str, proposal: Proposal) -> None:
        """Refuse an introduction that does not answer this proposal.

        Raises:
            MessageRefusedError: naming every difference.
            PayloadMismatchError: for an initial payload that does not match its own layout.
        """
        expected = {
            "run": run,
            "proposal": proposal.digest,
            "protocol": PROTOCOL_VERSION,
            "code": ept_fed.__version__,
        }
        differing = [
            f"{name}: theirs {getattr(self, name)}, ours {mine}"
            for name, mine in expected.items()
            if getattr(self, name) != mine
        ]
        if differing:
            raise MessageRefusedError("introduction refused; " + "; ".join(differing))
        if not 1 <= self.examples <= 10**9:
            raise MessageRefusedError(f"sample count {self.examples} is not between 1 and 10^9")
        self.layout.check(self.initial)


@dataclass(frozen=True)
class PlanIntroduction:
    """A virtual site's answer to a server without a backbone: its name, and the plan from its own copy of the backbone.

    Attributes:
        site: the name that the site states.
        plan: the plan as JSON; see `ept_fed.run_plan.plan_json`.
        initial: the payload of round 0, float32.
    """

    site: str
    plan: str
    initial: Vector


def propose(experiment: Experiment, sites: Sequence[str] = ()) -> Proposal:
    """Return the consortium's part of an experiment; it names `sites`, all selected sites, under secure aggregation.

    Raises:
        InputRefusedError: if the experiment names no classes.
    """
    if not experiment.data.classes:
        fix = "name them in order: the server sees no images, and all sites must use the same classes"
        raise InputRefusedError([Problem("data.classes", None, fix)])
    whole = experiment.model_dump(mode="json")
    return Proposal.model_validate(
        {
            **{name: whole[name] for name in Proposal.model_fields if name in whole},
            "data": {name: whole["data"][name] for name in ProposedData.model_fields},
            "model": {name: whole["model"][name] for name in SharedModelSettings.model_fields},
            "sites": sorted(sites) if experiment.federation.secure_aggregation else [],
        }
    )
