"""Accuracies compared: two arms, paired by seed; one more run, with those of other seeds."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from scipy.special import stdtrit  # scipy.stats takes half a second to import

from bnjax.evidence.statistics import spread

Side = Literal["above", "below", "unclear"]
_NONE = "no seed in common"


class Difference(NamedTuple):
    """A paired difference as tables tell it.

    Attributes:
        seeds: that both have.
        text: the mean, with its unit and its interval.
        side: of zero, on which the whole interval lies; "unclear" if it holds zero, or is none.
    """

    seeds: int
    text: str
    side: Side


def points(first: Mapping[int, float], second: Mapping[int, float]) -> Difference:
    """Returns the difference of two accuracies by seed, fractions, in points of a per cent."""
    return told(paired(first, second), in_points, " points")


def times(first: Mapping[int, float], second: Mapping[int, float], what: str) -> Difference:
    """Returns how many times larger the first is than the second, by seed.

    The interval is of the logarithm of the ratio.
    """
    own, theirs = ({seed: float(np.log(x)) for seed, x in each.items()} for each in (first, second))
    return told(paired(own, theirs), lambda value: f"{np.exp(value):.1f}", f" times {what}")


def told(
    difference: Mapping[str, Any], shown: Callable[[float], str], unit: str = ""
) -> Difference:
    """Returns a difference of `paired` for tables; arguments are those of `with_interval`."""
    text = with_interval(difference, shown, unit)
    return Difference(difference["seeds"], text, side(*(interval(difference) or (0, 0))))


def side(low: float, high: float) -> Side:
    """Returns the side of zero on which a whole interval lies."""
    return "above" if low > 0 else "below" if high < 0 else "unclear"


def paired(first: Mapping[int, float], second: Mapping[int, float]) -> dict[str, Any]:
    """The first accuracy minus the second, over the seeds that both have, on one test set.

    The interval is over seeds: how other test images would decide is not in it.

    Args:
        first: by seed, a fraction.
        second: the same, of the arm that it is held against.

    Returns:
        `seeds`, `mean`, `sd` and, of two seeds or more, `confidence_95` by Student's t.
    """
    seeds = sorted({*first} & {*second})
    change = np.array([first[seed] - second[seed] for seed in seeds])
    difference: dict[str, Any] = {"seeds": len(seeds)} | spread(change)
    if len(seeds) > 1:
        difference["confidence_95"] = confidence_95(change)
    return difference


def confidence_95(values: Sequence[float] | np.ndarray) -> list[float]:
    """Returns the 95 % confidence interval of the mean of two values or more, by Student's t."""
    array = np.asarray(values, float)
    half = stdtrit(len(array) - 1, 0.975) * array.std(ddof=1) / np.sqrt(len(array))
    return [round(float(bound), 6) for bound in (array.mean() - half, array.mean() + half)]


def interval(difference: Mapping[str, Any]) -> tuple[float, float] | None:
    """Returns the interval of a paired difference; None if its seeds do not tell how it scatters.

    That is of one seed, or where evaluations are too far apart to tell the seeds apart.
    """
    if not difference["sd"]:
        return None
    low, high = difference["confidence_95"]
    return low, high


def with_interval(
    difference: Mapping[str, Any], shown: Callable[[float], str], unit: str = ""
) -> str:
    """Returns the mean of a paired difference, its unit and, if it has one, its interval.

    Without a seed that both have it says so.

    Args:
        difference: as `paired` returns it.
        shown: the text of a number.
        unit: with the space before it.
    """
    if not difference["seeds"]:
        return _NONE
    text = f"{shown(difference['mean'])}{unit}"
    ends = interval(difference)
    return text if ends is None else f"{text} ({shown(ends[0])} to {shown(ends[1])})"


def in_points(fraction: float) -> str:
    """Returns a difference of accuracies in points of a per cent."""
    return f"{100 * fraction:+.2f}"


def verdict(side: Side) -> str:
    """Returns what a difference on that side says to a claim that it is above zero."""
    return {"above": "shown", "below": "contradicted", "unclear": "not shown"}[side]


def difference_line(first: str, second: str, difference: Mapping[str, Any]) -> str:
    """One difference in words, in points of a per cent."""
    what = f"- {first} minus {second}:"
    if not difference["seeds"]:
        return f"{what} {_NONE}."
    text = f"{what} {in_points(difference['mean'])} points"
    ends = interval(difference)
    if ends is not None:
        text += f", 95 % confidence interval {in_points(ends[0])} to {in_points(ends[1])}"
    seeds = difference["seeds"]
    return f"{text} ({f'{seeds} seeds, paired' if seeds > 1 else 'one seed'})."


def prediction_interval(
    values: Sequence[float], examples: int | None, *, confidence: float
) -> tuple[float, float]:
    """Returns where the number that one more run comes to lies, with so much confidence.

    By Student's t for a normal distribution whose mean and spread are those of the runs
    (mean ± t sd sqrt(1 + 1/n)). Few runs may by chance be nearly alike: the standard deviation of
    accuracies counts as no less than the standard error of one on a test set of this size.

    Args:
        values: of runs that differ by their seeds alone; two or more.
        examples: size of the test set whose accuracies, as fractions, they are; None for others.
        confidence: for example 0.99.
    """
    array = np.asarray(values, float)
    n, mean, sd = len(array), array.mean(), array.std(ddof=1)
    if examples is not None:
        share = np.clip(mean, 1 / examples, 1 - 1 / examples)
        sd = max(sd, np.sqrt(share * (1 - share) / examples))
    half = stdtrit(n - 1, (1 + confidence) / 2) * sd * np.sqrt(1 + 1 / n)
    return float(mean - half), float(mean + half)
