"""A recorded run again: its task, made of its record, and trained without writing anything."""

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from bnjax.evidence.records import check_data, completed
from bnjax.training.loop import Schedule
from experiments.harness import affects
from experiments.harness.arm import by_name
from experiments.harness.experiment import Experiment, Member, RunLog, Task
from experiments.harness.identities import defaults, refuse_unknown
from experiments.harness.runs import described

_MOST_TOGETHER = 1_000
"""Runs that a record may say were trained together."""


def task_of(experiment: Experiment, record: dict[str, Any]) -> Task:
    """Returns the task that repeats a recorded run.

    The run stands in it as often as runs were trained together, which gives the same compiled
    program: XLA rounds a loop over one run otherwise than one over several.
    """
    named = record["identity"]["arm"]
    refuse_unknown([named], [arm.name for arm in experiment.arms], "arms")
    usual = by_name(experiment.arms, named)
    stated = completed(record["identity"], defaults(experiment.config, type(usual)))
    settings = stated.get("settings", {})
    for part, given, known in (
        ("config", record["identity"]["config"], experiment.config),
        ("settings", settings, usual),
    ):
        refuse_unknown(given, [item.name for item in fields(known)], f"fields of {part}")
    given = {name: settings[name] for name in affects.names(experiment.config, "arm")}
    own = {"data": record["data"]["name"], "arms": (named,)}
    config = experiment.config(**stated["config"] | own, **given)
    together = record["final"]["trained_together"] if experiment.together else 1
    if type(together) is not int or not 1 <= together <= _MOST_TOGETHER:
        raise ValueError(f"trained_together must be 1 to {_MOST_TOGETHER}, got {together!r:.80}.")
    member = Member(stated["seed"], stated.get("learning_rate"))
    recorded: dict[str, Any] = {
        key: tuple(v) if isinstance(v, list) else v for key, v in settings.items()
    }
    arm = replace(usual, **recorded)
    return Task(config, arm, (member,) * together, Schedule(**stated["schedule"]))


def rerun(
    experiment: Experiment,
    record: dict[str, Any],
    *,
    steps: int | None,
    data: str,
    data_dir: Path | None,
) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """Trains a recorded run again and writes nothing.

    Args:
        experiment: whose run it is.
        record: from `record.json`.
        steps: how many steps; all of them by default.
        data: the data set's name, by which it is found.
        data_dir: where prepared data sets are.

    Returns:
        The log's entries, and the outcome if all steps were taken.

    Raises:
        RecordError: if the data at hand is not that of the record.
    """
    task = task_of(experiment, record)
    opened = experiment.open_data(task.config, data_dir, name=data)
    check_data(record, opened.name, opened.sha256)
    compute = experiment.compute.of_record(record)
    experiment.check(task, opened, compute)
    whole = True
    if steps is not None and steps < task.schedule.steps:
        whole = False
        task = task._replace(schedule=task.schedule._replace(steps=steps))
    kept = _FirstKept()
    outcomes = experiment.train(
        task, opened, compute, kept, checkpoints=None, description=described(experiment, task)
    )
    return json.loads(json.dumps(kept.entries)), outcomes[0].final if whole else None


class _FirstKept(RunLog):
    """Keeps what the first member measures."""

    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = []

    def log(self, position: int, entry: dict[str, Any]) -> None:
        """Adds an entry."""
        if position == 0:
            self.entries.append(entry)
