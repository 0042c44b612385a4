"""The ServerApp of `flwr run`: virtual sites under Flower's own runtimes.

It needs no backbone and loads no torch: the nodes, which have one, make the plan, and must agree on it.
"""

import logging
from collections.abc import Mapping
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from ept_fed.protocol.layout import Vector
from ept_fed.protocol.messages import Phase
from ept_fed.reports.run.run_folder import RunFolder
from ept_fed.run_plan.plan import Plan
from server.app import create_server_app
from server.rounds.loop import FederationResult, NothingAveragedError
from server.rounds.round_record import RoundRecord
from simulations.flower.named_grid import IntroductionError, NamedGrid
from simulations.flower.run_config import read_experiment

__all__ = ["app"]

_log = logging.getLogger("flwr.ept_fed")  # shown by `flwr log`
app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the experiment that the run config names into its run folder.

    Raises:
        InputRefusedError: for a refused experiment or folder.
        IntroductionError: if the nodes do not make up one federation.
        NothingAveragedError: if no round averaged anything, so that Flower reports the run as failed.
    """
    experiment = read_experiment(context.run_config)
    out = str(context.run_config["out"]) or f"runs/{experiment.name}-flower-{context.run_id}"
    folder = RunFolder(Path(out).expanduser().resolve())
    folder.create(experiment.to_yaml())
    _log.info("the run folder is %s", folder.path)
    named = NamedGrid(grid, deadline=experiment.federation.deadline)
    plan = named.agree_on_plan()
    if plan.run != experiment.run_id:
        raise IntroductionError("the nodes run another experiment than the server was given; give all the same file")
    folder.write_prompts(plan, 0, plan.initial)
    results: list[FederationResult] = []
    create_server_app(plan, _Recorder(plan, folder), results.append)(named, context)
    (result,) = results
    if not result.aggregated_anything:
        raise NothingAveragedError(f"no round averaged anything; {folder.path / 'rounds.jsonl'} says why")


class _Recorder:
    """Writes each round into the run folder."""

    def __init__(self, plan: Plan, folder: RunFolder) -> None:
        self._plan, self._folder = plan, folder

    def on_site(self, round_number: int, site: str, phase: Phase, metrics: Mapping[str, float]) -> None:
        """Do nothing; the round's record has it all."""

    def on_payload(self, round_number: int, payload: Vector, seconds: float) -> None:
        self._folder.write_prompts(self._plan, round_number, payload)
        _log.info("round %d of %d: %.1f s", round_number, self._plan.rounds, seconds)

    def on_round(self, record: RoundRecord) -> None:
        self._folder.write_round(record.to_json())
