"""What normalization gains in the narrow network, by learning rate."""

from collections.abc import Callable, Sequence

from bnjax.evidence.statistics import spread
from bnjax.evidence.tables import percent, table
from experiments.harness.differences import difference_line, in_points, paired, with_interval
from experiments.harness.results import Runs
from experiments.harness.sweeps import at_best_rate


def rates_text(runs: Callable[[str], Runs]) -> str:
    """Returns how much more it gains at thirty times the rate than at five times, by one recipe.

    Args:
        runs: of an arm behind its folder below the results, as in `recipe_x5/inception`.
    """

    def gain(rate: str) -> dict[int, float]:
        own, theirs = runs(f"bn_{rate}").best(), runs(f"recipe_{rate}/inception").best()
        return {seed: own[seed] - theirs[seed] for seed in own if seed in theirs}

    return difference_line("The gain at x30", "that at x5", paired(gain("x30"), gain("x5")))


def tuned_text(normalized: Sequence[Runs], plain: Sequence[Runs]) -> str:
    """Returns what a recipe comes to with normalization and without, at each rate and at the best.

    Args:
        normalized: the runs at each rate of a sweep.
        plain: the same of the recipe without normalization; rates that one of them lacks are left
            out.
    """
    with_, without = ({each.learning_rate: each for each in sweep} for sweep in (normalized, plain))
    rows = [
        [f"{rate:g}", *_compared(with_[rate], without[rate])] for rate in with_ if rate in without
    ]
    own, theirs = at_best_rate(normalized), at_best_rate(plain)
    best = f"each at its best: {own.learning_rate:g}, {theirs.learning_rate:g}"
    heads = ["learning rate", "with, %", "without, %", "difference, points (95 % interval)"]
    return table(heads, [*rows, [best, *_compared(own, theirs)]])


def _compared(own: Runs, theirs: Runs) -> list[str]:
    best = own.best(), theirs.best()
    accuracies = [percent(spread([*each.values()])) for each in best]
    return [*accuracies, with_interval(paired(*best), in_points)]
