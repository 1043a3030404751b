"""A run that is not finite any more: it stays where it was, and says which step and layer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_runs import RATE, batch_of, make_batches, make_state, make_step
from tolerances import assert_bitwise, assert_trees_close

from bnjax.training.accumulation import make_accumulating_step
from bnjax.training.divergence import Diverged, raise_if_diverged, start_watch
from bnjax.training.objectives import Metrics
from bnjax.training.optimizers import sgd
from bnjax.training.parallel import DataParallel
from bnjax.training.state import TrainState
from bnjax.training.steps import make_train_step, scan_steps


def apply(variables, images):
    """Two layers of one weight each, whose statistics are their outputs' means."""
    params = variables["params"]
    a = images * params["first"]["w"]
    b = a * params["second"]["w"]
    return b, {"first": {"mean": a.mean()}, "second": {"mean": b.mean()}}


def objective(outputs, labels):
    """The sum of outputs times labels; infinite where a label is 7."""
    loss = (outputs * labels).sum() + jnp.where(labels == 7, jnp.inf, 0).sum()
    return loss, Metrics(loss, jnp.int32(0), jnp.int32(len(labels)))


def start(first=1.0, second=1.0, rate=RATE):
    params = {"first": {"w": jnp.float32(first)}, "second": {"w": jnp.float32(second)}}
    stats = {name: {"mean": jnp.float32(0)} for name in params}
    return start_watch(TrainState(jnp.int32(4), params, stats, sgd(rate).init(params)))


TINY = make_train_step(apply, sgd(RATE), objective)
ONES = np.ones(2, np.float32)
ROUNDED = {"rtol": 1e-6, "atol": 0}
"""The same step in two programs, which XLA may fuse otherwise."""

CASES = {
    # state, images, labels; what is said of it
    "parameter": (start(second=np.inf), ONES, ONES, ("second", "w", "parameter")),
    "first layer's statistics": (start(), np.inf * ONES, ONES, ("first", "mean", "statistics")),
    "second layer's statistics": (
        start(first=1e30, second=1e30),
        ONES,
        ONES,
        ("second", "mean", "statistics"),
    ),
    "gradient": (  # of the first weight: labels * second * images
        start(first=1e-10, second=1e30),
        ONES,
        np.float32([1e20, 1e20]),
        ("first", "w", "gradient"),
    ),
    "loss": (start(), ONES, np.float32([7, 1]), (None, None, "loss")),
    "update": (start(rate=3e38), ONES, 10 * ONES, ("first", "w", "update")),
}


@pytest.mark.parametrize("case", CASES)
def test_the_first_that_is_not_finite_is_named(case):
    """Red if one of the five is not looked at, or they are named in another order."""
    state, images, labels, (layer, leaf, what) = CASES[case]
    after, metrics = jax.jit(TINY)(state, (images, labels))
    with pytest.raises(Diverged) as caught:
        raise_if_diverged(after)
    error = caught.value
    assert (error.step, error.layer, error.leaf, error.what) == (5, layer, leaf, what)
    assert "step 5" in str(error)
    assert layer is None or f"{leaf} in {layer}" in str(error)
    assert_bitwise(after._replace(fault=state.fault), state)
    assert_bitwise(metrics, Metrics.zero())


def test_complex_statistics_are_looked_at():
    """Here half of one is not finite, and nothing else is that."""

    def turned(variables, images):
        outputs, stats = apply(variables, images)
        mean = jax.lax.complex(stats["first"]["mean"], jnp.float32(jnp.nan))
        return outputs, stats | {"first": {"mean": mean}}

    stats = {"first": {"mean": jnp.complex64(0)}, "second": {"mean": jnp.float32(0)}}
    step = make_train_step(turned, sgd(RATE), objective)
    state, _ = jax.jit(step)(start()._replace(batch_stats=stats), (ONES, ONES))
    with pytest.raises(Diverged, match="step 5: new value of mean in first is not finite"):
        raise_if_diverged(state)


def test_a_finite_step_is_the_one_of_a_run_that_is_not_watched():
    batch = batch_of(make_batches(), 0)
    step = jax.jit(make_step())
    plain = step(make_state(), batch)
    watched, metrics = step(start_watch(make_state()), batch)
    raise_if_diverged(watched)
    assert_trees_close((watched._replace(fault=None), metrics), plain, ROUNDED)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "devices"),
    [("jit", 8), *(pytest.param(how, 8, marks=pytest.mark.slow) for how in ("shard_map", "pmap"))],
)
def test_all_devices_stop_at_the_last_finite_state(how, devices):
    """One image of one device is damaged in the second of three batches; the third is finite.

    Red if other devices go on, or if the run goes on after a batch that it left out.
    """
    parallel = DataParallel(how, devices=jax.devices()[:devices])
    step = make_step(parallel.axis_name)
    images, labels, masks = make_batches()
    images[1, 9, 2] = np.nan
    first = tuple(leaf[:1] for leaf in (images, labels, masks))
    many = parallel.compile_train(scan_steps(step), axis=1)
    start = parallel.fetch(start_watch(parallel.replicate(make_state())))
    one, metrics = parallel.fetch(many(parallel.replicate(start), parallel.split(first, axis=1)))
    raise_if_diverged(one)
    batches = parallel.split((images, labels, masks), axis=1)
    state, sums = many(parallel.replicate(start), batches)
    with pytest.raises(
        Diverged, match="step 2: new value of mean in norm1 is not finite"
    ) as caught:
        raise_if_diverged(state)
    assert (caught.value.step, caught.value.layer, caught.value.what) == (2, "norm1", "statistics")
    for leaf in jax.tree.leaves(state):
        assert len({np.asarray(shard.data).tobytes() for shard in leaf.addressable_shards}) == 1
    state, sums = parallel.fetch((state, sums))
    assert_trees_close((state._replace(fault=0), sums), (one._replace(fault=0), metrics), ROUNDED)


def test_accumulated_steps_are_watched():
    def loss(params, batch_stats, batch):
        outputs, new = apply({"params": params, "batch_stats": batch_stats}, batch[0])
        total, metrics = objective(outputs, batch[1])
        return total, (new, metrics)

    step = make_accumulating_step(loss, sgd(RATE), statistics="once")
    images = np.float32([[1, 1], [1, np.inf]])
    state, metrics = jax.jit(step)(start(), (images, np.ones_like(images)))
    with pytest.raises(Diverged, match="step 5: new value of mean in first"):
        raise_if_diverged(state)
    assert_bitwise(metrics, Metrics.zero())


def test_host_copies_are_looked_at_too():
    state = jax.tree.map(np.asarray, start())
    raise_if_diverged(state)
    with pytest.raises(Diverged, match="step 5: loss is not finite"):
        raise_if_diverged(state._replace(fault=np.int32(7)))


def test_a_run_that_is_not_watched_cannot_be_asked():
    with pytest.raises(ValueError, match="use start_watch"):
        raise_if_diverged(make_state())
