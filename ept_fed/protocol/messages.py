"""Requests and replies of one round, as values without any transport.

Every message carries a header; a receiver compares it with its own and refuses a difference with a sentence that names
both sides. Metrics are a fixed key set per phase: undefined is NaN, never missing.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np

import ept_fed
from ept_fed.protocol.layout import PayloadLayout, Vector

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

PROTOCOL_VERSION = 2
Phase = Literal["train", "evaluate"]
Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")

QUALITY_METRICS = ("loss", "auc", "accuracy", "balanced_accuracy", "average_precision", "classes_present")
EVALUATE_METRICS = (*QUALITY_METRICS, "seconds")
# What a reply tells where everything that was made from images, but for the update, stays at the site.
TOLD_METRICS = ("steps",)
TRAIN_METRICS = ("loss", "steps", "seconds", *(f"validation_{name}" for name in QUALITY_METRICS))


class MessageRefusedError(ValueError):
    """A message that does not belong here, or is not what it claims; the text says why."""


def metric_keys(phase: Phase) -> tuple[str, ...]:
    """Return the metric names that every reply of this phase carries, no more and no fewer."""
    return TRAIN_METRICS if phase == "train" else EVALUATE_METRICS


@dataclass(frozen=True)
class Header:
    """What both sides must agree on before a payload is looked at."""

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
    """The server asks a site to train or evaluate.

    Attributes:
        header: versions and identities.
        phase: train or evaluate.
        rounds: rounds in the whole run; the learning-rate schedule spans them.
        payload: global vector, layout.size float32.
        split: which split to evaluate; "train" for the train phase.
        settings: JSON of the training settings; empty for the evaluate phase.
        correction: c of a term ⟨c, payload⟩ in this site's loss (SCAFFOLD, FedDyn), layout.size float32, or None.
        wants_gradient: whether the reply shall also carry the gradient of the site's loss at `payload` (SCAFFOLD).
    """

    header: Header
    phase: Phase
    rounds: int
    payload: Vector
    split: Split
    settings: str = ""
    correction: Vector | None = None
    wants_gradient: bool = False

    @property
    def private(self) -> bool:
        """Whether it asks for private training; its settings are JSON of training settings, or empty."""
        return bool(self.settings) and json.loads(self.settings).get("privacy") is not None


@dataclass(frozen=True)
class RoundReply:
    """A site answers.

    Attributes:
        header: the request's, as seen by the site.
        phase: train or evaluate.
        payload: the site's vector after training; None for evaluate, and where updates are summed under secure
            aggregation.
        examples: images trained on or evaluated; an empty split evaluates to NaN with 0 examples.
        metrics: exactly the keys of `metric_keys(phase)`.
        gradient: of the site's loss at the payload it received, if the request wants it.
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
            request: the header it has to repeat.
            layout: of the payload.
            wants_gradient: as in the request.
            private: whether training was to be private; its loss is over training images, so it stays at the site.
            masked: whether the update stays at the site until it is summed under secure aggregation.
            silent: whether all metrics but the steps stay at the site, see `SitePrivacySettings.metrics`.

        Raises:
            MessageRefusedError: for another header, wrong metric keys, an impossible sample count or value.
            PayloadMismatchError: for a payload that does not fit the layout.
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
            # Where statistics are shared the last round trains nothing, so that they are of the prompts that stay.
            min_steps = 0 if layout.holds_statistics else 1
            if not ((private or silent or np.isfinite(self.metrics["loss"])) and self.metrics["steps"] >= min_steps):
                raise MessageRefusedError(f"a train reply needs a finite loss and at least {min_steps} step(s)")
            if masked != (self.payload is None):
                raise MessageRefusedError("a train reply carries its payload exactly where updates are not masked")
            if self.payload is not None:
                layout.check(self.payload)
        elif self.payload is not None:
            raise MessageRefusedError("an evaluate reply must not carry a payload")
        if wants_gradient != (self.gradient is not None):
            raise MessageRefusedError("a gradient is carried exactly where it was asked for")
        if self.gradient is not None:
            layout.check(self.gradient)


def clean_text(text: str, maximum: int = 300) -> str:
    """Return text from a wire as it may be logged and shown: printable, one line, cut to `most` characters."""
    return "".join(character if character.isprintable() else " " for character in text)[:maximum]


def _is_possible(key: str, value: float) -> bool:
    """Tell whether a metric may have this value: NaN is undefined, and nothing is infinite or negative."""
    if np.isnan(value):
        return key != "steps"
    name = key.removeprefix("validation_")
    if name in ("auc", "accuracy", "balanced_accuracy", "average_precision"):
        return 0.0 <= value <= 1.0
    whole = name not in ("steps", "classes_present") or float(value).is_integer()
    return bool(0.0 <= value < np.inf) and whole


def require_type(value: Any, kind: type, name: str) -> Any:
    """Return value if it is exactly of this kind (bool is not int).

    Raises:
        MessageRefusedError: naming the field.
    """
    if type(value) is not kind:
        raise MessageRefusedError(f"'{name}' is {type(value).__name__}, not {kind.__name__}")
    return value
