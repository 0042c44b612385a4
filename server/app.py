"""The Flower ServerApp that runs a plan with its aggregator in the round loop."""

from collections.abc import Callable

from cryptography import x509
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from ept_fed.run_plan.plan import Plan
from server.rounds.checkpoints import Checkpoint
from server.rounds.loop import FederationResult, RoundObserver, run_rounds
from server.strategies.registry import create_aggregator

__all__ = ["create_server_app"]


def create_server_app(
    plan: Plan,
    observer: RoundObserver,
    on_result: Callable[[FederationResult], None],
    *,
    resume: Checkpoint | None = None,
    save: Callable[[Checkpoint], None] | None = None,
    authority: x509.Certificate | None = None,
) -> ServerApp:
    """Return a ServerApp that runs `plan` over its Grid and passes the result to `on_result`.

    `resume`, `save` and `authority` have the same meaning as in `run_rounds`.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, _context: Context) -> None:
        aggregator = create_aggregator(plan)
        on_result(run_rounds(grid, plan, aggregator, observer, resume=resume, save=save, authority=authority))

    return app
