"""Whether what normalization gains in the narrow network grows with the learning rate."""

from collections.abc import Callable

from experiments.harness.differences import difference_line, paired
from experiments.harness.results import Runs


def rates_text(runs: Callable[[str], Runs]) -> str:
    """Returns how much more it gains at thirty times the rate than at five times, by one recipe.

    Args:
        runs: of an arm behind its folder below the results, as in `recipe_x5/inception`.
    """

    def gain(rate: str) -> dict[int, float]:
        own, theirs = runs(f"bn_{rate}").best(), runs(f"recipe_{rate}/inception").best()
        return {seed: own[seed] - theirs[seed] for seed in own if seed in theirs}

    return difference_line("The gain at x30", "that at x5", paired(gain("x30"), gain("x5")))
