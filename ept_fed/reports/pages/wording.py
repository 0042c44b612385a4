"""Sentences of a site's report: the verdict on the first page, and the limits of the results."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ept_fed.evaluation.bootstrap import MIN_GROUPS, Difference, Interval
from ept_fed.reports.run.read_predictions import SitePredictions
from ept_fed.reports.run.settings import BASELINE, FEDERATED, MIXED, PERSONALISED, verdict_setting
from ept_fed.reports.run.training_record import TrainingRecord
from ept_fed.reports.statistics.site import ClassRow, Statistics

__all__ = ["KEPT", "Headline", "describe_limits", "headline", "signed", "span"]

KEPT = "local model kept"
_NAMES = {
    FEDERATED: "the federated model",
    PERSONALISED: "the federated model with this site's own head",
    MIXED: "the sum of the local and the federated model",
    BASELINE: "the local model",
}
_MODELS = {"federated": "the federated model", "local": "the local model", "centralised": "the centralised model"}


@dataclass(frozen=True)
class Headline:
    """The answer to "did joining help us?".

    Attributes:
        verdict: "helped", "no clear difference", "harmed", "local model kept" if the site chose that, or "none" if no
            comparison could be made.
        sentence: the answer in one sentence.
        details: the numbers behind it, and the number of cases needed for a clear verdict.
    """

    verdict: str
    sentence: str
    details: tuple[str, ...]


def headline(
    statistics: Statistics,
    case: str,
    training: Mapping[str, TrainingRecord],
    choice: Mapping[str, Any] | None = None,
) -> Headline:
    """Return the verdict on macro AUC: the model that the site uses, against its local model.

    Args:
        statistics: the numbers on the test images.
        case: description of one case.
        training: how training ended, by setting.
        choice: the site's choice, see `client.site.candidates.SiteChoice`; None if it uses the federated model.
    """
    auc = statistics.metrics[0]
    reason = _why_none(statistics)
    if reason:
        return Headline("none", f"No verdict: {reason}", ())
    setting = verdict_setting(auc.values)
    used, local, gap = auc.values[setting], auc.values[BASELINE], auc.differences[setting]
    model = "the federated model" if choice is None else _NAMES[choice["name"]]
    numbers = (
        f"AUC {used.value:.3f} of {model}, {local.value:.3f} of the local model; "
        f"difference {signed(gap.value)} ({span(gap)})."
    )
    images, cases = _count(statistics.images, "test image"), _count(statistics.cases, "case")
    warning = _warn_of_early_end(training)
    basis = f"Measured on {images} of {cases} of this site. A case is {case}."
    if choice is not None and choice["name"] == BASELINE:
        sentence = (
            "This site keeps its local model: on its own validation images, the federated model is worse. So joining "
            "neither helps nor harms its patients."
        )
        return Headline(
            KEPT, sentence, (f"AUC {local.value:.3f} of the local model.", basis, _say_why(choice), *warning)
        )
    match gap.verdict:
        case "helped":
            sentence = (
                f"Joining helped: on this site's own patients, {model} separates the classes better than the local "
                "model, which is trained only on this site's images."
            )
        case "harmed":
            sentence = (
                f"Joining harmed: on this site's own patients, {model} separates the classes worse than the local "
                "model, which is trained only on this site's images."
            )
        case _:
            sentence = (
                f"No clear difference: on this site's own patients, {model} and the local model, which is trained only "
                "on this site's images, are about equally good, or there are too few patients to decide."
            )
    reasons = () if choice is None else (_say_why(choice),)
    return Headline(gap.verdict, sentence, (numbers, basis, *reasons, *_what_would_settle(gap), *warning))


def describe_limits(statistics: Statistics, predictions: SitePredictions, case: str, task: str) -> tuple[str, ...]:
    """Return the limits that a reader has to know to interpret the numbers."""
    limits = [
        f"A case is {case}. Intervals come from 1,000 bootstrap samples of whole cases."
        if predictions.grouped
        else "A case is one image: no two test images share a group. Intervals come from 1,000 bootstrap samples."
    ]
    limits += predictions.notes
    absent = [row.name for row in statistics.classes if not row.images]
    rare = [row for row in statistics.classes if 0 < row.cases < MIN_GROUPS]
    if absent:
        limits.append(f"Not among this site's test images: {', '.join(absent)}. Averages over classes exclude them.")
    if rare:
        limits.append(
            f"Classes with fewer than {MIN_GROUPS} test cases have no interval: "
            + ", ".join(f"{row.name} ({row.cases})" for row in rare)
            + ". They are included in the averages over classes, whose intervals are therefore rather too narrow."
        )
    constant = _constant(predictions)
    limits += [
        f"In setting “{name}”, all images have the same probabilities, so its AUC is 0.5 by definition."
        for name in constant
    ]
    if predictions.validation is None:
        limits.append(
            "The run folder contains no validation predictions. Therefore this report has no operating point at a "
            "chosen sensitivity, no temperature and no prediction sets: if they were chosen on the test images, they "
            "would look better than they are."
        )
    else:
        limits.append(
            "Thresholds and temperature come from the validation images. If these were drawn in equal numbers per "
            "class, the temperature fits this class distribution and not the one in clinical practice."
        )
    if task == "multi_label":
        limits.append(
            "An image can have several classes, so there is no confusion matrix and there are no prediction sets."
        )
    limits.append(
        "One run with one seed. About one in twenty differences looks clear by chance. The verdict uses only the AUC, "
        "and this choice is the same for every run."
    )
    return tuple(limits)


def signed(value: float, digits: int = 3) -> str:
    """Return a number with its sign (a real minus), or a dash if undefined; a number rounded to zero has no sign."""
    if math.isnan(value):
        return "–"
    text = f"{value:+.{digits}f}"
    return text.replace("-", "−") if float(text) else text[1:]


def span(interval: Interval | Difference, digits: int = 3) -> str:
    """Return the text "95 % interval low to high"."""
    if math.isnan(interval.low):
        return "no interval: too few cases"
    bounds = (interval.low, interval.high)
    if isinstance(interval, Difference):
        low, high = (signed(bound, digits) for bound in bounds)
    else:
        low, high = (f"{bound:.{digits}f}" for bound in bounds)
    return f"95 % interval {low} to {high}"


def _why_none(statistics: Statistics) -> str:
    auc = statistics.metrics[0]
    present: Sequence[ClassRow] = [row for row in statistics.classes if row.images]
    if not auc.values:
        return "the run failed before any model could be tested."
    if not statistics.images:
        return "this site has no test image with usable predictions."
    used = verdict_setting(auc.values)
    if used not in auc.values or BASELINE not in auc.values:
        return "the run has no local model to compare with (evaluation.baselines lacks “local”)."
    if math.isnan(auc.differences[used].value):
        names = ", ".join(row.name for row in present) or "no class at all"
        return f"all test images of this site show {names}; a comparison needs images with and without a class."
    if math.isnan(auc.differences[used].low):
        return (
            f"{_count(statistics.cases, 'test case')} at this site are too few; "
            f"the minimum is {MIN_GROUPS}, and a few hundred are reasonable."
        )
    return ""


def _say_why(choice: Mapping[str, Any]) -> str:
    """Return which model the site uses and why, in one sentence."""
    head = {"with LDA": " (with an LDA head)", "own": " (the head that it trained last)"}.get(
        choice["personal_head"] or "", ""
    )
    about = ""
    if choice["name"] == PERSONALISED:
        about = head
    elif choice["name"] == MIXED:
        about = f" (share of the local model: {choice['share']:.0%})"
    elif choice["name"] == BASELINE and choice["local_head"] == "with LDA":
        about = " (with an LDA head)"
    return f"This site uses {_NAMES[choice['name']]}{about}: {choice['reason']}."


def _warn_of_early_end(training: Mapping[str, TrainingRecord]) -> tuple[str, ...]:
    """Return a warning if a model was still improving when its training stopped."""
    early = {setting: record for setting, record in training.items() if record.state == "still improving"}
    changes = ", ".join(
        f"{_MODELS.get(setting, setting)} (AUC {signed(record.auc_change)}, loss {record.loss_change:+.0%})".replace(
            "-", "−"
        )
        for setting, record in early.items()
    )
    fix = "More rounds may change this result"
    return (f"Still improving when it stopped, over its last quarter of rounds: {changes}. {fix}.",) if early else ()


def _what_would_settle(gap: Difference) -> tuple[str, ...]:
    if gap.verdict != "no clear difference":
        return ()
    possible = (
        f"Any difference from {signed(gap.low)} to {signed(gap.high)} is compatible with these patients: "
        "this does not prove that there is no difference."
    )
    if gap.groups_needed is None:
        return (
            possible,
            "The difference is so close to zero that no realistic number of additional cases gives a clear verdict.",
        )
    more = _count(gap.groups_needed, "more test case")
    return (possible, f"If the difference remains the same, a clear verdict needs about {more} at this site.")


def _constant(predictions: SitePredictions) -> list[str]:
    return [
        setting
        for setting, scores in predictions.test.scores.items()
        if len(scores) > 1 and bool((scores == scores[:1]).all())
    ]


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
