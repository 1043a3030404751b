"""Figures of results; nothing else draws. No pyplot: no global state, no display needed."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bnjax.extras import extra

with extra("figures"):
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.colors import to_hex
    from matplotlib.figure import Figure

PLAIN, NORMALIZED = "#d55e00", "#0072b2"  # Okabe & Ito: colour-blind readers can tell them


class Curve(NamedTuple):
    """One arm's measurements over seeds.

    Attributes:
        label: shown in the legend.
        color: color of line and band.
        x: `[points]`.
        y: `[runs, points]`; NaN where a run has no such point.
        line: style of the line, as matplotlib takes it.

    Example:
        >>> steps, accuracy = np.array([100, 200]), np.array([[0.5, 0.9], [0.6, 0.8]])
        >>> figure, (axes,) = new_figure((4.0,))
        >>> learning_curves(axes, [Curve("BN", NORMALIZED, steps, accuracy)], lowest=0.4)
    """

    label: str
    color: str
    x: np.ndarray
    y: np.ndarray
    line: str = "-"


class Marker(NamedTuple):
    """A point to mark on a learning curve.

    Attributes:
        step: training step.
        y: accuracy, a fraction.
        color: color of its curve.
    """

    step: float
    y: float
    color: str


class Percentiles(NamedTuple):
    """Percentiles of one unit's input over time, and medians of all units.

    Attributes:
        title: title of the panel.
        color: color of the unit's lines.
        steps: `[times]`.
        unit: `[3, times]`, ascending percentiles of one unit.
        medians: `[units, times]`.
    """

    title: str
    color: str
    steps: np.ndarray
    unit: np.ndarray
    medians: np.ndarray


def learning_curves(
    axes: Axes,
    curves: Sequence[Curve],
    *,
    lowest: float,
    highest: float = 1.0,
    split: str = "test",
) -> None:
    """Draws accuracy in % on a split against steps: mean ± one standard deviation over runs."""
    for curve in curves:
        y = 100 * curve.y
        mean, sd = y.mean(axis=0), y.std(axis=0, ddof=min(1, len(y) - 1))
        axes.plot(curve.x, mean, curve.line, color=curve.color, label=curve.label, linewidth=1.5)
        axes.fill_between(curve.x, mean - sd, mean + sd, color=curve.color, alpha=0.2, linewidth=0)
    axes.set_ylim(100 * lowest, 100 * highest)
    axes.set_xlim(0, max(1, *(curve.x[-1] for curve in curves)))
    axes.set_ylabel(f"{split} accuracy, %")
    _steps_axis(axes)
    axes.legend(frameon=False)  # where it hides least


def mark(axes: Axes, markers: Sequence[Marker], *, level: float) -> None:
    """Draws diamonds on learning curves, and a dotted line at the accuracy `level`.

    Diamonds at one point lie within each other, the first outermost.
    """
    axes.axhline(100 * level, color="0.6", linewidth=0.8, linestyle=":", zorder=1)
    for i, (step, y, color) in enumerate(markers):
        above = sum((step, y) == other[:2] for other in markers[i + 1 :])
        axes.plot(
            step,
            100 * y,
            "D",
            color=color,
            markersize=6 + 4 * above,
            markeredgecolor="white",
            zorder=3,
            clip_on=False,
        )


def percentile_paths(axes: Axes, paths: Percentiles, *, limit: float) -> None:
    """Draws the percentiles of one unit's input over the medians of all units."""
    axes.plot(paths.steps, paths.medians.T, color="0.8", linewidth=0.5, zorder=1)
    axes.fill_between(
        paths.steps, paths.unit[0], paths.unit[2], color=paths.color, alpha=0.2, linewidth=0
    )
    for row, width in zip(paths.unit, (1.0, 1.8, 1.0), strict=True):
        axes.plot(paths.steps, row, color=paths.color, linewidth=width)
    axes.set_title(paths.title)
    axes.set_xlim(0, max(paths.steps[-1], 1))
    axes.set_ylim(-limit, limit)
    _steps_axis(axes)


def by_learning_rate(axes: Axes, curves: Sequence[Curve], *, lowest: float) -> None:
    """Draws final test accuracy in % against the learning rate: the mean, and each run as a dot.

    The axis begins at `lowest`, and says so if it cuts anything off.
    """
    for curve in curves:
        y = 100 * curve.y
        axes.plot(
            curve.x,
            np.nanmean(y, axis=0),
            curve.line,
            color=curve.color,
            label=curve.label,
            linewidth=1.5,
        )
        for row in y:
            axes.plot(curve.x, row, "o", color=curve.color, markersize=3, alpha=0.6)
    axes.set_xscale("log")
    axes.set_ylim(100 * lowest, 100)
    axes.set_xlabel("learning rate")
    cut = any((curve.y < lowest).any() for curve in curves)
    axes.set_ylabel("final test accuracy, %" + f" (from {100 * lowest:g})" * cut)
    axes.legend(frameon=False)


def new_figure(columns: Sequence[float], *, height: float = 3.2) -> tuple[Figure, list[Axes]]:
    """Returns a figure of one row of panels, with the given widths in inches."""
    figure = Figure(figsize=(sum(columns), height), layout="constrained")
    axes = figure.subplots(1, len(columns), squeeze=False, width_ratios=list(columns))[0]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, list(axes)


def save(figure: Figure, path: Path) -> Path:
    """Writes a PNG that depends on the figure and on matplotlib, whose version it names.

    It also holds a digest of the data and words that are drawn, which all versions share.
    """
    software = f"matplotlib {matplotlib.__version__}"
    figure.savefig(path, dpi=160, metadata={"Software": software, "Source": _digest(figure)})
    return path


def _digest(figure: Figure) -> str:
    """Returns the SHA-256 of a figure's content: lines, bands, labels and limits."""
    shown: list[Any] = []
    for axes in figure.axes:
        legend = axes.get_legend()
        shown += [axes.get_title(), axes.get_xlabel(), axes.get_ylabel()]
        shown += [text.get_text() for text in legend.get_texts()] if legend else []
        shown += [_rounded(axes.get_xlim()), _rounded(axes.get_ylim())]
        for line in axes.lines:
            shown += [to_hex(line.get_color()), line.get_linestyle(), _rounded(line.get_xydata())]
        for band in axes.collections:  # versions differ in where its outline starts
            corners = np.concatenate([path.vertices for path in band.get_paths()])
            shown += [
                to_hex(np.asarray(band.get_facecolor())[0]),
                sorted(set(map(tuple, _rounded(corners)))),
            ]
    return hashlib.sha256(json.dumps(shown).encode()).hexdigest()


def _rounded(values: Any) -> Any:
    """Returns nested lists of the values, to seven digits."""
    array = np.asarray(values, np.float64)
    return np.vectorize(lambda value: float(f"{value:.7g}"))(array).tolist() if array.size else []


def _steps_axis(axes: Axes) -> None:
    axes.set_xlabel("training steps")
    axes.locator_params(axis="x", nbins=5)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x / 1000:g}K" if x >= 1000 else f"{x:g}")
