"""The Linen module's switches, and what its tests of parity with Flax leave open: ours alone.

What normalizes, and whether the statistics move, are two questions: four answers.
"""

import flax.errors
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from flax_layers import CLOSE, KEY, inputs
from tolerances import assert_close, assert_trees_equal

import bnjax
from bnjax.linen import BatchNorm, model_moments


def initial(layer, x):
    """Variables whose statistics are far from what `x` gives."""
    variables = layer.init(KEY, x, True if layer.use_running_average is None else None)
    stats = variables["batch_stats"]
    return variables | {"batch_stats": stats | {"mean": stats["mean"] - 1, "var": stats["var"] * 3}}


def expected_stats(x, variables, momentum):
    batch, stats = reference.forward(x, None, None), variables["batch_stats"]
    return {
        "mean": reference.ema([batch.mean], stats["mean"], momentum),
        "var": reference.ema([batch.var], stats["var"], momentum),
    }


# --- the switches -----------------------------------------------------------------------------


@pytest.mark.parametrize("update", [None, False, True])
@pytest.mark.parametrize("running", [False, True])
@pytest.mark.parametrize("place", ["attribute", "call"])
def test_switches_stay_apart(running, update, place):
    """`y` depends on one, the statistics on the other; None is what Flax does."""
    x = inputs()
    settings = {"momentum": 0.7}
    if place == "attribute":
        layer, call = BatchNorm(update_statistics=update, **settings), {}
    else:
        layer, call = BatchNorm(**settings), {"update_statistics": update}
    variables = initial(layer, x)
    y, updates = layer.apply(variables, x, running, mutable=["batch_stats"], **call)
    stats = variables["batch_stats"]
    if running:
        expected = reference.population(x, None, None, stats["mean"], stats["var"])
    else:
        expected = reference.forward(x, None, None).y
    assert_close(y, expected, CLOSE)
    if update or (update is None and not running):
        moved = expected_stats(x, variables, 0.7)
        jax.tree.map(lambda a, b: assert_close(a, b, CLOSE), updates["batch_stats"], moved)
    else:
        assert_trees_equal(updates.get("batch_stats", stats), stats)


def test_gradients_of_statistics_that_normalize_and_move_are_those_of_inference():
    """The update adds none: not through the moments that it takes from `x`."""
    x = inputs()
    layer = BatchNorm(use_running_average=True)
    variables = initial(layer, x)
    weights = jnp.asarray(np.random.default_rng(9).normal(size=x.shape), jnp.float32)

    def f(params, x, update):
        variables_ = variables | {"params": params}
        y, new = layer.apply(variables_, x, mutable=["batch_stats"], update_statistics=update)
        through = jax.tree.reduce(jnp.add, jax.tree.map(jnp.sum, new.get("batch_stats", 0.0)))
        return jnp.sum(weights * y) + through

    gradient = jax.jit(jax.grad(f, argnums=(0, 1)), static_argnums=2)
    updated, inference = (gradient(variables["params"], x, update) for update in (True, False))
    jax.tree.map(lambda a, b: assert_close(a, b, CLOSE), updated, inference)
    jax.jvp(lambda x: f(variables["params"], x, True), (x,), (x,))  # no closed form in the way


def test_without_an_update_the_batch_needs_no_statistics():
    """Nothing to make mutable, nothing to carry: enough for a framework that has only params."""
    x = inputs()
    layer = BatchNorm(use_running_average=False, update_statistics=False, averaging="cumulative")
    variables = layer.init(KEY, x)
    assert set(variables) == {"params", "batch_stats"}
    y = layer.apply({"params": variables["params"]}, x)
    assert_close(y, reference.forward(x, None, None).y, CLOSE)


def test_an_update_asks_for_mutable_statistics_in_either_mode():
    x = inputs()
    layer = BatchNorm(update_statistics=True)
    variables = initial(layer, x)
    for running in (False, True):
        with pytest.raises(flax.errors.ModifyScopeVariableError, match="batch_stats"):
            layer.apply(variables, x, running)


def test_the_switch_is_set_in_one_place():
    x = inputs()
    layer = BatchNorm(update_statistics=False)
    with pytest.raises(ValueError, match=r"update_statistics.* passed just once"):
        layer.apply(initial(layer, x), x, False, update_statistics=True)


@pytest.mark.parametrize("averaging", ["ema", "cumulative"])
def test_initialization_moves_nothing_whatever_the_switch(averaging):
    layer = BatchNorm(use_running_average=False, update_statistics=True, averaging=averaging)
    variables = layer.init(KEY, inputs())
    assert_trees_equal(variables["batch_stats"], bnjax.init_stats(5, averaging=averaging))


def test_counts_move_with_the_statistics_alone():
    x = inputs()
    layer = BatchNorm(averaging="cumulative")
    variables = layer.init(KEY, x, True)
    for running, update, count in [(False, False, 0), (True, True, 1), (False, None, 2)]:
        _, updates = layer.apply(
            variables, x, running, update_statistics=update, mutable=["batch_stats"]
        )
        variables = variables | updates
        np.testing.assert_array_equal(variables["batch_stats"]["count"], count)


def test_moments_are_those_of_the_batch_whatever_normalizes():
    """`model_moments` of a layer that keeps its statistics, and of one that normalizes by them."""
    x = inputs()
    batch = reference.forward(x, None, None)
    for running, update in [(False, False), (True, True)]:
        layer = BatchNorm(use_running_average=running, update_statistics=update)
        moments = model_moments(layer, initial(layer, x), x)
        assert_close(moments.mean, batch.mean, CLOSE)
        assert_close(moments.var, batch.var, CLOSE)


def test_frozen_layers_beside_trained_ones():
    """Fine-tuning: one layer keeps its statistics, the other does not; remat changes nothing."""

    class Net(nn.Module):
        layer: type

        @nn.compact
        def __call__(self, x):
            x = self.layer(use_running_average=False, update_statistics=False, name="kept")(x)
            return self.layer(use_running_average=False, momentum=0.5, name="moved")(3 * x + 1)

    x = inputs()
    plain, remat = Net(BatchNorm), Net(nn.remat(BatchNorm))
    variables = plain.init(KEY, x)
    results = [
        jax.jit(lambda v, net=net: net.apply(v, x, mutable=["batch_stats"]))(variables)
        for net in (plain, remat)
    ]
    assert_trees_equal(*results)
    stats = results[0][1]["batch_stats"]
    assert "kept" not in stats or np.abs(stats["kept"]["mean"]).max() == 0
    assert_close(stats["moved"]["mean"], np.full(5, 0.5), CLOSE)


# --- under Linen's transforms ------------------------------------------------------------------


def test_ensembles_by_vmap():
    """Parameters and statistics for each member, as if it were alone; one input for all."""
    x = inputs()
    ensemble = nn.vmap(
        BatchNorm,
        variable_axes={"params": 0, "batch_stats": 0},
        split_rngs={"params": True},
        in_axes=None,
        axis_size=3,
    )(use_running_average=False, scale_init=nn.initializers.normal(1.0))
    alone = BatchNorm(use_running_average=False)
    variables = ensemble.init(KEY, x)
    ys, updates = ensemble.apply(variables, x, mutable=["batch_stats"])
    for i in range(3):
        member = jax.tree.map(lambda leaf, i=i: leaf[i], variables)
        y, expected = alone.apply(member, x, mutable=["batch_stats"])
        assert_close(ys[i], y, CLOSE)
        jax.tree.map(lambda a, b, i=i: assert_close(a[i], b, CLOSE), updates, expected)
    assert np.abs(ys[0] - ys[1]).max() > 0.1


@pytest.mark.parametrize("running", [False, True])
def test_scan_over_steps_carries_the_statistics(running):
    """In evaluation too, where they stay (google/flax#3602)."""
    xs = jnp.stack([inputs(), 2 * inputs() + 1, -inputs()])

    class Step(nn.Module):
        @nn.compact
        def __call__(self, carry, x):
            return carry, BatchNorm(averaging="cumulative", name="norm")(x, running)

    scan = nn.scan(Step, variable_broadcast="params", variable_carry="batch_stats")()
    variables = Step().init(KEY, (), xs[0])
    (_, ys), updates = scan.apply(variables, (), xs, mutable=["batch_stats"])
    layer = BatchNorm(averaging="cumulative")
    one = {key: tree["norm"] for key, tree in variables.items()}
    for x, y in zip(xs, ys, strict=True):
        expected, new = layer.apply(one, x, running, mutable=["batch_stats"])
        one = one | new
        assert_close(y, expected, CLOSE)
    stats = updates["batch_stats"]["norm"]
    jax.tree.map(lambda a, b: assert_close(a, b, CLOSE), stats, one["batch_stats"])
    np.testing.assert_array_equal(stats["count"], 0 if running else 3)


def test_eval_shape():
    x = jax.ShapeDtypeStruct((6, 5), jnp.float32)
    layer = BatchNorm(use_running_average=False)
    variables = jax.eval_shape(layer.init, KEY, x)
    y, updates = jax.eval_shape(
        lambda v, x: layer.apply(v, x, mutable=["batch_stats"]), variables, x
    )
    assert (y.shape, y.dtype) == (x.shape, x.dtype)
    assert updates["batch_stats"] == variables["batch_stats"]


# --- what Flax's constructor does not have ----------------------------------------------------


@pytest.mark.parametrize("activation", ["relu", "sigmoid"])
@pytest.mark.parametrize("running", [False, True])
def test_activation_is_applied_last(activation, running):
    x = inputs()
    plain, fused = BatchNorm(), BatchNorm(activation=activation)
    variables = initial(plain, x)
    y, expected = (
        layer.apply(variables, x, running, mutable=["batch_stats"])[0] for layer in (fused, plain)
    )
    assert_close(y, getattr(jax.nn, activation)(expected), CLOSE)


def test_batches_of_k_examples():
    """Each group is normalized alone; inference knows no groups."""
    x = inputs((8, 5))
    layer = BatchNorm(batch=4, momentum=0.0)
    variables = initial(layer, x)
    y, updates = layer.apply(variables, x, False, mutable=["batch_stats"])
    groups = [reference.forward(part, None, None) for part in (x[:4], x[4:])]
    assert_close(y, np.concatenate([group.y for group in groups]), CLOSE)
    mean = np.mean([group.mean for group in groups], axis=0)
    assert_close(updates["batch_stats"]["mean"], mean, CLOSE)
    whole = BatchNorm()
    assert_trees_equal(layer.apply(variables, x, True), whole.apply(variables, x, True))


def test_dtypes_of_the_output_are_floating():
    x = inputs()
    with pytest.raises(ValueError, match=r"\(top\): dtype must be floating, got int32"):
        BatchNorm(dtype=jnp.int32).init(KEY, x, True)


def test_statistics_of_another_shape_are_refused():
    """A checkpoint's, of one value for all features, would broadcast into an update."""
    x = inputs()
    layer = BatchNorm(use_running_average=False)
    stats = {"mean": jnp.zeros(1), "var": jnp.ones(1)}
    variables = layer.init(KEY, x) | {"batch_stats": stats}
    with pytest.raises(ValueError, match=r"stats\['mean'\] has shape \(1,\), but x has features"):
        layer.apply(variables, x, mutable=["batch_stats"])
