"""Trains one run and reports what it measures."""

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
from experiments.harness.images.clock import Clock
from experiments.harness.images.compute import ImageCompute
from experiments.harness.images.feed import Feed
from experiments.harness.images.feeds import open_feed
from experiments.harness.images.programs import Programs, State, variables_of
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
    clock = Clock(feed)
    memory: list[Held] = []
    last = progress.state

    def check(state: State) -> None:
        nonlocal last
        last = state  # of a run that diverges, the last finite one
        raise_if_diverged(state.train)
        clock.tick(int(parallel.fetch(state.train.step)))

    def measure(state: State) -> tuple[Metrics, dict[str, float]]:
        shown = watched(parallel.fetch(state.train)) if compute.tensorboard else {}
        with clock.paused():
            return _evaluate(programs, feed, variables_of(state)), shown

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
        final, weights = _final(task, data, compute, programs, feed, last, diverged)
        series: dict[str, list[int | None]] = {
            "host": [moment.host for moment in memory],
            "arrays": [moment.arrays for moment in memory],
        }
        return [Outcome(final, {"timing": timing, "memory": series}, weights)]


def _final(
    task: Task,
    data: DataSet,
    compute: ImageCompute,
    programs: Programs,
    feed: Feed | ResidentFeed,
    last: State,
    diverged: dict[str, Any] | None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the last state comes to, as `Outcome.final` has it, and its weights."""
    variables = variables_of(last)
    weights = dict(compute.devices.fetch(variables))
    test = _evaluate(programs, feed, variables)
    final: dict[str, Any] = {"test": as_json(test), "test_population": None}
    if diverged is None and variables["batch_stats"]:
        key = jax.random.key(task.seed)
        population = programs.population(variables, feed.population(), key)
        final["test_population"] = as_json(_evaluate(programs, feed, population))
        weights["population_stats"] = jax.device_get(population["batch_stats"])
    final |= digests(weights) | {"diverged": diverged}
    return final | task.arm.facts(task.config, classes=data.classes), weights


def _evaluate(programs: Programs, feed: Feed | ResidentFeed, variables: Any) -> Metrics:
    """Metrics on the whole validation set."""
    sums = [programs.evaluate(variables, batch) for batch in feed.validation()]
    return Metrics(*(np.sum(np.array(leaves), 0) for leaves in zip(*sums, strict=True)))
