"""How much of a site's update the sums of two masked runs tell, one with the site and one without.

python -m simulations.probes.two_sums CONFIG [--set KEY=VALUE …] [--site NAME]

Under secure aggregation a server has only sums. The difference of two sums, of all sites and of all but one, is that
site's update if the others sent the same updates in both runs. The rows are runs of one round: with the same training
seed, as if the identity of a run were not part of it (the control, which must tell everything); with the same seed of
the run, as two masked runs train; and with another seed. The gate refuses the first two (protocol.run).
"""

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from client.site.run_settings import derive_masked_seed
from client.site.site import Site
from ept_fed.evaluation.metrics import Array
from ept_fed.protocol.layout import Vector
from ept_fed.validation.load_experiment import load_experiment
from simulations.engine.federate import QuietObserver, run_in_process
from simulations.engine.virtual_sites import VirtualFederation, prepare_federation

__all__ = ["ROWS", "compare_sums"]

ROWS = ("the same training seed (control)", "the same seed of the run", "another seed of the run")


def main() -> None:
    """Print a table with the likeness of the difference of two sums and the site's update."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--set", action="append", default=[], dest="overrides")
    parser.add_argument("--site", default="")
    arguments = parser.parse_args()
    one_round = ("federation.rounds=1", "federation.select=last", "personalisation.choose=false")
    federation = prepare_federation(load_experiment(arguments.config, [*arguments.overrides, *one_round]))
    found = compare_sums(federation, arguments.site or sorted(federation.data.sites)[-1])
    print("| two masked runs with | cosine to the site's update | relative error |\n|---|---|---|")
    for row, (cosine, error) in zip(ROWS, found, strict=True):
        print(f"| {row} | {cosine:.2f} | {error:.2g} |")


def compare_sums(federation: VirtualFederation, site: str) -> list[tuple[float, float]]:
    """Return, for each of `ROWS`, the cosine and the relative error of the difference of two sums to a site's update.

    Args:
        federation: prepared for one round.
        site: the site that is in the first run only.
    """
    experiment = federation.experiment
    seed = derive_masked_seed(experiment.seed, "first")
    everyone, own = _sum_updates(federation, seed, seen=site)
    without = replace(federation.data, sites={k: v for k, v in federation.data.sites.items() if k != site})
    fewer = replace(federation, data=without)
    # The images stay those of the first run, as at a hospital.
    images = experiment.data.model_copy(update={"seed": experiment.data_seed})
    other = replace(fewer, experiment=experiment.model_copy(update={"seed": experiment.seed + 1, "data": images}))
    runs = (
        (fewer, seed),
        (fewer, derive_masked_seed(experiment.seed, "second")),
        (other, derive_masked_seed(experiment.seed + 1, "second")),
    )
    return [_liken(everyone - _sum_updates(run, training)[0], own) for run, training in runs]


def _liken(difference: Array, own: Array) -> tuple[float, float]:
    cosine = difference @ own / (np.linalg.norm(difference) * np.linalg.norm(own))
    return float(cosine), float(np.linalg.norm(difference - own) / np.linalg.norm(own))


def _sum_updates(federation: VirtualFederation, seed: int, seen: str = "") -> tuple[Array, Array]:
    """Return the weighted sum of the updates of one round, and that of one site by itself."""
    sites = {name: federation.create_site(data) for name, data in federation.data.sites.items()}
    for one in sites.values():
        one.settings = replace(one.settings, seed=seed)
    plan, watcher = federation.plan(), _Watcher(sites)
    run_in_process(plan, {name: federation.take_part(one) for name, one in sites.items()}, watcher)
    moved = {
        name: len(federation.data.sites[name].train) * (payload - plan.initial).astype(np.float64)
        for name, payload in watcher.payloads.items()
    }
    return np.sum(list(moved.values()), axis=0), moved.get(seen, np.zeros(0))


@dataclass
class _Watcher(QuietObserver):
    """Keeps what each site sent in the round."""

    sites: Mapping[str, Site]
    payloads: dict[str, Vector] = field(default_factory=dict)

    def on_payload(self, round_number: int, payload: Vector, seconds: float) -> None:
        """Ask the sites for what they sent."""
        del round_number, payload, seconds
        self.payloads = {name: site.own_payload() for name, site in self.sites.items()}


if __name__ == "__main__":
    main()
