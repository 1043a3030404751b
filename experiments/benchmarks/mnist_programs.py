"""The programs that train the same network: bnjax's own, and a Flax loop as its users write it."""

import time
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, Protocol, TypeVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.training.train_state import TrainState

from bnjax.data import ArraySplit, DataSet
from bnjax.data.order import batch_indices
from bnjax.data.views.inputs import binarize
from bnjax.training.loop import Schedule
from experiments.harness.arm import by_name
from experiments.harness.compute import Compute
from experiments.harness.experiment import Member, RunLog, Task
from experiments.mnist_lenet.arms import ARMS
from experiments.mnist_lenet.config import Config as Setting
from experiments.mnist_lenet.train import train

LAYERS = ("dense1", "dense2", "dense3", "logits")
"""Dense layers, first to last; all but the last are normalized."""

State = TypeVar("State")


class Trained(NamedTuple):
    """One timed run.

    Attributes:
        seconds: wall time of the timed steps.
        correct: correctly classified examples of the test set at the end, for each seed.
    """

    seconds: float
    correct: tuple[int, ...]


class Loop(Protocol[State]):
    """A training loop of one seed, a Python call for each batch."""

    def start(self) -> State:
        """Returns the state before the first step."""

    def train(self, state: State, indices: np.ndarray) -> State:
        """Trains on the batches `[steps, batch]`; returns when that is done."""

    def correct(self, state: State) -> int:
        """Returns the number of correctly classified examples of the test set."""


def run_bnjax(task: Task, dataset: DataSet, description: str = "") -> Trained:
    """Runs the whole program of `experiments.mnist_lenet` and times all but the first dispatch.

    The clock runs from the evaluation after the first dispatch to the one after the last. It
    counts all that the program does between them for all members: order of examples, steps,
    metrics, and that last evaluation.
    """
    log = _Times()
    outcomes = train(task, dataset, Compute(), log, description=description)
    begin = log.times[task.schedule.longest_dispatch][-1]
    end = log.times[task.schedule.steps][0]
    return Trained(end - begin, tuple(outcome.final["test"]["correct"] for outcome in outcomes))


class _Times(RunLog):
    """Keeps when each step was logged, once for each member."""

    def __init__(self) -> None:
        self.times: dict[int, list[float]] = {}

    def log(self, position: int, entry: dict[str, Any]) -> None:
        """Keeps the time."""
        self.times.setdefault(entry["step"], []).append(time.perf_counter())


def bnjax_task(setting: Setting, *, seeds: int, steps: int, steps_per_dispatch: int) -> Task:
    """Returns the task of seeds 0, 1, ...: the normalized network, a dispatch and `steps` more.

    The experiment's percentiles and population statistics, which no other program computes, are
    taken over as few examples as they can be.
    """
    setting = replace(setting, probe_examples=2, population_batches=1)
    schedule = Schedule(
        steps=steps_per_dispatch + steps,
        steps_per_dispatch=steps_per_dispatch,
        eval_every=steps_per_dispatch,
        dense_until=steps_per_dispatch,
        sparse_eval_every=steps_per_dispatch + steps,
        checkpoint_every=0,
    )
    members = tuple(Member(seed, setting.learning_rate) for seed in range(seeds))
    return Task(setting, by_name(ARMS, "mlp_bn"), members, schedule, sweep=True)


def run_loop(loop: Loop[Any], indices: np.ndarray, *, untimed: int) -> Trained:
    """Trains on the batches `[steps, batch]` and times all but the first `untimed` of them."""
    state = loop.train(loop.start(), indices[:untimed])
    begin = time.perf_counter()
    state = loop.train(state, indices[untimed:])
    return Trained(time.perf_counter() - begin, (loop.correct(state),))


def order(setting: Setting, dataset: DataSet, steps: int) -> np.ndarray:
    """Returns the batches of seed 0, int32 `[steps, batch]`."""
    size = len(dataset.train.labels)
    return batch_indices(0, 0, steps, batch_size=setting.batch_size, size=size)


def inputs(setting: Setting, split: ArraySplit) -> np.ndarray:
    """Returns the network's inputs, float32 zeros and ones `[n, pixels]`."""
    return np.array(binarize(jnp.asarray(split.images), setting.threshold)).reshape(
        len(split.images), -1
    )


class FlaxMLP(nn.Module):
    """The network from Flax's own layers, with parameters named as in `bnjax.models.MLP`.

    Attributes:
        setting: initial weights' standard deviation, decay and epsilon.
    """

    setting: Setting

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        """Returns logits `[n, 10]` of inputs `[n, pixels]`."""
        kernel_init = nn.initializers.normal(self.setting.weight_std)
        for i in (1, 2, 3):
            x = nn.Dense(100, use_bias=False, kernel_init=kernel_init, name=f"dense{i}")(x)
            x = nn.BatchNorm(
                use_running_average=not train,
                momentum=self.setting.decay,
                epsilon=self.setting.epsilon,
                name=f"norm{i}",
            )(x)
            x = nn.sigmoid(x)
        return nn.Dense(10, kernel_init=kernel_init, name="logits")(x)


class FlaxState(TrainState):
    """Flax's training state with the running statistics."""

    batch_stats: Any


class FlaxLoop:
    """One jitted step for each batch of NumPy arrays, the state donated.

    Inputs and order are prepared before the clock starts, so they cost it nothing.
    """

    def __init__(self, setting: Setting, dataset: DataSet) -> None:
        self._model = FlaxMLP(setting)
        self._init = jax.jit(partial(self._model.init, train=False))
        self._tx = optax.sgd(setting.learning_rate)
        self._images, self._labels = inputs(setting, dataset.train), dataset.train.labels
        self._test, self._answers = inputs(setting, dataset.test), dataset.test.labels

    def start(self) -> FlaxState:
        """Returns the state of seed 0 before the first step."""
        example = jnp.zeros((1, self._images.shape[1]))
        variables = self._init(jax.random.key(0), example)
        return FlaxState.create(
            apply_fn=self._model.apply,
            params=variables["params"],
            tx=self._tx,
            batch_stats=variables["batch_stats"],
        )

    def train(self, state: FlaxState, indices: np.ndarray) -> FlaxState:
        """Trains on the batches `[steps, batch]`; the old state is donated."""
        for chosen in indices:
            state, _ = flax_step(state, self._images[chosen], self._labels[chosen])
        return jax.block_until_ready(state)

    def correct(self, state: FlaxState) -> int:
        """Counts correctly classified examples of the test set, with the running statistics."""
        logits = _flax_logits(state, self._test)
        return int((np.argmax(logits, -1) == self._answers).sum())


@partial(jax.jit, donate_argnums=0)
def flax_step(
    state: FlaxState, images: jax.Array, labels: jax.Array
) -> tuple[FlaxState, jax.Array]:
    """Makes a step on a batch; returns the new state, and the mean loss before it."""

    def loss(params: Any) -> tuple[jax.Array, Any]:
        logits, updates = state.apply_fn(
            {"params": params, "batch_stats": state.batch_stats},
            images,
            train=True,
            mutable=["batch_stats"],
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), updates["batch_stats"]

    (value, batch_stats), gradient = jax.value_and_grad(loss, has_aux=True)(state.params)
    return state.apply_gradients(grads=gradient, batch_stats=batch_stats), value


@jax.jit
def _flax_logits(state: FlaxState, images: jax.Array) -> jax.Array:
    return state.apply_fn(
        {"params": state.params, "batch_stats": state.batch_stats}, images, train=False
    )
