"""A run's programs and what feeds them; the programs of many runs, compiled before the first."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import jax

from bnjax.cores import usable_cores
from bnjax.data import DataSet
from bnjax.progress import ProgressBar
from experiments.harness.experiment import Task
from experiments.harness.images.compute import ImageCompute
from experiments.harness.images.feed import Feed
from experiments.harness.images.programs import Programs, programs_of
from experiments.harness.images.resident import ResidentFeed, open_resident


def open_feed(
    task: Task, data: DataSet, compute: ImageCompute
) -> tuple[Programs, Feed | ResidentFeed]:
    """Returns a run's programs, and what it reads of the data: on the devices, or streamed."""
    config, parallel = task.config, compute.devices
    if config.pipeline == "resident":
        return open_resident(task, data, parallel)
    programs = programs_of(config, task.arm, parallel, classes=data.classes)
    return programs, Feed(task, data, parallel, axis=programs.axis, workers=compute.workers)


def compile_ahead(tasks: Sequence[Task], data: DataSet, compute: ImageCompute) -> None:
    """Compiles what trains and evaluates in runs, in threads, one for each core of this process.

    XLA takes minutes for a network, and little more than one core. What trains then finds its
    program compiled; but under `pmap`, where JAX would compile it again, and on several hosts
    nothing is done.
    """
    if compute.devices.how == "pmap" or jax.process_count() > 1:
        return
    feeds = dict(open_feed(task, data, compute) for task in tasks)  # by program
    if len(feeds) < 2:
        return
    bar = ProgressBar(len(feeds), description="compiling", unit="network")
    with bar, ThreadPoolExecutor(usable_cores()) as pool:
        shapes = [feed.shapes() for feed in feeds.values()]
        for _ in pool.map(Programs.compile, feeds, *zip(*shapes, strict=True)):
            bar.update(1)
