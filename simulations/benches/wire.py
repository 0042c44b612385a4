"""Measure the bytes between a hospital and the server in a round, by kind of request, as counted by the proxy.

    python -m simulations.benches.wire [--rounds 6]

Two sites run on a loopback deployment. A round is one train message and its reply. Heartbeats and empty polls are
printed separately, because their number depends on the time and not on the rounds. Bytes are those of HTTP, headers
included. The overhead of TLS, TCP and IP is not counted.
"""

import argparse
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from server.deployment.run_state import read_agreement
from simulations.deployment.loopback_deployment import Rehearsal, RehearsalError
from simulations.deployment.traffic import is_idle, kind_of, read_requests, sender_of

_NAME = "wire"
_OF_A_MESSAGE = ("pull-messages", "pull-object", "confirm-message-received", "push-messages", "push-object")


@dataclass(frozen=True)
class _Cost:
    """The number of requests and their bytes: from the site, to the site, and of the bodies in each direction."""

    requests: int
    received: int
    sent: int
    received_bodies: int
    sent_bodies: int


def main() -> None:
    """Run a federation and print the traffic of its rounds for each site."""
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n", maxsplit=1)[0])
    parser.add_argument("--rounds", type=int, default=6)
    rounds = parser.parse_args().rounds
    with Rehearsal(2) as rehearsal:
        rehearsal.start_all()
        experiment = rehearsal.write_experiment(_NAME, federation={"rounds": rounds, "deadline": 120.0})
        code, said = rehearsal.run(experiment)
        agreement = read_agreement(rehearsal.server.runs / _NAME)
        if code or agreement is None:
            raise RehearsalError(said)
        names = {key: name for name, key in rehearsal.server.public_keys().items()}
        requests = list(read_requests(rehearsal.server.state / "logs" / "proxy" / "proxy.log"))
    payload = 4 * agreement.plan.layout.size
    print(f"payload {payload} bytes in each direction; medians of {rounds} rounds")
    for name in sorted(names.values()):
        own = [request for request in requests if names.get(sender_of(request)) == name and request["status"] < 400]
        _print_site(name, own, rounds, payload)


def _print_site(name: str, requests: list[dict[str, Any]], rounds: int, payload: int) -> None:
    idle = [request for request in requests if is_idle(request)]
    # The first message is the proposal, the last one the evaluation.
    trains = _split_by_message(request for request in requests if not is_idle(request))[1 : rounds + 1]
    print(f"\n{name}{'':22} requests   from site (bodies)     to site (bodies)")
    for kind in _OF_A_MESSAGE:
        _print_cost(kind, [_add_up(request for request in train if kind_of(request) == kind) for train in trains])
    whole = [_add_up(train) for train in trains]
    _print_cost("whole round", whole)
    over = [statistics.median(getattr(cost, way) for cost in whole) - payload for way in ("received", "sent")]
    print(f"  in addition to the payload: {over[0]:.0f} bytes from the site, {over[1]:.0f} to the site")
    for kind in ("pull-messages", "send-node-heartbeat"):
        _print_cost(f"{kind}, idle, each", [_add_up([request]) for request in idle if kind_of(request) == kind])


def _split_by_message(requests: Iterable[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """Return the requests grouped by the message that they belong to; requests before the first message are dropped."""
    found: list[list[Mapping[str, Any]]] = []
    for request in requests:
        if kind_of(request) == "pull-messages":
            found.append([])
        if found and kind_of(request) in _OF_A_MESSAGE:
            found[-1].append(request)
    return found


def _add_up(requests: Iterable[Mapping[str, Any]]) -> _Cost:
    columns = [(1, r["received"], r["sent"], r["body"], r["sent_body"]) for r in requests]
    return _Cost(*(sum(column) for column in zip(*columns, strict=True))) if columns else _Cost(0, 0, 0, 0, 0)


def _print_cost(label: str, costs: list[_Cost]) -> None:
    if not costs:
        return
    requests, received, sent, received_bodies, sent_bodies = (
        statistics.median(getattr(cost, field) for cost in costs) for field in _Cost.__dataclass_fields__
    )
    bodies = (f"({received_bodies:.0f})", f"({sent_bodies:.0f})")
    print(f"  {label:<28} {requests:6.0f} {received:10.0f} {bodies[0]:>9} {sent:10.0f} {bodies[1]:>9}")


if __name__ == "__main__":
    main()
