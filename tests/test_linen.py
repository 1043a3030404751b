"""The Linen module: what Flax's BatchNorm does, where that is right, by the same names.

Flax is compared with at use_fast_variance=False, near zero, and with finite masks on one device:
elsewhere it is known to be wrong, and `tests/normalization` compares with float64.
"""

import inspect
import itertools
from functools import partial

import flax.errors
import flax.linen as nn
import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from flax_layers import CLOSE, GRADIENTS, KEY, batches, pair, weights
from marks import slow_but
from tolerances import PARALLEL, assert_close, assert_trees_close

import bnjax
from bnjax.linen import BatchNorm, BatchRenorm, model_moments

SETTINGS = {
    "default": ((16, 5), {}),
    "small batch": ((3, 5), {"momentum": 0.5}),
    "convolution": ((4, 3, 2, 5), {"momentum": 0.9, "epsilon": 1e-3}),
    "channels first": ((4, 5, 3, 2), {"axis": 1}),
    "per activation": ((8, 2, 3, 2), {"axis": (1, 2, 3)}),
    "axes in any order": ((8, 2, 3, 4), {"axis": (3, 1)}),
    "no scale": ((16, 5), {"use_scale": False}),
    "no bias": ((16, 5), {"use_bias": False}),
    "neither": ((16, 5), {"use_scale": False, "use_bias": False}),
}


def step(layer, variables, x, **call):
    """Output, gradients through random weights, and the variables after the step."""

    def f(params, x):
        y, updates = layer.apply(
            variables | {"params": params}, x, False, mutable=["batch_stats"], **call
        )
        return jnp.sum(weights(x) * y), (y, updates)

    params = variables.get("params", {})
    grads, (y, updates) = jax.grad(f, argnums=(0, 1), has_aux=True)(params, x)
    return y, grads, variables | updates


step = jax.jit(step, static_argnums=0)


@partial(jax.jit, static_argnums=0)
def init(layer, x):
    return layer.init(KEY, x, False)


@partial(jax.jit, static_argnums=0)
def infer(layer, variables, x):
    return layer.apply(variables, x, True)


def described(tree):
    return jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)


# --- the same names, trees and shapes ---------------------------------------------------------


def test_constructor_is_flaxs_and_more():
    """Names, order and defaults, so that positional arguments mean the same."""
    ours, theirs = (
        [
            (p.name, p.default)
            for p in inspect.signature(layer).parameters.values()
            if p.name not in ("parent", "name")
        ]
        for layer in (BatchNorm, nn.BatchNorm)
    )
    assert ours[: len(theirs)] == theirs
    assert dict(ours[len(theirs) :]) == {
        "averaging": "ema",
        "running_var": "biased",
        "impl": "fused",
        "activation": None,
        "batch": "all",
        "update_statistics": None,
    }
    ours, theirs = (
        [p.replace(annotation=p.empty) for p in inspect.signature(f.__call__).parameters.values()]
        for f in (BatchNorm, nn.BatchNorm)
    )
    assert ours[: len(theirs)] == theirs
    assert [p.name for p in ours[len(theirs) :]] == ["update_statistics"]


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("param_dtype", [jnp.float32, jnp.bfloat16])
def test_variables_are_flaxs(setting, param_dtype, promotion):
    shape, settings = SETTINGS[setting]
    ours, theirs = (
        jax.eval_shape(lambda layer=layer: layer.init(KEY, jnp.ones(shape), False))
        for layer in pair(param_dtype=param_dtype, **settings)
    )
    assert ours == theirs
    assert jax.tree.leaves(ours)


def test_initial_values_are_flaxs():
    initializers = {
        "scale_init": nn.initializers.normal(1.0),
        "bias_init": nn.initializers.uniform(2.0),
    }
    ours, theirs = (init(layer, jnp.ones((4, 5))) for layer in pair(**initializers))
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


@pytest.mark.parametrize("direction", ["from Flax", "to Flax"])
def test_checkpoints_move_both_ways(direction):
    x = batches((16, 5))[0]
    source, target = pair(use_running_average=True)[:: 1 if direction == "to Flax" else -1]
    saved = source.init(KEY, x)
    saved["batch_stats"]["mean"] += 3.0
    saved["params"]["scale"] *= 2.0
    loaded = flax.serialization.from_bytes(target.init(KEY, x), flax.serialization.to_bytes(saved))
    jax.tree.map(np.testing.assert_array_equal, loaded, dict(saved))
    assert_trees_close(target.apply(loaded, x), source.apply(saved, x), CLOSE)


# --- the same numbers -------------------------------------------------------------------------


FAST = ("convolution", "axes in any order", "neither")


@pytest.mark.parametrize("setting", slow_but(FAST, SETTINGS))
def test_training_and_inference_are_flaxs(setting):
    """Output, gradients and statistics over three steps, then inference."""
    shape, settings = SETTINGS[setting]
    ours, theirs = pair(**settings)
    our_variables = their_variables = init(theirs, jnp.ones(shape))
    for x in batches(shape):
        y, grads, our_variables = step(ours, our_variables, x)
        expected, expected_grads, their_variables = step(theirs, their_variables, x)
        assert_trees_close(y, expected, CLOSE)
        assert_trees_close(grads, expected_grads, GRADIENTS)
    assert_trees_close(our_variables, their_variables, CLOSE)
    assert np.abs(our_variables["batch_stats"]["mean"]).max() > 0.01
    x = batches(shape)[0]
    assert_trees_close(infer(ours, our_variables, x), infer(theirs, their_variables, x), CLOSE)


@pytest.mark.parametrize(
    ("x_dtype", "param_dtype", "dtype"),
    [
        *itertools.product([jnp.bfloat16], [jnp.float32, jnp.bfloat16], [None, jnp.bfloat16]),
        (jnp.float32, jnp.bfloat16, None),
        (jnp.float32, jnp.float32, jnp.bfloat16),
        (jnp.bfloat16, jnp.float32, jnp.float32),
    ],
)
def test_output_dtypes_are_flaxs(x_dtype, param_dtype, dtype, promotion):
    x = batches((16, 5), 1, x_dtype)[0]

    def outputs(layer):
        variables = layer.init(KEY, x, False)
        y, updates = layer.apply(variables, x, False, mutable=["batch_stats"])
        return y, layer.apply(variables | updates, x, True), updates

    ours, theirs = (
        jax.jit(outputs, static_argnums=0)(layer)
        for layer in pair(dtype=dtype, param_dtype=param_dtype)
    )
    assert described(ours) == described(theirs)
    for y, expected in zip(ours[:2], theirs[:2], strict=True):
        one_rounding = {"rtol": float(jnp.finfo(y.dtype).eps), "atol": 2e-6}
        assert_close(y, np.float64(expected), one_rounding)
    assert_trees_close(ours[2], theirs[2], CLOSE)


def test_without_parameters_the_output_has_the_inputs_dtype():
    """Strict promotion needs no `dtype` where there is nothing to promote."""
    layer = BatchNorm(use_running_average=False, use_scale=False, use_bias=False)
    x = batches((16, 5), 1, jnp.bfloat16)[0]
    assert layer.init_with_output(KEY, x)[0].dtype == jnp.bfloat16


def test_dtype_settles_promotion():
    """A bfloat16 model with float32 parameters, under strict promotion."""
    layer = BatchNorm(use_running_average=False, dtype=jnp.bfloat16)
    x = batches((16, 5), 1, jnp.bfloat16)[0]
    variables = layer.init(KEY, x)
    y, _ = layer.apply(variables, x, mutable=["batch_stats"])
    assert y.dtype == jnp.bfloat16
    assert_close(y, reference.forward(x, None, None).y, {"rtol": 2.0**-8, "atol": 1e-5})


@pytest.mark.parametrize("mask_shape", [(16, 1), (16, 5)])
def test_finite_masks_are_flaxs(mask_shape):
    x = batches((16, 5))[0]
    mask = jnp.asarray(np.random.default_rng(0).random(mask_shape) < 0.6)
    ours, theirs = pair()
    variables = init(theirs, x)
    y, grads, after = step(ours, variables, x, mask=mask)
    expected, expected_grads, expected_after = step(theirs, variables, x, mask=mask)
    assert_trees_close(y, expected, CLOSE)
    assert_trees_close(grads, expected_grads, GRADIENTS)
    assert_trees_close(after, expected_after, CLOSE)


def test_a_masked_nan_does_not_leak():
    """Flax gives NaN gradients here."""
    x = batches((16, 5))[0].at[3].set(jnp.nan)
    mask = jnp.ones((16, 1), bool).at[3].set(False)
    layer = BatchNorm()
    y, grads, after = step(layer, init(layer, x), x, mask=mask)
    kept = np.delete(np.float64(x), 3, 0)
    assert_close(np.delete(y, 3, 0), reference.forward(kept, None, None).y, CLOSE)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((y, grads, after)))


@pytest.mark.parametrize("groups", [None, [[0, 1, 2, 3], [4, 5, 6, 7]]])
def test_axis_name_under_pmap_is_flaxs(groups):
    """The layer is initialized outside of pmap, where the axis does not exist."""
    x = batches((8, 4, 5), 1)[0]
    ours, theirs = pair(use_running_average=False, axis_name="data", axis_index_groups=groups)
    variables = ours.init(KEY, x[0])

    def train(layer):
        def each(x):
            return layer.apply(variables, x, mutable=["batch_stats"])

        return jax.pmap(each, axis_name="data")(x)

    assert_trees_close(train(ours), train(theirs), PARALLEL)


def test_a_layer_used_twice_updates_its_statistics_twice():
    class Twice(nn.Module):
        layer: type

        @nn.compact
        def __call__(self, x):
            norm = self.layer(use_running_average=False, momentum=0.5, name="norm")
            return norm(2 * norm(x) + 1)

    x = batches((16, 5))[0]
    variables = Twice(BatchNorm).init(KEY, x)
    ours, theirs = (
        Twice(layer).apply(variables, x, mutable=["batch_stats"])[1]
        for layer in (BatchNorm, nn.BatchNorm)
    )
    assert_trees_close(ours, theirs, CLOSE)


def test_statistics_of_a_layer_used_twice_cannot_be_recalibrated():
    """They would be those of its last call alone."""

    class Twice(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            norm = BatchNorm(use_running_average=not train, name="norm")
            return norm(2 * norm(x) + 1)

    x = batches((16, 5))[0]
    variables = Twice().init(KEY, x, train=False)
    with pytest.raises(ValueError, match="BatchNorm at norm is called twice in a pass"):
        model_moments(Twice(), variables, x, train=True)
    assert model_moments(Twice(), variables, x, train=False) == {}


def test_moments_of_an_earlier_pass_do_not_matter():
    layer = BatchNorm(use_running_average=False)
    x = batches((16, 5))[0]
    variables = layer.init(KEY, x)
    _, updates = layer.apply(variables, x + 1, mutable=["batch_stats", "batch_moments"])
    moments = model_moments(layer, variables | updates, x)
    assert_trees_close(moments, model_moments(layer, variables, x), CLOSE)


@pytest.mark.parametrize("averaging", ["ema_debiased", "cumulative"])
def test_an_average_without_its_count_is_refused(averaging):
    """A new count would begin anew, and the first update discard what was loaded."""
    x = batches((16, 5))[0]
    variables = BatchNorm(use_running_average=False).init(KEY, x)
    layer = BatchNorm(use_running_average=False, averaging=averaging)
    with pytest.raises(ValueError, match=rf"averaging='{averaging}' needs stats\['count'\]"):
        layer.apply(variables, x, mutable=["batch_stats"])
    BatchNorm(use_running_average=True, averaging=averaging).apply(variables, x)


# --- what is ours -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("averaging", "shape"),
    [("ema", (16, 5)), ("ema_debiased", (1, 5)), ("cumulative", (1, 1, 1, 5))],
)
def test_initialization_moves_no_statistics(averaging, shape):
    """It needs neither a batch nor the mapped axis."""
    layer = BatchNorm(use_running_average=False, axis_name="data", averaging=averaging)
    variables = layer.init(KEY, 3 + batches(shape)[0])
    expected = bnjax.init_stats(5, averaging=averaging)
    assert set(variables) == {"params", "batch_stats"}
    jax.tree.map(np.testing.assert_array_equal, variables["batch_stats"], expected)


@pytest.mark.parametrize(
    ("averaging", "running_var"),
    [("ema", "unbiased"), ("ema_debiased", "biased"), ("cumulative", "unbiased")],
)
def test_averages_through_several_applications(averaging, running_var):
    layer = BatchNorm(momentum=0.8, averaging=averaging, running_var=running_var)
    xs = batches((16, 5), 4)
    variables = layer.init(KEY, xs[0], True)
    for x in xs:
        _, _, variables = step(layer, variables, x)
    seen = [reference.forward(x, None, None) for x in xs]
    means = [batch.mean for batch in seen]
    variances = [reference.running_variance(batch, running_var) for batch in seen]
    average = {
        "ema": lambda values, initial: reference.ema(values, initial, 0.8),
        "ema_debiased": lambda values, _: reference.ema_debiased(values, 0.8),
        "cumulative": lambda values, _: np.mean(values, axis=0),
    }[averaging]
    stats = variables["batch_stats"]
    assert_close(stats["mean"], average(means, 0), CLOSE)
    assert_close(stats["var"], average(variances, 1), CLOSE)
    y = layer.apply(variables, xs[0], True)
    expected = reference.population(xs[0], None, None, average(means, 0), average(variances, 1))
    assert_close(y, expected, PARALLEL)


def test_flaxs_default_variance_is_biased():
    """`bnjax.normalize_batch` defaults to the paper's unbiased one; this module to Flax's."""
    x = jnp.array([[0.0], [1.0], [2.0], [5.0]])
    layer = BatchNorm(momentum=0.9)
    _, _, variables = step(layer, init(layer, x), x)
    assert_close(variables["batch_stats"]["var"], [1.25], CLOSE)


@pytest.mark.parametrize("impl", ["fused", "autodiff"])
def test_impl_reaches_the_layer(impl):
    x = batches((16, 5))[0]
    layer = BatchNorm(use_running_average=False, impl=impl)
    variables = layer.init(KEY, x)

    def f(x):
        return layer.apply(variables, x, mutable=["batch_stats"])[0]

    if impl == "autodiff":
        jax.jvp(f, (x,), (x,))
    else:
        with pytest.raises(TypeError, match="custom_vjp"):
            jax.jvp(f, (x,), (x,))


@pytest.mark.parametrize("layer", [BatchNorm, BatchRenorm])
def test_others_see_the_call_alone(layer):
    """Interceptors and captures, as of Flax's layer; what helps the call is no call."""
    x, seen = batches((16, 5))[0], []

    def intercept(next_call, args, kwargs, context):
        seen.append(context.method_name)
        return next_call(*args, **kwargs)

    with nn.intercept_methods(intercept):
        variables = layer(use_running_average=False).init(KEY, x)
        _, found = layer(use_running_average=False).apply(
            variables, x, mutable=["batch_stats"], capture_intermediates=lambda *_: True
        )
        model_moments(layer(use_running_average=False), variables, x)
    assert seen == ["__call__"] * 3
    assert found["intermediates"].keys() == {"__call__"}


def test_inference_changes_nothing():
    x = batches((16, 5))[0]
    layer = BatchNorm(use_running_average=True)
    variables = layer.init(KEY, x)
    _, updates = layer.apply(variables, x, mutable=True)
    jax.tree.map(np.testing.assert_array_equal, updates, dict(variables))
    assert layer.apply(variables, x[:1]).shape == (1, 5)


def test_remat_updates_the_statistics_once():
    class Model(nn.Module):
        layer: type

        @nn.compact
        def __call__(self, x, running):
            return nn.tanh(self.layer(averaging="cumulative", name="norm")(x, running))

    x = batches((16, 5))[0]
    plain, remat = Model(BatchNorm), Model(nn.remat(BatchNorm, static_argnums=2))
    variables = plain.init(KEY, x, False)
    results = [step(model, variables, x) for model in (plain, remat)]
    assert_trees_close(*results, CLOSE)
    jax.tree.map(np.testing.assert_array_equal, *(result[2]["batch_stats"] for result in results))


def test_model_moments_of_one_layer():
    x = batches((16, 5))[0]
    layer = BatchNorm(use_running_average=False)
    variables = layer.init(KEY, x)
    moments = model_moments(layer, variables, x)
    batch = reference.forward(x, None, None)
    assert isinstance(moments, bnjax.Moments)
    assert_close(moments.mean, batch.mean, CLOSE)
    assert_close(moments.var, batch.var, CLOSE)
    np.testing.assert_array_equal(np.broadcast_to(moments.size, (5,)), batch.count)


def test_population_stats_take_the_place_of_counted_ones():
    """They have no count, and inference needs none; training does, and says so."""
    x = batches((16, 5))[0]
    layer = BatchNorm(averaging="ema_debiased")
    variables = layer.init(KEY, x, True)
    stats = bnjax.population_stats(
        lambda batch: model_moments(layer, variables, batch, False), x[None], running_var="biased"
    )
    y = layer.apply(variables | {"batch_stats": stats}, x, True)
    assert_close(y, reference.forward(x, None, None).y, CLOSE)
