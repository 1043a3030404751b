"""The run directories of the experiment: which runs there are, what is missing, what they hold."""

import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from bnjax.data import DataSet, in_memory, open_data
from bnjax.evidence.records import (
    RecordError,
    Run,
    check_data,
    check_identity,
    environment,
    is_finished,
)
from bnjax.training.checkpoints import Checkpoints
from bnjax.training.locks import LockError, lock
from bnjax.training.loop import Schedule
from experiments.limits import check_population
from experiments.mnist_lenet.config import Config
from experiments.mnist_lenet.train import Member, Task, train

EXPERIMENT = "mnist_lenet"
_MOST_TOGETHER = 1_000
"""Runs that a record may say were trained together."""


def main_task(config: Config, arm: str, seeds: Sequence[int]) -> Task:
    """The runs of an arm at the learning rate of the comparison."""
    members = tuple(Member(seed, config.learning_rate) for seed in seeds)
    return Task(config, arm, members, config.schedule(arm))


def sweep_task(config: Config, arm: str) -> Task:
    """The runs of an arm at all learning rates of the sweep."""
    seeds = config.run_seeds(arm, sweep=True)
    members = tuple(Member(seed, rate) for rate in config.sweep for seed in seeds)
    return Task(config, arm, members, config.schedule(arm, sweep=True), sweep=True)


def run_name(task: Task, member: Member) -> str:
    """The folder of a run below the output folder."""
    if task.sweep:
        return f"sweep/{task.arm}-lr{member.learning_rate:g}-s{member.seed}"
    return f"{task.arm}-s{member.seed}"


def check(task: Task, dataset: DataSet, out: Path) -> None:
    """Refuses what cannot run, before any compute.

    Raises:
        RecordError: if `out` holds runs of a task in another configuration.
        ValueError: if Algorithm 2 is to average over too many batches.
    """
    _check_population(task, dataset)
    for member in task.members:
        check_identity(out / run_name(task, member), _identity(task, member, dataset))


def _check_population(task: Task, dataset: DataSet) -> None:
    config = task.config
    check_population(config.population_batches, config.batch_size, len(dataset.train.labels))


def complete(task: Task, dataset: DataSet, out: Path) -> None:
    """Trains those runs of a task that `out` does not hold whole already.

    Raises:
        RecordError: if `out` holds runs of another configuration, or another process writes one of
            them; nothing is changed then.
        CheckpointError: the same for its checkpoints.
        Interrupted: after Ctrl-C or SIGTERM.
    """
    check(task, dataset, out)
    names = [run_name(task, member) for member in task.members]
    if all(is_finished(out / name) for name in names):
        return
    with _writing(out, names):
        _complete(task, dataset, out)


@contextmanager
def _writing(out: Path, names: Sequence[str]) -> Iterator[None]:
    """Holds the folders of runs, whichever runs are trained together with them."""
    with ExitStack() as held:
        for name in names:
            file = out / "checkpoints" / f"{name.replace('/', '-')}.lock"
            try:
                file.parent.mkdir(parents=True, exist_ok=True)
                held.enter_context(lock(file, out / name))
            except LockError as error:
                raise RecordError(str(error)) from error
            except OSError as error:
                raise RecordError(f"{file.parent} cannot be made ({error.strerror}).") from error
        yield


def _complete(task: Task, dataset: DataSet, out: Path) -> None:
    surroundings = environment()
    folders = [out / run_name(task, member) for member in task.members]
    headers = [_header(task, member, dataset, surroundings) for member in task.members]
    runs = list(map(Run, folders, headers))
    if all(run.finished for run in runs):
        return
    if not _checkpoint_folder(task, dataset, out).exists():  # none of all members together
        left = [i for i, run in enumerate(runs) if not run.finished]
        task = task._replace(members=tuple(task.members[i] for i in left))
        runs = [runs[i] for i in left]
    unfinished = {i: run for i, run in enumerate(runs) if not run.finished}

    def rewind(step: int, own: list[int]) -> None:
        for i, run in unfinished.items():
            if step == 0:
                run.rewind(-1)  # step 0 will be logged again
            else:
                run.rewind(own[i], task.schedule.evaluations(own[i]))

    def log(position: int, entry: dict[str, Any]) -> None:
        if position in unfinished:
            unfinished[position].log(entry)

    folder = _checkpoint_folder(task, dataset, out)
    config = {"identity": _identities(task, dataset)}
    with Checkpoints(folder, config=config) as checkpoints:
        start = time.perf_counter()
        finals = train(
            task,
            dataset,
            log,
            begin=rewind,
            checkpoints=checkpoints,
            description=f"{'sweep ' if task.sweep else ''}{task.arm}",
        )
    seconds = round(time.perf_counter() - start, 1)
    for position, run in unfinished.items():
        outcome = {"wall_seconds": seconds, "trained_together": len(runs)}
        run.finish({**finals[position], **outcome})
    shutil.rmtree(folder)  # so that other seeds can be added


def task_of(record: dict[str, Any]) -> Task:
    """The task that repeats a recorded run.

    The run stands in it as often as runs were trained together, which gives the same compiled
    program: XLA rounds a loop over one run otherwise than one over several.
    """
    identity = record["identity"]
    config = Config(**{**identity["config"], "data": record["data"]["name"]})
    member = Member(identity["seed"], identity["learning_rate"])
    together = record["final"]["trained_together"]
    if type(together) is not int or not 1 <= together <= _MOST_TOGETHER:
        raise ValueError(f"trained_together must be 1 to {_MOST_TOGETHER}, got {together!r:.80}.")
    members = (member,) * together
    schedule = Schedule(**identity["schedule"])
    return Task(config, identity["arm"], members, schedule)


def _header(
    task: Task, member: Member, dataset: DataSet, surroundings: dict[str, Any]
) -> dict[str, Any]:
    return {
        "experiment": EXPERIMENT,
        "arm": task.arm,
        "seed": member.seed,
        "learning_rate": member.learning_rate,
        "identity": _identity(task, member, dataset),
        "data": {
            "name": dataset.name,
            "sha256": dataset.sha256,
            "train": len(dataset.train.labels),
            "test": len(dataset.test.labels),
        },
        "together": task.together,
        "environment": surroundings,
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _checkpoint_folder(task: Task, dataset: DataSet, out: Path) -> Path:
    """Where the members of a task, trained together, have their checkpoints."""
    identities = json.dumps(_identities(task, dataset), sort_keys=True)
    digest = hashlib.sha256(identities.encode()).hexdigest()[:8]
    return out / "checkpoints" / f"{'sweep-' if task.sweep else ''}{task.arm}-{digest}"


def _identities(task: Task, dataset: DataSet) -> list[dict[str, Any]]:
    return [_identity(task, member, dataset) for member in task.members]


def _identity(task: Task, member: Member, dataset: DataSet) -> dict[str, Any]:
    schedule = task.schedule._asdict()
    return {
        "arm": task.arm,
        "seed": member.seed,
        "learning_rate": member.learning_rate,
        "schedule": schedule,
        "data_sha256": dataset.sha256,
        "config": task.config.identity(),
    }


def rerun(
    record: dict[str, Any], *, steps: int | None, data: str, data_dir: Path | None
) -> tuple[list[dict[str, Any]], dict[str, Any] | None]:
    """Trains a recorded run again and writes nothing.

    Args:
        record: from `record.json`.
        steps: how many steps; all of them by default.
        data: the data set's name, by which it is found.
        data_dir: where prepared data sets are.

    Returns:
        The log's entries, and the outcome if all steps were taken.

    Raises:
        RecordError: if the data at hand is not that of the record.
    """
    task = task_of(record)
    dataset = in_memory(open_data(data, data_dir=data_dir))
    check_data(record, dataset.name, dataset.sha256)
    _check_population(task, dataset)
    whole = True
    if steps is not None and steps < task.schedule.steps:
        whole = False
        task = task._replace(schedule=task.schedule._replace(steps=steps))
    entries: list[dict[str, Any]] = []

    def log(position: int, entry: dict[str, Any]) -> None:
        if position == 0:
            entries.append(entry)

    finals = train(task, dataset, log, description=task.arm)
    return json.loads(json.dumps(entries)), finals[0] if whole else None
