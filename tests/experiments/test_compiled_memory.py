"""Memory of the Inception networks' steps. Nothing needs a chip."""

import json

import jax
import pytest

from bnjax.models import bn_inception
from bnjax.training.optimizers import momentum_sgd
from experiments.compiled import memory
from experiments.compiled.rows import measure
from experiments.compiled.steps import training_step
from experiments.compiled.tables import memory_table

pytestmark = pytest.mark.usefixtures("short_network")


def small_step(remat, examples):
    """The real one at an eighth of the widths, for 64x64 pixels."""
    model = bn_inception.BNInception(norm=memory.NORM, width=0.125, remat=remat)
    return training_step(model, momentum_sgd(0.1), (64, 64, 3), examples)


@pytest.mark.slow
def test_memory_by_batch_of_a_whole_step(monkeypatch):
    """A larger batch takes more; compiled for CPU devices, which every machine has."""
    monkeypatch.setitem(memory.NETWORKS, "bn_inception", small_step)
    with jax.numpy_dtype_promotion("standard"):
        result = measure("memory", memory.Config(("bn_inception",), (1, 2), ("cpu:1",)))
    result = json.loads(json.dumps(result))
    one, two = result["rows"]
    assert (one["batch_size"], two["batch_size"]) == (1, 2)
    assert two["peak_bytes"] > one["peak_bytes"] > one["argument_bytes"]
    line = memory_table(result).splitlines()[2]
    assert line.startswith("| BN-Inception, 224x224 | cpu:1 | 0.")


@pytest.mark.slow
@pytest.mark.parametrize("name", memory.NETWORKS)
def test_the_steps_are_whole(name):
    """State in, state out: statistics of all layers, side heads and optimizer included."""
    step = memory.NETWORKS[name](False, 2)
    state, metrics = jax.eval_shape(step.function, step.replicated, step.batch)
    assert jax.tree.structure(state) == jax.tree.structure(step.replicated)
    assert ("auxiliary" in state.batch_stats) == (name == "inception_v3")
    assert metrics.loss.shape == ()
