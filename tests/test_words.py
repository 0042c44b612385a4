"""The field's words are used, not our own: in settings, commands, reports, headings and names of the code."""

import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("ept_fed", "server", "client", "simulations")
# What a person reads: every setting and command (generated from the code), the pages' templates and words, headings.
GENERATED = ("configuration.md", "cli.md", "methods.md", "strategies.md", "report-schema.md")
REPORTS = (
    *sorted((ROOT / "ept_fed/reports/pages/templates").glob("*.j2")),
    *(ROOT / "ept_fed/reports/pages" / name for name in ("html.py", "wording.py", "site_report.py")),
    ROOT / "ept_fed/reports/pages/federation_report.py",
    ROOT / "ept_fed/cli/display.py",
    ROOT / "server/cli/run_display.py",
    ROOT / "simulations/benchmark/chart.py",
    ROOT / "simulations/benchmark/tabulate.py",
    ROOT / "ept_fed/config/benchmark.py",
    ROOT / "ept_fed/assets/policy.yaml",
)
# Former word, with how it may appear, and the word of the field.
FORMER = {
    r"\bstay(?:s|ed|ing)? (?:at )?home\b|\bat home\b|\bhead at home\b": "local only, personalised head",
    r"\balone\b": "local only, or 'only'",
    r"\bimages pooled\b|\bpooled images\b": "centralised",
    r"\bcommon heads?\b|\bcommon\+own\b|head[:=] ?common": "fixed head",
    r"\bdiscriminants?\b(?! analysis)|\bfitted head\b": "LDA head",
    r"\bunder masks\b": "under secure aggregation",
    r"\bin clear\b": "plaintext",
    r"\boutsized\b": "norm outlier",
    r"\b(?:spell(?:s|ed)?|judges?|judged|recall(?:s|ed)?(?! over))\b": "serialize, check, load",
    r"\bh(?:o|e)lds? still\b": "freeze",
    r"\bdoors?\b|\bturned away\b|\bRuleBroken\b": "gate, refused, PolicyViolation",
    r"\bcontradict": "validators",
    r"\bsealed\b": "checksummed",
    r"\bfewest_|\bmost_": "min_, max_",
    r"\blessons?\b": "epoch part",
}
NAMES = re.compile(
    r"(?:^|_)(?:spell|spells|spelled|judge|judges|recalls?|recalled|door|doors|fewest|sealed|lessons?|outsized|fleeting"
    r"|contradictions?|discriminants?)(?:_|$)|^_?most_(?!common$|confident_errors$)|MOST_|FEWEST|SEALED|Door|Lesson|RuleBroken"
    r"|RulesBroken|SealBroken|rest_local_round|told_of_divergence|hold_for_now|hold_still|common_head|CommonHead"
    r"|COMMON_HEADS|fitted_head|turned_away|train_alone"
)
# Names of other people's: Counter's, scikit-learn's.
FOREIGN = {"most_common", "recall_score", "recalls"}


def find_former(text: str) -> list[str]:
    """Return each former word in a text, with the line that has it."""
    return [
        f"{line.strip()[:120]}: write {word}"
        for line in text.splitlines()
        for pattern, word in FORMER.items()
        if re.search(pattern, line, flags=re.IGNORECASE)
    ]


def names_of_code() -> Iterator[tuple[str, str]]:
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            place = path.relative_to(ROOT).as_posix()
            for part in Path(place).with_suffix("").parts:
                yield place, part
            for token in tokenize.generate_tokens(io.StringIO(path.read_text()).readline):
                if token.type == tokenize.NAME:
                    yield place, token.string


@pytest.mark.parametrize("page", GENERATED)
def test_settings_commands_and_registries_use_the_fields_words(page: str) -> None:
    assert find_former((ROOT / "docs" / page).read_text()) == []


@pytest.mark.parametrize("path", REPORTS, ids=lambda path: path.name)
def test_reports_and_displays_use_the_fields_words(path: Path) -> None:
    assert find_former(path.read_text()) == []


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda page: page.name
)
def test_headings_use_the_fields_words(page: Path) -> None:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    headings = [line for line in text.splitlines() if line.startswith("#")]
    columns = [
        before for before, after in zip(text.splitlines(), text.splitlines()[1:], strict=False) if after[:4] == "|---"
    ]
    assert find_former("\n".join([*headings, *columns])) == []


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_settings_use_the_fields_words(path: Path) -> None:
    # The values and the names of rows.
    lines = [line.split("#")[0] for line in path.read_text().splitlines()]
    assert find_former("\n".join(lines)) == []


def test_names_of_the_code_use_the_fields_words() -> None:
    found = {f"{place}: {name}" for place, name in names_of_code() if NAMES.search(name) and name not in FOREIGN}
    assert found == set()


def test_every_former_word_is_found_where_it_is_planted() -> None:
    planted = (
        *("each site stays home", "trained alone", "images pooled", "a common head", "the discriminant", "under masks"),
        *("in clear", "an outsized update", "spelled so", "it holds still", "at the door", "contradictions"),
        *("sealed tensors", "fewest_images", "a lesson"),
    )
    assert len(planted) == len(FORMER)
    assert all(find_former(text) for text in planted)
