"""A run of the MNIST experiment: what it logged, and the state that it came to."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from runs import Entries

from bnjax.training.checkpoints import Checkpoints
from bnjax.training.divergence import start_watch
from bnjax.training.loop import Progress
from bnjax.training.objectives import Metrics
from bnjax.training.state import TrainState
from experiments.harness.compute import Compute
from experiments.mnist_lenet.train import train


class Ran(NamedTuple):
    """Of the only member of a task."""

    entries: list[dict[str, Any]]
    final: dict[str, Any]
    state: TrainState


def run(task, data, folder) -> Ran:
    """Trains; the state is that of the last checkpoint."""
    log = Entries()
    with Checkpoints(folder, config={}) as checkpoints:
        (outcome,) = train(task, data, Compute(), log, checkpoints=checkpoints)
        progress = checkpoints.restore(_stacked(jax.eval_shape(lambda: _start(task)))).state
    return Ran(log.entries, outcome.final, jax.tree.map(lambda leaf: leaf[0], progress.state))


def _start(task):
    model = task.arm.model(task.config)
    variables = model.init(jax.random.key(0), jnp.zeros((1, 28, 28, 1)), train=False)
    params = variables["params"]
    optimizer = task.arm.optimizer(0.1).init(params)
    state = TrainState(jnp.int32(0), params, variables["batch_stats"], optimizer)
    return Progress(start_watch(state), Metrics.zero())


def _stacked(tree):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape), leaf.dtype), tree)
