"""Measure the cost of secure aggregation in a deployed run: seconds and bytes per round, with and without it.

    python -m simulations.benches.secure_deployment [--rounds 4] [--turns 2]

Three hospitals run on a loopback deployment (Flower's transport, TLS, proxy, gates), alternately in plaintext and under
secure aggregation. Training is short, so that the protocol causes most of the difference. The bytes are those that the
proxy counts, headers included.
"""

import argparse
import json
import statistics
import time
from dataclasses import dataclass

from simulations.deployment.loopback_deployment import Rehearsal, RehearsalError
from simulations.deployment.traffic import count_traffic, read_requests

_SITES = 3


@dataclass(frozen=True)
class _Cost:
    seconds: float
    received: float
    sent: float


def main() -> None:
    """Run federations with and without secure aggregation alternately, and print the medians."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", maxsplit=1)[0])
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--turns", type=int, default=2)
    arguments = parser.parse_args()
    costs: dict[bool, list[_Cost]] = {False: [], True: []}
    for turn in range(arguments.turns):
        # No gate accepts a second masked run with the same seed, so every turn has new sites.
        with Rehearsal(_SITES) as rehearsal:
            rehearsal.start_server()
            for name in rehearsal.names:
                rehearsal.start_site(name)
            rehearsal.wait_online(rehearsal.names)
            for masked, found in costs.items():
                found.append(_run(rehearsal, f"{'masked' if masked else 'clear'}-{turn}", arguments.rounds, masked))
                print(f"turn {turn + 1}, {'secure aggregation' if masked else 'plaintext'}: {found[-1]}", flush=True)
    print(f"\n{_SITES} sites, {arguments.rounds} rounds, medians of {arguments.turns} turns")
    for masked, found in costs.items():
        seconds, received, sent = (
            statistics.median(getattr(cost, name) for cost in found) for name in ("seconds", "received", "sent")
        )
        label = "under secure aggregation" if masked else "in plaintext"
        print(f"{label:>25}: {seconds:.1f} s per round, {received / 1e3:.1f} kB from and {sent / 1e3:.1f} kB to a site")
    ratio = statistics.median(c.seconds for c in costs[True]) / statistics.median(c.seconds for c in costs[False])
    print(f"wall time of a round: x{ratio:.2f}")


def _run(rehearsal: Rehearsal, name: str, rounds: int, masked: bool) -> _Cost:
    federation = {"rounds": rounds, "norm_bound": None, "deadline": 120.0}
    secure: dict[str, object] = {"secure_aggregation": {}} if masked else {}
    started = time.time()
    code, said = rehearsal.run(rehearsal.write_experiment(name, federation={**federation, **secure}))
    if code:
        raise RehearsalError(said)
    lines = (rehearsal.server.runs / name / "rounds.jsonl").read_text().splitlines()
    # The first round also loads the backbone and the images, so it is not counted.
    seconds = statistics.mean(json.loads(line)["seconds"] for line in lines[1:])
    counted = count_traffic(
        read_requests(rehearsal.server.state / "logs" / "proxy" / "proxy.log"),
        rehearsal.server.public_keys(),
        since=started,
        until=time.time() + 1,
    )
    return _Cost(
        seconds,
        statistics.mean(site.received for site in counted.values()) / rounds,
        statistics.mean(site.sent for site in counted.values()) / rounds,
    )


if __name__ == "__main__":
    main()
