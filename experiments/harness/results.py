"""What runs left, held against itself before any number of it counts."""

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bnjax.evidence.records import (
    RecordError,
    check_log_digest,
    differences,
    making_sense,
    read_metrics,
    read_record,
)
from bnjax.evidence.statistics import accuracy
from bnjax.training.loop import Schedule
from experiments.harness.arm import Arm, label_of
from experiments.harness.identities import check_alike, identity_of, refuse_unknown
from experiments.harness.weights import check_weights

Log = list[dict[str, Any]]
"""A run's evaluations, in order."""
ELSEWHERE = "move the runs of one of both to another folder"


class Recorded(NamedTuple):
    """A run's record and log."""

    record: dict[str, Any]
    log: Log


class Runs(NamedTuple):
    """The runs of an arm that were trained to their end.

    Attributes:
        arm: whose they are.
        record: of the first run.
        changed: settings by which the first run's arm is not the experiment's, by name.
        label: of the arm with them, for tables and figures.
        seeds: int `[runs]`, ascending.
        steps: each run's evaluated steps, `[evaluations]`.
        accuracy: each run's accuracy on the test set, `[evaluations]`.
        finals: what each run came to, `final` of its record.
        logs: each run's evaluations.
    """

    arm: Arm
    record: dict[str, Any]
    changed: dict[str, Any]
    label: str
    seeds: tuple[int, ...]
    steps: list[np.ndarray]
    accuracy: list[np.ndarray]
    finals: list[dict[str, Any]]
    logs: list[Log]

    @property
    def learning_rate(self) -> float:
        """The step size of the first run, before its arm's factor."""
        if "learning_rate" in self.record:  # of a sweep
            return self.record["learning_rate"]
        return self.record["identity"]["config"]["learning_rate"]

    @property
    def length(self) -> int:
        """The steps of the first run, had it not diverged."""
        return self.record["identity"]["schedule"]["steps"]

    @property
    def diverged(self) -> list[dict[str, Any]]:
        """The seed of each run that reached infinity, and where."""
        return [
            {"seed": seed} | final["diverged"]
            for seed, final in zip(self.seeds, self.finals, strict=True)
            if final.get("diverged") is not None  # records of schema 1 lack it
        ]

    def whole(self) -> list[int]:
        """Returns the places of the runs that did not diverge."""
        ended = {fault["seed"] for fault in self.diverged}
        return [run for run, seed in enumerate(self.seeds) if seed not in ended]

    def best(self) -> dict[int, float]:
        """Returns the best accuracy of each run's evaluations, by seed."""
        best = [float(values.max()) for values in self.accuracy]
        return dict(zip(self.seeds, best, strict=True))

    def last(self) -> dict[int, float]:
        """Returns the accuracy that each run came to, by seed."""
        last = [accuracy(final["test"]) for final in self.finals]
        return dict(zip(self.seeds, last, strict=True))


def load_runs(arms: Sequence[Arm], out: Path) -> dict[str, Runs]:
    """Reads the runs directly below `out` that were trained to their last step.

    Args:
        arms: of which to read runs, in the order of the result.
        out: folder of runs.

    Returns:
        By arm; arms without a run are absent.

    Raises:
        RecordError: what a run left is damaged, or does not agree; runs of an arm differ by more
            than their seeds, or one is of other data than the others.
    """
    found: dict[str, list[_Found]] = {arm.name: [] for arm in arms}
    for run in _found(arms, out):
        found[run.record["arm"]].append(run)
    return {arm.name: _runs(arm, found[arm.name], arms) for arm in arms if found[arm.name]}


def load_sweep(arms: Sequence[Arm], out: Path) -> dict[str, list[Runs]]:
    """Reads the runs of a sweep over learning rates, directly below `out`.

    Arguments and errors are those of `load_runs`.

    Returns:
        By arm: the runs of each length and rate, in their order.
    """
    found: dict[str, dict[tuple[int, float], list[_Found]]] = {arm.name: {} for arm in arms}
    for run in _found(arms, out):
        key = run.record["identity"]["schedule"]["steps"], run.record["learning_rate"]
        found[run.record["arm"]].setdefault(key, []).append(run)
    for groups in found.values():
        _check_rates([runs[0] for runs in groups.values()])
    return {
        arm.name: [_runs(arm, runs, arms) for _, runs in sorted(found[arm.name].items())]
        for arm in arms
        if found[arm.name]
    }


def load_rates(arms: Sequence[Arm], out: Path) -> dict[str, list[Runs]]:
    """Reads the runs directly below `out`, and those of the sweep in its folder `sweep`.

    Arguments and errors are those of `load_runs`.

    Returns:
        By arm: the runs at each rate, in its order.
    """
    rates = load_sweep(arms, out / "sweep")
    for arm, runs in load_runs(arms, out).items():
        rates[arm] = sorted([runs, *rates.get(arm, [])], key=lambda each: each.learning_rate)
    return rates


class _Found(NamedTuple):
    folder: Path
    record: dict[str, Any]
    changed: dict[str, Any]
    log: Log
    final: dict[str, Any]


def _found(arms: Sequence[Arm], out: Path) -> Iterator[_Found]:
    """The runs of arms directly below `out` that were trained to their last step."""
    known = {arm.name: arm for arm in arms}
    first: tuple[Path, Any] | None = None
    for folder, record in runs_below(out):
        if record["arm"] not in known:
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
            with making_sense(folder / "record.json", record):
                changed = changed_settings(known[record["arm"]], record)
                data = record["identity"].get("data_sha256")
            first = first or (folder, data)
            if data != first[1]:
                raise RecordError(
                    f"{folder} is of data_sha256 {data}, {first[0]} of {first[1]}: accuracies on "
                    f"other data cannot be compared; {ELSEWHERE}."
                )
            yield _Found(folder, record, changed, log, final)


def _runs(arm: Arm, found: list[_Found], arms: Sequence[Arm]) -> Runs:
    check_alike([(run.folder, run.record) for run in found], ELSEWHERE)
    found = sorted(found, key=lambda run: run.record["seed"])
    return Runs(
        arm,
        found[0].record,
        found[0].changed,
        label_of(arm, found[0].changed, arms),
        tuple(run.record["seed"] for run in found),
        [np.array([entry["step"] for entry in run.log]) for run in found],
        [np.array([accuracy(entry["test"]) for entry in run.log]) for run in found],
        [run.final for run in found],
        [run.log for run in found],
    )


def _check_rates(found: list[_Found]) -> None:
    """Raises RecordError if an arm's runs at several rates are of several configurations."""
    for run in found:
        with making_sense(run.folder / "record.json", run.record):
            first, own = (_but_for_rates(each.record) for each in (found[0], run))
        if changed := differences(first, own):
            raise RecordError(
                f"{run.folder} is not {found[0].folder} at another rate ({changed[0]}): "
                f"{ELSEWHERE}."
            )


def _but_for_rates(record: dict[str, Any]) -> dict[str, Any]:
    identity = identity_of(record)
    config = {**identity.get("config", {}), "learning_rate": None}
    return {"config": config, "settings": identity.get("settings")}


def unlike(groups: Iterable[Runs]) -> dict[str, dict[str, Any]]:
    """Returns what arms that are compared differ in besides their settings and lengths.

    Args:
        groups: the runs of each arm.

    Returns:
        The value of each arm, of those fields of the configuration that are not one for all.
    """
    configs = {group.arm.name: identity_of(group.record).get("config", {}) for group in groups}
    names = dict.fromkeys(name for config in configs.values() for name in config)
    fields = {name: {arm: configs[arm].get(name) for arm in configs} for name in names}
    return {name: of for name, of in fields.items() if len({*map(json.dumps, of.values())}) > 1}


def changed_settings(arm: Arm, record: dict[str, Any]) -> dict[str, Any]:
    """Returns the settings by which a recorded run's arm is another than this, by name."""
    usual = json.loads(json.dumps(arm.settings()))
    settings = record["identity"].get("settings", {})
    refuse_unknown(settings, usual, "settings")
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


def runs_below(out: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Folders directly below `out` that hold a run, finished or not, and their records.

    Raises:
        RecordError: a record is missing or damaged, or a folder has another run's name.
    """
    for folder in sorted(out.glob("*")):
        if any((folder / name).exists() for name in ("record.json", "metrics.jsonl")):
            record = read_record(folder)
            check_name(folder, record)
            yield folder, record


def read_result(folder: Path) -> Recorded:
    """A finished run, whose name, record and log agree.

    Raises:
        RecordError: they do not, or it is not finished, or a file is missing or damaged.
    """
    record = read_record(folder)
    check_name(folder, record)
    if not record["finished"]:
        raise RecordError(f"{folder} is not finished: complete it first, with --resume.")
    check_log_digest(folder, record)
    return Recorded(record, read_log(folder, record))


def read_log(folder: Path, record: dict[str, Any]) -> Log:
    """A run's log: all evaluations of its schedule, or of one that goes on those until now.

    Raises:
        RecordError: it is damaged, or has one too many or too few.
    """
    log = read_metrics(folder, torn=not record["finished"])
    path = folder / "metrics.jsonl"
    with making_sense(path):
        for entry in log:
            for name, least in (("test", 1), ("train", 0)):
                if name in entry:
                    _check_metrics(entry[name], least)
    with making_sense(folder / "record.json", record):
        schedule = Schedule(**record["identity"]["schedule"])
        schedule.check()
        last = _last_step(record, schedule)
        if not record["finished"]:
            last = min(last, log[-1]["step"]) if log else -1
        else:
            for name in ("test", "test_population"):
                if record["final"].get(name) is not None:
                    _check_metrics(record["final"][name], least=1)
        expected = [*islice(schedule.evaluations(last), len(log) + 1)]
    steps = [entry["step"] for entry in log]
    if steps != expected:
        pairs = enumerate(zip_longest(steps, expected), start=1)
        line, due = next((line, due) for line, (step, due) in pairs if step != due)
        what = "be absent" if due is None else f"be of step {due:,}"
        raise RecordError(
            f"{path} does not fit its schedule: line {line} should {what}; put back a whole copy, "
            "or remove the folder and run again."
        )
    if record["finished"] and "log_sha256" not in record and last == schedule.steps:
        changed = differences(record["final"]["test"], log[-1]["test"])
        if changed:
            raise RecordError(
                f"{path} does not end as record.json says: {'; '.join(changed)}; put back a whole "
                "copy, or remove the folder and run again."
            )
    return log


def check_name(folder: Path, record: dict[str, Any]) -> None:
    """Raises RecordError if a folder does not have the name of the run that it holds."""
    with making_sense(folder / "record.json", record):
        arm, seed, rate = record["arm"], record["seed"], record.get("learning_rate")
        names = [f"{arm}-s{seed}", *([] if rate is None else [f"{arm}-lr{rate:g}-s{seed}"])]
    if folder.resolve().name not in names:
        raise RecordError(
            f"{folder} holds the run {' or '.join(names)}: give it that name, or move it elsewhere."
        )


def _last_step(record: dict[str, Any], schedule: Schedule) -> int:
    """The step after which nothing is logged."""
    diverged = record.get("final", {}).get("diverged")
    return schedule.steps if diverged is None else diverged["step"] - 1


def _check_metrics(metrics: dict[str, Any], least: int) -> None:
    """Raises ValueError unless these are sums that an evaluation can give."""
    loss, correct, examples = (metrics[name] for name in ("loss", "correct", "examples"))
    counts = type(correct) is int and type(examples) is int
    if not (isinstance(loss, float | int) and counts and 0 <= correct <= examples >= least):
        raise ValueError(f"no sums of an evaluation: {metrics!r:.80}")
