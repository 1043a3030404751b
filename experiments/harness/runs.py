"""The folders of runs: which runs there are, what is missing, what they hold."""

import hashlib
import json
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Self

from bnjax.evidence.environment import environment
from bnjax.evidence.records import (
    RecordError,
    Run,
    check_identity,
    is_finished,
    making_sense,
    read_record,
)
from bnjax.paths import check_writable, local_path
from bnjax.training.locks import LockError, lock
from bnjax.training.loop import OutOfTime
from bnjax.training.objectives import Metrics
from bnjax.training.parallel import HostCheckpoints, all_succeed, gather_json, is_first
from bnjax.training.tensorboard import TensorBoard
from experiments.harness.compute import Compute
from experiments.harness.experiment import Experiment, Member, Outcome, RunLog, Task, identity
from experiments.harness.identities import defaults
from experiments.harness.weights import save_weights


def folder_of_runs(experiment: Experiment, out: Path, *, resume: bool = False) -> Path:
    """The folder of `--out` of what completes runs; it is not made yet.

    One that holds runs need not be writable: where all are finished, they are reported.

    Raises:
        RecordError: it holds a run of another experiment, or a damaged record.
        ValueError: it is a URL, or cannot be written and holds no run.
    """
    folder = local_path("--out", out)
    if records := _records_in(folder):
        for record in records:
            _check_experiment(experiment, folder, record)
        return folder
    if resume:
        raise ValueError(f"--resume: {folder} holds no run to go on with; leave --resume out.")
    return check_writable("--out", folder)


def _records_in(folder: Path) -> list[Path]:
    with suppress(OSError):  # a name that is too long, say
        runs = ("*-s*/record.json", "sweep/*-s*/record.json")
        return [file for pattern in runs for file in sorted(folder.glob(pattern))]
    return []


def _check_experiment(experiment: Experiment, folder: Path, file: Path) -> None:
    record = read_record(file.parent)
    with making_sense(file, record):
        of = record["experiment"]
    if of != experiment.name:
        raise RecordError(
            f"--out {folder} holds runs of the experiment {of}, not of {experiment.name}: "
            "give another --out."
        )


def run_name(task: Task, member: Member) -> str:
    """Returns the folder of a run, below the output folder."""
    if task.sweep:
        return f"sweep/{task.arm.name}-lr{member.learning_rate:g}-s{member.seed}"
    return f"{task.arm.name}-s{member.seed}"


def is_complete(task: Task, out: Path) -> bool:
    """Whether `out` holds all runs of a task whole."""
    return all(is_finished(out / run_name(task, member)) for member in task.members)


def checkpoint_folder(experiment: Experiment, task: Task, data: Any, out: Path) -> Path:
    """Returns where the members of a task have their checkpoints.

    Those that train together are named by all of their identities: another choice of them is
    another program.
    """
    if not experiment.together:
        return out / "checkpoints" / run_name(task, task.members[0])
    identities = json.dumps(_identities(task, data), sort_keys=True)
    digest = hashlib.sha256(identities.encode()).hexdigest()[:8]
    return out / "checkpoints" / f"{'sweep-' if task.sweep else ''}{task.arm.name}-{digest}"


def check(experiment: Experiment, task: Task, data: Any, compute: Any, out: Path) -> None:
    """Refuses what cannot run, before any compute.

    Raises:
        RecordError: if `out` holds a run of the task in another configuration.
        ValueError: if the experiment cannot train it, or `out` holds a run of the task that was
            begun with another --parallel.
    """
    _check_runs(task, data, compute, out)
    experiment.check(task, data, compute)


def _check_runs(task: Task, data: Any, compute: Any, out: Path) -> None:
    for member in task.members:
        folder = out / run_name(task, member)
        check_identity(folder, identity(task, member, data), _defaults(task))
        if (folder / "record.json").exists() and not is_finished(folder):
            record = read_record(folder)
            for name, value in compute.shared().items():
                if record.get(name, value) != value:
                    raise ValueError(
                        f"--{name} {value}: {folder} was begun with --{name} {record[name]}, and a "
                        "run is of one; give that again."
                    )


def _defaults(task: Task) -> dict[str, dict[str, Any]]:
    return defaults(type(task.config), type(task.arm))


def complete(
    experiment: Experiment,
    task: Task,
    data: Any,
    compute: Any,
    out: Path,
    *,
    begins: bool = False,
) -> None:
    """Trains those runs of a task that `out` does not hold whole already.

    All processes of the run call it; the first one writes. What is finished is not written again,
    so that it may lie on a disk that is read-only.

    Args:
        experiment: whose runs they are.
        task: the runs.
        data: what to train and measure on.
        compute: how; logs for TensorBoard, if it asks for them, are written below
            `out`/tensorboard.
        out: where the runs are.
        begins: whether it takes a step even if `compute` is out of time, as the first one must: a
            short time would otherwise be used up by the same preparations again and again.

    Raises:
        RecordError: if `out` holds a run of another configuration, or another process writes one
            of them; nothing is changed then.
        CheckpointError: the same for its checkpoints.
        Interrupted: after Ctrl-C or SIGTERM.
        OutOfTime: when `compute` says so, before or while it trains.
    """

    def whole() -> bool:
        _check_runs(task, data, compute, out)
        return is_first() and is_complete(task, out)

    if gather_json(all_succeed(whole))[0]:
        return
    if not begins and any(gather_json(compute.out_of_time())):
        raise OutOfTime(f"out of time before {described(experiment, task)}")
    with ExitStack() as held:
        if experiment.together:
            names = [run_name(task, member) for member in task.members]
            held.enter_context(_alone(out, names))
        _complete(experiment, task, data, compute, out)


def complete_all(
    experiment: Experiment,
    config: Any,
    out: Path,
    *,
    compute: Compute | None = None,
) -> None:
    """Checks all runs of a configuration, then trains those that `out` does not hold whole.

    It is the experiment's command without its tables and figures, on one host; prepared data sets
    are where they are by default.
    """
    compute = compute or experiment.compute()
    folder_of_runs(experiment, out)
    data = experiment.open_data(config, None)
    tasks = experiment.tasks_of(config)
    for task in tasks:
        check(experiment, task, data, compute, out)
    left = [task for task in tasks if not is_complete(task, out)]
    experiment.compile_ahead(left, data, compute)
    for task in left:
        complete(experiment, task, data, compute, out)


@contextmanager
def _alone(out: Path, names: Sequence[str]) -> Iterator[None]:
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


def _complete(experiment: Experiment, task: Task, data: Any, compute: Any, out: Path) -> None:
    folder = checkpoint_folder(experiment, task, data, out)
    if experiment.together and not folder.exists():  # no checkpoint of all members together
        left = [m for m in task.members if not is_finished(out / run_name(task, m))]
        if not left:
            return  # another process has finished them meanwhile
        task = task._replace(members=tuple(left))
        folder = checkpoint_folder(experiment, task, data, out)
    identities = _identities(task, data)
    config = {"identity": identities if experiment.together else identities[0]}
    with HostCheckpoints(folder, config=config) as checkpoints:
        headers = _headers(experiment, task, data, compute)
        folders = [out / run_name(task, member) for member in task.members]
        open_run = partial(Run, defaults=_defaults(task))
        runs = all_succeed(lambda: list(map(open_run, folders, headers)) if is_first() else [])
        if gather_json(bool(runs) and all(run.finished for run in runs))[0]:
            return  # another process has finished them meanwhile
        started = time.perf_counter()
        with _Writer(runs, task, out / "tensorboard" if compute.tensorboard else None) as writer:
            outcomes = experiment.train(
                task,
                data,
                compute,
                writer,
                checkpoints=checkpoints,
                description=described(experiment, task),
            )
        cost: dict[str, Any] = {"wall_seconds": round(time.perf_counter() - started, 1)}
        if experiment.together:
            cost["trained_together"] = len(task.members)
        all_succeed(lambda: _finish(runs, outcomes, cost))
    if experiment.together and is_first():
        shutil.rmtree(folder)  # so that other seeds can be added


def _finish(runs: Sequence[Run], outcomes: Sequence[Outcome], cost: dict[str, Any]) -> None:
    for run, outcome in zip(runs, outcomes, strict=False):
        if run.finished:
            continue
        if outcome.weights is not None:
            save_weights(run.directory, outcome.weights)
        run.finish(outcome.final | cost | outcome.cost)


class _Writer(RunLog):
    """Writes what runs measure, on the process that has the runs; on the others nothing."""

    def __init__(self, runs: Sequence[Run], task: Task, boards: Path | None) -> None:
        self._open = ExitStack()
        self._runs = runs
        self._task = task
        self._folder = boards
        self._boards: dict[int, TensorBoard] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def begin(self, step: int, own: Sequence[int]) -> None:
        """Goes on after `step`; all processes call it."""
        all_succeed(lambda: self._go_on(step, own))

    def _go_on(self, step: int, own: Sequence[int]) -> None:
        for position, run in enumerate(self._runs):
            if run.finished:
                continue
            if step == 0:
                run.rewind(-1)  # step 0 will be logged again
            else:
                run.rewind(own[position], self._task.schedule.evaluations(own[position]))
            if self._folder is not None:
                folder = self._folder / run_name(self._task, self._task.members[position])
                self._boards[position] = self._open.enter_context(
                    TensorBoard(folder, first_step=step)
                )

    def log(self, position: int, entry: dict[str, Any]) -> None:
        """Adds an entry; all processes call it."""
        all_succeed(lambda: self._add(position, entry))

    def _add(self, position: int, entry: dict[str, Any]) -> None:
        if not self._runs or self._runs[position].finished:
            return
        self._runs[position].log(entry)
        if position in self._boards:
            sums: dict[str, Metrics] = {
                name: Metrics(**entry[name]) for name in ("train", "test") if name in entry
            }
            self._boards[position].log(entry["step"], sums)

    def show(self, position: int, step: int, values: dict[str, float]) -> None:
        """Adds to the curves, where there are any."""
        if position in self._boards:
            self._boards[position].show(step, values)


def described(experiment: Experiment, task: Task) -> str:
    """Returns what the progress bar says."""
    if not experiment.together:
        return run_name(task, task.members[0])
    return f"{'sweep ' if task.sweep else ''}{task.arm.name}"


def _identities(task: Task, data: Any) -> list[dict[str, Any]]:
    return [identity(task, member, data) for member in task.members]


def _headers(experiment: Experiment, task: Task, data: Any, compute: Any) -> list[dict[str, Any]]:
    """What each record says before the first step."""
    surroundings = environment()
    started = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    counts = {"train": len(data.train), "test": len(data.test)}
    return [
        {
            "experiment": experiment.name,
            "arm": task.arm.name,
            "seed": member.seed,
            **({} if member.learning_rate is None else {"learning_rate": member.learning_rate}),
            "identity": identity(task, member, data),
            "data": {"name": data.name, "sha256": data.sha256} | counts,
            **compute.described(task),
            "environment": surroundings,
            "started": started,
        }
        for member in task.members
    ]
