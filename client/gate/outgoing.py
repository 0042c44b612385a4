"""The gate's checks for outgoing introductions and replies: only the values that the site's policy allows are sent.

A released reply is a new object: the request's own header, a float32 vector of the layout that the site made, and a
fixed set of rounded numbers. It cannot contain data of another name, shape or type.

Not covered: the information in permitted numbers. An update within its bound, from few images and steps, still leaks
something about them; see docs/privacy.md.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import get_args

import numpy as np

import ept_fed
from client.gate.dp_rules import check_clip
from client.gate.incoming import check_backbone, measure_change
from client.gate.policy import Policy
from client.gate.run_history import KnownRun
from client.gate.violations import PolicyViolation
from ept_fed.catalog.methods import HEAD_TENSORS, METHODS, STATISTICS_TENSORS, Statistics
from ept_fed.config.experiment import SharedModelSettings
from ept_fed.protocol.layout import PayloadLayout, PayloadMismatchError, Vector
from ept_fed.protocol.messages import (
    PROTOCOL_VERSION,
    QUALITY_METRICS,
    MessageRefusedError,
    RoundReply,
    RoundRequest,
    metric_keys,
)
from ept_fed.protocol.proposal import Proposal, SiteIntroduction

__all__ = [
    "Release",
    "bound_update",
    "check_class_images",
    "check_introduction",
    "check_reply",
    "check_tensor_names",
    "check_training_images",
]

# Text that a layout may contain, apart from class names, which must be those of the proposal.
_EMBEDDINGS = "|".join(get_args(SharedModelSettings.model_fields["embedding"].annotation))
_OPTIONS = "|".join(sorted({name for info in METHODS.values() for name in info.options}))
_MEANING = re.compile(
    rf"embedding ({_EMBEDDINGS})|layer \d{{1,3}}|method ({'|'.join(METHODS)})|({_OPTIONS}) [0-9.e+-]{{1,12}}", re.ASCII
)


@dataclass(frozen=True)
class Release:
    """A reply that may leave.

    Attributes:
        reply: the rebuilt reply.
        clipped: whether the update was scaled down.
        notes: the rules that altered the reply, and what each rule altered.
    """

    reply: RoundReply
    clipped: bool
    notes: tuple[tuple[str, str], ...]


def check_introduction(
    policy: Policy, introduction: SiteIntroduction, proposal: Proposal, *, site: str, run: str, pinned: str | None
) -> list[PolicyViolation]:
    """Return every policy violation of the answer to a proposal.

    Args:
        policy: the site's policy.
        introduction: the answer that would leave.
        proposal: the accepted proposal.
        site: the site's own name.
        run: name of the proposed run.
        pinned: digest of the backbone in the ledger; None if there is none yet.
    """
    agreed = (
        ("protocol.site", introduction.site, site),
        ("protocol.run", introduction.run, run),
        ("protocol.run", introduction.proposal, proposal.digest),
        ("protocol.version", introduction.protocol, PROTOCOL_VERSION),
        ("protocol.version", introduction.code, ept_fed.__version__),
    )
    violations = [
        PolicyViolation(rule, theirs, f"{ours} was agreed on") for rule, theirs, ours in agreed if theirs != ours
    ]
    violations += check_backbone(policy, introduction.backbone_digest, pinned)
    violations += _check_layout(policy, introduction.layout, proposal)
    violations += check_training_images(policy, introduction.examples)
    violations += check_clip(policy, proposal.federation.site_privacy, introduction.layout)
    try:
        introduction.layout.check(introduction.initial)
        if introduction.initial[~introduction.layout.trained].any():
            violations.append(
                PolicyViolation("protocol.payload", "initial payload", "contains statistics before any round")
            )
    except PayloadMismatchError as error:
        violations.append(PolicyViolation("protocol.payload", "initial payload", str(error)))
    return violations


def check_reply(
    policy: Policy,
    request: RoundRequest,
    reply: RoundReply,
    layout: PayloadLayout,
    known: KnownRun,
) -> tuple[Release | None, list[PolicyViolation]]:
    """Return the reply that may leave, or every policy violation of the given reply.

    An update that leaves under secure aggregation is not part of the reply; see `client.gate.secure_aggregation`.

    Args:
        policy: the site's policy.
        request: the request that the reply answers.
        reply: the reply that the site computed.
        layout: the layout that the site made.
        known: the site's history of the run.
    """
    violations = check_tensor_names(policy, layout) + _check_form(reply, request, layout, known.layout)
    if violations:
        return None, violations
    try:
        reply.check(
            request.header,
            layout,
            wants_gradient=request.wants_gradient,
            private=request.private,
            masked=known.secure and request.phase == "train",
            silent=known.silent,
        )
    except (MessageRefusedError, PayloadMismatchError) as error:
        return None, [PolicyViolation("protocol.reply", request.phase, str(error))]
    payload, clipped = None, ""
    if reply.phase == "train":
        violations += check_training_images(policy, reply.examples)
    if reply.payload is not None:
        payload, clipped, norm_outliers = bound_update(policy, request.payload, reply.payload, layout, known)
        violations += norm_outliers + check_class_images(policy, reply.payload, layout, reply.examples)
    if reply.gradient is not None and not policy.outgoing.gradient:
        violations.append(PolicyViolation("outgoing.gradient", True, "set outgoing.gradient: true to allow it"))
    if violations:
        return None, violations
    metrics, examples, withheld = _choose_metrics(policy, reply, known.validation_images)
    gradient = None if reply.gradient is None else _copy(reply.gradient)
    rebuilt = RoundReply(request.header, request.phase, payload, examples, metrics, gradient)
    notes = [(rule, f"withheld: {', '.join(names)}") for rule, names in withheld.items()]
    if clipped:
        notes.append(("outgoing.update", clipped))
    return Release(rebuilt, bool(clipped), tuple(notes)), []


def _check_form(
    reply: RoundReply, request: RoundRequest, layout: PayloadLayout, agreed: str | None
) -> list[PolicyViolation]:
    """Check types before values: a reply that was made by foreign code may contain anything."""
    violations = []
    if layout.hash != agreed or request.header.layout_hash != agreed:
        violations.append(PolicyViolation("protocol.layout", layout.hash, f"the site introduced itself with {agreed}"))
    if reply.header != request.header or reply.phase != request.phase:
        violations.append(PolicyViolation("protocol.reply", "header", "is not that of the request"))
    if type(reply.examples) is not int:
        violations.append(
            PolicyViolation("protocol.reply", type(reply.examples).__name__, "a number of images is an int")
        )
    for name in ("payload", "gradient"):
        vector = getattr(reply, name)
        if vector is not None and type(vector) is not np.ndarray:
            violations.append(
                PolicyViolation(f"protocol.{name}", type(vector).__name__, "only a float32 array may leave")
            )
    metrics = reply.metrics
    wanted = set(metric_keys(request.phase))
    if not isinstance(metrics, Mapping) or set(metrics) != wanted:
        violations.append(
            PolicyViolation("outgoing.metrics", "names", f"a reply contains exactly {', '.join(sorted(wanted))}")
        )
    elif any(type(value) is not float for value in metrics.values()):
        violations.append(PolicyViolation("outgoing.metrics", "types", "a metric is a float"))
    return violations


def _check_layout(policy: Policy, layout: PayloadLayout, proposal: Proposal) -> list[PolicyViolation]:
    known = {f"class {name}" for name in proposal.data.classes}
    odd = [text for text in layout.meaning if text not in known and not _MEANING.fullmatch(text)]
    violations = [
        PolicyViolation("protocol.layout", text, "a layout may only contain text of the proposal") for text in odd
    ]
    return violations + check_tensor_names(policy, layout)


def check_tensor_names(policy: Policy, layout: PayloadLayout) -> list[PolicyViolation]:
    """Return the violations by the tensors of this layout."""
    rules, violations = policy.outgoing, []
    for name, _ in layout.shapes:
        if name in HEAD_TENSORS:
            if not rules.head:
                violations.append(PolicyViolation("outgoing.head", name, "set outgoing.head: true to allow it"))
        elif name in STATISTICS_TENSORS:
            kind: Statistics = "moments" if name == "statistics.moments" else "means"
            if rules.statistics not in (kind, "moments"):
                fix = f"set outgoing.statistics: {kind} to allow it"
                violations.append(PolicyViolation("outgoing.statistics", name, fix))
        elif name not in rules.tensors:
            fix = f"the policy allows {', '.join(rules.tensors) or 'none'}; add it to outgoing.tensors to allow it"
            violations.append(PolicyViolation("outgoing.tensors", name, fix))
    return violations


def check_training_images(policy: Policy, examples: int) -> list[PolicyViolation]:
    """Return the violation by an update from this number of training images."""
    rule, minimum = "outgoing.min_training_images", policy.outgoing.min_training_images
    if examples >= minimum:
        return []
    return [PolicyViolation(rule, examples, f"the policy requires at least {minimum}; lower {rule}, or train on more")]


def check_class_images(policy: Policy, payload: Vector, layout: PayloadLayout, examples: int) -> list[PolicyViolation]:
    """Return the violation by statistics of classes with few training images.

    The mean of a class with a single image is the feature vector of that image.

    Raises:
        PayloadMismatchError: if the payload does not fit the layout.
    """
    rule, minimum = "outgoing.min_class_images", policy.outgoing.min_class_images
    if not layout.holds_statistics:
        return []
    counts = np.round(layout.unflatten(payload)["statistics.shares"].astype(np.float64) * examples).astype(int)
    few = int(((counts > 0) & (counts < minimum)).sum())
    fix = f"the policy requires {minimum} training images per class; lower {rule}, or train on more"
    return [PolicyViolation(rule, f"{few} classes", fix)] if few else []


def bound_update(
    policy: Policy, received: Vector, trained: Vector, layout: PayloadLayout, known: KnownRun
) -> tuple[Vector, str, list[PolicyViolation]]:
    """Return the payload to send, a note on the clipping (empty if none), and the violations if it may not leave.

    An update to which this site added noise is longer because of the noise. It is neither refused nor scaled down for
    that, because the run's clip bounds it: `client.gate.dp_rules.check_clip` checks the clip against the same rule
    before the run begins.
    """
    if known.own_noise:
        return _copy(trained), "", []
    rules = policy.outgoing.update
    sizes = measure_change(trained, received, layout)
    above = {name: size for name, size in sizes.items() if not size <= rules.bound}
    if not above:
        return _copy(trained), "", []
    if rules.above == "refuse":
        fix = f"the policy allows {rules.bound:g}; raise outgoing.update.bound, or set outgoing.update.above: clip"
        return (
            trained,
            "",
            [PolicyViolation("outgoing.update", f"{name} {size:.4g}", fix) for name, size in above.items()],
        )
    # One factor for all tensors, so that the update keeps its direction.
    start, largest = received.astype(np.float64), max(above.values())
    factors = np.where(layout.trained, rules.bound / largest, 1.0)
    scaled = start + (trained.astype(np.float64) - start) * factors
    named = ", ".join(f"{name} {size:.4g}" for name, size in above.items())
    return scaled.astype(np.float32), f"the update ({named}) was scaled down to {rules.bound:g}", []


def _choose_metrics(
    policy: Policy, reply: RoundReply, validation: int
) -> tuple[dict[str, float], int, dict[str, tuple[str, ...]]]:
    """Return the metrics that may leave, their number of images, and the withheld metrics by rule.

    The number of steps and a train reply's loss always leave: a reply without them is not valid.
    """
    rules = policy.outgoing
    metrics: dict[str, float] = {}
    listed, few = [], []
    for key in metric_keys(reply.phase):
        value, name = reply.metrics[key], key.removeprefix("validation_")
        # A train reply's own loss is computed over at least `min_training_images`.
        behind = validation if name != key else reply.examples
        if reply.phase == "train" and key in ("loss", "steps"):
            pass
        elif name not in rules.metrics:
            listed.append(key)
        elif name in QUALITY_METRICS and behind < rules.min_images:
            few.append(key)
        metrics[key] = math.nan if key in (*listed, *few) else _round(value, rules.digits)
    hidden = reply.phase == "evaluate" and reply.examples < rules.min_images
    withheld = {"outgoing.metrics": tuple(listed), "outgoing.min_images": tuple(few)}
    kept = {rule: names for rule, names in withheld.items() if names}
    return metrics, 0 if hidden else reply.examples, kept


def _round(value: float, digits: int) -> float:
    return value if math.isnan(value) else round(float(value), digits)


def _copy(vector: Vector) -> Vector:
    return np.array(vector, dtype=np.float32, order="C")
