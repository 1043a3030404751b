"""From the run directories to numbers: speed to given accuracies, final accuracy, differences."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bnjax.evidence.records import making_sense
from bnjax.evidence.statistics import accuracy, spread, steps_to, times
from experiments.harness.differences import paired
from experiments.harness.results import Result, read_result, runs_below
from experiments.mnist_lenet.arms import ARMS, PAIRS

TARGETS = (0.90, 0.95, 0.97, 0.975)
"""Test accuracies that the table times."""
SETTLED = 1_000
"""Steps after which the path of a unit's median input is measured."""


class Runs(NamedTuple):
    """The runs of an arm at one learning rate, of one length, that were trained to their end.

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
    found = _collect(_results(out))
    return {arm: groups[0] for arm, groups in found.items()}


def load_sweep(out: Path) -> dict[str, list[Runs]]:
    """The finished runs of the sweep below `out`, by arm, in order of length and learning rate."""
    return _collect(_results(out / "sweep"))


def diverged_at(out: Path) -> dict[str, list[tuple[int, float, int]]]:
    """The runs right below `out` that reached infinity, by arm: length, learning rate, step."""
    found: dict[str, list[tuple[int, float, int]]] = {}
    for result in _diverged(out):
        fault, record = _fault(result), result.record
        assert fault is not None
        place = record["identity"]["schedule"]["steps"], record["learning_rate"], fault["step"]
        found.setdefault(record["arm"], []).append(place)
    return found


def summarize(out: Path) -> dict[str, Any]:
    """All numbers of the tables; a pure function of the run directories."""
    runs = load_runs(out)
    summary = {
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
    diverged = [_divergence(result) for part in (out, out / "sweep") for result in _diverged(part)]
    return summary | ({"diverged": diverged} if diverged else {})


def median_paths(group: Runs, key: str = "p50") -> tuple[np.ndarray, np.ndarray]:
    """Steps `[times]` and each unit's median input `[runs, times, units]`.

    `key` is "p50", normalized as in training, or "p50_running", as in inference.
    """
    entries = [[e for e in log if "units" in e] for log in group.metrics]
    return (
        np.array([entry["step"] for entry in entries[0]]),
        np.array([[entry["units"][key] for entry in log] for log in entries]),
    )


def _results(out: Path) -> list[Result]:
    """The finished runs directly below `out`, by arm in the table's order, then seed."""
    found, order = [], [arm.name for arm in ARMS]
    for folder, record in runs_below(out):
        if record["arm"] in order and record["finished"]:
            found.append(read_result(folder))
            with making_sense(folder):
                _check_facts(found[-1])
    return sorted(found, key=lambda run: (order.index(run.record["arm"]), run.record["seed"]))


def _check_facts(result: Result) -> None:
    """Raises an error unless a run has what the tables and figures read of it."""
    if not result.record["learning_rate"] > 0:
        raise ValueError(f"learning_rate is {result.record['learning_rate']}")
    units = [entry["units"] for entry in result.log if "units" in entry]
    kinds = {tuple(sorted((key, len(values)) for key, values in unit.items())) for unit in units}
    if len(kinds) > 1 or not all("p50" in unit for unit in units):
        raise ValueError("units are not those of one network")


def _fault(result: Result) -> dict[str, Any] | None:
    return result.record["final"].get("diverged")  # records of schema 1 lack it


def _diverged(out: Path) -> list[Result]:
    return [result for result in _results(out) if _fault(result) is not None]


def _divergence(result: Result) -> dict[str, Any]:
    facts = {name: result.record[name] for name in ("arm", "seed", "learning_rate")}
    return facts | (_fault(result) or {})


def _collect(results: list[Result]) -> dict[str, list[Runs]]:
    """Groups of one arm, length and learning rate, without runs that diverged."""
    groups: dict[str, dict[tuple[int, float], list[Result]]] = {}
    for result in results:
        if _fault(result) is None:
            record = result.record
            key = record["identity"]["schedule"]["steps"], record["learning_rate"]
            groups.setdefault(record["arm"], {}).setdefault(key, []).append(result)
    return {arm: [_group(own[key]) for key in sorted(own)] for arm, own in groups.items()}


def _group(results: list[Result]) -> Runs:
    records = [result.record for result in results]
    metrics = [result.log for result in results]
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
        "median_path_length": spread(path_lengths(group)),
    }
    if "p50_running" in group.metrics[0][0]["units"]:
        lengths = path_lengths(group, "p50_running")
        summary["median_path_length_running"] = spread(lengths)
    population = [record["final"]["test_population"] for record in group.records]
    if None not in population:
        summary["final_accuracy_algorithm_2"] = spread(list(map(accuracy, population)))
    return summary


def _difference(plain: Runs, normalized: Runs) -> dict[str, Any]:
    """Final accuracy with normalization minus without, paired by seed, with a 95 % interval."""
    last = [
        dict(zip(arm.seeds, map(float, arm.accuracy[:, -1]), strict=True))
        for arm in (normalized, plain)
    ]
    return {"arms": [normalized.arm, plain.arm]} | paired(*last)


def path_lengths(group: Runs, key: str = "p50") -> np.ndarray:
    """Each run's mean over units of how far the unit's median input travels once settled."""
    steps, medians = median_paths(group, key)
    settled = medians[:, steps >= SETTLED]
    if settled.shape[1] < 2:
        return np.array([])  # too short a run to say
    return np.abs(np.diff(settled, axis=1)).sum(axis=1).mean(axis=1)
