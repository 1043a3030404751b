"""python -m experiments.NAME evaluate RUN ...: errors over crops and ensembles."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import tyro

from bnjax.data import DataSet, open_data
from bnjax.data.stream import check_workers
from bnjax.data.views.crops import CENTRE
from bnjax.evidence.environment import environment, require_commit
from bnjax.evidence.records import RecordError, check_data, making_sense, read_record
from bnjax.paths import local_path, writable_folder
from bnjax.training.parallel import (
    DataParallel,
    all_hosts_agree,
    all_succeed,
    is_first,
)
from experiments.harness.bounds import check_several
from experiments.harness.command_line import ending
from experiments.harness.experiment import Experiment
from experiments.harness.identities import check_alike
from experiments.harness.images.blacklist import Blacklisted, check_left_out, read_blacklist
from experiments.harness.images.compute import Sharing
from experiments.harness.images.ensembles import (
    Crops,
    Trained,
    WhichStatistics,
    measure,
    plan,
    scores_of,
)
from experiments.harness.images.evaluation_table import Published, table
from experiments.harness.repetition import task_of
from experiments.harness.weights import load_weights

SCHEMA = 1
MOST_VIEWS = 1 << 20
"""In memory at once: of 224 pixels they take 158 GB."""


@dataclass(frozen=True)
class Arguments(Sharing):
    """Top-1 and top-5 errors of finished runs, one by one and as an ensemble.

    Class probabilities are averaged over the crops of an image, then over the networks of an
    ensemble (Ioffe & Szegedy 2015, section 4.2.3). Each validation image counts once.
    """

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of finished runs, for example runs/imagenet_inception/cifar/bn_x30-s*."""
    crops: tuple[Crops, ...] = (1,)
    """Views of each image, one or several of 1, 10, 12 and 144."""
    statistics: tuple[WhichStatistics, ...] = ("running", "population")
    """Of normalization: the running averages, or those of Algorithm 2."""
    ensemble: Literal["all", "arm", "none"] = "all"
    """Whose predictions are averaged: those of all runs; of each arm's runs; none."""
    fraction: float | None = None
    """Of 1, 10 and 12 crops: part of the shorter side that a crop keeps. By default what the runs
    were evaluated with; for 10 and 12 crops 0.875 if that was all, of which ten would be two."""
    blacklist: Path | None = None
    """File of validation images that do not count, one a line: its file's name or, of ImageNet, its
    number. Szegedy et al. 2016 leave out the 1,762 of the blacklist of ILSVRC 2014."""
    views: int = 256
    """About how many views are in memory at once, over all devices."""
    out: Path | None = None
    """Where evaluation.json and evaluation.md are written, in the place of older ones; by default
    nowhere."""
    data: str | None = None
    """Data set, by default that of the records; needed for those of folder:PATH and tfds:PATH."""
    data_dir: Path | None = None
    """Where prepared data sets are; by default $TFDS_DATA_DIR, else ~/tensorflow_datasets."""


def subcommand(
    experiment: Experiment, published: Sequence[Published] = ()
) -> Callable[[Sequence[str]], None]:
    """Returns what `run_command` takes for `evaluate`.

    Args:
        experiment: whose runs are evaluated; its arms are networks of images.
        published: the paper's numbers, for the table.
    """
    return partial(main, experiment, published)


def main(experiment: Experiment, published: Sequence[Published], argv: Sequence[str]) -> None:
    """Reads the command line after `evaluate`; evaluates, prints a table."""
    with ending(experiment.module):
        prog = f"python -m {experiment.module} evaluate"
        arguments = tyro.cli(Arguments, prog=prog, args=argv)
        arguments.start()
        out = None if arguments.out is None else local_path("--out", arguments.out)
        all_succeed(
            lambda: writable_folder("--out", out) if out is not None and is_first() else None
        )
        result = evaluate(experiment, arguments)
        if not is_first():
            return
        text = table(result, experiment.arms, published)
        try:
            if out is not None:
                (out / "evaluation.json").write_text(json.dumps(result, indent=1) + "\n")
                (out / "evaluation.md").write_text(text + "\n", encoding="utf-8")
        finally:  # a table needs no disk
            print(text)


def evaluate(experiment: Experiment, arguments: Arguments) -> dict[str, Any]:
    """Counts the errors of all runs and ensembles.

    Returns:
        JSON values; `evaluations` has counts for each number of crops, kind of statistics, run and
        ensemble, `runs` what they are of.

    Raises:
        ValueError, RecordError, DataError, HostsError: before any compute.
    """
    _check(arguments)
    records, runs, data = all_succeed(lambda: _read(experiment, arguments))
    names = all_succeed(lambda: _blacklist(arguments))
    counting = data._replace(test=Blacklisted(data.test, names))
    if names:
        all_succeed(lambda: check_left_out(counting.test))
    described = [_described(record) for record in records]
    all_hosts_agree([described, sorted(names)], "the runs and the blacklist")
    groups = _groups([run.task.arm.name for run in runs], arguments.ensemble)
    scores = scores_of(runs, groups, arguments.statistics)
    parallel = DataParallel(arguments.parallel)
    started = time.perf_counter()
    evaluations = []
    for crops in arguments.crops:
        fraction = _fraction(arguments, crops, runs[0].task.config.centre)
        counts = measure(
            runs,
            scores,
            counting,
            crops=crops,
            fraction=fraction,
            views=arguments.views,
            parallel=parallel,
            workers=arguments.workers,
        )
        for score, errors in zip(scores, counts, strict=True):
            evaluations.append(
                {
                    "crops": crops,
                    "fraction": None if crops == 144 else fraction,
                    **score._asdict(),
                    **{name: int(count) for name, count in errors._asdict().items()},
                }
            )
    return {
        "schema": SCHEMA,
        "experiment": experiment.name,
        "data": {
            "name": data.name,
            "sha256": data.sha256,
            "classes": data.classes,
            "validation": len(data.test),
        },
        "left_out": len(names),
        "image_size": runs[0].image_size,
        "runs": described,
        "evaluations": evaluations,
        "parallel": arguments.parallel,
        "views": arguments.views,
        "environment": environment(),
        "wall_seconds": round(time.perf_counter() - started, 1),
    }


def _check(arguments: Arguments) -> None:
    for name in ("runs", "crops", "statistics"):
        check_several(name, getattr(arguments, name))
    fraction = arguments.fraction
    if fraction is not None and not 0 < fraction <= 1:
        raise ValueError(f"fraction must be in (0, 1], got {fraction}.")
    plan(1, devices=1, views=arguments.views)
    if arguments.views > MOST_VIEWS:
        raise ValueError(f"views must be at most {MOST_VIEWS:,}, got {arguments.views:,}.")
    check_workers(arguments.workers)


def _read(
    experiment: Experiment, arguments: Arguments
) -> tuple[list[dict[str, Any]], list[Trained], DataSet]:
    """Records, weights and data; all runs must see the same images in the same size."""
    if arguments.out is not None:
        require_commit(arguments.out, experiment.results)
    records, runs = [], []
    for path in arguments.runs:
        record = read_record(path)
        with making_sense(path / "record.json", record):
            if record["experiment"] != experiment.name:
                raise RecordError(
                    f"{path} holds a run of {record['experiment']}, not of {experiment.name}."
                )
            task = task_of(experiment, record)
        weights = load_weights(path, record)
        run = Trained(task, weights)
        lacks = run.normalized and "population_stats" not in weights
        if lacks and "population" in arguments.statistics:
            raise RecordError(
                f"{path} diverged and has no statistics of Algorithm 2: choose --statistics "
                "running."
            )
        records.append(record)
        runs.append(run)
    for path, record, run in zip(arguments.runs, records, runs, strict=True):
        pairs = {
            "data": (records[0]["data"]["sha256"], record["data"]["sha256"]),
            "image_size": (runs[0].image_size, run.image_size),
            "centre": (runs[0].task.config.centre, run.task.config.centre),
        }
        for name, (first, other) in pairs.items():
            if first != other:
                raise RecordError(
                    f"{path} is of {name} {other}, {arguments.runs[0]} of {first}: evaluate them "
                    "in two commands."
                )
    check_alike(zip(arguments.runs, records, strict=True), "evaluate them in two commands")
    return records, runs, _open(arguments, records[0])


def _blacklist(arguments: Arguments) -> frozenset[str]:
    return frozenset() if arguments.blacklist is None else read_blacklist(arguments.blacklist)


def _open(arguments: Arguments, record: dict[str, Any]) -> DataSet:
    data = open_data(arguments.data or record["data"]["name"], data_dir=arguments.data_dir)
    check_data(record, data.name, data.sha256)
    return data


def _groups(arms: list[str], ensemble: str) -> list[tuple[int, ...]]:
    """Each run alone, then those that make an ensemble of two or more."""
    positions = range(len(arms))
    groups: list[tuple[int, ...]] = [(position,) for position in positions]
    if ensemble == "all":
        groups.append(tuple(positions))
    if ensemble == "arm":
        for arm in dict.fromkeys(arms):
            groups.append(tuple(position for position in positions if arms[position] == arm))
    return list(dict.fromkeys(groups))


def _fraction(arguments: Arguments, crops: Crops, centre: float) -> float:
    if arguments.fraction is not None:
        return arguments.fraction
    return CENTRE if crops in (10, 12) and centre == 1 else centre


def _described(record: dict[str, Any]) -> dict[str, Any]:
    final = record["final"]
    return {
        "arm": record["arm"],
        "seed": record["seed"],
        "steps": record["identity"]["schedule"]["steps"],
        "diverged": final["diverged"],
        "state_sha256": final["state_sha256"],
        "population_sha256": final["population_sha256"],
        "commit": (record["environment"]["git"] or {}).get("commit"),
    }
