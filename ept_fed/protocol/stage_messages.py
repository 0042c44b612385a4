"""Messages of a round's secure aggregation: five answers of each site, after training and before the sum.

`ept_fed.privacy.secure_aggregation.messages` defines the content of the bytes. This module only adds the round and the
stage to which they belong.
"""

from dataclasses import dataclass
from typing import Literal

from ept_fed.protocol.messages import Header

__all__ = ["STAGES", "Stage", "StageReply", "StageRequest"]

Stage = Literal["advertisement", "shares", "masked input", "confirmation", "unmasking"]
STAGES: tuple[Stage, ...] = ("advertisement", "shares", "masked input", "confirmation", "unmasking")


@dataclass(frozen=True)
class StageRequest:
    """The server's request for a site's part of a stage.

    Attributes:
        header: as in the round's other messages.
        stage: the requested stage.
        content: data that the site needs for the stage; empty for the advertisement.
    """

    header: Header
    stage: Stage
    content: bytes


@dataclass(frozen=True)
class StageReply:
    """A site's part of a stage.

    Attributes:
        header: the request's header, as the site received it.
        stage: the request's stage.
        content: bytes of the site's part.
    """

    header: Header
    stage: Stage
    content: bytes
