"""Trains the runs of one arm together and reports what they measure."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from bnjax.data import DataSet
from bnjax.data.arrays import EvalBatches, eval_batches
from bnjax.data.order import batch_indices
from bnjax.data.views.inputs import binarize
from bnjax.evidence.records import number, tree_sha256
from bnjax.linen import model_moments
from bnjax.models.training_mode import apply_train
from bnjax.normalization import population_stats
from bnjax.training.divergence import Diverged, raise_if_diverged, start_watch
from bnjax.training.loop import Progress, RunFunctions, fit, start_or_resume
from bnjax.training.objectives import Metrics, check_labels
from bnjax.training.parallel import HostCheckpoints, Members, Together, default_together, member
from bnjax.training.state import TrainState
from bnjax.training.steps import make_eval_step, make_train_step, scan_steps
from bnjax.training.tensorboard import watched
from experiments.harness.compute import Compute
from experiments.harness.experiment import Outcome, RunLog, Task, as_json
from experiments.mnist_lenet.arms import DigitsArm
from experiments.mnist_lenet.config import Config

PERCENTILES = (15, 50, 85)
"""Of the input to the last hidden nonlinearity, as in Figure 1(b, c)."""


def together(config: Config) -> Together:
    """Returns how the runs of one device are computed."""
    return default_together() if config.together == "auto" else config.together


def train(
    task: Task,
    data: DataSet,
    compute: Compute,
    log: RunLog,
    *,
    checkpoints: HostCheckpoints | None = None,
    description: str = "",
) -> list[Outcome]:
    """Trains all members of a task, from the newest whole checkpoint on if there is one.

    A member that is not finite any more stays at its last finite state and logs nothing from then
    on; when all have come to that, training ends.

    Args:
        task: what to train.
        data: what to train and test on.
        compute: the process.
        log: takes down what is measured.
        checkpoints: where to save and restore; None for nowhere.
        description: shown on the progress bar.

    Returns:
        What each member came to.

    Raises:
        Interrupted, OutOfTime: after Ctrl-C or SIGTERM, or `compute.stop_after`; a checkpoint is
            saved if there is a place for it.
    """
    for split in (data.train, data.test):
        check_labels(split.labels, data.classes)
    members = Members(len(task.members), together=together(task.config))
    functions = _Functions(task)
    images, labels = members.share((data.train.images, data.train.labels))
    test = members.share(eval_batches(data.test.images, data.test.labels, task.config.eval_batch))
    probe = members.share(data.test.images[: task.config.probe_examples])

    init = members.compile(functions.init, per_member=2)
    run_steps = members.compile(functions.run, per_member=2, donate=True)
    evaluate = members.compile(functions.evaluate, per_member=1)
    population = members.compile(functions.population, per_member=2)

    def indices(first_step: int, steps: int) -> np.ndarray:
        return _indices(task, len(data.train.labels), first_step, steps)

    def run(state: TrainState, chosen: np.ndarray) -> tuple[TrainState, Metrics]:
        state, metrics = run_steps(state, members.place(chosen), images, labels)
        return state, members.fetch(metrics)

    def measure(state: TrainState) -> tuple[dict[str, Any], TrainState | None]:
        evaluation = members.fetch(evaluate(state, test, probe))
        return evaluation, members.fetch(state) if compute.tensorboard else None

    def record(step: int, sums: Metrics, measured: tuple[dict[str, Any], Any]) -> None:
        evaluation, shown = measured
        for i in range(members.count):
            if watch.diverged[i] is None:
                log.log(i, _entry(task, i, step, member(sums, i), member(evaluation, i)))
                if shown is not None:
                    log.show(i, step, watched(member(shown, i)))

    initial = init(*map(members.place, _seeds_and_rates(task)))
    sums = jax.tree.map(lambda zero: np.zeros(members.count, zero.dtype), Metrics.zero())
    progress, first_step = start_or_resume(
        Progress(initial, sums), checkpoints, snapshot=members.fetch, place=members.place
    )
    watch = _Watch(members)
    try:
        log.begin(first_step, members.fetch(progress.state.step).tolist())
        watch.check(progress.state)
        fit(
            RunFunctions(
                train=run,
                evaluate=measure,
                inputs=indices,
                snapshot=members.fetch,
                check=watch.check,
            ),
            progress,
            task.schedule,
            first_step=first_step,
            record=record,
            checkpoints=checkpoints,
            description=description,
            members=members.count,
            out_of_time=compute.out_of_time,
        )
    except _AllDiverged:
        pass
    last = watch.last
    outcome = {"test": evaluate(last, test, probe)["test"]}
    if last.batch_stats:
        chosen = members.place(indices(0, task.config.population_batches))
        by_algorithm_2 = population(last, chosen, images)
        outcome["test_population"] = evaluate(by_algorithm_2, test, probe)["test"]
    outcome, final = members.fetch((outcome, last))
    return [
        Outcome(_final(member(outcome, i), member(final, i), watch.diverged[i]), {})
        for i in range(members.count)
    ]


def _seeds_and_rates(task: Task) -> tuple[np.ndarray, np.ndarray]:
    seeds = np.array([own.seed for own in task.members])
    rates = np.array([own.learning_rate for own in task.members])
    with np.errstate(over="ignore"):  # then the first step says so
        return seeds, rates.astype(np.float32)


class _AllDiverged(Exception):
    """No member is finite any more."""


class _Watch:
    """What has become of the members: the last state of all, and why some stay where they are."""

    def __init__(self, members: Members) -> None:
        self._members = members
        self.last: Any = None
        self.diverged: list[Diverged | None] = [None] * members.count

    def check(self, state: TrainState) -> None:
        """Takes down a state; raises _AllDiverged where no member is finite any more."""
        self.last = state
        if not self._members.fetch(state.fault).any():
            return
        host = self._members.fetch(state)
        for i in range(self._members.count):
            try:
                raise_if_diverged(member(host, i))
            except Diverged as error:
                self.diverged[i] = error
        if None not in self.diverged:
            raise _AllDiverged


class _Functions:
    """The pure functions of one member: initialization, steps, evaluation."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._arm: DigitsArm = task.arm
        self._model: Any = self._arm.model(task.config)
        self._prepare = partial(binarize, threshold=task.config.threshold)
        self._evaluate = make_eval_step(self._apply_eval, self._prepare)
        tx = self._arm.optimizer(0.0)  # the learning rate in use is the one in the state
        self._train_step = make_train_step(partial(apply_train, self._model), tx)

    def init(self, seed: jax.Array, learning_rate: jax.Array) -> TrainState:
        """A member's state before the first step."""
        variables = self._model.init(jax.random.key(seed), jnp.zeros((1, 28, 28, 1)), train=False)
        params = variables["params"]
        optimizer = self._arm.optimizer(learning_rate).init(params)
        stats = variables.get("batch_stats", {})
        return start_watch(TrainState(jnp.int32(0), params, stats, optimizer))

    def run(
        self, state: TrainState, indices: jax.Array, images: jax.Array, labels: jax.Array
    ) -> tuple[TrainState, Metrics]:
        """Steps on the chosen examples `[steps, batch]`; the metrics are summed."""

        def step(state: TrainState, chosen: jax.Array) -> tuple[TrainState, Metrics]:
            return self._train_step(state, (self._prepare(images[chosen]), labels[chosen]))

        return scan_steps(step)(state, indices)

    def evaluate(self, state: TrainState, test: EvalBatches, probe: jax.Array) -> dict[str, Any]:
        """Test metrics, and percentiles of the input to the last hidden nonlinearity.

        `units` `[3, units]` and `pooled` `[3]` are taken in training mode: normalized by the
        moments of the probe. `running` `[units]`, with normalization alone, is the median in
        inference mode, by the running statistics.
        """
        variables = state.variables
        percentiles = jnp.array(PERCENTILES, jnp.float32)
        inputs = self._last_inputs(variables, probe, train=True)
        evaluation = {
            "test": self._evaluate(variables, test),
            "units": jnp.percentile(inputs, percentiles, axis=0),
            "pooled": jnp.percentile(inputs, percentiles),
        }
        if state.batch_stats:
            inputs = self._last_inputs(variables, probe, train=False)
            evaluation["running"] = jnp.percentile(inputs, 50.0, axis=0)
        return evaluation

    def population(self, state: TrainState, indices: jax.Array, images: jax.Array) -> TrainState:
        """A state with the statistics of Algorithm 2 over the chosen batches `[batches, batch]`."""
        stats = population_stats(
            lambda chosen: model_moments(
                self._model, state.variables, self._prepare(images[chosen]), train=True
            ),
            indices,
        )
        replaced = flatten_dict(state.batch_stats) | flatten_dict(stats)  # counts stay
        return state._replace(batch_stats=unflatten_dict(replaced))

    def _last_inputs(self, variables: Any, images: jax.Array, *, train: bool) -> jax.Array:
        _, kept = self._model.apply(
            variables,
            self._prepare(images),
            train=train,
            mutable=["intermediates", "batch_stats"],
        )
        return self._arm.last_preactivation(kept["intermediates"])

    def _apply_eval(self, variables: Any, images: jax.Array) -> jax.Array:
        return self._model.apply(variables, images, train=False)


def _indices(task: Task, size: int, first_step: int, steps: int) -> np.ndarray:
    """Chosen examples `[members, steps, batch]`, a function of seed and step alone."""
    return np.stack(
        [
            batch_indices(
                member.seed, first_step, steps, batch_size=task.config.batch_size, size=size
            )
            for member in task.members
        ]
    )


def _entry(
    task: Task, position: int, step: int, sums: Metrics, evaluation: dict[str, Any]
) -> dict[str, Any]:
    entry = {
        "step": step,
        "train": as_json(sums),
        "test": as_json(evaluation["test"]),
        "pooled": [number(value) for value in evaluation["pooled"]],
    }
    if not task.sweep and step % task.config.units_every == 0:
        units = {
            f"p{percentile}": _rounded(row)
            for percentile, row in zip(PERCENTILES, evaluation["units"], strict=True)
            if task.members[position].seed == 0 or percentile == 50
        }
        if "running" in evaluation:
            units["p50_running"] = _rounded(evaluation["running"])
        entry["units"] = units
    return entry


def _final(outcome: dict[str, Any], state: TrainState, diverged: Diverged | None) -> dict[str, Any]:
    population = None if diverged else outcome.get("test_population")
    return {
        "test": as_json(outcome["test"]),
        "test_population": None if population is None else as_json(population),
        "state_sha256": tree_sha256(state.variables),
        "diverged": diverged and diverged.facts(),
    }


def _rounded(values: np.ndarray) -> list[float]:
    return [round(float(value), 2) for value in values]
