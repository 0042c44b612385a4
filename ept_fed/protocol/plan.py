"""The plan of a run: all that a server needs, without a model.

Whoever has the backbone makes the plan (`ept-fed simulate` does); the server reads it with numpy alone.
"""

from dataclasses import dataclass

from ept_fed.protocol.layout import PayloadLayout, Vector
from ept_fed.protocol.messages import Header

__all__ = ["Plan"]


@dataclass(frozen=True)
class Plan:
    """One federated run.

    Attributes:
        run: identity of the run, the same for equal settings.
        seed: run seed, from which every other seed is derived.
        backbone_digest: SHA-256 every site must have.
        layout: of the payload.
        initial: the payload of round 0, layout.size float32.
        rounds: how many.
        strategy: how replies are averaged.
        training: JSON of the training settings, sent with each train request.
    """

    run: str
    seed: int
    backbone_digest: str
    layout: PayloadLayout
    initial: Vector
    rounds: int
    strategy: str
    training: str

    def header(self, round_number: int) -> Header:
        """Return the header of this run's messages in a round (1-based)."""
        return Header(self.run, round_number, self.backbone_digest, self.layout.hash)
