"""Curves over the training, of all seeds."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes

Styles = Mapping[str, tuple[str, str]]
"""Colour and line by the name of a curve."""


def draw_over_steps(
    axes: Axes, answers: Sequence[dict[str, Any]], styles: Styles, ylabel: str
) -> None:
    """Draws curves against `step`, each with one entry in the legend."""
    for position, answer in enumerate(answers):
        for name, (color, line) in styles.items():
            curves, label = answer["curves"], name if position == 0 else None
            axes.plot(curves["step"], curves[name], line, color=color, lw=0.8, label=label)
    axes.set(xlabel="step", ylabel=ylabel)
    axes.legend(frameon=False)
