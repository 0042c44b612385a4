"""The ServerApp of `flwr run`: virtual sites under Flower's own runtimes.

The server needs no backbone and does not load torch. The nodes have the backbone, make the plan, and must agree on it.
"""

import logging
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from ept_fed.reports.run.run_folder import RunFolder
from server.app import create_server_app
from server.rounds.loop import FederationResult, NothingAveragedError
from server.rounds.recorder import RunRecorder
from simulations.flower.named_grid import IntroductionError, NamedGrid
from simulations.flower.run_config import read_experiment

__all__ = ["app"]

_log = logging.getLogger("flwr.ept_fed")  # shown by `flwr log`
app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the experiment of the run config and write its run folder.

    Raises:
        InputRefusedError: for a refused experiment or folder.
        IntroductionError: if the nodes do not form one federation.
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
        raise IntroductionError("the nodes run another experiment than the server; give all of them the same file")
    folder.write_prompts(plan, 0, plan.initial)
    results: list[FederationResult] = []
    create_server_app(plan, RunRecorder(plan, folder, _log), results.append)(named, context)
    (result,) = results
    if not result.aggregated_anything:
        raise NothingAveragedError(f"no round averaged anything; see {folder.path / 'rounds.jsonl'}")
