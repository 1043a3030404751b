"""Trains one run and reports what it measures."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np

from bnjax.data import DataSet
from bnjax.training.divergence import Diverged, raise_if_diverged
from bnjax.training.loop import Progress, RunFunctions, fit, start_or_resume
from bnjax.training.memory import Held, held
from bnjax.training.objectives import Metrics
from bnjax.training.parallel import HostCheckpoints
from bnjax.training.profiles import profiled
from bnjax.training.tensorboard import watched
from experiments.harness.experiment import Outcome, RunLog, Task, as_json
from experiments.harness.images.compute import ImageCompute
from experiments.harness.images.feed import Feed
from experiments.harness.images.feeds import open_feed
from experiments.harness.images.programs import State, variables_of
from experiments.harness.images.resident import ResidentFeed
from experiments.harness.weights import digests


def train(
    task: Task,
    data: DataSet,
    compute: ImageCompute,
    log: RunLog,
    *,
    checkpoints: HostCheckpoints | None = None,
    description: str = "",
) -> list[Outcome]:
    """Trains a run, from the newest whole checkpoint on if there is one.

    Args:
        task: the run.
        data: what to train and measure on.
        compute: devices and workers.
        log: takes down what is measured.
        checkpoints: where to save and restore; None for nowhere.
        description: shown on the progress bar.

    Returns:
        What the run came to, alone in a list. Its weights are `params`, `batch_stats` and, by
        Algorithm 2, `population_stats`. Its cost has `timing` from the second dispatch of this
        sitting on: seconds of training, without evaluations; share of them that waited for views;
        images per second. `memory` is bytes in use at each evaluation of this sitting: of the
        process (`host`) and of its JAX arrays (`arrays`).

    Raises:
        ValueError: if the devices cannot share a batch.
        Interrupted, OutOfTime: after Ctrl-C or SIGTERM, or `compute.stop_after`; a checkpoint is
            saved if there is a place for it.
    """
    config, parallel = task.config, compute.devices
    parallel.check_batch(config.eval_batch)
    programs, feed = open_feed(task, data, compute)
    initial = programs.init(np.int32(task.seed), np.float32(task.arm.first_rate(config)))
    progress, first_step = start_or_resume(
        Progress(initial, jax.tree.map(np.asarray, Metrics.zero())),
        checkpoints,
        snapshot=parallel.fetch,
        place=parallel.replicate,
    )
    log.begin(first_step, [first_step])
    clock = _Clock(feed)
    memory: list[Held] = []
    last = progress.state

    def evaluate(variables: Any) -> Metrics:
        with clock.paused():
            sums = [programs.evaluate(variables, batch) for batch in feed.validation()]
            return Metrics(*(np.sum(np.array(leaves), 0) for leaves in zip(*sums, strict=True)))

    def check(state: State) -> None:
        nonlocal last
        last = state  # of a run that diverges, the last finite one
        raise_if_diverged(state.train)
        clock.tick(int(parallel.fetch(state.train.step)))

    def measure(state: State) -> tuple[Metrics, dict[str, float]]:
        shown = watched(parallel.fetch(state.train)) if compute.tensorboard else {}
        return evaluate(variables_of(state)), shown

    def record(step: int, sums: Metrics, measured: tuple[Metrics, dict[str, float]]) -> None:
        test, shown = measured
        log.log(0, {"step": step, "train": as_json(sums), "test": as_json(test)})
        log.show(0, step, shown)
        memory.append(held())

    with feed:
        diverged = None
        try:
            with profiled(programs.train, compute.profile) as step:
                functions = RunFunctions(
                    train=lambda state, inputs: step(state, *inputs),
                    evaluate=measure,
                    inputs=feed.training,
                    snapshot=parallel.fetch,
                    check=check,
                )
                last = fit(
                    functions,
                    progress,
                    feed.schedule,
                    first_step=first_step,
                    record=record,
                    checkpoints=checkpoints,
                    description=description,
                    out_of_time=compute.out_of_time,
                )
        except Diverged as error:
            diverged = error.facts()
        timing = clock.timing(config.batch_size)
        variables = variables_of(last)
        weights = dict(parallel.fetch(variables))
        final: dict[str, Any] = {"test": as_json(evaluate(variables)), "test_population": None}
        if diverged is None and variables["batch_stats"]:
            key = jax.random.key(task.seed)
            population = programs.population(variables, feed.population(), key)
            final["test_population"] = as_json(evaluate(population))
            weights["population_stats"] = jax.device_get(population["batch_stats"])
        final |= digests(weights) | {"diverged": diverged}
        final |= task.arm.facts(config, classes=data.classes)
        series: dict[str, list[int | None]] = {
            "host": [moment.host for moment in memory],
            "arrays": [moment.arrays for moment in memory],
        }
        return [Outcome(final, {"timing": timing, "memory": series}, weights)]


class _Clock:
    """Measures training from its first dispatch's end on, without evaluations."""

    def __init__(self, feed: Feed | ResidentFeed) -> None:
        self._feed = feed
        self._started: float | None = None
        self._first = self._last = 0
        self._paused = 0.0

    def tick(self, step: int) -> None:
        """Says that a dispatch has ended, after so many steps of the run."""
        self._last = step
        if self._started is None:  # compiling is over
            self._first = step
            self._started, self._paused, self._feed.waited = time.perf_counter(), 0.0, 0.0

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Does not count what is done inside."""
        started = time.perf_counter()
        yield
        self._paused += time.perf_counter() - started

    def timing(self, images: int) -> dict[str, float] | None:
        """What `train` says of it, with the images of a step; None for less than two dispatches."""
        if self._started is None or self._first == self._last:
            return None
        seconds = time.perf_counter() - self._started - self._paused
        return {
            "training_seconds": round(seconds, 1),
            "waiting_share": round(self._feed.waited / seconds, 4),
            "images_per_second": round((self._last - self._first) * images / seconds, 1),
        }
