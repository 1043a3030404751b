"""From the run directories to numbers: speed to given accuracies, final accuracy, differences."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from bnjax.evidence.records import read_metrics, read_record
from bnjax.evidence.statistics import accuracy, spread, steps_to, times
from experiments.mnist_lenet.config import ARMS

TARGETS = (0.90, 0.95, 0.97, 0.975)
"""Test accuracies that the table times."""
PAIRS = (("mlp", "mlp_bn"), ("lenet", "lenet_bn"))
SETTLED = 1_000
"""Steps after which the path of a unit's median input is measured."""


class Runs(NamedTuple):
    """The finished runs of an arm at one learning rate, of one length.

    Attributes:
        arm: its name.
        learning_rate: step size.
        seeds: int `[runs]`, ascending.
        steps: int `[evaluations]`.
        accuracy: test accuracy `[runs, evaluations]`.
        records: each run's record.
        metrics: each run's log.
    """

    arm: str
    learning_rate: float
    seeds: tuple[int, ...]
    steps: np.ndarray
    accuracy: np.ndarray
    records: list[dict[str, Any]]
    metrics: list[list[dict[str, Any]]]


def load_runs(out: Path) -> dict[str, Runs]:
    """The finished runs of the comparison below `out`, by arm; arms without one are absent."""
    found = {arm: _collect(out.glob(f"{arm}-s*")) for arm in ARMS}
    return {arm: groups[0] for arm, groups in found.items() if groups}


def load_sweep(out: Path) -> dict[str, list[Runs]]:
    """The finished runs of the sweep below `out`, by arm, in order of length and learning rate."""
    found = {arm: _collect((out / "sweep").glob(f"{arm}-lr*-s*")) for arm in ARMS}
    return {arm: groups for arm, groups in found.items() if groups}


def summarize(out: Path) -> dict[str, Any]:
    """All numbers of the tables; a pure function of the run directories."""
    runs = load_runs(out)
    return {
        "arms": {arm: _arm(group) for arm, group in runs.items()},
        "differences": [
            _difference(runs[plain], runs[normalized])
            for plain, normalized in PAIRS
            if plain in runs and normalized in runs
        ],
        "sweep": {
            arm: [
                {"learning_rate": group.learning_rate, "steps": int(group.steps[-1])}
                | {"final_accuracy": spread(group.accuracy[:, -1])}
                for group in groups
            ]
            for arm, groups in load_sweep(out).items()
        },
    }


def median_paths(group: Runs, key: str = "p50") -> tuple[np.ndarray, np.ndarray]:
    """Steps `[times]` and each unit's median input `[runs, times, units]`.

    `key` is "p50", normalized as in training, or "p50_running", as in inference.
    """
    entries = [[e for e in log if "units" in e] for log in group.metrics]
    return (
        np.array([entry["step"] for entry in entries[0]]),
        np.array([[entry["units"][key] for entry in log] for log in entries]),
    )


def _collect(folders: Any) -> list[Runs]:
    loaded = []
    for folder in folders:
        record = read_record(folder)
        if record["finished"]:
            loaded.append((record, read_metrics(folder)))
    loaded.sort(key=lambda pair: pair[0]["seed"])
    groups: dict[tuple[int, float], list[tuple[dict[str, Any], list[dict[str, Any]]]]] = {}
    for record, log in loaded:
        groups.setdefault((log[-1]["step"], record["learning_rate"]), []).append((record, log))
    return [_group(groups[key]) for key in sorted(groups)]


def _group(loaded: list[tuple[dict[str, Any], list[dict[str, Any]]]]) -> Runs:
    records = [record for record, _ in loaded]
    metrics = [log for _, log in loaded]
    accuracies = [[accuracy(entry["test"]) for entry in log] for log in metrics]
    return Runs(
        records[0]["arm"],
        records[0]["learning_rate"],
        tuple(record["seed"] for record in records),
        np.array([entry["step"] for entry in metrics[0]]),
        np.array(accuracies),
        records,
        metrics,
    )


def _arm(group: Runs) -> dict[str, Any]:
    reached = {
        f"{target:g}": [steps_to(target, group.steps, row) for row in group.accuracy]
        for target in TARGETS
    }
    summary = {
        "runs": len(group.seeds),
        "steps": int(group.steps[-1]),
        "learning_rate": group.learning_rate,
        "steps_to": {target: times(values) for target, values in reached.items()},
        "final_accuracy": spread(group.accuracy[:, -1]),
        "best_accuracy": spread(group.accuracy.max(axis=1)),
        "median_path_length": spread(_path_lengths(group)),
    }
    if "p50_running" in group.metrics[0][0]["units"]:
        lengths = _path_lengths(group, "p50_running")
        summary["median_path_length_running"] = spread(lengths)
    population = [record["final"]["test_population"] for record in group.records]
    if None not in population:
        summary["final_accuracy_algorithm_2"] = spread(list(map(accuracy, population)))
    return summary


def _difference(plain: Runs, normalized: Runs) -> dict[str, Any]:
    """Final accuracy with normalization minus without, paired by seed, with a 95 % interval."""
    seeds = sorted({*plain.seeds} & {*normalized.seeds})
    change = np.array(
        [
            normalized.accuracy[normalized.seeds.index(s), -1]
            - plain.accuracy[plain.seeds.index(s), -1]
            for s in seeds
        ]
    )
    difference = {"arms": [normalized.arm, plain.arm], "seeds": len(seeds)} | spread(change)
    if len(seeds) > 1:
        half = stats.t.ppf(0.975, len(seeds) - 1) * change.std(ddof=1) / np.sqrt(len(seeds))
        difference["confidence_95"] = [
            round(float(change.mean() - half), 6),
            round(float(change.mean() + half), 6),
        ]
    return difference


def _path_lengths(group: Runs, key: str = "p50") -> np.ndarray:
    """Each run's mean over units of how far the unit's median input travels once settled."""
    steps, medians = median_paths(group, key)
    settled = medians[:, steps >= SETTLED]
    if settled.shape[1] < 2:
        return np.array([])  # too short a run to say
    return np.abs(np.diff(settled, axis=1)).sum(axis=1).mean(axis=1)
