"""python -m experiments.imagenet_inception: Figures 2 and 3 of the paper from one command."""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from bnjax.command import command
from bnjax.data.image_data import ImageData, open_images
from bnjax.data.stream import check_workers
from bnjax.evidence.records import is_finished, require_commit
from bnjax.paths import local_path
from bnjax.training.parallel import (
    DataParallel,
    How,
    all_hosts_agree,
    all_succeed,
    initialize_hosts,
    is_first,
)
from bnjax.training.tensorboard import require_tensorboard
from experiments.command_line import (
    ending,
    folder_of_runs,
    output_folder,
    preset_in,
    unknown_word,
)
from experiments.compiled import dry_run
from experiments.finished import runs_below
from experiments.imagenet_inception import evaluate
from experiments.imagenet_inception.config import PRESETS, Config, Task
from experiments.imagenet_inception.figures import draw
from experiments.imagenet_inception.runs import check, complete, run_name, task_for
from experiments.imagenet_inception.summary import summarize
from experiments.imagenet_inception.table import arms_table, divergence_text, waiting_text
from experiments.imagenet_inception.train import Means
from experiments.imagenet_inception.weights import FILE

_RESULTS = Path(__file__).parent / "results"
_MODULE = "experiments.imagenet_inception"
_SUBCOMMANDS = {"dry-run": dry_run.main, "evaluate": evaluate.main}


@dataclass(frozen=True)
class Arguments:
    """ImageNet with Inception, five ways (Ioffe & Szegedy 2015, section 4.2).

    Two words in front do something else, each with a --help of its own: `evaluate` measures
    finished runs and ensembles over many crops, `dry-run` compiles for chips that are not here.
    """

    config: Annotated[Config, tyro.conf.arg(name="")]
    preset: Literal["quick", "cifar", "paper"] = "quick"
    """quick: the packaged digits, two minutes on 2 cores. cifar: all of CIFAR-10 and a narrow
    network, hours on 2 cores. paper: ImageNet, 31 million steps."""
    out: Path | None = None
    """Where runs are written; by default runs/imagenet_inception/PRESET. What is there already is
    kept: finished runs are not repeated, an interrupted one goes on."""
    resume: bool = False
    """Go on with the runs in --out; an error if there are none."""
    data_dir: Path | None = None
    """Where prepared data sets are; by default $TFDS_DATA_DIR, else ~/tensorflow_datasets."""
    parallel: How = "jit"
    """How the devices share a batch; the numbers are the same but for rounding."""
    workers: int = 0
    """Processes that make views; 0 for threads of this one."""
    tensorboard: bool = False
    """Write curves for TensorBoard too, below --out; needs the extra `tensorboard`."""
    profile: Path | None = None
    """Folder for a profile of the third to fifth dispatch of each run, for Perfetto."""
    coordinator: str | None = None
    """Of several hosts: host:port of process 0. Slurm and Cloud TPU tell all three by themselves.
    Each host has the data; the first one writes --out."""
    process_count: int | None = None
    """Of several hosts: how many processes, each started with the same flags."""
    process_index: int | None = None
    """Of several hosts: number of this process, from zero."""


@command()
def main() -> None:
    """Reads the command line, trains, prints a table, draws the figure; or hands it on."""
    word = next(iter(sys.argv[1:]), "")
    if word in _SUBCOMMANDS:
        _SUBCOMMANDS[word](sys.argv[2:])
        return
    with ending(_MODULE, saves=True):
        if word and not word.startswith("-"):
            raise ValueError(unknown_word(word, _SUBCOMMANDS))
        arguments = _parse(sys.argv[1:])
        initialize_hosts(arguments.coordinator, arguments.process_count, arguments.process_index)
        run(arguments)


def run(arguments: Arguments) -> None:
    """Completes the runs of a configuration and reports them.

    Raises:
        ValueError, RecordError, CheckpointError, DataError: before anything is changed.
        Interrupted: after Ctrl-C or SIGTERM.
    """
    config = arguments.config
    out = local_path("--out", arguments.out or Path("runs/imagenet_inception") / arguments.preset)
    all_hosts_agree({**asdict(config), "parallel": arguments.parallel}, "the configuration")
    data, means, tasks = all_succeed(lambda: _prepare(arguments, out))
    all_hosts_agree(data.sha256, "the data's SHA-256")
    for task in tasks:
        complete(task, data, means, out, tensorboard=arguments.tensorboard)
    if is_first():
        _report(out)


def _prepare(arguments: Arguments, out: Path) -> tuple[ImageData, Means, list[Task]]:
    """Opens the data and checks all runs, before hours go into the first."""
    config = arguments.config
    if is_first():
        folder_of_runs(out, resume=arguments.resume)
        require_commit(out, _RESULTS)
    if arguments.tensorboard:
        require_tensorboard()
    if arguments.profile is not None:
        local_path("--profile", arguments.profile)
    check_workers(arguments.workers)
    data = open_images(config.data, data_dir=arguments.data_dir)
    means = Means(DataParallel(arguments.parallel), arguments.workers, arguments.profile)
    tasks = [task_for(config, arm, seed) for seed in range(config.seeds) for arm in config.arms]
    for task in tasks:
        check(task, data, means.parallel, out)
    if is_first() and not all(is_finished(out / run_name(task)) for task in tasks):
        output_folder(out)
    return data, means, tasks


def _report(out: Path) -> None:
    """Writes the summary and the figures; prints the tables."""
    summary = summarize(out)
    parts = [
        arms_table(summary),
        divergence_text(summary),
        waiting_text(summary),
        _missing_text(out),
    ]
    try:
        (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
        files = [out / "summary.json", *draw(out)]
        parts.append("Written: " + ", ".join(map(str, files)))
    finally:  # a table needs no disk
        print("\n" + "\n\n".join(part for part in parts if part))


def _missing_text(out: Path) -> str:
    """Names finished runs whose weights are gone; empty if none are."""
    gone = [folder for folder, record in runs_below(out) if record["finished"]]
    gone = [folder for folder in gone if not (folder / FILE).exists()]
    if not gone:
        return ""
    return (
        f"Without {FILE}, so that they cannot be evaluated over many crops: "
        f"{', '.join(map(str, gone))}."
    )


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
