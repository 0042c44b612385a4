"""The gate's checks for incoming proposals and requests, against the site's policy and the history of the run.

Not covered: whether a server sends the same to all sites, and how much many permitted requests reveal together.
"""

import numpy as np
from pydantic import TypeAdapter, ValidationError

from client.gate.dp_rules import check_noise
from client.gate.policy import Policy
from client.gate.run_history import KnownRun, RequestKey
from client.gate.violations import PolicyViolation, beyond
from ept_fed.catalog.methods import STATISTICS_TENSORS
from ept_fed.config.base import Name
from ept_fed.config.experiment import TrainingSettings
from ept_fed.privacy.secure_aggregation.round_session import count_min_sites
from ept_fed.protocol.layout import PayloadLayout, Vector
from ept_fed.protocol.messages import PROTOCOL_VERSION, Header, RoundRequest
from ept_fed.protocol.proposal import Proposal

__all__ = [
    "check_backbone",
    "check_change",
    "check_header",
    "check_name",
    "check_proposal",
    "check_request",
    "check_splits",
    "measure_change",
    "request_key",
    "splits_of",
]


_NAME: TypeAdapter[str] = TypeAdapter(Name)


def check_name(run: str) -> list[PolicyViolation]:
    """Return the violations of a run's name, which is also used as a file name."""
    try:
        _NAME.validate_python(run)
    except ValidationError:
        return [PolicyViolation("protocol.run", "name", "is not 1 to 64 letters, digits, dots, dashes or underscores")]
    return []


def check_proposal(policy: Policy, proposal: Proposal, known: KnownRun | None) -> list[PolicyViolation]:
    """Return every policy violation of a run that is proposed now, or was agreed on under an earlier policy.

    Args:
        policy: the site's policy.
        proposal: the settings that the server proposes for the run.
        known: the site's history of a run with this name; None for a new run.
    """
    rules = policy.incoming
    model, federation, personal = proposal.model, proposal.federation, proposal.personalisation
    violations = [
        *_outside_list("incoming.methods", model.method, rules.methods),
        *_outside_list("incoming.share", federation.share, rules.share),
        *_outside_list("incoming.payload", federation.payload, rules.payload),
        *beyond("incoming.rounds", federation.rounds, rules.rounds),
        *beyond("incoming.image_size", model.image_size or 0, rules.image_size),
        *beyond("incoming.prompt_length", model.prompt_length, rules.prompt_length),
        *(
            []
            if model.initial_sink is None
            else beyond("incoming.initial_sink", model.initial_sink, rules.initial_sink)
        ),
        *beyond("incoming.tokens", model.tokens, rules.tokens),
        *beyond("incoming.fine_tune_epochs", personal.fine_tune_epochs or 0, rules.fine_tune_epochs),
        *_check_training(policy, proposal.training, noisy=federation.site_privacy is not None),
        *check_noise(policy, federation.site_privacy),
    ]
    if ":" in model.backbone and not isinstance(rules.backbone, tuple):
        fix = "pin its SHA-256 in incoming.backbone before a server may name an internet repository"
        violations.append(PolicyViolation("incoming.backbone", model.backbone, fix))
    if policy.outgoing.secure_aggregation_only and federation.secure_aggregation is None:
        fix = "updates leave under secure aggregation only; the consortium has to set federation.secure_aggregation"
        violations.append(PolicyViolation("outgoing.secure_aggregation_only", "plaintext", fix))
    if federation.secure_aggregation is not None:
        minimum = count_min_sites(len(proposal.sites), federation.secure_aggregation.threshold)
        if minimum < policy.outgoing.min_secure_aggregation_sites:
            wanted = policy.outgoing.min_secure_aggregation_sites
            fix = f"the policy requires sums of at least {wanted} sites; lower the rule, or raise the threshold"
            violations.append(PolicyViolation("outgoing.min_secure_aggregation_sites", minimum, fix))
    if known is not None and known.proposal != proposal.digest:
        fix = "this run was proposed with other settings before; the consortium has to start a new run"
        violations.append(PolicyViolation("protocol.run", proposal.digest, fix))
    return violations


def check_backbone(policy: Policy, digest: str, pinned: str | None) -> list[PolicyViolation]:
    """Return the violations of a run that tunes this backbone.

    Args:
        policy: the site's policy.
        digest: SHA-256 of the backbone's tensors.
        pinned: SHA-256 of the first backbone of this site; None if there is none yet.
    """
    pins, rule = policy.incoming.backbone, "incoming.backbone"
    if pins is None:
        fix = f"no backbone is pinned; if this is the file you mean, write {rule}: [{digest}]"
        return [PolicyViolation(rule, digest, fix)]
    if pins == "first":
        if pinned is None or pinned == digest:
            return []
        fix = f"{pinned} came first; to change to this one, write {rule}: [{digest}]"
        return [PolicyViolation(rule, digest, fix)]
    return [] if digest in pins else [PolicyViolation(rule, digest, f"add it to {rule} if this is the file you mean")]


def check_splits(policy: Policy, proposal: Proposal, pinned: str | None) -> list[PolicyViolation]:
    """Return the violation if a run splits the images differently from all other runs under the privacy budget.

    Test images of one run could be training images of another. Their metrics have no noise, so they would leak
    information about training images.

    Args:
        policy: the site's policy.
        proposal: the settings that the server proposes for the run.
        pinned: `splits_of` the first run under a budget; None if there is none yet.
    """
    splits = splits_of(proposal)
    if policy.outgoing.budget is None or pinned in (None, splits):
        return []
    fix = f"the budget requires the first run's {pinned}; the consortium has to set data.split_seed and fractions so"
    return [PolicyViolation("outgoing.budget", splits, fix)]


def check_request(
    policy: Policy, request: RoundRequest, layout: PayloadLayout, known: KnownRun | None, sha256: str
) -> list[PolicyViolation]:
    """Return every policy violation of a train or evaluate request, except the prompt change (see `check_change`).

    Args:
        policy: the site's policy.
        request: the received request; its vectors fit the layout.
        layout: the layout that the site itself made.
        known: the site's history of the run; None if there is none.
        sha256: SHA-256 of the request's frame.
    """
    rules, header = policy.incoming, request.header
    violations = check_header(policy, header, layout, known)
    if known is None or known.backbone is None:
        return violations
    violations += beyond("incoming.rounds", request.rounds, rules.rounds)
    if not 1 <= header.round <= request.rounds:
        violations.append(PolicyViolation("protocol.round", header.round, f"the run has {request.rounds} rounds"))
    if not 0 <= request.best_round <= header.round - (request.phase == "train"):
        violations.append(PolicyViolation("protocol.round", request.best_round, "is named the best, but is not over"))
    if request.phase == "train":
        violations += _check_train(policy, request, noisy=known.noise is not None)
    else:
        violations += _outside_list("incoming.splits", request.split, rules.splits)
        if policy.outgoing.budget is not None and request.split == "train":
            fix = "metrics of training images have no noise; leave out outgoing.budget to allow them"
            violations.append(PolicyViolation("outgoing.budget", "train", fix))
        if request.correction is not None or request.wants_gradient or request.settings is not None:
            violations.append(
                PolicyViolation("protocol.request", "evaluate", "contains fields that only a train request may have")
            )
    return violations + _check_order(known, request_key(request), sha256)


def check_header(
    policy: Policy, header: Header, layout: PayloadLayout, known: KnownRun | None
) -> list[PolicyViolation]:
    """Return every policy violation of a message's header.

    Args:
        policy: the site's policy.
        header: header of a request of any kind.
        layout: the layout that the site itself made.
        known: the site's history of the run; None if there is none.
    """
    if known is None or known.backbone is None:
        fix = "this site has not introduced itself for this run; the server has to propose it first"
        return [PolicyViolation("protocol.run", header.run, fix)]
    violations = _outside_list("incoming.code", header.code, policy.incoming.code)
    same = (
        ("protocol.version", header.protocol, PROTOCOL_VERSION),
        ("protocol.backbone", header.backbone_digest, known.backbone),
        ("protocol.layout", header.layout_hash, known.layout),
        ("protocol.layout", layout.hash, known.layout),
    )
    return violations + [
        PolicyViolation(rule, theirs, f"{ours} was agreed on") for rule, theirs, ours in same if theirs != ours
    ]


def check_change(
    policy: Policy, request: RoundRequest, latest: Vector | None, layout: PayloadLayout, known: KnownRun, sha256: str
) -> list[PolicyViolation]:
    """Return a violation for each prompt tensor that changed by more than the policy allows.

    Args:
        policy: the site's policy.
        request: a request without violations by `check_request`.
        latest: the prompts accepted last; None if they are lost.
        layout: layout of both.
        known: the site's history of the run.
        sha256: SHA-256 of the request's frame; a request that was accepted before is not checked again.
    """
    if known.accepted.get(request_key(request)) == sha256:
        return []
    rule, bound = "incoming.prompt_change", policy.incoming.prompt_change
    if latest is None:
        fix = "the prompts to compare with are lost; the server has to propose the run again"
        return [PolicyViolation(rule, "unknown", fix)]
    fix = f"the policy allows {bound:g} since the prompts accepted last; change {rule} to allow it"
    return [
        PolicyViolation(rule, f"{name} moved by {moved:.4g}", fix)
        for name, moved in measure_change(request.payload, latest, layout).items()
        if not moved <= bound
    ]


def request_key(request: RoundRequest) -> RequestKey:
    """Return the key under which a request is accepted once; repetitions must be identical bit for bit."""
    return request.header.round, request.phase, request.evaluated or ""


def splits_of(proposal: Proposal) -> str:
    """Return, as text, the settings of a proposal that determine which images are in which split.

    Images with several classes are stratified by the first class, so the order of classes matters there too.
    """
    data = proposal.data
    seed = data.place_by(proposal.seed if data.seed is None else data.seed)
    fractions = f"test_fraction {data.test_fraction!r}, validation_fraction {data.validation_fraction!r}"
    order = f", classes {'|'.join(data.classes)}" if data.task == "multi_label" else ""
    return f"split_seed {seed}, {fractions}{order}"


def measure_change(one: Vector, other: Vector, layout: PayloadLayout) -> dict[str, float]:
    """Return the root mean square of each tensor's change between two payloads (layout.size,).

    Statistics are left out, because they are measured and not trained. The change is computed per tensor: over all
    numbers together, a jump of a few hundred sinks would be hidden among thousands of token values.

    Raises:
        PayloadMismatchError: if one of them does not fit the layout.
    """
    before, after = layout.unflatten(other), layout.unflatten(one)
    moved = {name: after[name].astype(np.float64) - before[name] for name in before if name not in STATISTICS_TENSORS}
    return {name: float(np.sqrt(np.mean(difference * difference))) for name, difference in moved.items()}


def _check_train(policy: Policy, request: RoundRequest, *, noisy: bool) -> list[PolicyViolation]:
    violations = []
    if request.split != "train":
        violations.append(
            PolicyViolation("protocol.request", request.split, "a train request has to name the train split")
        )
    if request.correction is not None and not policy.incoming.correction:
        fix = "a linear term for the loss was received; set incoming.correction: true to allow it"
        violations.append(PolicyViolation("incoming.correction", True, fix))
    if request.wants_gradient and not policy.outgoing.gradient:
        fix = "the gradient is requested; set outgoing.gradient: true to allow it"
        violations.append(PolicyViolation("outgoing.gradient", True, fix))
    if request.wants_gradient and policy.outgoing.budget is not None:
        fix = "the gradient over all training images has no noise; leave out outgoing.budget to allow it"
        violations.append(PolicyViolation("outgoing.budget", "gradient", fix))
    if request.settings is None:
        fix = "a train request has to contain training settings"
        return [*violations, PolicyViolation("protocol.settings", "none", fix)]
    return violations + _check_training(policy, request.settings, noisy=noisy)


def _check_training(policy: Policy, training: TrainingSettings, *, noisy: bool) -> list[PolicyViolation]:
    ranges = policy.incoming.training
    unpaid = []
    if policy.outgoing.budget is not None and training.privacy is None and not noisy:
        fix = "has no ε; the consortium has to set training.privacy, or federation.site_privacy"
        unpaid.append(PolicyViolation("outgoing.budget", "training.privacy is null", fix))
    heads = _outside_list("incoming.heads", training.head, policy.incoming.heads)
    return [*unpaid, *heads] + [
        violations
        for name in type(ranges).model_fields
        for violations in beyond(f"incoming.training.{name}", getattr(training, name), getattr(ranges, name))
    ]


def _check_order(known: KnownRun, key: RequestKey, sha256: str) -> list[PolicyViolation]:
    """Return a violation if an earlier request is repeated with other content, or a new one is for an earlier round.

    An identical repetition is accepted, because a server requests a lost answer again.
    """
    before = known.accepted.get(key)
    if before == sha256 or (before is None and key[0] >= known.last_round):
        return []
    behind = f"round {key[0]} after round {known.last_round}"
    fix = "it came before with other content" if before is not None else "it is over, and was not requested then"
    return [PolicyViolation("protocol.replay", f"{key[1]} of {behind}", fix)]


def _outside_list(rule: str, value: str, allowed: tuple[str, ...]) -> list[PolicyViolation]:
    if value in allowed:
        return []
    return [
        PolicyViolation(rule, value, f"the policy allows {', '.join(allowed) or 'none'}; add it to {rule} to allow it")
    ]
