"""The classes of a source, from the settings or from its files."""

from collections.abc import Iterable, Sequence

from ept_fed.errors import Problem

__all__ = ["names_of_columns", "names_of_labels"]


def names_of_columns(
    classes: Sequence[str] | None, columns: Sequence[str], name: str
) -> tuple[tuple[str, ...], list[Problem]]:
    """Return the classes for one 0/1 column per class; `classes` may reorder them, `name` is the columns' origin."""
    chosen = tuple(classes or columns)
    if set(chosen) != set(columns):
        fix = f"must name the classes of {name} ({', '.join(columns)}), in any order"
        return chosen, [Problem("data.classes", list(chosen), fix)]
    return chosen, []


def names_of_labels(
    classes: Sequence[str] | None, labels: Iterable[str], name: str, column: str
) -> tuple[tuple[str, ...], list[Problem]]:
    """Return the classes for one column with class names: `data.classes`, or the sorted distinct labels.

    Labels that differ only in case or spacing are either one class written in two ways, or two classes that are easily
    confused. They are refused unless `data.classes` lists them.
    """
    chosen = tuple(classes or sorted({*labels} - {""}))
    problems = []
    if len(chosen) < 2:
        fix = "has fewer than two classes; list all classes of the federation in data.classes"
        problems.append(Problem(name, column, fix))
    spellings: dict[str, list[str]] = {}
    for label in chosen if classes is None else ():
        spellings.setdefault("".join(label.casefold().split()), []).append(label)
    for alike in spellings.values():
        if len(alike) > 1:
            fix = f"column '{column}' is ambiguous: is this one class? Write it one way, or list both in data.classes"
            problems.append(Problem(name, alike, fix))
    return chosen, problems
