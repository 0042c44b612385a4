"""Messages of a round's secure aggregation: five answers of each site, after training and before the sum.

`ept_fed.privacy.secure_aggregation.messages` says what the bytes mean; here is only to which round and stage they
belong.
"""

from dataclasses import dataclass
from typing import Literal

from ept_fed.protocol.messages import Header

__all__ = ["STAGES", "Stage", "StageReply", "StageRequest"]

Stage = Literal["advertisement", "shares", "masked input", "confirmation", "unmasking"]
STAGES: tuple[Stage, ...] = ("advertisement", "shares", "masked input", "confirmation", "unmasking")


@dataclass(frozen=True)
class StageRequest:
    """The server asks a site for its part of a stage.

    Attributes:
        header: as of the round's other messages.
        stage: what is asked for.
        content: what the site needs for it; empty for the advertisement.
    """

    header: Header
    stage: Stage
    content: bytes


@dataclass(frozen=True)
class StageReply:
    """A site's part of a stage.

    Attributes:
        header: the request's, as seen by the site.
        stage: the request's.
        content: the part.
    """

    header: Header
    stage: Stage
    content: bytes
