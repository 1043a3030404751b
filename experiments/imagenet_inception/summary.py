"""From the run directories to numbers: steps to Inception's best, best accuracy, ratios."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bnjax.evidence.records import making_sense
from bnjax.evidence.statistics import accuracy, spread, steps_to, times
from experiments.finished import read_log, read_result, runs_below
from experiments.imagenet_inception.arms import SETTINGS
from experiments.imagenet_inception.config import ARMS, ENSEMBLE
from experiments.imagenet_inception.weights import check_weights

REFERENCE = "inception"
"""The arm whose best accuracy the others are to match."""


class Runs(NamedTuple):
    """The runs of an arm that were trained to their end.

    Attributes:
        arm: its name.
        seeds: int `[runs]`, ascending.
        steps: each run's evaluated steps, `[evaluations]`.
        accuracy: each run's validation accuracy, `[evaluations]`.
        finals: what each run came to, `final` of its record.
        changed: settings by which the arm is not the paper's.
    """

    arm: str
    seeds: tuple[int, ...]
    steps: list[np.ndarray]
    accuracy: list[np.ndarray]
    finals: list[dict[str, Any]]
    changed: dict[str, Any]


def load_runs(out: Path) -> dict[str, Runs]:
    """The runs below `out` that were trained to their end, by arm; arms without one are absent.

    Raises:
        RecordError: what a run left is damaged, or does not agree.
    """
    loaded: dict[str, list[tuple[Any, ...]]] = {}
    for folder, record in runs_below(out):
        if record["arm"] not in (*ARMS, *ENSEMBLE):
            continue
        if record["finished"]:
            log = read_result(folder).log
        elif (folder / "metrics.jsonl").exists():
            log = read_log(folder, record)
        else:
            continue  # it was stopped before its first evaluation
        final = _final(record, log)
        if final is not None:
            check_weights(folder, record)
            with making_sense(folder / "record.json"):
                run = record["seed"], final, log, _changed(record)
            loaded.setdefault(record["arm"], []).append(run)
    return {
        arm: _group(arm, sorted(loaded[arm], key=lambda run: run[0]))
        for arm in (*ARMS, *ENSEMBLE)
        if arm in loaded
    }


def summarize(out: Path) -> dict[str, Any]:
    """All numbers of the tables; a pure function of the run directories."""
    runs = load_runs(out)
    return {"arms": {arm: _arm(group, runs.get(REFERENCE)) for arm, group in runs.items()}}


def best_accuracy(group: Runs) -> dict[int, float]:
    """The best of each run's evaluations, by seed."""
    best = [float(values.max()) for values in group.accuracy]
    return dict(zip(group.seeds, best, strict=True))


def match_steps(group: Runs, reference: Runs) -> dict[int, int | None]:
    """By seed, the first evaluated step at which a run is as good as the reference's best.

    Each run is held against the reference's run of the same seed; seeds without one are absent.
    """
    best = {
        seed: values.max() for seed, values in zip(reference.seeds, reference.accuracy, strict=True)
    }
    return {
        seed: steps_to(best[seed], steps, values)
        for seed, steps, values in zip(group.seeds, group.steps, group.accuracy, strict=True)
        if seed in best
    }


def _group(arm: str, runs: list[tuple[Any, ...]]) -> Runs:
    seeds, finals, logs, changed = zip(*runs, strict=True)
    return Runs(
        arm,
        seeds,
        [np.array([entry["step"] for entry in log]) for log in logs],
        [np.array([accuracy(entry["test"]) for entry in log]) for log in logs],
        list(finals),
        changed[0],
    )


def _changed(record: dict[str, Any]) -> dict[str, Any]:
    usual = json.loads(json.dumps(SETTINGS[record["arm"]]._asdict()))
    settings = record["identity"]["settings"]
    return {name: value for name, value in settings.items() if value != usual[name]}


def _final(record: dict[str, Any], log: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """What a run came to; None for one that ended before its last step.

    One that ended after it, but before Algorithm 2, came to its last evaluation.
    """
    if record["finished"]:
        return record["final"]
    if not log or log[-1]["step"] < record["identity"]["schedule"]["steps"]:
        return None
    return {"test": log[-1]["test"], "test_population": None, "diverged": None, "timing": None}


def _arm(group: Runs, reference: Runs | None) -> dict[str, Any]:
    timings = [final["timing"] for final in group.finals if final["timing"] is not None]
    summary: dict[str, Any] = {
        "runs": len(group.seeds),
        "steps": max(int(steps[-1]) for steps in group.steps),
        "best_accuracy": spread([values.max() for values in group.accuracy]),
        "final_accuracy": spread([accuracy(final["test"]) for final in group.finals]),
        "changed": group.changed,
        "diverged": [final["diverged"] for final in group.finals if final["diverged"] is not None],
        "waiting_share": max((timing["waiting_share"] for timing in timings), default=None),
    }
    population = [final["test_population"] for final in group.finals]
    if None not in population:
        summary["final_accuracy_algorithm_2"] = spread(list(map(accuracy, population)))
    if reference is not None:
        own, theirs = match_steps(group, reference), match_steps(reference, reference)
        summary["steps_to_best_of_reference"] = {"compared": len(own)} | times(own.values())
        pairs = [(theirs[seed], steps) for seed, steps in own.items() if steps]
        summary["times_fewer_steps"] = spread([before / after for before, after in pairs if before])
    return summary
