"""A recipe for frameworks that know only params: one tree holds the statistics too.

Such a framework takes a loss of one tree, its gradient, and an optimizer of optax. `train` below is
one: it knows nothing of batch normalization. What it makes must equal the usual training step.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tolerances import assert_close

from bnjax.linen import BatchNorm

CLOSE = {"rtol": 1e-5, "atol": 1e-5}
"""Some steps in float32; a lost update of the statistics is off by 0.1, a decayed one by 1e-3."""

RULE = optax.chain(optax.add_decayed_weights(0.1), optax.sgd(0.1, momentum=0.9))


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train=True):
        x = nn.Dense(6, name="dense")(x)
        x = BatchNorm(momentum=0.7, name="norm")(x, use_running_average=not train)
        return nn.Dense(1, name="out")(jnp.tanh(x))


model = Net()


def mse(y, target):
    return jnp.mean((y - target) ** 2)


def batches(steps=5):
    rng = np.random.default_rng(0)
    xs = jnp.asarray(2 + 3 * rng.normal(size=(steps, 8, 4)), jnp.float32)
    return [(x, jnp.sin(x.sum(1, keepdims=True))) for x in xs]


# --- the recipes ------------------------------------------------------------------------------


def loss_with_rider(variables, batch):
    """No way out but the gradient: that of a statistic is the step it is to take."""
    x, target = batch
    y, new = model.apply(variables, x, mutable=["batch_stats"])
    return mse(y, target) + ride(variables["batch_stats"], new["batch_stats"])


def ride(old, new):
    """Zero; its gradient with respect to `old` is `new - old`."""
    old, new = jax.tree.leaves(old), jax.tree.leaves(new)
    stop = jax.lax.stop_gradient
    return sum(jnp.vdot(stop(b - a), a - stop(a)) for a, b in zip(old, new, strict=True))


def loss_with_aux(variables, batch):
    """For a framework that hands on an auxiliary output."""
    x, target = batch
    y, new = model.apply(variables, x, mutable=["batch_stats"])
    return mse(y, target), new


def optimizer(statistics):
    """The rule for parameters, and another for the statistics: no decay, no learning rate."""
    return optax.multi_transform(
        {"params": RULE, "batch_stats": statistics},
        {"params": "params", "batch_stats": "batch_stats"},
    )


# --- the framework ----------------------------------------------------------------------------


def train(loss, tx, tree, *, has_aux=False, merge=lambda tree, aux: tree):
    """A framework that knows one tree."""

    @jax.jit
    def step(tree, opt_state, batch):
        out, grads = jax.value_and_grad(loss, has_aux=has_aux)(tree, batch)
        updates, opt_state = tx.update(grads, opt_state, tree)
        value, aux = out if has_aux else (out, None)
        return value, merge(optax.apply_updates(tree, updates), aux), opt_state

    opt_state, values = tx.init(tree), []
    for batch in batches():
        value, tree, opt_state = step(tree, opt_state, batch)
        values.append(value)
    return jnp.stack(values), tree


@pytest.fixture(scope="module")
def usual():
    """The step with statistics as what they are: state beside the parameters."""
    variables = model.init(jax.random.key(0), batches(1)[0][0])
    params, stats = variables["params"], variables["batch_stats"]
    opt_state = RULE.init(params)

    @jax.jit
    def step(params, stats, opt_state, batch):
        def loss(params):
            return loss_with_aux({"params": params, "batch_stats": stats}, batch)

        (value, new), grads = jax.value_and_grad(loss, has_aux=True)(params)
        updates, opt_state = RULE.update(grads, opt_state, params)
        return value, optax.apply_updates(params, updates), new["batch_stats"], opt_state

    values = []
    for batch in batches():
        value, params, stats, opt_state = step(params, stats, opt_state, batch)
        values.append(value)
    return variables, (jnp.stack(values), {"params": params, "batch_stats": stats})


def assert_same(ours, expected):
    assert jax.tree.structure(ours) == jax.tree.structure(expected)
    jax.tree.map(lambda a, b: assert_close(a, b, CLOSE), ours, expected)


def test_statistics_ride_on_the_gradient(usual):
    """Losses, parameters and statistics; weight decay of the rule leaves the statistics alone."""
    initial, expected = usual
    ours = train(loss_with_rider, optimizer(optax.identity()), initial)
    assert_same(ours, expected)
    x = batches(1)[0][0]
    assert_same(model.apply(ours[1], x, train=False), model.apply(expected[1], x, train=False))
    moved = jax.tree.map(
        lambda a, b: np.abs(a - b).max(), ours[1]["batch_stats"], initial["batch_stats"]
    )
    assert min(jax.tree.leaves(moved)) > 0.1


def test_statistics_leave_by_the_auxiliary_output(usual):
    initial, expected = usual
    ours = train(
        loss_with_aux,
        optimizer(optax.set_to_zero()),
        initial,
        has_aux=True,
        merge=lambda tree, aux: tree | aux,
    )
    assert_same(ours, expected)


@pytest.mark.slow
def test_averaged_gradients_average_the_statistics(usual):
    """Data-parallel frameworks average gradients over devices: so do the statistics' steps."""
    initial, _ = usual
    x, target = batches(1)[0]
    halves = x.reshape(2, 4, 4), target.reshape(2, 4, 1)

    def steps(batch):
        return jax.grad(loss_with_rider)(initial, batch)["batch_stats"]

    mean = jax.tree.map(lambda leaf: leaf.mean(0), jax.vmap(steps)(halves))
    each = [loss_with_aux(initial, (halves[0][i], halves[1][i]))[1] for i in range(2)]
    expected = jax.tree.map(
        lambda old, a, b: (a + b) / 2 - old,
        initial["batch_stats"],
        *(new["batch_stats"] for new in each),
    )
    assert_same(mean, expected)
