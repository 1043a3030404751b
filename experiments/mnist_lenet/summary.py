"""From the runs' folders to numbers: speed to given accuracies, final accuracy, differences."""

from pathlib import Path
from typing import Any

import numpy as np

from bnjax.evidence.records import RecordError
from bnjax.evidence.statistics import spread, steps_to, times
from experiments.harness.comparison import accuracies, at_rate, unlikeness
from experiments.harness.differences import paired
from experiments.harness.results import Log, Runs, load_runs, load_sweep
from experiments.mnist_lenet.arms import ARMS, PAIRS

TARGETS = (0.90, 0.95, 0.97, 0.975)
"""Test accuracies that the table times."""
SETTLED = 1_000
"""Steps after which the path of a unit's median input is measured."""


def summarize(out: Path) -> dict[str, Any]:
    """Returns all numbers of the tables; a pure function of the runs' folders."""
    runs, sweep = load_runs(ARMS, out), load_sweep(ARMS, out / "sweep")
    return {
        "arms": {name: _arm(group) for name, group in runs.items()},
        "differences": [
            {"arms": [normalized, plain]} | paired(runs[normalized].last(), runs[plain].last())
            for plain, normalized in PAIRS
            if plain in runs and normalized in runs
        ],
        "sweep": {name: list(map(at_rate, groups)) for name, groups in sweep.items()},
    } | unlikeness(runs, sweep)


def median_paths(log: Log, key: str = "p50") -> tuple[np.ndarray, np.ndarray]:
    """Steps `[times]` and each unit's median input `[times, units]` of a run.

    `key` is "p50", normalized as in training, or "p50_running", as in inference.

    Raises:
        RecordError: the log's units are not those of one network.
    """
    units = {entry["step"]: entry["units"].get(key, ()) for entry in log if "units" in entry}
    if len({len(medians) for medians in units.values()}) != 1:
        raise RecordError(f"units are not those of one network: {key} at steps {[*units]}.")
    return np.array([*units]), np.array([*units.values()], float)


def path_lengths(group: Runs, key: str = "p50") -> dict[int, float]:
    """By seed, the mean over units of how far the unit's median input travels once settled.

    Of runs that did not diverge, and were long enough to say.
    """
    lengths = {}
    for run in group.whole():
        steps, medians = median_paths(group.logs[run], key)
        settled = medians[steps >= SETTLED]
        if len(settled) > 1:
            length = np.abs(np.diff(settled, axis=0)).sum(axis=0).mean()
            lengths[group.seeds[run]] = float(length)
    return lengths


def _arm(group: Runs) -> dict[str, Any]:
    rows = list(zip(group.steps, group.accuracy, strict=True))
    summary = accuracies(group) | {
        "learning_rate": group.learning_rate,
        "steps_to": {
            f"{target:g}": times(steps_to(target, *row) for row in rows) for target in TARGETS
        },
        "median_path_length": spread([*path_lengths(group).values()]),
    }
    if "p50_running" in group.logs[0][0]["units"]:
        lengths = path_lengths(group, "p50_running").values()
        summary["median_path_length_running"] = spread([*lengths])
    return summary
