"""The run directories of the experiment: which runs there are, what is missing, what they hold."""

import json
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax

from bnjax.data import DataSet, open_data
from bnjax.evidence.records import Run, check_data, check_identity, environment, is_finished
from bnjax.training.loop import Schedule
from bnjax.training.objectives import Metrics
from bnjax.training.parallel import (
    DataParallel,
    HostCheckpoints,
    all_succeed,
    gather_json,
    is_first,
)
from bnjax.training.tensorboard import TensorBoard
from experiments.imagenet_inception.arms import settings_of
from experiments.imagenet_inception.config import CHANGES, Config, Task
from experiments.imagenet_inception.train import Log, Means, train
from experiments.imagenet_inception.weights import save_weights
from experiments.limits import check_population

EXPERIMENT = "imagenet_inception"


def task_for(config: Config, arm: str, seed: int) -> Task:
    """The run of an arm with a seed."""
    return Task(config, arm, seed, config.schedule(arm))


def run_name(task: Task) -> str:
    """The folder of a run below the output folder."""
    return f"{task.arm}-s{task.seed}"


def checkpoint_folder(task: Task, out: Path) -> Path:
    """Where a run has its checkpoints; the last one stays."""
    return out / "checkpoints" / run_name(task)


def check(task: Task, data: DataSet, parallel: DataParallel, out: Path) -> None:
    """Refuses what cannot run, before any compute.

    Raises:
        RecordError: if `out` holds the run in another configuration.
        ValueError: if the batches do not fit the data or the devices.
    """
    config = task.config
    check_identity(out / run_name(task), _identity(task, data))
    if config.batch_size > len(data.train):
        raise ValueError(
            f"batch_size must be at most the {len(data.train):,} training images of {data.name}, "
            f"got {config.batch_size}."
        )
    check_population(config.population_batches, config.batch_size, len(data.train))
    for name, examples in (
        ("batch_size / micro_batches", config.batch_size // config.micro_batches),
        ("eval_batch", config.eval_batch),
    ):
        try:
            parallel.check_batch(examples)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None


def complete(
    task: Task, data: DataSet, means: Means, out: Path, *, tensorboard: bool = False
) -> None:
    """Trains a run to its end, unless `out` holds it whole already.

    All processes of the run call it; the first one writes.

    Args:
        task: the run.
        data: what to train and measure on.
        means: devices and workers.
        out: where the runs are.
        tensorboard: whether to write logs for TensorBoard, below `out`/tensorboard.

    Raises:
        RecordError: if `out` holds a run of another configuration; nothing is changed then.
        CheckpointError: the same for its checkpoints; or another process trains it.
        Interrupted: after Ctrl-C or SIGTERM.
    """
    folder = out / run_name(task)
    config = {"identity": _identity(task, data)}

    def whole() -> bool:
        check_identity(folder, config["identity"])
        return is_first() and is_finished(folder)

    if gather_json(all_succeed(whole))[0]:
        return  # nothing is written then, for a disk that is read-only
    with HostCheckpoints(checkpoint_folder(task, out), config=config) as checkpoints:
        header = _header(task, data, means)
        run = all_succeed(lambda: Run(folder, header) if is_first() else None)
        if gather_json(run is not None and run.finished)[0]:
            return
        start = time.perf_counter()
        board = out / "tensorboard" / run_name(task) if tensorboard else None
        with _Writer(run, task.schedule, board) as writer:
            outcome = train(
                task,
                data,
                means,
                writer.log,
                begin=writer.begin,
                checkpoints=checkpoints,
                description=run_name(task),
            )
        seconds = round(time.perf_counter() - start, 1)
        if run is not None:
            save_weights(folder, outcome.weights)
            cost = {"wall_seconds": seconds, "timing": outcome.timing, "memory": outcome.memory}
            run.finish(outcome.final | cost)


class _Writer(ExitStack):
    """Writes what a run measures, on the process that has the run; on the others nothing."""

    def __init__(self, run: Run | None, schedule: Schedule, board: Path | None) -> None:
        super().__init__()
        self._run = run
        self._schedule = schedule
        self._folder = board
        self._board: TensorBoard | None = None

    def begin(self, step: int) -> None:
        """Goes on after `step`; all processes call it."""
        all_succeed(lambda: self._go_on(step))

    def _go_on(self, step: int) -> None:
        if self._run is None:
            return
        if step == 0:
            self._run.rewind(-1)  # step 0 will be logged again
        else:
            self._run.rewind(step, self._schedule.evaluations(step))
        if self._folder is not None:
            self._board = self.enter_context(TensorBoard(self._folder, first_step=step))

    def log(self, entry: dict[str, Any]) -> None:
        """Adds an entry."""
        if self._run is None:
            return
        self._run.log(entry)
        if self._board is not None:
            sums = {name: Metrics(**entry[name]) for name in ("train", "test")}
            self._board.log(entry["step"], sums)


def task_of(record: dict[str, Any]) -> Task:
    """What a record is of."""
    identity = record["identity"]
    schedule = Schedule(**identity["schedule"])
    changes = {name: identity["settings"][name] for name in CHANGES}
    config = Config(
        **identity["config"],
        **changes,
        data=record["data"]["name"],
        arms=(identity["arm"],),
        steps=schedule.steps,
        accelerated_steps=schedule.steps,
    )
    return Task(config, identity["arm"], identity["seed"], schedule)


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
    images = open_data(data, data_dir=data_dir)
    check_data(record, images.name, images.sha256)
    check_population(task.config.population_batches, task.config.batch_size, len(images.train))
    whole = True
    if steps is not None and steps < task.schedule.steps:
        whole, task = False, task._replace(schedule=task.schedule._replace(steps=steps))
    count = record["environment"]["device_count"]
    devices = jax.devices()[:count]
    entries: list[dict[str, Any]] = []
    log: Log = entries.append
    means = Means(DataParallel(record["parallel"], devices=devices))
    outcome = train(task, images, means, log, description=run_name(task))
    return json.loads(json.dumps(entries)), outcome.final if whole else None


def _header(task: Task, data: DataSet, means: Means) -> dict[str, Any]:
    return {
        "experiment": EXPERIMENT,
        "arm": task.arm,
        "seed": task.seed,
        "identity": _identity(task, data),
        "data": {
            "name": data.name,
            "sha256": data.sha256,
            "train": len(data.train),
            "test": len(data.test),
        },
        "parallel": means.parallel.how,
        "environment": environment(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _identity(task: Task, data: DataSet) -> dict[str, Any]:
    return {
        "arm": task.arm,
        "seed": task.seed,
        "settings": settings_of(task.config, task.arm)._asdict(),
        "schedule": task.schedule._asdict(),
        "data_sha256": data.sha256,
        "config": task.config.identity(),
    }
