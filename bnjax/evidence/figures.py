"""Figures of results; nothing else draws. No pyplot: no global state, no display needed."""

import hashlib
import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from bnjax.extras import extra

with extra("figures"):
    import matplotlib
    from matplotlib.axes import Axes
    from matplotlib.colors import to_hex
    from matplotlib.figure import Figure

_MARKS = "os^vPX*<"
_LONG = 40
"""Characters of a curve's name that still fit into its axes."""
_MANY = 6
"""Curves whose names still fit there."""

Form = Literal["png", "svg"]
PLAIN, NORMALIZED = "#d55e00", "#0072b2"  # Okabe & Ito: colour-blind readers can tell them


class Curve(NamedTuple):
    """One arm's measurements over seeds.

    Attributes:
        label: shown in the legend.
        color: color of line and band.
        x: `[points]`.
        y: `[runs, points]`; NaN where a run has no such point.
        line: style of the line, as matplotlib takes it.
        diverged: where on the x axis runs reached infinity.

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
    diverged: tuple[float, ...] = ()


class Marker(NamedTuple):
    """A point to mark on a learning curve.

    Attributes:
        step: training step.
        y: accuracy, a fraction.
        color: color of its curve.
        sign: mark of its curve, as matplotlib takes it; shown within.
    """

    step: float
    y: float
    color: str
    sign: str = ""


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


def mark_of(position: int) -> str:
    """Returns the mark of a figure's curve, by its position among them."""
    return _MARKS[position % len(_MARKS)]


def learning_curves(
    axes: Axes,
    curves: Sequence[Curve],
    *,
    lowest: float,
    highest: float = 1.0,
    split: str = "test",
) -> None:
    """Draws accuracy in % on a split against steps: mean ± one standard deviation over runs.

    Each curve has marks of its own. Where the ends lie close together, they are enlarged.
    """
    _means(axes, curves)
    axes.set_ylim(100 * lowest, 100 * highest)
    axes.set_xlim(0, max(1, *(curve.x[-1] for curve in curves)))
    axes.set_ylabel(f"{split} accuracy, %")
    _steps_axis(axes)
    _mark_divergence(axes, curves)
    _legend(axes, loc="lower right" if _enlarge_ends(axes, curves) else "best")


def _means(axes: Axes, curves: Sequence[Curve]) -> None:
    for position, curve in enumerate(curves):
        y = 100 * curve.y
        mean, sd = y.mean(axis=0), y.std(axis=0, ddof=min(1, len(y) - 1))
        style: Any = {"color": curve.color, "label": curve.label, "linewidth": 1.5}
        place = (0.02 + 0.12 * position / len(curves), 0.12)  # marks of all lie apart
        axes.plot(curve.x, mean, curve.line + mark_of(position), markevery=place, ms=5, **style)
        axes.fill_between(curve.x, mean - sd, mean + sd, color=curve.color, alpha=0.2, linewidth=0)


def _enlarge_ends(axes: Axes, curves: Sequence[Curve]) -> bool:
    """Draws the ends of several curves again, enlarged, if they need it and there is room.

    Between whole per cents; below the curves, above a legend at the lower right. Returns whether.
    """
    ends = [100 * curve.y[:, -1].mean() for curve in curves]
    if not np.isfinite(ends).all():  # a run ends before the others
        return False
    low, high = np.floor(min(ends)), np.floor(max(ends)) + 1
    (left, right), (bottom, top) = axes.get_xlim(), axes.get_ylim()
    if not 2 <= len(curves) <= 4 or high - low > (top - bottom) / 5:
        return False
    x, y, width, height = 0.42, 0.13 + 0.09 * len(curves), 0.56, 0.36
    for curve in curves:
        mean = 100 * curve.y.mean(axis=0)[curve.x >= left + x * (right - left)]
        if (mean < bottom + (y + height + 0.05) * (top - bottom)).any():
            return False
    start = max(_start_within(curve, low, high) for curve in curves)
    if min((curve.x >= start).sum() for curve in curves) < 3:  # nothing to enlarge
        return False
    inset = axes.inset_axes((x, y, width, height))
    _means(inset, curves)
    inset.set(xlim=(start, right), ylim=(low, high))
    inset.tick_params(labelsize=7)
    inset.locator_params(nbins=3)
    inset.xaxis.set_major_formatter(_short_steps)
    axes.indicate_inset_zoom(inset, edgecolor="0.5")
    return True


def _start_within(curve: Curve, low: float, high: float) -> float:
    """Returns from where on the curve, which ends within the limits in %, does not leave them."""
    mean = 100 * curve.y.mean(axis=0)
    (outside,) = np.nonzero((mean < low) | (mean > high))
    return curve.x[outside[-1] + 1] if outside.size else curve.x[0]


def _mark_divergence(axes: Axes, curves: Sequence[Curve]) -> None:
    """Draws a cross on the lower edge where a run reached infinity."""
    edge: Any = {"transform": axes.get_xaxis_transform(), "clip_on": False, "zorder": 4}
    ended = [curve for curve in curves if curve.diverged]
    for curve in ended:
        zeros = [0.0] * len(curve.diverged)
        axes.plot(curve.diverged, zeros, "x", color=curve.color, ms=9, mew=2.5, **edge)
    if ended:
        axes.plot([], [], "x", color="0.3", ms=7, mew=2, label="reached infinity")


def _legend(axes: Axes, **options: Any) -> None:
    """Names the curves: in the axes where they hide least; below if they are many or names long."""
    handles, labels = axes.get_legend_handles_labels()
    if max(map(len, labels)) <= _LONG and len(labels) <= _MANY:
        axes.legend(frameon=False, **options)
        return
    figure = axes.get_figure(root=True)
    assert figure is not None
    width, height = figure.get_size_inches()
    columns = 2 if max(map(len, labels)) <= _LONG else 1
    wrapped = [textwrap.fill(label, int(14 * width / columns)) for label in labels]
    lines = -(-sum(label.count("\n") + 1 for label in wrapped) // columns)
    figure.set_size_inches(width, height + 0.17 * lines)
    below: dict[str, Any] = {"loc": "outside lower left", "frameon": False, "fontsize": 8}
    figure.legend(handles, wrapped, ncols=columns, **below)


def mark(axes: Axes, markers: Sequence[Marker], *, level: float) -> None:
    """Draws diamonds on learning curves, and a dotted line at the accuracy `level`.

    Diamonds at one point lie within each other, the first outermost; the last shows its mark.
    """
    axes.axhline(100 * level, color="0.6", linewidth=0.8, linestyle=":", zorder=1)
    for i, (step, y, color, sign) in enumerate(markers):
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
        if sign and not above:
            axes.plot(step, 100 * y, sign, color="white", ms=2.5, mew=0, zorder=4, clip_on=False)


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
    for position, curve in enumerate(curves):
        y = 100 * curve.y
        style: Any = {"color": curve.color, "markersize": 4}
        named = curve.line + mark_of(position)
        axes.plot(curve.x, np.nanmean(y, axis=0), named, label=curve.label, **style)
        for row in y:
            axes.plot(curve.x, row, mark_of(position), alpha=0.4, **style)
    axes.set_xscale("log")
    axes.set_ylim(100 * lowest, 100)
    axes.set_xlabel("learning rate")
    cut = any((curve.y < lowest).any() for curve in curves)
    axes.set_ylabel("final test accuracy, %" + f" (from {100 * lowest:g})" * cut)
    _mark_divergence(axes, curves)
    _legend(axes)


def new_figure(columns: Sequence[float], *, height: float = 3.2) -> tuple[Figure, list[Axes]]:
    """Returns a figure of one row of panels, with the given widths in inches."""
    figure = Figure(figsize=(sum(columns), height), layout="constrained")
    axes = figure.subplots(1, len(columns), squeeze=False, width_ratios=list(columns))[0]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, list(axes)


def save(figure: Figure, path: Path) -> Path:
    """Writes a figure, as its path ends: `.png` or `.svg`.

    The file depends on the figure and on matplotlib. A PNG names its version, and holds a digest
    of the data and words that are drawn, which all versions share.
    """
    if path.suffix == ".svg":
        with matplotlib.rc_context({"svg.hashsalt": path.stem}):  # else ids differ by the day
            figure.savefig(path, metadata={"Date": None})
        return path
    software = f"matplotlib {matplotlib.__version__}"
    figure.savefig(path, dpi=160, metadata={"Software": software, "Source": _digest(figure)})
    return path


def _digest(figure: Figure) -> str:
    """Returns the SHA-256 of a figure's content: lines, bands, labels and limits."""
    shown: list[Any] = []
    shown += [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    insets: list[Any] = [inset for axes in figure.axes for inset in axes.child_axes]
    for axes in (*figure.axes, *insets):
        legend = axes.get_legend()
        shown += [axes.get_title(), axes.get_xlabel(), axes.get_ylabel()]
        shown += [text.get_text() for text in legend.get_texts()] if legend else []
        shown += [_rounded(axes.get_xlim()), _rounded(axes.get_ylim())]
        for line in axes.lines:
            shown += [to_hex(line.get_color()), line.get_linestyle(), line.get_marker()]
            shown.append(_rounded(line.get_xydata()))
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
    axes.xaxis.set_major_formatter(_short_steps)


def _short_steps(x: float, _: float) -> str:
    return f"{x / 1000:g}K" if x >= 1000 else f"{x:g}"
