"""The agreement before the first round: each site answers the proposal with an introduction or a refusal.

The server has no backbone. It receives the layout and the initial prompts from the sites, and all sites must send the
same ones.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from flwr.app import Message
from flwr.serverapp import Grid

from ept_fed.config.experiment import Experiment
from ept_fed.flower.messages import decode_introduction, encode_proposal
from ept_fed.protocol.layout import PayloadMismatchError
from ept_fed.protocol.messages import MessageRefusedError, clean_text
from ept_fed.protocol.proposal import Proposal, SiteIntroduction, propose
from ept_fed.run_plan.make_plan import make_plan, min_agreeing_sites
from ept_fed.run_plan.plan import Plan
from server.rounds.exchange import find_sender
from server.rounds.wait_for_sites import wait_for_sites

__all__ = ["Agreement", "NoAgreementError", "agree", "name_run", "reconcile"]

_log = logging.getLogger(__name__)
_ABSENT = "is not online"
_LONGEST_NAME = 40


class NoAgreementError(RuntimeError):
    """Too few sites accept the proposal, or their introductions differ; the text states the sites and the reasons."""


@dataclass(frozen=True)
class Agreement:
    """The plan that the sites agreed on, and the reason for each site that was left out, by name."""

    plan: Plan
    left_out: Mapping[str, str]


def agree(grid: Grid, experiment: Experiment, sites: tuple[str, ...]) -> Agreement:
    """Request an introduction from all sites that are online, and make the plan for the sites with equal ones.

    Args:
        grid: Flower's connection to the sites; its nodes have the sites' registered names.
        experiment: the consortium's experiment.
        sites: names of all sites of the federation.

    Raises:
        NoAgreementError: if fewer sites than the quorum agree, or the sites are split without a majority.
    """
    federation, proposal = experiment.federation, propose(experiment, sites)
    quorum = min_agreeing_sites(federation, len(sites))
    online, doubled = wait_for_sites(grid, sites, deadline=federation.deadline, quorum=quorum, grace=federation.grace)
    left_out = dict.fromkeys((name for name in sites if name not in online), _ABSENT)
    left_out |= dict.fromkeys(doubled, "two nodes are online under its name")
    asked = {node: name for name, node in sorted(online.items()) if name not in doubled}
    run = name_run(proposal)
    met, refused = _introduce(grid, asked, run, proposal, federation.deadline)
    fitting, misfits = reconcile(met)
    left_out |= refused | misfits
    for name, reason in sorted(left_out.items()):
        _log.warning("%s is left out: %s", name, reason)
    if len(fitting) < quorum:
        reasons = "; ".join(f"{name} {reason}" for name, reason in sorted(left_out.items()))
        raise NoAgreementError(f"{len(fitting)} of {len(sites)} sites would take part, {quorum} are needed: {reasons}")
    first = next(iter(fitting.values()))
    plan = make_plan(
        experiment,
        run,
        examples={name: introduction.examples for name, introduction in fitting.items()},
        backbone_digest=first.backbone_digest,
        layout=first.layout,
        initial=first.initial,
        proposed_to=sites,
    )
    return Agreement(plan, left_out)


def name_run(proposal: Proposal) -> str:
    """Return the identity of a run: its name and the digest of its proposal.

    Sites agree to a run once. For the sites, an experiment with another name or with changed settings is another run.
    Equal names and settings give the same run on every server.
    """
    return f"{proposal.name[:_LONGEST_NAME]}-{proposal.digest[:16]}"


def reconcile(met: Mapping[str, SiteIntroduction]) -> tuple[dict[str, SiteIntroduction], dict[str, str]]:
    """Return the introductions of the largest group of equal ones, sorted by site, and the reasons against the others.

    The server cannot decide which group is right, so a tie excludes all sites.
    """
    groups: dict[tuple[str, str, bytes], list[str]] = {}
    for name, introduction in sorted(met.items()):
        key = (introduction.backbone_digest, introduction.layout.hash, introduction.initial.tobytes())
        groups.setdefault(key, []).append(name)
    sizes = sorted((len(names) for names in groups.values()), reverse=True)
    if not groups:
        return {}, {}
    largest = max(groups.values(), key=len)
    if len(sizes) > 1 and sizes[0] == sizes[1]:
        return {}, {name: f"has {_describe(met[name])}, and no majority has the same" for name in met}
    reference = met[largest[0]]
    misfits = {
        name: f"has {_describe(met[name])}; most sites have {_describe(reference)}{_hint(met[name], reference)}"
        for name in sorted(set(met) - set(largest))
    }
    return {name: met[name] for name in largest}, misfits


def _introduce(
    grid: Grid, nodes: Mapping[int, str], run: str, proposal: Proposal, deadline: float
) -> tuple[dict[str, SiteIntroduction], dict[str, str]]:
    questions = [Message(encode_proposal(run, proposal), node, "query", ttl=deadline) for node in nodes]
    met: dict[str, SiteIntroduction] = {}
    refused: dict[str, str] = {}
    for reply in grid.send_and_receive(questions, timeout=deadline):
        name = nodes.get(find_sender(reply, questions))
        if name is None or name in met or name in refused:
            continue
        try:
            introduction = decode_introduction(reply, run, proposal)
            if introduction.site != name:
                raise MessageRefusedError(f"introduces itself as {clean_text(introduction.site, 40)!r}")
        except (MessageRefusedError, PayloadMismatchError) as refusal:
            refused[name] = clean_text(str(refusal))
            continue
        met[name] = introduction
        _log.info("%s: %d training images, %s", name, introduction.examples, _describe(introduction))
    silent = set(nodes.values()) - set(met) - set(refused)
    return met, refused | dict.fromkeys(silent, f"did not introduce itself in {deadline:g} s")


def _describe(introduction: SiteIntroduction) -> str:
    return f"backbone {introduction.backbone_digest[:16]}… and layout {introduction.layout.hash[:16]}…"


def _hint(one: SiteIntroduction, other: SiteIntroduction) -> str:
    same = (one.backbone_digest, one.layout.hash) == (other.backbone_digest, other.layout.hash)
    return ", but has other initial prompts: compare the versions of torch" if same else ""
