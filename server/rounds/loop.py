"""The round loop: one exchange per round, with a deadline and a quorum; no single site can stop it.

An exchange takes seconds in a deployment, so each round has only one. A site that is requested to train first evaluates
the payload it received on its validation images. The payload of round r is therefore evaluated in round r + 1. The
payload of the last round is evaluated in one additional exchange. If an earlier round is chosen, its payload is sent in
another one.
"""

import copy
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

import numpy as np
from cryptography import x509
from flwr.serverapp import Grid

from ept_fed.catalog.strategies import STRATEGIES, count_asked
from ept_fed.protocol.layout import Vector
from ept_fed.protocol.messages import Phase, RoundReply
from ept_fed.reports.run.round_record import Refusal, RoundRecord
from ept_fed.run_plan.plan import Plan
from ept_fed.seeds import numpy_generator
from server.rounds.checkpoints import Checkpoint
from server.rounds.exchange import Exchange
from server.rounds.reply_checks import Accepted, refuse_norm_outliers
from server.rounds.secure_aggregation import Collected, SecureExchange
from server.rounds.selection import RoundSelection, median_auc
from server.rounds.wait_for_sites import wait_for_sites
from server.strategies.aggregation_rules import AggregationError
from server.strategies.base import Aggregator, Update

__all__ = ["FederationResult", "NothingAveragedError", "RoundObserver", "run_rounds"]

_log = logging.getLogger(__name__)


class NothingAveragedError(RuntimeError):
    """The run failed because no round averaged any reply."""


@dataclass(frozen=True)
class FederationResult:
    """The result of a run.

    Attributes:
        payload: the payload of the chosen round.
        chosen: number of the chosen round.
        rounds: the records of all rounds that were run.
        ended: "all rounds", or the reason for the early stop.
    """

    payload: Vector
    chosen: int
    rounds: tuple[RoundRecord, ...]
    ended: str

    @property
    def aggregated_anything(self) -> bool:
        """True if at least one round averaged replies; a run without such a round has failed."""
        return any(record.aggregated for record in self.rounds)


class RoundObserver(Protocol):
    """The interface of objects that follow a run, such as a display or the writer of the run folder."""

    def on_site(self, round_number: int, site: str, phase: Phase, metrics: Mapping[str, float]) -> None:
        """Handle one accepted reply of a site."""

    def on_payload(self, round_number: int, payload: Vector, seconds: float) -> None:
        """Handle the payload after a round, as soon as it is available."""

    def on_round(self, record: RoundRecord) -> None:
        """Handle a round's record, after the payload of this round has been evaluated."""


def run_rounds(
    grid: Grid,
    plan: Plan,
    aggregator: Aggregator,
    observer: RoundObserver,
    *,
    resume: Checkpoint | None = None,
    save: Callable[[Checkpoint], None] | None = None,
    authority: x509.Certificate | None = None,
) -> FederationResult:
    """Run all rounds of a federation and return the result.

    Accepted updates are averaged in the order of the site names, so the result is the same bit for bit in any order of
    arrival. A round keeps the old payload if it has fewer accepted updates than the quorum or the strategy requires.
    Early stopping and the choice of the round use validation images; test images are not used here. An early stop is
    detected in an exchange in which the sites have already trained once more. Their updates are dropped, and the sites
    must use their state after the chosen round (`Site.select_round`). The last request of a run names that round,
    unless the sites already have its payload.

    Args:
        grid: Flower's connection to the sites; its nodes have the sites' registered names.
        plan: the plan of the run.
        aggregator: from `create_aggregator`.
        observer: receives every reply, payload and round record.
        resume: the checkpoint to continue from; None starts with round 1. The observer receives its payload again.
        save: called with a checkpoint after every round, before the observer receives the payload.
        authority: the certificate of the authority that issued the sites' signing certificates; required under secure
            aggregation.
    """
    if plan.secure_sites and authority is None:
        raise ValueError("this run uses secure aggregation: the authority's certificate is required")
    records: list[RoundRecord] = []
    payload, selection = plan.initial, RoundSelection(plan, None if resume is None else resume.best)
    if resume is not None:
        records, payload = list(resume.records), resume.payload
        aggregator.load_state(resume.strategy, payload)
        observer.on_payload(len(records), payload, records[-1].seconds)
    for round_number in range(len(records) + 1, plan.rounds + 1):
        started = time.perf_counter()
        nodes, absent = _select_sites(grid, plan, "train", round_number)
        exchange = Exchange(grid, plan, nodes, round_number, observer.on_site, best_round=selection.best_round)
        corrections = {name: aggregator.correction(name) for name in nodes.values()}
        replies = exchange.run("train", payload, corrections)
        trained, norm_outliers = refuse_norm_outliers(payload, replies, plan)
        if records:
            _note_evaluation(records[-1], trained)
            if ended := selection.observe(records[-1], payload):
                _note_last_exchange(records[-1], exchange, absent)
                return _finish(grid, plan, observer, records, selection, payload, ended)
            observer.on_round(records[-1])
        arrived = {site: traffic.received for site, traffic in exchange.traffic.items()}
        collected = _collect(grid, plan, exchange, nodes, round_number, payload, trained, authority)
        record = RoundRecord(
            round=round_number,
            seconds=0.0,
            asked=tuple(sorted(nodes.values())),
            aggregated=(),
            outcome="",
            sites={},
            refused=[*absent, *exchange.refused, *norm_outliers, *collected.refused],
        )
        _note_training(record, exchange, replies, {**arrived, **collected.update_bytes})
        payload, record.outcome = _aggregate(aggregator, plan, record, collected, payload)
        record.seconds = time.perf_counter() - started
        _log.info("round %d: %s", round_number, record.outcome)
        records.append(record)
        if save is not None:
            # Save before the observer gets the payload: a resumed run that averages the round again draws other noise.
            save(Checkpoint(payload, aggregator.state(), records, selection.best))
        observer.on_payload(round_number, payload, record.seconds)
    nodes, absent = _select_sites(grid, plan, "evaluate", plan.rounds)
    exchange = Exchange(grid, plan, nodes, plan.rounds, observer.on_site)
    _note_evaluation(records[-1], exchange.run("evaluate", payload))
    _note_last_exchange(records[-1], exchange, absent)
    selection.observe(records[-1], payload)
    return _finish(grid, plan, observer, records, selection, payload, "all rounds")


def _finish(
    grid: Grid,
    plan: Plan,
    observer: RoundObserver,
    records: list[RoundRecord],
    selection: RoundSelection,
    payload: Vector,
    ended: str,
) -> FederationResult:
    """Send the chosen payload to the sites, unless they have just evaluated it after the last round."""
    last = records[-1]
    chosen, best = selection.choose(last.round, payload)
    if chosen != plan.rounds:
        # An early stop is noticed in the exchange of the next round, and the sites accept no return to an earlier one.
        number = min(last.round + 1, plan.rounds)
        nodes, absent = _select_sites(grid, plan, "evaluate", number)
        exchange = Exchange(grid, plan, nodes, number, _ignore_site, best_round=chosen)
        exchange.run("evaluate", best)
        _note_last_exchange(last, exchange, absent)
        _log.info("round %d is chosen: its median validation AUC is %.3f", chosen, median_auc(records[chosen - 1]))
    observer.on_round(last)
    return FederationResult(best, chosen, tuple(records), ended)


def _ignore_site(_round: int, _site: str, _phase: Phase, _metrics: Mapping[str, float]) -> None:
    """Drop the metrics of the chosen payload, which its own round's record already has."""


def _select_sites(grid: Grid, plan: Plan, phase: Phase, round_number: int) -> tuple[dict[int, str], list[Refusal]]:
    """Return the selected nodes by id, and a refusal for each selected site without exactly one node online in time.

    The sites for training are drawn from the plan's sites with a generator seeded by (seed, round). The last evaluation
    selects all sites.
    """
    wanted = list(plan.sites)
    if phase == "train":
        count = count_asked(plan.sites_per_round, len(wanted))
        rng = numpy_generator(plan.seed, round_number, "sites")
        wanted = [wanted[index] for index in sorted(rng.permutation(len(wanted))[:count])]
    quorum = max(plan.quorum or math.ceil(len(wanted) / 2), plan.min_secure_sites)
    online, doubled = wait_for_sites(grid, wanted, deadline=plan.deadline, quorum=quorum, grace=plan.grace)
    absent = [Refusal(name, phase, "is not online") for name in wanted if name not in online]
    absent += [Refusal(name, phase, "two nodes are online under its name") for name in doubled]
    return {online[name]: name for name in sorted(online) if name not in doubled}, absent


def _note_training(
    record: RoundRecord, exchange: Exchange, trained: Sequence[Accepted], update_bytes: Mapping[str, int]
) -> None:
    for site, traffic in exchange.traffic.items():
        record.site(site).bytes_sent = traffic.sent
        record.site(site).bytes_received = traffic.received
    for site, reply in trained:
        entry = record.site(site)
        entry.examples = reply.examples
        entry.train = {key: value for key, value in reply.metrics.items() if not key.startswith("validation_")}
        entry.train_bytes_received = update_bytes[site]


def _collect(
    grid: Grid,
    plan: Plan,
    exchange: Exchange,
    nodes: Mapping[int, str],
    round_number: int,
    payload: Vector,
    trained: Sequence[Accepted],
    authority: x509.Certificate | None,
) -> Collected:
    """Return the updates of a round: one per reply, or their mean as a single update under secure aggregation."""
    if authority is None or not plan.secure_sites:
        return Collected([_as_update(site, reply) for site, reply in trained], tuple(site for site, _ in trained))
    now = datetime.now(UTC)
    secure = SecureExchange(grid, plan, nodes, round_number, payload, exchange.traffic, authority=authority, now=now)
    return secure.collect(trained)


def _aggregate(
    aggregator: Aggregator, plan: Plan, record: RoundRecord, collected: Collected, payload: Vector
) -> tuple[Vector, str]:
    if collected.abandoned:
        return payload, f"kept the old prompts: {collected.abandoned}"
    needed = max(plan.quorum or math.ceil(len(record.asked) / 2), STRATEGIES[plan.strategy].minimum_sites(plan.options))
    if len(collected.sites) < max(1, needed):
        return payload, f"kept the old prompts: {len(collected.sites)} sound replies, {needed} needed"
    updates = collected.updates
    before = copy.deepcopy(aggregator.state())
    try:
        averaged = aggregator.aggregate(record.round, payload, updates)
        plan.layout.check(averaged)
        _check_memory(aggregator.state())
    except Exception as failure:  # noqa: BLE001 - a strategy that fails on accepted replies must not end the run
        _log.exception("%s failed in round %d", plan.strategy, record.round)
        aggregator.load_state(before, payload)
        return payload, f"kept the old prompts: {plan.strategy} failed ({type(failure).__name__}: {failure})"
    record.aggregated = collected.sites
    return averaged, "aggregated"


def _check_memory(state: Mapping[str, Vector]) -> None:
    wild = [name for name, vector in state.items() if not np.isfinite(vector).all()]
    if wild:
        raise AggregationError(f"its state {wild} is no longer finite")


def _as_update(site: str, reply: RoundReply) -> Update:
    if reply.payload is None:
        raise ValueError("an accepted train reply must contain a payload")
    return Update(
        site, reply.payload, reply.examples, reply.metrics["loss"], int(reply.metrics["steps"]), reply.gradient
    )


def _note_evaluation(record: RoundRecord, replies: Sequence[Accepted]) -> None:
    """Add to a round's record the evaluation of its payload, which arrived in a later exchange."""
    for site, reply in replies:
        record.site(site).evaluation = {
            key.removeprefix("validation_"): value
            for key, value in reply.metrics.items()
            if reply.phase == "evaluate" or key.startswith("validation_")
        }


def _note_last_exchange(record: RoundRecord, exchange: Exchange, absent: Sequence[Refusal]) -> None:
    """Add the bytes and refusals of the last exchange to the last record, because that exchange has no own record."""
    record.refused += [*absent, *exchange.refused]
    for site, traffic in exchange.traffic.items():
        record.site(site).bytes_sent += traffic.sent
        record.site(site).bytes_received += traffic.received
