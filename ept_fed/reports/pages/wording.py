"""What the numbers say, in sentences: the verdict on page one, and the limits that belong to it."""

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
        details: what it rests on, and what would settle it.
    """

    verdict: str
    sentence: str
    details: tuple[str, ...]


def headline(statistics: Statistics, case: str) -> Headline:
    """Return the verdict on macro AUC, federated against trained at this site alone; `case` says what one case is."""
    auc = statistics.metrics[0]
    reason = _why_none(statistics)
    if reason:
        return Headline("none", f"No verdict: {reason}", ())
    federated, local, gap = auc.values[FEDERATED], auc.values[BASELINE], auc.differences[FEDERATED]
    numbers = (
        f"AUC {federated.value:.3f} with the federation, {local.value:.3f} trained at this site alone; "
        f"difference {signed(gap.value)} ({span(gap)})."
    )
    images, cases = _count(statistics.images, "test image"), _count(statistics.cases, "case")
    basis = f"Measured on {images} of {cases} of this site; a case is {case}."
    match gap.verdict:
        case "helped":
            sentence = (
                "Joining helped: on this site's own patients the federated model tells the classes apart better than a "
                "model trained here alone."
            )
        case "harmed":
            sentence = (
                "Joining harmed: on this site's own patients the federated model tells the classes apart worse than a "
                "model trained here alone."
            )
        case _:
            sentence = (
                "No clear difference: on this site's own patients the federated model and a model trained here alone "
                "do about equally well, or there are too few patients to see which is better."
            )
    return Headline(gap.verdict, sentence, (numbers, basis, *_what_would_settle(gap)))


def describe_limits(statistics: Statistics, predictions: SitePredictions, case: str, task: str) -> tuple[str, ...]:
    """Return what a reader must know before trusting the numbers."""
    limits = [
        f"A case is {case}. Intervals draw whole cases, 1,000 times."
        if predictions.grouped
        else "A case is one image: no two test images share a group. Intervals draw images, 1,000 times."
    ]
    limits += predictions.notes
    absent = [row.name for row in statistics.classes if not row.images]
    rare = [row for row in statistics.classes if 0 < row.cases < MIN_GROUPS]
    if absent:
        limits.append(f"Not among this site's test images: {', '.join(absent)}. Averages over classes leave them out.")
    if rare:
        limits.append(
            f"Fewer than {MIN_GROUPS} test cases, so no interval of their own: "
            + ", ".join(f"{row.name} ({row.cases})" for row in rare)
            + ". They count in the averages over classes, whose intervals are therefore on the narrow side."
        )
    constant = _constant(predictions)
    limits += [
        f"Under “{name}” all images have the same probabilities: its AUC is 0.5 by definition." for name in constant
    ]
    if predictions.validation is None:
        limits.append(
            "The run folder holds no validation predictions. So there is no operating point at a chosen sensitivity, "
            "no temperature and no prediction set here: choosing them on the test images would flatter them."
        )
    else:
        limits.append(
            "Thresholds and temperature come from the validation images; if these were drawn in equal numbers per "
            "class, the temperature fits that mix and not the one at the bench."
        )
    if task == "multi_label":
        limits.append("An image can have several classes: no confusion matrix and no prediction sets are made.")
    limits.append(
        "One run with one seed. About one in twenty differences looks clear by chance; the verdict rests on the AUC "
        "alone, which is fixed for every run."
    )
    return tuple(limits)


def signed(value: float, digits: int = 3) -> str:
    """Return a number with its sign, a true minus, or a dash where it is undefined; what rounds to zero has no sign."""
    if math.isnan(value):
        return "–"
    text = f"{value:+.{digits}f}"
    return text.replace("-", "−") if float(text) else text[1:]


def span(interval: Interval | Difference, digits: int = 3) -> str:
    """Return "95 % interval low to high" in words."""
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
        return "the run has no model trained at this site alone to compare with (evaluation.baselines lacks “local”)."
    if math.isnan(auc.differences[FEDERATED].value):
        names = ", ".join(row.name for row in present) or "no class at all"
        return f"every test image of this site shows {names}; a comparison needs images with and without a class."
    if math.isnan(auc.differences[FEDERATED].low):
        return (
            f"{_count(statistics.cases, 'test case')} at this site are too few; "
            f"{MIN_GROUPS} are the least, and some hundred make sense."
        )
    return ""


def _what_would_settle(gap: Difference) -> tuple[str, ...]:
    if gap.verdict != "no clear difference":
        return ()
    possible = (
        f"Anything from {signed(gap.low)} to {signed(gap.high)} fits these patients: "
        "this is not proof that there is no difference."
    )
    if gap.groups_needed is None:
        return (
            possible,
            "The difference is so close to zero that no realistic number of further cases would make a verdict.",
        )
    more = _count(gap.groups_needed, "more test case")
    return (possible, f"If the difference stays as it is, a verdict needs about {more} at this site.")


def _constant(predictions: SitePredictions) -> list[str]:
    return [
        setting
        for setting, scores in predictions.test.scores.items()
        if len(scores) > 1 and bool((scores == scores[:1]).all())
    ]


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
