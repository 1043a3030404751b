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


def rate_text(runs: Sequence[Runs], rate: float) -> str:
    """Returns how much better an arm is at its best rate than at another one."""
    (other,) = (each for each in runs if each.learning_rate == rate)
    best = at_best_rate(runs)
    gain = paired(best.best(), other.best())
    return difference_line(f"{best.label} at {best.learning_rate:g}", f"at {rate:g}", gain)


def tuned_text(normalized: Sequence[Runs], plain: Sequence[Runs]) -> str:
    """Returns what a recipe comes to with normalization and without, at each rate and at the best.

    Args:
        normalized: the runs at each rate.
        plain: the same of the recipe without normalization. A rate that one of them lacks is an
            empty cell; one that lacks seeds is no best.
    """
    with_, without = ({each.learning_rate: each for each in sweep} for sweep in (normalized, plain))
    rates = sorted({*with_, *without})
    rows = [[f"{rate:g}", *_compared(with_.get(rate), without.get(rate))] for rate in rates]
    own, theirs = at_best_rate(normalized), at_best_rate(plain)
    best = f"each at its best: {own.learning_rate:g}, {theirs.learning_rate:g}"
    heads = ["learning rate", "with, %", "without, %", "difference, points (95 % interval)"]
    return table(heads, [*rows, [best, *_compared(own, theirs)]])


def _compared(own: Runs | None, theirs: Runs | None) -> list[str]:
    accuracies = [
        "" if runs is None else percent(spread([*runs.best().values()])) for runs in (own, theirs)
    ]
    if own is None or theirs is None:
        return [*accuracies, ""]
    return [*accuracies, with_interval(paired(own.best(), theirs.best()), in_points)]
