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
from experiments.mnist_lenet.arms import ARMS, PAIRS
from experiments.mnist_lenet.summary import (
    SETTLED,
    Runs,
    diverged_at,
    load_runs,
    load_sweep,
    median_paths,
)

Diverged = dict[str, list[tuple[int, float, int]]]
"""As `summary.diverged_at` returns it."""


def draw(out: Path, to: Path | None = None, *, form: Form = "png") -> list[Path]:
    """Draws what the runs below `out` allow, a pure function of them, into `to` or `out` itself.

    Returns the files. `figure1.png` and `figure1_lenet.png`: accuracy (a), and the input to the
    last hidden nonlinearity without (b) and with (c) normalization. `sweep.png`: accuracy by
    learning rate, of the longest runs.
    """
    runs = load_runs(out)
    to = to or out
    files = []
    for plain, normalized in PAIRS:
        if plain in runs and normalized in runs:
            name = "figure1" if plain == "mlp" else "figure1_lenet"
            pair = [runs[plain], runs[normalized]]
            files.append(_figure1(pair, diverged_at(out), to / f"{name}.{form}"))
    sweep = load_sweep(out)
    if any(set(pair) <= set(sweep) for pair in PAIRS):
        files.append(_sweep(sweep, diverged_at(out / "sweep"), to / f"sweep.{form}"))
    return files


def typical_unit(group: Runs) -> int:
    """The unit of the first run whose median input travels a middling way, of all units."""
    steps, medians = median_paths(group)
    travelled = np.abs(np.diff(medians[0, steps >= SETTLED], axis=0)).sum(axis=0)
    return int(np.argsort(travelled, kind="stable")[len(travelled) // 2])


def _figure1(pair: list[Runs], diverged: Diverged, path: Path) -> Path:
    plain, normalized = pair
    figure, (left, middle, right) = new_figure((4.2, 3.2, 3.2))
    learning_curves(
        left,
        [
            _curve(group.arm, group.steps, group.accuracy)._replace(
                diverged=tuple(step for *_, step in diverged.get(group.arm, ()))
            )
            for group in pair
        ],
        lowest=0.7 if plain.arm == "mlp" else 0.9,
    )
    left.set_title(f"(a) test accuracy, {len(plain.seeds)} seeds")
    panels = [
        _percentiles(plain, "(b) without BN"),
        _percentiles(normalized, "(c) with BN"),
    ]
    for axes, panel in zip((middle, right), panels, strict=True):
        percentile_paths(axes, panel, limit=1.05 * _limit(panels))
    middle.set_ylabel("input to the last nonlinearity")
    return save(figure, path)


def _curve(name: str, x: np.ndarray, accuracy: np.ndarray) -> Curve:
    arm = by_name(ARMS, name)
    return Curve(arm.short_label, str(arm.color), x, accuracy, arm.line)


def _percentiles(group: Runs, title: str) -> Percentiles:
    entries = [entry for entry in group.metrics[0] if "units" in entry]
    unit = typical_unit(group)
    rows = [[entry["units"][key][unit] for entry in entries] for key in ("p15", "p50", "p85")]
    steps, medians = median_paths(group)
    color = str(by_name(ARMS, group.arm).color)
    return Percentiles(title, color, steps, np.array(rows), medians[0].T)


def _limit(panels: list[Percentiles]) -> float:
    """The largest input that all panels show; one where a diverged run leaves none."""
    sizes = [np.abs(np.percentile(panel.medians, (1, 99))).max() for panel in panels]
    sizes += [np.abs(panel.unit).max() for panel in panels]
    return max(filter(np.isfinite, sizes), default=1.0)


def _sweep(sweep: dict[str, list[Runs]], diverged: Diverged, path: Path) -> Path:
    present = [pair for pair in PAIRS if set(pair) <= set(sweep)]
    figure, panels = new_figure([4.2] * len(present))
    for axes, pair in zip(panels, present, strict=True):
        longest = max(int(group.steps[-1]) for arm in pair for group in sweep[arm])
        curves = [
            _by_rate(arm, groups)._replace(
                diverged=tuple(rate for steps, rate, _ in diverged.get(arm, ()) if steps == longest)
            )
            for arm in pair
            if (groups := [group for group in sweep[arm] if group.steps[-1] == longest])
        ]
        by_learning_rate(axes, curves, lowest=0.9 if pair[0] == "mlp" else 0.96)
        axes.set_title(f"after {longest:,} steps")
    return save(figure, path)


def _by_rate(arm: str, groups: list[Runs]) -> Curve:
    """NaN where a rate has fewer seeds than another."""
    accuracy = np.full((max(len(group.seeds) for group in groups), len(groups)), np.nan)
    for column, group in enumerate(groups):
        accuracy[: len(group.seeds), column] = group.accuracy[:, -1]
    rates = np.array([group.learning_rate for group in groups])
    return _curve(arm, rates, accuracy)
