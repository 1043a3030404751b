"""Results in Markdown: tables, lists, and numbers as their cells."""

from collections.abc import Iterable, Sequence
from typing import Any


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1) -> str:
    """Returns a table; short rows are filled up with empty cells.

    Args:
        heads: one of each column.
        rows: cells.
        left: number of columns that stand at the left; the others hold numbers.

    Example:
        >>> print(table(["network", "accuracy, %"], [["BN", "97.31 ± 0.19"]]))
        | network | accuracy, % |
        | --- | ---: |
        | BN | 97.31 ± 0.19 |
    """
    align = ["---"] * left + ["---:"] * (len(heads) - left)
    filled = [[*cells, *[""] * (len(heads) - len(cells))] for cells in (heads, align, *rows)]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in filled)


def bullets(notes: Iterable[str]) -> str:
    """Returns a list."""
    return "\n".join(f"- {note}" for note in notes)


def verdict(reached: bool) -> str:
    """Returns whether a target was reached."""
    return "reached" if reached else "missed"


def plain(spread: dict[str, Any], digits: int = 2, factor: float = 1.0) -> str:
    """Returns mean ± standard deviation, or the mean alone if there is none."""
    text = f"{factor * spread['mean']:,.{digits}f}"
    return text if spread["sd"] is None else f"{text} ± {factor * spread['sd']:,.{digits}f}"


def percent(spread: dict[str, Any]) -> str:
    """Returns the same for a fraction, in %.

    Example:
        >>> percent({"mean": 0.9731, "sd": 0.0019})
        '97.31 ± 0.19'
    """
    return plain(spread, factor=100)


def steps(times: dict[str, Any], runs: int, factor: float = 1.0) -> str:
    """Returns the steps to something, and how many of the runs reached it if not all did.

    Of no run, nothing.
    """
    if not runs:
        return ""
    if not times["reached"]:
        return "not reached"
    text = plain(times, digits=0, factor=factor)
    return text if times["reached"] == runs else f"{text} ({times['reached']} of {runs})"


def divergence(fault: dict[str, Any]) -> str:
    """Returns where a run reached infinity, from the facts of a `Diverged`."""
    where = "" if fault["layer"] is None else f" of {fault['leaf']} in {fault['layer']}"
    return f"reached infinity at step {fault['step']:,}: {fault['what']}{where}."
