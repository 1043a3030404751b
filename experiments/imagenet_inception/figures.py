"""Figure 2 of the paper: accuracy against steps, with markers where Inception's best is matched."""

from pathlib import Path

import numpy as np

from bnjax.evidence.figures import Curve, Marker, learning_curves, mark, new_figure, save
from experiments.imagenet_inception.config import ARMS
from experiments.imagenet_inception.summary import REFERENCE, Runs, load_runs, match_steps
from experiments.imagenet_inception.table import label

_COLORS = {  # Okabe & Ito
    "inception": "#000000",
    "bn_baseline": "#0072b2",
    "bn_x5": "#009e73",
    "bn_x30": "#d55e00",
    "bn_x5_sigmoid": "#cc79a7",
}


def draw(out: Path, to: Path | None = None) -> list[Path]:
    """Draws what the runs below `out` allow, a pure function of them, into `to` or `out` itself.

    Returns the files: `figure2.png`, if there is a run of one of the five networks.
    """
    runs = {arm: group for arm, group in load_runs(out).items() if arm in ARMS}
    if not runs:
        return []
    figure, (axes,) = new_figure((6.4,), height=4.0)
    curves = [_curve(group) for group in runs.values()]
    highest = max(curve.y.max() for curve in curves)
    lowest = min(curve.y.min() for curve in curves)
    margin = max(0.05 * (highest - lowest), 0.01)
    learning_curves(axes, curves, lowest=lowest, highest=highest + margin, split="validation")
    if REFERENCE in runs:
        mark(axes, _markers(runs), level=_best(runs[REFERENCE]))
    seeds = max(len(group.seeds) for group in runs.values())
    axes.set_title(f"mean of {seeds} seeds ± one standard deviation" if seeds > 1 else "one seed")
    return [save(figure, (to or out) / "figure2.png")]


def _curve(group: Runs) -> Curve:
    """All runs at the steps that all have; a run that diverged ends the curve."""
    points = min(map(len, group.steps))
    values = np.array([row[:points] for row in group.accuracy])
    dashed = group.arm == REFERENCE
    name = label(group.arm, group.changed)
    return Curve(name, _COLORS[group.arm], group.steps[0][:points], values, dashed)


def _markers(runs: dict[str, Runs]) -> list[Marker]:
    """Where an arm matches Inception's best, on average over the seeds, if all of them do."""
    markers = []
    for arm, group in runs.items():
        steps = list(match_steps(group, runs[REFERENCE]).values())
        if steps and None not in steps:
            at = float(np.mean(np.array(steps, float)))
            markers.append(Marker(at, _best(runs[REFERENCE]), _COLORS[arm]))
    return markers


def _best(reference: Runs) -> float:
    return float(np.mean([values.max() for values in reference.accuracy]))
