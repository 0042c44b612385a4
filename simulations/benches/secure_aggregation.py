"""Measure the cost of secure aggregation: total computing seconds of sites and server, bytes per site and round.

    python -m simulations.benches.secure_aggregation [--values 2364] [--sites 10] [--rounds 5] [--dropouts 1]

Everything runs in this process, sequentially and without any transport. The last sites drop out after they have shared
their secrets, because this case costs the server most. Keys and certificates are created before, as in provisioning.
"""

import argparse
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np
from cryptography import x509

from client.site.secure_aggregation import Credentials
from ept_fed.privacy.secure_aggregation.fixed_point import FixedPoint
from ept_fed.privacy.secure_aggregation.server import SecureAggregationServer
from ept_fed.privacy.secure_aggregation.session import AggregationSession, default_threshold
from ept_fed.privacy.secure_aggregation.site import SecureAggregationSite
from ept_fed.protocol.layout import Vector
from simulations.engine.throwaway_certificates import certify_sites

_HEAVIEST = 100_000


def main() -> None:
    """Run the rounds and print their cost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--values", type=int, default=2364)
    parser.add_argument("--sites", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dropouts", type=int, default=1)
    arguments = parser.parse_args()
    names = tuple(f"site-{number:03d}" for number in range(arguments.sites))
    authority, kits = certify_sites(names)
    rng = np.random.default_rng(0)
    vectors = {name: rng.normal(4.6, 1, arguments.values).astype(np.float32) for name in names}
    seconds, traffic = [], Counter[str]()
    for number in range(1, arguments.rounds + 1):
        session = AggregationSession(
            run="bench",
            round=number,
            attempt=1,
            sites=names,
            threshold=default_threshold(len(names)),
            start="",
            layout_hash="",
            size=arguments.values,
            encoding=FixedPoint(sites=len(names), heaviest=_HEAVIEST),
        )
        started = time.process_time()
        traffic = _lead(session, authority, kits, vectors, names[len(names) - arguments.dropouts :])
        seconds.append(time.process_time() - started)
    print(
        f"{arguments.values:,} values, {len(names)} sites, {arguments.dropouts} of them drop out after sharing secrets"
    )
    print(f"computing, total: {statistics.median(seconds):.3f} s ({min(seconds):.3f} to {max(seconds):.3f})")
    print(
        f"bytes per site, both directions: at most {max(traffic.values()):,}; "
        f"plaintext float32: {4 * arguments.values:,} to the server"
    )


def _lead(
    session: AggregationSession,
    authority: x509.Certificate,
    kits: dict[str, Credentials],
    vectors: dict[str, Vector],
    dropouts: Sequence[str],
) -> Counter[str]:
    """Run one session and return the bytes of each site in both directions; check the result against the plain mean."""
    now, traffic = datetime.now(UTC), Counter[str]()
    server = SecureAggregationServer(session, authority=authority, now=now)
    sites = {
        name: SecureAggregationSite(
            session, name, key=kit.key, certificate=kit.certificate, authority=authority, now=now
        )
        for name, kit in kits.items()
    }

    def hand_in(name: str, answer: bytes) -> None:
        traffic[name] += len(answer)
        server.take(name, answer)

    def ask() -> dict[str, bytes]:
        requests = server.advance()
        traffic.update({name: len(request) for name, request in requests.items()})
        return requests

    for name, site in sites.items():
        hand_in(name, site.advertise())
    for name, request in ask().items():
        hand_in(name, sites[name].share_keys(request))
    for name, request in ask().items():
        if name not in dropouts:
            hand_in(name, sites[name].mask_input(request, vectors[name], 100))
    for name, request in ask().items():
        hand_in(name, sites[name].confirm(request))
    for name, request in ask().items():
        hand_in(name, sites[name].unmask(request))
    found = server.finish()
    plain = np.mean([vectors[name].astype(np.float64) for name in found.sites], axis=0)
    if np.abs(found.mean - plain).max() > 1e-6:
        raise AssertionError("the secure mean is not the plain one")
    return traffic


if __name__ == "__main__":
    main()
