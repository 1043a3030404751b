"""The command of an experiment: `python -m experiments.NAME`."""

import inspect
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, make_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from bnjax.command import command
from bnjax.evidence.environment import require_commit
from bnjax.evidence.records import is_finished
from bnjax.paths import local_path, writable_folder
from bnjax.training.loop import OutOfTime
from bnjax.training.parallel import all_hosts_agree, all_succeed, gather_json, is_first
from experiments.harness import found
from experiments.harness.command_line import (
    ending,
    preset_in,
    refuse_no_values,
    unknown_word,
)
from experiments.harness.experiment import Experiment, Task
from experiments.harness.found import RENAME
from experiments.harness.runs import check, complete, folder_of_runs, is_complete, run_name


def run_command(
    experiment: Experiment, subcommands: Mapping[str, Callable[[Sequence[str]], None]] | None = None
) -> None:
    """Reads the command line, trains, prints tables, draws figures; or hands it on.

    Args:
        experiment: what the command is of.
        subcommands: what else it does, by the word in front; each takes the arguments after it.
    """
    subcommands = subcommands or {}
    with command():
        word = next(iter(sys.argv[1:]), "")
        if word in subcommands:
            subcommands[word](sys.argv[2:])
            return
        with ending(experiment.module, saves=True):
            if word and not word.startswith("-") and subcommands:
                raise ValueError(unknown_word(word, subcommands))
            if experiment.name not in found.names():
                raise ValueError(
                    f"name: there is no folder experiments/{experiment.name}: {RENAME}"
                )
            arguments = parse(experiment, sys.argv[1:])
            arguments.how.start()
            run(experiment, arguments)


def parse(experiment: Experiment, argv: Sequence[str]) -> Any:
    """Returns the arguments of the command, read by tyro: a preset, and what changes it."""
    presets = experiment.presets
    preset = preset_in(argv, presets, default=next(iter(presets)))
    refuse_no_values(argv, experiment.config)
    chosen = arguments_class(experiment)
    return tyro.cli(
        chosen,
        prog=f"python -m {experiment.module}",
        description=inspect.getdoc(experiment.config),
        args=argv,
        default=chosen(presets[preset], preset),
        config=(tyro.conf.OmitArgPrefixes,),
    )


def arguments_class(experiment: Experiment) -> type[Any]:
    """Returns the class of the command's arguments, a dataclass for tyro."""
    folder = f"runs/{experiment.name}"

    def flag(of: Any, text: str) -> Any:
        return Annotated[of, tyro.conf.arg(help=text)]

    return make_dataclass(
        "Arguments",
        [
            ("config", Annotated[experiment.config, tyro.conf.arg(name="")]),
            ("preset", flag(Literal[tuple(experiment.presets)], experiment.presets_help)),
            (
                "out",
                flag(
                    Path | None,
                    f"Where runs are written; by default {folder}/PRESET. What is there already "
                    "is kept: finished runs are not repeated, an interrupted one goes on.",
                ),
                None,
            ),
            (
                "resume",
                flag(bool, "Go on with the runs in --out; an error if there are none."),
                False,
            ),
            (
                "data_dir",
                flag(
                    Path | None,
                    "Where prepared data sets are; by default $TFDS_DATA_DIR, else "
                    "~/tensorflow_datasets.",
                ),
                None,
            ),
            (
                "how",
                Annotated[experiment.compute, tyro.conf.arg(name="")],
                experiment.compute(),
            ),
        ],
        frozen=True,
    )


def run(experiment: Experiment, arguments: Any) -> None:
    """Completes the runs of a configuration and reports them.

    Raises:
        ValueError, RecordError, CheckpointError, DataError: before anything is changed.
        Interrupted: after Ctrl-C or SIGTERM.
        OutOfTime: after --stop-after; what is finished is reported then.
    """
    compute = arguments.how
    out = arguments.out or Path("runs") / experiment.name / arguments.preset
    out = local_path("--out", out)
    all_hosts_agree(asdict(arguments.config) | compute.shared(), "the configuration")
    data, tasks = all_succeed(lambda: _prepare(experiment, arguments, out))
    all_hosts_agree(data.sha256, "the data's SHA-256")
    left = gather_json(all_succeed(lambda: _positions_left(tasks, out)))[0]  # the first host's
    experiment.compile_ahead([tasks[position] for position in left], data, compute)
    try:
        for position, task in enumerate(tasks):
            complete(
                experiment,
                task,
                data,
                compute,
                out,
                begins=position in left[:1],
            )
    except OutOfTime:
        if is_first():
            _report_finished(experiment, tasks, out)
        raise
    if is_first():
        _report(experiment, out)


def _prepare(experiment: Experiment, arguments: Any, out: Path) -> tuple[Any, list[Task]]:
    """Opens the data and checks all runs, before hours go into the first."""
    config, compute = arguments.config, arguments.how
    if is_first():
        folder_of_runs(experiment, out, resume=arguments.resume)
        require_commit(out, experiment.results)
    compute.check()
    data = experiment.open_data(config, arguments.data_dir)
    tasks = experiment.tasks_of(config)
    for task in tasks:
        check(experiment, task, data, compute, out)
    if is_first() and _left(tasks, out):
        writable_folder("--out", out)
    return data, tasks


def _positions_left(tasks: Sequence[Task], out: Path) -> list[int]:
    """The positions of the tasks whose runs are not all finished, on the host that has the runs."""
    if not is_first():
        return []
    return [position for position, task in enumerate(tasks) if not is_complete(task, out)]


def _left(tasks: Sequence[Task], out: Path) -> list[str]:
    """The names of the runs that are not finished."""
    names = [run_name(task, member) for task in tasks for member in task.members]
    return [name for name in names if not is_finished(out / name)]


def _report_finished(experiment: Experiment, tasks: Sequence[Task], out: Path) -> None:
    """Reports if there is anything to report; names the runs that are left."""
    left = _left(tasks, out)
    if len(left) < sum(len(task.members) for task in tasks):
        _report(experiment, out)
    print(f"\nLeft: {', '.join(left)}.")


def _report(experiment: Experiment, out: Path) -> None:
    """Writes the summary and the figures; prints the tables."""
    summary = experiment.page.report.summarize(out)
    parts = experiment.page.report.tables(out, summary)
    try:
        (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
        files = [out / "summary.json", *experiment.page.report.draw(out)]
        parts.append("Written: " + ", ".join(map(str, files)))
    finally:  # a table needs no disk
        print("\n" + "\n\n".join(part for part in parts if part))
