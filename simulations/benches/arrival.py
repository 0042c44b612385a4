"""Measure the time from the arrival of a train message at a hospital to the start of its training.

python -m simulations.benches.arrival [--rounds 6]

The deployment runs on this machine's loopback, so both times come from the same clock. A message has arrived when the
proxy has sent its last part. Training starts at the time of the line in the worker's log. The time between them covers
Flower's process for the message, the worker's socket, the gate and the ledger.
"""

import argparse
import re
import statistics
from datetime import datetime
from pathlib import Path

from simulations.deployment.loopback_deployment import Rehearsal, RehearsalError
from simulations.deployment.traffic import read_requests, sender_of

_NAME = "arrival"
_BEGINS = re.compile(r"^(\S+ \S+) .*round (\d+) of .*: training begins$", re.MULTILINE)


def main() -> None:
    """Run a federation and print the seconds per site and round."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", maxsplit=1)[0])
    parser.add_argument("--rounds", type=int, default=6)
    rounds = parser.parse_args().rounds
    with Rehearsal(2) as rehearsal:
        rehearsal.start_all()
        experiment = rehearsal.write_experiment(_NAME, federation={"rounds": rounds, "deadline": 120.0})
        code, said = rehearsal.run(experiment)
        if code:
            raise RehearsalError(said)
        arrivals = _read_arrivals(rehearsal)
        waited = []
        for name in rehearsal.names:
            for at, number in _read_begins(rehearsal.site_kit(name) / "logs" / "worker" / "worker.log"):
                seconds = at - max(arrival for arrival in arrivals[name] if arrival <= at)
                print(f"{name}, round {number}: {seconds:.2f} s{'' if number > 1 else ' (not warm)'}")
                waited += [seconds] if number > 1 else []
    print(f"warm: median {statistics.median(waited):.2f} s, maximum {max(waited):.2f} s, of {len(waited)} messages")


def _read_arrivals(rehearsal: Rehearsal) -> dict[str, list[float]]:
    """Return for each site the times at which the proxy had sent an object, in seconds since 1970."""
    kit = rehearsal.server
    names = {key: name for name, key in kit.public_keys().items()}
    arrivals: dict[str, list[float]] = {name: [] for name in rehearsal.names}
    for request in read_requests(kit.state / "logs" / "proxy" / "proxy.log"):
        name = names.get(sender_of(request))
        if name is not None and request["path"].endswith("/pull-object"):
            arrivals[name].append(float(request["at"]))
    return arrivals


def _read_begins(log: Path) -> list[tuple[float, int]]:
    """Return the start of each training, in seconds since 1970, with its round."""
    return [
        (datetime.strptime(time, "%Y-%m-%d %H:%M:%S,%f").astimezone().timestamp(), int(number))
        for time, number in _BEGINS.findall(log.read_text())
    ]


if __name__ == "__main__":
    main()
