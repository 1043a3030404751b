"""Accuracies compared: two arms, paired by seed; one more run, with those of other seeds."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import stdtrit  # scipy.stats takes half a second to import

from bnjax.evidence.statistics import spread


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

    Args:
        difference: as `paired` returns it.
        shown: the text of a number.
        unit: with the space before it.
    """
    text = f"{shown(difference['mean'])}{unit}"
    ends = interval(difference)
    return text if ends is None else f"{text} ({shown(ends[0])} to {shown(ends[1])})"


def in_points(fraction: float) -> str:
    """Returns a difference of accuracies in points of a per cent."""
    return f"{100 * fraction:+.2f}"


def verdict(difference: Mapping[str, Any]) -> str:
    """Returns what the interval says to a claim that the difference is above zero."""
    low, high = interval(difference) or (0, 0)
    return "shown" if low > 0 else "contradicted" if high < 0 else "not shown"


def difference_line(first: str, second: str, difference: Mapping[str, Any]) -> str:
    """One difference in words, in points of a per cent."""
    text = f"- {first} minus {second}: {100 * difference['mean']:+.2f} points"
    if "confidence_95" in difference:
        low, high = (100 * bound for bound in difference["confidence_95"])
        text += f", 95 % confidence interval {low:+.2f} to {high:+.2f}"
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
