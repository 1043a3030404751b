"""Whether what normalization gains in the narrow network grows with the learning rate."""

from collections.abc import Callable

from experiments.harness.differences import difference_line, paired
from experiments.harness.results import Runs

_PAIRS = {  # at each multiple of the rate: with normalization, and the same without
    1: ("bn_baseline", "inception"),
    5: ("bn_x5", "recipe_x5/inception"),
    30: ("bn_x30", "recipe_x30/inception"),
}
_ONE_RECIPE = (5, 30)
"""Multiples whose pairs differ from each other in the rate alone."""


def rates_text(runs: Callable[[str], Runs]) -> str:
    """Returns what normalization gains at each rate, then how the gain changes with it.

    Args:
        runs: of an arm behind its folder below the results, as in `recipe_x5/inception`.
    """
    gains, lines = {}, []
    for multiple, (first, second) in _PAIRS.items():
        own, theirs = runs(first).best(), runs(second).best()
        gains[multiple] = {seed: own[seed] - theirs[seed] for seed in own if seed in theirs}
        difference = paired(own, theirs)
        lines.append(difference_line(f"x{multiple}, with", "without", difference))
    low, high = _ONE_RECIPE
    change = paired(gains[high], gains[low])
    lines.append(difference_line(f"The gain at x{high}", f"that at x{low}", change))
    return "\n".join(lines)
