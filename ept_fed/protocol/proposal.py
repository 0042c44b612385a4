"""What a server proposes to a site, and how the site introduces itself: the two halves of the agreement on a run.

A proposal is the part of an experiment that is the consortium's. Where images and weights lie, and on what device, is
the site's own; `ept_fed.validation.load_site` joins the two.
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
    """Classes, splits and few-shot sample; the classes have to be named, for no site sees another's."""

    classes: Annotated[tuple[str, ...], Field(min_length=1)]


class Proposal(Settings):
    """What a run would be, without a word about any machine.

    Attributes:
        sites: names of all sites that are asked to take part, sorted, if their updates are masked; otherwise empty,
            as no site has to know the others.
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
            raise ValueError("sites are named exactly where federation.secure_aggregation is set")
        if list(self.sites) != sorted(set(self.sites)):
            raise ValueError("sites must be distinct names, sorted")
        return self

    @property
    def digest(self) -> str:
        """SHA-256, in hex, of the canonical JSON: what a site's IT agrees to is what every site runs."""
        return hashlib.sha256(serialize_canonical(self.model_dump(mode="json"))).hexdigest()


@dataclass(frozen=True)
class SiteIntroduction:
    """A site's answer to a proposal.

    Attributes:
        site: the name in its own settings; who it really is, its registered key says.
        run: as asked.
        proposal: digest of the proposal it would follow.
        backbone_digest: SHA-256 of its copy of the backbone.
        layout: of the payload that it would send and accept.
        initial: the payload of round 0, layout.size float32, the same at every site.
        examples: its training images.
        protocol: version.
        code: version.
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
            MessageRefusedError: naming what differs.
            PayloadMismatchError: for an initial payload that does not fit its own layout.
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
    """A virtual site's answer to a server without a backbone: its name, and the plan that its own copy leads to.

    Attributes:
        site: its name, by its own word.
        plan: as JSON; see `ept_fed.run_plan.plan_json`.
        initial: the payload of round 0, float32.
    """

    site: str
    plan: str
    initial: Vector


def propose(experiment: Experiment, sites: Sequence[str] = ()) -> Proposal:
    """Return the consortium's part of an experiment; `sites` are all that are asked, and named if updates are masked.

    Raises:
        InputRefusedError: if it names no classes.
    """
    if not experiment.data.classes:
        fix = "name them in order: the server sees no images, and all sites must mean the same"
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
