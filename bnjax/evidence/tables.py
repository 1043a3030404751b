"""Numbers of a summary as cells of a Markdown table."""

from collections.abc import Sequence
from typing import Any


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], *, left: int = 1) -> str:
    """Returns a table; all columns but the first `left` are aligned to the right."""
    align = ["---"] * left + ["---:"] * (len(heads) - left)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (heads, align, *rows))


def plain(spread: dict[str, Any], digits: int = 2, factor: float = 1.0) -> str:
    """Returns mean ± standard deviation, or the mean alone if there is none."""
    text = f"{factor * spread['mean']:,.{digits}f}"
    return text if spread["sd"] is None else f"{text} ± {factor * spread['sd']:,.{digits}f}"


def percent(spread: dict[str, Any]) -> str:
    """Returns the same for a fraction, in %."""
    return plain(spread, factor=100)


def steps(times: dict[str, Any], runs: int, factor: float = 1.0) -> str:
    """Returns the steps to something, and how many of the runs reached it if not all did."""
    if not times["reached"]:
        return "not reached"
    text = plain(times, digits=0, factor=factor)
    return text if times["reached"] == runs else f"{text} ({times['reached']} of {runs})"


def divergence(fault: dict[str, Any]) -> str:
    """Returns where a run reached infinity, from the facts of a `Diverged`."""
    where = "" if fault["layer"] is None else f" of {fault['leaf']} in {fault['layer']}"
    return f"reached infinity at step {fault['step']:,}: {fault['what']}{where}."
