"""Writes each round of a run into its run folder; what else wants to follow a run extends it."""

import logging
from collections.abc import Mapping

from ept_fed.protocol.layout import Vector
from ept_fed.protocol.messages import Phase
from ept_fed.reports.run.round_record import RoundRecord
from ept_fed.reports.run.run_folder import RunFolder
from ept_fed.run_plan.plan import Plan

__all__ = ["RunRecorder"]


class RunRecorder:
    """A `RoundObserver` that writes the prompts as soon as a round left them, and its record once it is evaluated."""

    def __init__(self, plan: Plan, folder: RunFolder, log: logging.Logger) -> None:
        """Take the run's plan and folder, and the log that reports each round and each refusal."""
        self._plan, self._folder, self._log = plan, folder, log

    def on_site(self, round_number: int, site: str, phase: Phase, metrics: Mapping[str, float]) -> None:
        """Do nothing; the round's record holds the metrics."""

    def on_payload(self, round_number: int, payload: Vector, seconds: float) -> None:
        """Write the prompts that a round leaves."""
        self._folder.write_prompts(self._plan, round_number, payload)
        self._log.info("round %d of %d: %.1f s", round_number, self._plan.rounds, seconds)

    def on_round(self, record: RoundRecord) -> None:
        """Append the record to rounds.jsonl."""
        self._folder.write_round(record)
        for refusal in record.refused:
            self._log.warning("round %d: %s %s", record.round, refusal.site, refusal.reason)
