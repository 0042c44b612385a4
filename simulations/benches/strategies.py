"""Run every strategy on one experiment, and the robust rules against a Byzantine site.

    python -m simulations.benches.strategies CONFIG [--set KEY=VALUE …] [--attacker SITE] --out FILE.csv

Data and backbone are loaded once. The runs differ in the strategy, in the bound on the norm of the update, and in the
attack. Strategies have their default options, except for those in `OPTIONS`. Results are means over the honest sites,
each on its own test images. A strategy that needs more sites than the experiment has is skipped. Each row is written as
soon as its run is finished. Rows that are already in FILE.csv are not run again.
"""

import argparse
import csv
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Context

from client.in_process_app import create_client_app
from client.requests.respond import SitePart
from ept_fed.catalog.strategies import STRATEGIES, resolve_options
from ept_fed.protocol.layout import Vector
from ept_fed.protocol.messages import Phase
from ept_fed.reports.run.round_record import RoundRecord
from ept_fed.storage.files import write_csv
from ept_fed.validation.load_experiment import load_experiment
from server.app import create_server_app
from server.rounds.loop import FederationResult
from simulations.benches.byzantine_sites import ATTACKS, attack_through
from simulations.engine.local_grid import run_locally
from simulations.engine.virtual_sites import VirtualFederation, prepare_federation

# Options for four sites: the smallest trimming that removes one site, and zero malicious sites for Krum's family.
OPTIONS: dict[str, dict[str, float]] = {
    "fedtrimmedavg": {"beta": 0.25},
    "krum": {"num_malicious_nodes": 0},
    "multikrum": {"num_malicious_nodes": 0},
    "bulyan": {"num_malicious_nodes": 0},
}
ROBUST = ("fedmedian", "fedtrimmedavg", "geometric_median", "krum")
COLUMNS = ("strategy", "norm_bound", "attack", "auc", "balanced_accuracy", "refused")


@dataclass(frozen=True)
class Trial:
    """The settings of one run."""

    strategy: str
    norm_bound: float | None
    attack: str


def main() -> None:
    """Run the trials that are not in the file yet, and print their rows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE")
    parser.add_argument("--attacker", help="name of the Byzantine site; default: the first name in sorted order")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    logging.getLogger("flwr").setLevel(logging.WARNING)
    federation = prepare_federation(load_experiment(arguments.config, arguments.overrides))
    attacker = arguments.attacker or min(federation.data.sites)
    rows: list[Mapping[str, Any]] = []
    if arguments.out.exists():
        rows = list(csv.DictReader(arguments.out.open(encoding="utf-8")))
    done = {(row["strategy"], row["norm_bound"], row["attack"]) for row in rows}
    for trial in list_trials(len(federation.data.sites)):
        key = (trial.strategy, str(trial.norm_bound or ""), trial.attack)
        if key in done:
            continue
        numbers = run_trial(federation, trial, attacker)
        rows.append(dict(zip(COLUMNS, (*key, *numbers), strict=True)))
        write_csv(arguments.out, rows, COLUMNS)
        print(*(f"{name}={value}" for name, value in rows[-1].items()), flush=True)


def list_trials(sites: int) -> Iterator[Trial]:
    """Yield every strategy without attack, then for each attack FedAvg with and without bound, and the robust rules."""
    for name, info in STRATEGIES.items():
        if info.minimum_sites(resolve_options(name, OPTIONS.get(name, {}))) <= sites:
            yield Trial(name, None, "none")
    for attack in ATTACKS:
        yield Trial("fedavg", None, attack)
        if attack == "NaN":
            # The server refuses NaN under every strategy: see tests/server/rounds/test_loop.py.
            continue
        yield Trial("fedavg", 10.0, attack)
        for name in ROBUST:
            yield Trial(name, None, attack)


def run_trial(federation: VirtualFederation, trial: Trial, attacker: str) -> tuple[str, str, int]:
    """Return the mean AUC and mean balanced accuracy over honest sites, and the number of refused replies."""
    settings = {
        "strategy": trial.strategy,
        "options": OPTIONS.get(trial.strategy, {}),
        "norm_bound": trial.norm_bound,
    }
    if STRATEGIES[trial.strategy].uniform_only:
        settings["weights"] = "uniform"
    experiment = federation.experiment
    chosen = experiment.federation.model_copy(update=settings)
    federation = replace(federation, experiment=experiment.model_copy(update={"federation": chosen}))
    plan = federation.plan()
    sites = {name: federation.create_site(data) for name, data in federation.data.sites.items()}
    results: list[FederationResult] = []

    def find_part(context: Context) -> SitePart:
        return federation.take_part(sites[str(context.node_config["site"])])

    app = create_client_app(find_part)
    if trial.attack != "none":
        app = attack_through(app, attacker, trial.attack, experiment.seed)
    run_locally(create_server_app(plan, _Quiet(), results.append), app, tuple(sites))
    metrics = []
    for name, site in sites.items():
        if name != attacker:
            with site.hold(results[0].payload) as held:
                metrics.append(held.assess(site.data.test)[1])
    auc, balanced = (f"{np.mean([m[key] for m in metrics]):.4f}" for key in ("auc", "balanced_accuracy"))
    return auc, balanced, sum(len(record.refused) for record in results[0].rounds)


class _Quiet:
    """An observer that does nothing."""

    def on_site(self, round_number: int, site: str, phase: Phase, metrics: Mapping[str, float]) -> None:
        pass

    def on_payload(self, round_number: int, payload: Vector, seconds: float) -> None:
        pass

    def on_round(self, record: RoundRecord) -> None:
        pass


if __name__ == "__main__":
    main()
