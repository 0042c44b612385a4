"""Requests and replies of one round, as values that do not depend on a transport.

Every message carries a header. A receiver compares the header with its own and refuses a message if they differ, naming
both values. Each phase has a fixed set of metrics: an undefined metric is NaN, never missing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

import ept_fed
from ept_fed.protocol.layout import PayloadLayout, Vector

if TYPE_CHECKING:
    from ept_fed.config.experiment import TrainingSettings  # slow to import for the app that starts for every message

__all__ = [
    "EVALUATE_METRICS",
    "PROTOCOL_VERSION",
    "QUALITY_METRICS",
    "SPLITS",
    "TOLD_METRICS",
    "TRAIN_METRICS",
    "Header",
    "MessageRefusedError",
    "Phase",
    "RoundReply",
    "RoundRequest",
    "Split",
    "clean_text",
    "metric_keys",
    "require_type",
]

PROTOCOL_VERSION = 4
Phase = Literal["train", "evaluate"]
Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")

QUALITY_METRICS = ("loss", "auc", "accuracy", "balanced_accuracy", "average_precision", "classes_present")
EVALUATE_METRICS = (*QUALITY_METRICS, "seconds")
# Metrics of a reply in runs where no other result computed from images leaves the site, except for the update.
TOLD_METRICS = ("steps",)
TRAIN_METRICS = ("loss", "steps", "seconds", *(f"validation_{name}" for name in QUALITY_METRICS))


class MessageRefusedError(ValueError):
    """A message that was not expected or is not valid; the text states the reason."""


def metric_keys(phase: Phase) -> tuple[str, ...]:
    """Return the exact set of metric names in every reply of this phase."""
    return TRAIN_METRICS if phase == "train" else EVALUATE_METRICS


@dataclass(frozen=True)
class Header:
    """Values that must be equal on both sides before a payload is read."""

    run: str
    round: int
    backbone_digest: str
    layout_hash: str
    protocol: int = PROTOCOL_VERSION
    code: str = ept_fed.__version__

    def require(self, mine: "Header") -> None:
        """Refuse this received header unless it equals what the receiver expects.

        Raises:
            MessageRefusedError: naming every field that differs, and both values.
        """
        names = {"code": "code version", "protocol": "protocol version"}
        differing = [
            f"{names.get(field.name, field.name.replace('_', ' '))}: theirs {getattr(self, field.name)}, "
            f"ours {getattr(mine, field.name)}"
            for field in fields(self)
            if getattr(self, field.name) != getattr(mine, field.name)
        ]
        if differing:
            raise MessageRefusedError("message refused; " + "; ".join(differing))


@dataclass(frozen=True)
class RoundRequest:
    """The server's request to train or evaluate.

    Attributes:
        header: versions and identities.
        phase: train or evaluate.
        rounds: number of rounds in the whole run, over which the learning-rate schedule extends.
        payload: global vector, layout.size float32.
        split: the split to evaluate; "train" for the train phase.
        settings: the training settings; None for the evaluate phase.
        correction: c of a term ⟨c, payload⟩ in this site's loss (SCAFFOLD, FedDyn), layout.size float32, or None.
        wants_gradient: whether the reply must also carry the gradient of the site's loss at `payload` (SCAFFOLD).
        best_round: for training, the best round so far, whose state the site keeps; for evaluation, the chosen round,
            whose payload this is and whose state the site uses. 0 if there is none.
    """

    header: Header
    phase: Phase
    rounds: int
    payload: Vector
    split: Split
    settings: "TrainingSettings | None" = None
    correction: Vector | None = None
    wants_gradient: bool = False
    best_round: int = 0

    @property
    def payload_round(self) -> int:
        """The round that produced the payload."""
        if self.phase == "train":
            return self.header.round - 1
        return self.best_round or self.header.round

    @property
    def evaluated(self) -> str | None:
        """What is evaluated: the split, and the round of the prompts if it is not the header's; None for training."""
        if self.phase == "train":
            return None
        return f"{self.split}, prompts of round {self.best_round}" if self.best_round else self.split

    @property
    def private(self) -> bool:
        """Whether private training is requested."""
        return self.settings is not None and self.settings.privacy is not None

    @property
    def training(self) -> "TrainingSettings":
        """The training settings.

        Raises:
            MessageRefusedError: if the request has none.
        """
        if self.settings is None:
            raise MessageRefusedError("the request has no training settings")
        return self.settings


@dataclass(frozen=True)
class RoundReply:
    """A site's reply to a request.

    Attributes:
        header: the request's header, as the site received it.
        phase: train or evaluate.
        payload: the site's vector after training; None for evaluate, and under secure aggregation.
        examples: number of images trained on or evaluated; an empty split evaluates to NaN with 0 examples.
        metrics: exactly the keys of `metric_keys(phase)`.
        gradient: gradient of the site's loss at the received payload, if requested.
    """

    header: Header
    phase: Phase
    payload: Vector | None
    examples: int
    metrics: Mapping[str, float]
    gradient: Vector | None = None

    def check(
        self,
        request: Header,
        layout: PayloadLayout,
        *,
        wants_gradient: bool = False,
        private: bool = False,
        masked: bool = False,
        silent: bool = False,
    ) -> None:
        """Refuse a reply that does not answer this request.

        Args:
            request: the header that the reply must repeat.
            layout: layout of the payload.
            wants_gradient: as in the request.
            private: whether private training was requested. Its loss is over training images, so it stays at the site.
            masked: whether the update stays at the site until it is summed under secure aggregation.
            silent: whether all metrics but the steps stay at the site, see `SitePrivacySettings.metrics`.

        Raises:
            MessageRefusedError: for another header, wrong metric keys, an impossible sample count or value.
            PayloadMismatchError: for a payload that does not match the layout.
        """
        self.header.require(request)
        if set(self.metrics) != set(metric_keys(self.phase)):
            raise MessageRefusedError(
                f"metrics are {sorted(self.metrics)}; {self.phase} replies carry {sorted(metric_keys(self.phase))}"
            )
        minimum = 1 if self.phase == "train" else 0
        if not minimum <= self.examples <= 10**9:
            raise MessageRefusedError(f"sample count {self.examples} is not between {minimum} and 10^9")
        impossible = {key: value for key, value in self.metrics.items() if not _is_possible(key, value)}
        if impossible:
            raise MessageRefusedError(f"metrics {impossible} are impossible")
        told = [key for key in metric_keys(self.phase) if key not in TOLD_METRICS and not np.isnan(self.metrics[key])]
        if silent and told:
            raise MessageRefusedError(f"{', '.join(told)} must not leave a site of this run")
        if self.phase == "train":
            if private and not np.isnan(self.metrics["loss"]):
                raise MessageRefusedError("a reply of private training must not carry its loss")
            # If statistics are shared, the last round trains nothing, so that they belong to the final prompts.
            min_steps = 0 if layout.holds_statistics else 1
            if not ((private or silent or np.isfinite(self.metrics["loss"])) and self.metrics["steps"] >= min_steps):
                raise MessageRefusedError(f"a train reply needs a finite loss and at least {min_steps} step(s)")
            if masked != (self.payload is None):
                raise MessageRefusedError("a train reply must carry a payload, except under secure aggregation")
            if self.payload is not None:
                layout.check(self.payload)
        elif self.payload is not None:
            raise MessageRefusedError("an evaluate reply must not carry a payload")
        if wants_gradient != (self.gradient is not None):
            raise MessageRefusedError("a reply must carry a gradient if, and only if, it was requested")
        if self.gradient is not None:
            layout.check(self.gradient)


def clean_text(text: str, maximum: int = 300) -> str:
    """Return received text in a form that is safe to log: printable, one line, cut to `maximum` characters."""
    return "".join(character if character.isprintable() else " " for character in text)[:maximum]


def _is_possible(key: str, value: float) -> bool:
    """Return whether a metric may have this value: NaN means undefined, and no metric is infinite or negative."""
    if np.isnan(value):
        return key != "steps"
    name = key.removeprefix("validation_")
    if name in ("auc", "accuracy", "balanced_accuracy", "average_precision"):
        return 0.0 <= value <= 1.0
    whole = name not in ("steps", "classes_present") or float(value).is_integer()
    return bool(0.0 <= value < np.inf) and whole


def require_type(value: Any, kind: type, name: str) -> Any:
    """Return the value if its type is exactly `kind` (bool is not int).

    Raises:
        MessageRefusedError: naming the field.
    """
    if type(value) is not kind:
        raise MessageRefusedError(f"'{name}' is {type(value).__name__}, not {kind.__name__}")
    return value
