"""The figures of the experiment, in the form of the paper's Figure 1."""

from pathlib import Path

import numpy as np

from bnjax.evidence.figures import (
    Curve,
    Form,
    Percentiles,
    by_learning_rate,
    learning_curves,
    new_figure,
    percentile_paths,
    save,
)
from experiments.harness.arm import by_name
from experiments.harness.comparison import curve
from experiments.harness.results import Log, Runs, load_runs, load_sweep
from experiments.mnist_lenet.arms import ARMS, PAIRS
from experiments.mnist_lenet.summary import SETTLED, median_paths


def draw(out: Path, to: Path | None = None, *, form: Form = "png") -> list[Path]:
    """Draws what the runs below `out` allow, a pure function of them, into `to` or `out` itself.

    Returns the files. `figure1.png` and `figure1_lenet.png`: accuracy (a), and the input to the
    last hidden nonlinearity without (b) and with (c) normalization. `sweep.png`: accuracy by
    learning rate, of the longest runs.
    """
    runs = load_runs(ARMS, out)
    to = to or out
    files = []
    for plain, normalized in PAIRS:
        if plain in runs and normalized in runs:
            name = "figure1" if plain == "mlp" else "figure1_lenet"
            files.append(_figure1(runs[plain], runs[normalized], to / f"{name}.{form}"))
    sweep = load_sweep(ARMS, out / "sweep")
    if any(set(pair) <= set(sweep) for pair in PAIRS):
        files.append(_sweep(sweep, to / f"sweep.{form}"))
    return files


def typical_unit(log: Log) -> int:
    """The unit of a run whose median input travels a middling way, of all units."""
    steps, medians = median_paths(log)
    travelled = np.abs(np.diff(medians[steps >= SETTLED], axis=0)).sum(axis=0)
    return int(np.argsort(travelled, kind="stable")[len(travelled) // 2])


def _figure1(plain: Runs, normalized: Runs, path: Path) -> Path:
    figure, (left, middle, right) = new_figure((4.2, 3.2, 3.2))
    lowest = 0.7 if plain.arm.name == "mlp" else 0.9
    learning_curves(left, list(map(_curve, (plain, normalized))), lowest=lowest)
    left.set_title(f"(a) test accuracy, {len(plain.seeds)} seeds")
    panels = [
        _percentiles(plain, "(b) without BN"),
        _percentiles(normalized, "(c) with BN"),
    ]
    for axes, panel in zip((middle, right), panels, strict=True):
        percentile_paths(axes, panel, limit=1.05 * _limit(panels))
    middle.set_ylabel("input to the last nonlinearity")
    return save(figure, path)


def _curve(group: Runs) -> Curve:
    return curve(group)._replace(label=by_name(ARMS, group.arm.name).short_label)


def _percentiles(group: Runs, title: str) -> Percentiles:
    """Of the first run that did not diverge; of the first where all did."""
    log = group.logs[(group.whole() or [0])[0]]
    entries = [entry for entry in log if "units" in entry]
    unit = typical_unit(log)
    rows = [[entry["units"][key][unit] for entry in entries] for key in ("p15", "p50", "p85")]
    steps, medians = median_paths(log)
    return Percentiles(title, str(group.arm.color), steps, np.array(rows), medians.T)


def _limit(panels: list[Percentiles]) -> float:
    """The largest input that all panels show; one where a diverged run leaves none."""
    sizes = [np.abs(np.percentile(panel.medians, (1, 99))).max() for panel in panels]
    sizes += [np.abs(panel.unit).max() for panel in panels]
    return max(filter(np.isfinite, sizes), default=1.0)


def _sweep(sweep: dict[str, list[Runs]], path: Path) -> Path:
    present = [pair for pair in PAIRS if set(pair) <= set(sweep)]
    figure, panels = new_figure([4.2] * len(present))
    for axes, pair in zip(panels, present, strict=True):
        longest = max(group.length for arm in pair for group in sweep[arm])
        of_length = ([g for g in sweep[arm] if g.length == longest] for arm in pair)
        curves = [_by_rate(groups) for groups in of_length if groups]
        by_learning_rate(axes, curves, lowest=0.9 if pair[0] == "mlp" else 0.96)
        axes.set_title(f"after {longest:,} steps")
    return save(figure, path)


def _by_rate(groups: list[Runs]) -> Curve:
    """NaN where a rate has fewer seeds than another."""
    last = np.full((max(len(group.seeds) for group in groups), len(groups)), np.nan)
    for column, group in enumerate(groups):
        last[: len(group.seeds), column] = [*group.last().values()]
    rates = np.array([group.learning_rate for group in groups])
    ended = tuple(group.learning_rate for group in groups for _ in group.diverged)
    return _curve(groups[0])._replace(x=rates, y=last, diverged=ended)
