"""Curves over the training, of all seeds."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from experiments.why_it_works.question import rounded

Styles = Mapping[str, tuple[str, str]]
"""Colour and line by the name of a curve."""


def over_steps(steps: int, reached: Mapping[str, np.ndarray]) -> dict[str, list[Any]]:
    """Returns curves of what was taken at equal distances up to the last step.

    Args:
        steps: of the training.
        reached: `[tests]` by the name of a curve.
    """
    (tests,) = {len(values) for values in reached.values()}
    curves: dict[str, list[Any]] = {"step": [steps // tests * (i + 1) for i in range(tests)]}
    return curves | {name: rounded(values) for name, values in reached.items()}


def draw_over_steps(
    axes: Axes, answers: Sequence[dict[str, Any]], styles: Styles, ylabel: str
) -> None:
    """Draws curves against `step`, each named once."""
    for position, answer in enumerate(answers):
        for name, (color, line) in styles.items():
            curves, label = answer["curves"], name if position == 0 else None
            axes.plot(curves["step"], curves[name], line, color=color, lw=0.8, label=label)
    axes.set(xlabel="step", ylabel=ylabel)
    name_lines(axes)


def name_lines(axes: Axes) -> None:
    """Names the lines below the axes, where nothing is drawn."""
    place: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, 0)}
    # The pad, in letters, leaves room for the numbers and the name of the x axis.
    axes.legend(**place, borderaxespad=5, ncols=2, columnspacing=1, fontsize=7, frameon=False)
