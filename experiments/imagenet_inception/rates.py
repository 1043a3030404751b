"""Whether what normalization gains depends on the learning rate: a sweep of two arms, paired."""

from pathlib import Path

from experiments.harness.differences import difference_line, paired
from experiments.harness.results import load_sweep
from experiments.imagenet_inception.arms import ARMS

FOLDER = "rates"
"""Of the sweep, below the results."""
_ARMS = ("bn_baseline", "inception")


def rates_text(folder: Path) -> str:
    """Returns the difference of best accuracies at each rate, then how it changes with the rate.

    Args:
        folder: of a sweep, `sweep/ARM-lrRATE-sSEED` below it, with both arms at each rate.
    """
    sweep = load_sweep(ARMS, folder / "sweep")
    gains: dict[float, dict[int, float]] = {}
    lines = []
    for first, second in zip(*(sweep[arm] for arm in _ARMS), strict=True):
        rate = first.record["learning_rate"]
        own, theirs = first.best(), second.best()
        gains[rate] = {seed: own[seed] - theirs[seed] for seed in own if seed in theirs}
        at = f" at {rate:g}"
        lines.append(difference_line(first.label + at, second.label + at, paired(own, theirs)))
    lowest, *others = sorted(gains)
    lines += [
        difference_line(
            f"This difference at {rate:g}",
            f"that at {lowest:g}",
            paired(gains[rate], gains[lowest]),
        )
        for rate in others
    ]
    return "\n".join(lines)
