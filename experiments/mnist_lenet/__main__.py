"""python -m experiments.mnist_lenet: Figure 1 of Ioffe & Szegedy 2015 from one command."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from bnjax.command import command
from bnjax.data import in_memory, open_data
from bnjax.evidence.records import is_finished, require_commit
from bnjax.training.parallel import one_cpu_device_per_core
from experiments.command_line import ending, folder_of_runs, output_folder, preset_in
from experiments.mnist_lenet.config import PRESETS, Config
from experiments.mnist_lenet.figures import draw
from experiments.mnist_lenet.runs import check, complete, main_task, run_name, sweep_task
from experiments.mnist_lenet.summary import summarize
from experiments.mnist_lenet.table import (
    arms_table,
    differences_text,
    divergence_text,
    drift_text,
    sweep_table,
)

_RESULTS = Path(__file__).parent / "results"
_MODULE = "experiments.mnist_lenet"


@dataclass(frozen=True)
class Arguments:
    """MNIST with and without batch normalization (Ioffe & Szegedy 2015, section 4.1)."""

    config: Annotated[Config, tyro.conf.arg(name="")]
    preset: Literal["quick", "paper"] = "quick"
    """quick: the packaged digits, a minute on 2 cores. paper: all of MNIST, 50,000 steps."""
    out: Path | None = None
    """Where runs are written; by default runs/mnist_lenet/PRESET. What is there already is kept:
    finished runs are not repeated, an interrupted one goes on."""
    resume: bool = False
    """Go on with the runs in --out; an error if there are none."""
    data_dir: Path | None = None
    """Where prepared data sets are; by default $TFDS_DATA_DIR, else ~/tensorflow_datasets."""


@command()
def main() -> None:
    """Reads the command line, trains, prints a table, draws the figures."""
    with ending(_MODULE, saves=True):
        arguments = _parse(sys.argv[1:])
        one_cpu_device_per_core()
        run(arguments)


def run(arguments: Arguments) -> None:
    """Completes the runs of a configuration and reports them.

    Raises:
        ValueError, RecordError, CheckpointError, DataError: before anything is changed.
        Interrupted: after Ctrl-C or SIGTERM.
    """
    config = arguments.config
    out = arguments.out or Path("runs/mnist_lenet") / arguments.preset
    out = folder_of_runs(out, resume=arguments.resume)
    require_commit(out, _RESULTS)
    dataset = in_memory(open_data(config.data, data_dir=arguments.data_dir))
    if config.batch_size > len(dataset.train.labels):
        raise ValueError(
            f"batch_size must be at most the {len(dataset.train.labels):,} training examples of "
            f"{dataset.name}, got {config.batch_size}."
        )
    for name in ("eval_batch", "probe_examples"):
        if getattr(config, name) > len(dataset.test.labels):
            raise ValueError(
                f"{name} must be at most the {len(dataset.test.labels):,} test examples of "
                f"{dataset.name}, got {getattr(config, name)}."
            )
    tasks = [main_task(config, arm, config.run_seeds(arm)) for arm in config.arms]
    tasks += [sweep_task(config, arm) for arm in config.arms if config.sweep]
    for task in tasks:
        check(task, dataset, out)  # all of them, before hours go into the first
    runs = [out / run_name(task, member) for task in tasks for member in task.members]
    if not all(map(is_finished, runs)):
        output_folder(out)
    for task in tasks:
        complete(task, dataset, out)
    summary = summarize(out)
    drift = drift_text(summary)
    parts = [
        arms_table(summary) if summary["arms"] else "",
        differences_text(summary),
        drift and f"Path of the median input to the last nonlinearity, mean over units:\n\n{drift}",
        sweep_table(summary),
        divergence_text(summary),
    ]
    try:
        (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
        files = [out / "summary.json", *draw(out)]
        parts.append("Written: " + ", ".join(map(str, files)))
    finally:  # a table needs no disk
        print("\n" + "\n\n".join(part for part in parts if part))


def _parse(argv: list[str]) -> Arguments:
    preset: Any = preset_in(argv, PRESETS, default="quick")
    return tyro.cli(
        Arguments,
        prog=f"python -m {_MODULE}",
        args=argv,
        default=Arguments(PRESETS[preset], preset),
        config=(tyro.conf.OmitArgPrefixes,),
    )


if __name__ == "__main__":
    main()
