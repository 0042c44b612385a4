"""Sentences of a site's report: the verdict on the first page, and the limits of the results."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from ept_fed.evaluation.bootstrap import MIN_GROUPS, Difference, Interval
from ept_fed.reports.run.read_predictions import SitePredictions
from ept_fed.reports.statistics.site import BASELINE, ClassRow, Statistics

__all__ = ["Headline", "describe_limits", "headline", "signed", "span"]

FEDERATED = "federated"


@dataclass(frozen=True)
class Headline:
    """The answer to "did joining help us?".

    Attributes:
        verdict: "helped", "no clear difference", "harmed", or "none" if no comparison could be made.
        sentence: the answer in one sentence.
        details: the numbers behind it, and the number of cases needed for a clear verdict.
    """

    verdict: str
    sentence: str
    details: tuple[str, ...]


def headline(statistics: Statistics, case: str) -> Headline:
    """Return the verdict on macro AUC, federated against local model; `case` is the description of one case."""
    auc = statistics.metrics[0]
    reason = _why_none(statistics)
    if reason:
        return Headline("none", f"No verdict: {reason}", ())
    federated, local, gap = auc.values[FEDERATED], auc.values[BASELINE], auc.differences[FEDERATED]
    numbers = (
        f"AUC {federated.value:.3f} of the federated model, {local.value:.3f} of the local model; "
        f"difference {signed(gap.value)} ({span(gap)})."
    )
    images, cases = _count(statistics.images, "test image"), _count(statistics.cases, "case")
    basis = f"Measured on {images} of {cases} of this site. A case is {case}."
    match gap.verdict:
        case "helped":
            sentence = (
                "Joining helped: on this site's own patients, the federated model separates the classes better than "
                "the local model, which is trained only on this site's images."
            )
        case "harmed":
            sentence = (
                "Joining harmed: on this site's own patients, the federated model separates the classes worse than the "
                "local model, which is trained only on this site's images."
            )
        case _:
            sentence = (
                "No clear difference: on this site's own patients, the federated model and the local model, which is "
                "trained only on this site's images, are about equally good, or there are too few patients to decide."
            )
    return Headline(gap.verdict, sentence, (numbers, basis, *_what_would_settle(gap)))


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
    if FEDERATED not in auc.values or BASELINE not in auc.values:
        return "the run has no local model to compare with (evaluation.baselines lacks “local”)."
    if math.isnan(auc.differences[FEDERATED].value):
        names = ", ".join(row.name for row in present) or "no class at all"
        return f"all test images of this site show {names}; a comparison needs images with and without a class."
    if math.isnan(auc.differences[FEDERATED].low):
        return (
            f"{_count(statistics.cases, 'test case')} at this site are too few; "
            f"the minimum is {MIN_GROUPS}, and a few hundred are reasonable."
        )
    return ""


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
