"""The refusals that a site sends to the server: only error texts written for that purpose leave the site."""

import errno

from ept_fed.errors import InputRefusedError
from ept_fed.protocol.frames import Refusal
from ept_fed.protocol.layout import PayloadMismatchError
from ept_fed.protocol.messages import MessageRefusedError, clean_text
from ept_fed.storage.checkpoint_file import DamagedCheckpointError
from ept_fed.training.loop import TrainingDivergedError

__all__ = ["explain"]

_DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


def explain(error: Exception) -> Refusal:
    """Return the refusal for an exception; it contains only text that was written to leave the site."""
    if isinstance(error, MessageRefusedError | PayloadMismatchError | TrainingDivergedError):
        return Refusal(clean_text(str(error)))
    if isinstance(error, InputRefusedError):
        fields = ", ".join(problem.field for problem in error.problems)
        return Refusal(clean_text(f"refused settings: {fields}; the site's own log says why"))
    if isinstance(error, OSError) and error.errno in _DISK_FULL:
        return Refusal("the site's disk is full; nothing is lost, ask again once there is room")
    if isinstance(error, DamagedCheckpointError):
        return Refusal("a state of the site is damaged; its own log says which", failed=True)
    return Refusal("the site failed; its own log says why", failed=True)
