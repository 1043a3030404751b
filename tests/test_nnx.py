"""The NNX module: the numbers of ours for Linen, to the bit, and the state and signature of Flax's.

Flax is compared with at use_fast_variance=False, near zero, and with finite masks on one device:
elsewhere it is known to be wrong, and `tests/normalization` compares with float64.
"""

import dataclasses
import inspect
import itertools
import typing
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from flax import nnx
from flax_layers import CLOSE, GRADIENTS, batches, weights
from marks import slow
from nnx_views import FLAX_12, pair, pure, stats_of, view
from tolerances import assert_close, assert_trees_close, assert_trees_equal

import bnjax
from bnjax import linen
from bnjax.nnx import BatchNorm, BatchRenorm
from bnjax.normalization.settings import OwnFields, OwnKeywords

METADATA = {"bias_metadata": {"tag": "b"}, "scale_metadata": {"tag": "s"}}

SETTINGS = {
    "default": ((16, 5), 5, {}),
    "small batch": ((3, 5), 5, {"momentum": 0.5}),
    "convolution": ((4, 3, 2, 5), 5, {"momentum": 0.9, "epsilon": 1e-3}),
    "channels first": ((4, 5, 3, 2), 5, {"axis": 1}),
    "no scale": ((16, 5), 5, {"use_scale": False}),
    "neither": ((16, 5), 5, {"use_scale": False, "use_bias": False}),
}


@nnx.jit
def step(layer, x, mask=None):
    """Output and gradients through random weights; moves the statistics of `layer`."""

    def f(layer, x):
        y = layer(x, mask=mask)
        return jnp.sum(weights(x) * y.astype(jnp.float32)), y

    (params, dx), y = nnx.grad(f, argnums=(0, 1), has_aux=True)(layer, x)
    return y, (pure(params), dx)


@partial(jax.jit, static_argnums=0)
def linen_step(layer, variables, x, mask=None):
    def f(params, x):
        y, updates = layer.apply(
            variables | {"params": params}, x, mask=mask, mutable=["batch_stats"]
        )
        return jnp.sum(weights(x) * y.astype(jnp.float32)), (y, updates)

    grads, (y, updates) = jax.grad(f, argnums=(0, 1), has_aux=True)(variables["params"], x)
    return y, grads, variables | updates


# --- the same names, states and shapes --------------------------------------------------------


def test_signatures_are_flaxs_and_more():
    """Names, kinds and defaults of the constructor; names of the call and of the view."""
    ours, theirs = (
        list(inspect.signature(layer.__init__).parameters.values())
        for layer in (BatchNorm, nnx.BatchNorm)
    )
    if not FLAX_12:
        ours = [p for p in ours if p.name not in ("promote_dtype", *METADATA)]
    for a, b in zip(ours, theirs, strict=False):
        assert (a.name, a.kind, a.default) == (b.name, b.kind, b.default)
    (own,) = ours[len(theirs) :]
    assert own.kind is own.VAR_KEYWORD
    assert typing.get_type_hints(OwnKeywords) == typing.get_type_hints(OwnFields)
    assert {field.name: field.default for field in dataclasses.fields(BatchNorm)} == {
        "averaging": "ema",
        "running_var": "biased",
        "impl": "fused",
        "activation": None,
        "batch": "all",
        "update_statistics": None,
    }
    for method in ("__call__", "set_view")[: 1 + FLAX_12]:
        ours, theirs = (
            [p.replace(annotation=p.empty) for p in inspect.signature(f).parameters.values()]
            for f in (getattr(BatchNorm, method), getattr(nnx.BatchNorm, method))
        )
        assert ours[: len(theirs)] == theirs
        assert [p.name for p in ours[len(theirs) :]] == ["update_statistics"]


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("param_dtype", [jnp.float32, jnp.bfloat16])
def test_state_is_flaxs(setting, param_dtype):
    """Paths, variable types, metadata, shapes and dtypes; and the attributes that models read."""
    _, features, settings = SETTINGS[setting]
    metadata = METADATA if FLAX_12 else {}
    ours, theirs = pair(features, param_dtype=param_dtype, **metadata, **settings)

    def described(layer):
        return {
            path: (type(v), v.get_metadata(), v[...].shape, v[...].dtype)
            for path, v in nnx.to_flat_state(nnx.state(layer))
        }

    assert described(ours) == described(theirs)
    assert set(vars(theirs)) - {"bias_init", "scale_init"} <= set(vars(ours))


def test_initial_values_are_flaxs():
    """The same draws, and the same number of them: the layer after this one starts equal too."""
    initializers = {
        "scale_init": nnx.initializers.normal(1.0),
        "bias_init": nnx.initializers.uniform(2.0),
    }
    states = []
    for layer in (BatchNorm, nnx.BatchNorm):
        rngs = nnx.Rngs(3)
        state = pure(nnx.state(layer(5, rngs=rngs, **initializers)))
        states.append((state, jax.random.key_data(rngs.params())))
    assert_trees_equal(*states)


def test_checkpoints_move_both_ways():
    x = batches((16, 5))[0]
    for index in (0, 1):
        layers = pair(momentum=0.5)
        source, target = layers[index], layers[1 - index]
        step(source, x)
        source.scale[...] = jnp.arange(5.0)
        nnx.update(target, nnx.state(source))
        assert_trees_equal(pure(nnx.state(target)), pure(nnx.state(source)))
        assert_trees_close(target(x, True), source(x, True), CLOSE)


def test_states_with_a_count_differ():
    """A checkpoint of Flax's has none to give; leaving it out is an error, not a silent zero."""
    ours, theirs = BatchNorm(5, averaging="cumulative", rngs=nnx.Rngs(0)), pair()[1]
    assert set(stats_of(ours)) == {"mean", "var", "count"}
    with pytest.raises(ValueError, match="count"):
        nnx.replace_by_pure_dict(nnx.state(theirs), pure(nnx.state(ours)))


# --- the same numbers -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "dtype", "settings"),
    [
        slow((16, 5), "float32", {}),
        slow((16, 5), "float32", {"impl": "autodiff", "averaging": "cumulative"}),
        ((4, 3, 2, 5), "float32", {"running_var": "unbiased", "averaging": "ema_debiased"}),
        slow((4, 5, 3), "float32", {"axis": 1, "activation": "relu", "momentum": 0.9}),
        slow((8, 2, 3, 2), "float32", {"axis": (1, 2, 3), "use_bias": False}),
        ((16, 5), "float32", {"batch": 4, "activation": "sigmoid", "epsilon": 1e-2}),
        slow((16, 5), "bfloat16", {"dtype": jnp.bfloat16, "activation": "relu"}),
        slow((16, 5), "bfloat16", {"dtype": jnp.float32, "param_dtype": jnp.bfloat16}),
    ],
)
def test_numbers_are_those_of_our_linen_layer(shape, dtype, settings):
    """Bitwise: every setting reaches the same function."""
    axes = settings.get("axis", -1)
    features = shape[axes] if isinstance(axes, int) else tuple(shape[a] for a in axes)
    ours = BatchNorm(features, rngs=nnx.Rngs(0), **settings)
    theirs = linen.BatchNorm(use_running_average=False, **settings)
    xs = batches(shape, dtype=dtype)
    mask = jnp.asarray(np.random.default_rng(1).random((shape[0],) + (1,) * len(shape[1:])) < 0.8)
    variables = theirs.init(jax.random.key(0), xs[0])
    for x, flags in zip(xs, [None, mask, None], strict=True):
        y, (params, dx) = step(ours, x, flags)
        expected, (expected_params, expected_dx), variables = linen_step(
            theirs, variables, x, flags
        )
        assert_trees_equal((y, params, dx), (expected, expected_params, expected_dx))
        assert_trees_equal(stats_of(ours), variables["batch_stats"])
    ours.eval()
    running = linen.BatchNorm(use_running_average=True, **settings)
    expected = jax.jit(running.apply)(variables, xs[0])
    assert_trees_equal(nnx.jit(lambda layer, x: layer(x))(ours, xs[0]), expected)
    assert np.abs(stats_of(ours)["mean"]).max() > 0.01


@pytest.mark.parametrize("setting", SETTINGS)
def test_training_and_inference_are_flaxs(setting):
    """Output, gradients and statistics over three steps, then inference."""
    shape, features, settings = SETTINGS[setting]
    ours, theirs = pair(features, **settings)
    for x in batches(shape):
        (y, grads), (expected, expected_grads) = step(ours, x), step(theirs, x)
        assert_trees_close(y, expected, CLOSE)
        assert_trees_close(grads, expected_grads, GRADIENTS)
    assert_trees_close(stats_of(ours), stats_of(theirs), CLOSE)
    ours.eval()
    theirs.eval()
    assert_trees_close(ours(x[:1]), theirs(x[:1]), CLOSE)


@pytest.mark.parametrize("mask_shape", [(16, 1), (16, 5)])
def test_finite_masks_are_flaxs(mask_shape):
    x = batches((16, 5))[0]
    mask = jnp.asarray(np.random.default_rng(0).random(mask_shape) < 0.6)
    ours, theirs = pair()
    (y, grads), (expected, expected_grads) = step(ours, x, mask), step(theirs, x, mask)
    assert_trees_close(y, expected, CLOSE)
    assert_trees_close(grads, expected_grads, GRADIENTS)
    assert_trees_close(stats_of(ours), stats_of(theirs), CLOSE)


@pytest.mark.parametrize(
    ("x_dtype", "param_dtype", "dtype", "parameters"),
    [
        *itertools.product([jnp.bfloat16], [jnp.float32, jnp.bfloat16], [None], [True]),
        (jnp.bfloat16, jnp.float32, None, False),
        (jnp.float32, jnp.bfloat16, None, True),
        (jnp.bfloat16, jnp.bfloat16, jnp.bfloat16, True),
        (jnp.float32, jnp.float32, jnp.float16, True),
    ],
)
def test_dtypes_are_flaxs(x_dtype, param_dtype, dtype, parameters, promotion):
    """Without `dtype`, float32 statistics widen the output: as in Flax 0.12, unlike in Linen."""
    layers = pair(dtype=dtype, param_dtype=param_dtype, use_scale=parameters, use_bias=parameters)
    x = batches((16, 5), 1, x_dtype)[0]
    (y, evaluated), (expected, expected_evaluated) = (
        (layer(x), layer(x, True)) for layer in layers
    )
    if FLAX_12 or (parameters and param_dtype == jnp.float32):
        assert (y.dtype, evaluated.dtype) == (expected.dtype, expected_evaluated.dtype)
    else:
        assert y.dtype == evaluated.dtype == (dtype or jnp.float32)
    ours, theirs = (jax.tree.map(lambda a: a.dtype, stats_of(layer)) for layer in layers)
    assert ours == theirs
    narrow = expected.dtype != y.dtype or dtype == jnp.float16
    rounding = {"rtol": 2 * float(jnp.finfo(expected.dtype).eps), "atol": 2e-3}
    assert_close(y, np.float64(expected), rounding if narrow else rounding | CLOSE)


def test_a_narrow_dtype_rounds_the_output_alone():
    """Flax rounds the running mean to bfloat16 first, and is off by 0.3 here."""
    layer = BatchNorm(5, dtype=jnp.bfloat16, use_running_average=True, rngs=nnx.Rngs(0))
    layer.mean[...] = jnp.full(5, 100.3)
    x = jnp.asarray(100.3 + batches((16, 5))[0], jnp.float32)
    expected = reference.population(x, None, None, np.full(5, 100.3), np.ones(5))
    assert_close(layer(x), expected, {"rtol": 2.0**-8, "atol": 2e-5})


# --- modes and switches -----------------------------------------------------------------------


def test_modes():
    """`train()`, `eval()`, views and the call, which wins."""
    x = batches((16, 5))[0]
    layer = BatchNorm(5, use_running_average=None, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"5 features: use_running_average is None: give it"):
        layer(x)
    before = stats_of(layer)
    layer.eval()
    running = layer(x)
    assert_trees_equal(view(layer, use_running_average=True)(x), running)
    assert_trees_equal(stats_of(layer), before)
    layer.train()
    normalized = layer(x)
    assert_close(normalized, reference.forward(x, None, None).y, CLOSE)
    assert np.abs(stats_of(layer)["mean"] - before["mean"]).max() > 1e-4
    after = stats_of(layer)
    layer(x, use_running_average=True)
    assert_trees_equal(stats_of(layer), after)
    layer.eval()
    assert_trees_equal(layer(x, use_running_average=False), normalized)


def test_statistics_can_stay_while_the_batch_normalizes():
    x = batches((16, 5))[0]
    moved, kept = BatchNorm(5, rngs=nnx.Rngs(0)), BatchNorm(5, rngs=nnx.Rngs(0))
    before = stats_of(kept)
    expected, grads = step(moved, x)
    frozen = view(kept, update_statistics=False)
    assert_trees_equal(step(frozen, x), (expected, grads))
    assert_trees_equal(kept(x, update_statistics=False), moved(x))
    assert_trees_equal(stats_of(kept), before)
    kept(x)
    assert np.abs(stats_of(kept)["mean"] - before["mean"]).max() > 1e-4


def test_statistics_can_move_while_they_normalize():
    """The output and the gradients of inference, and the update of training."""
    x = batches((16, 5))[1]
    trained = BatchNorm(5, momentum=0.7, rngs=nnx.Rngs(0))
    both = BatchNorm(5, momentum=0.7, rngs=nnx.Rngs(0))
    inference = BatchNorm(5, use_running_average=True, rngs=nnx.Rngs(0))
    both.eval(update_statistics=True)
    assert_trees_close(step(both, x), step(inference, x), CLOSE)
    step(trained, x)
    assert_trees_close(stats_of(both), stats_of(trained), CLOSE)


# --- errors -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "shape", "message"),
    [
        ({}, (1, 5), r"one value per feature.*statistics: use_running_average=True.*eval\(\)"),
        ({}, (16, 4), r"shape \(5,\), but x has features of shape \(4,\): .*num_features"),
        ({}, (4, 5, 3, 2), r"features of shape \(2,\): set axis \(for NCHW, axis=1\)"),
        ({"axis": 7}, (16, 5), "axis=7 does not name"),
        ({"epsilon": 0.0}, (16, 5), "epsilon must be > 0"),
        ({"dtype": jnp.int32}, (16, 5), "dtype must be floating, got int32"),
    ],
)
def test_errors_name_the_layer(settings, shape, message):
    layer = BatchNorm(5, rngs=nnx.Rngs(0), **settings)
    with pytest.raises(ValueError, match=rf"BatchNorm of 5 features: .*{message}"):
        layer(jnp.ones(shape))


def test_an_axis_that_nothing_maps():
    layer, x = BatchNorm(5, axis_name="data", rngs=nnx.Rngs(0)), jnp.ones((4, 5))
    layer(x, use_running_average=True)
    for call in (layer, nnx.jit(lambda layer, x: layer(x))):
        arguments = (x,) if call is layer else (layer, x)
        with pytest.raises(NameError, match="BatchNorm of 5 features: axis_name='data' is not map"):
            call(*arguments)


@pytest.mark.parametrize("layer", [BatchNorm, BatchRenorm])
@pytest.mark.parametrize(
    ("keyword", "hint"),
    [("gamma", r"\.$"), ("eps", ": did you mean epsilon"), ("runing_var", ": .* running_var")],
)
def test_an_unknown_keyword_is_refused(layer, keyword, hint):
    said = rf"^{layer.__name__}\.__init__\(\) got an unexpected keyword argument '{keyword}'{hint}"
    with pytest.raises(TypeError, match=said):
        layer(5, rngs=nnx.Rngs(0), **{keyword: 1})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"momentum": 1.0}, r"^momentum must be in \[0, 1\), got 1.0(?!.*decay)"),
        ({"momentum": "0.9"}, "^momentum must be a number, got '0.9'"),
        ({"num_features": 5.0}, "^num_features must be an integer or several, got 5.0"),
        ({"num_features": -1}, "^num_features must not be negative, got -1"),
        ({"averaging": "mean"}, "averaging must be one of"),
        ({"running_var": "sample"}, "running_var must be one of"),
        ({"impl": "fast"}, "impl must be one of"),
        ({"activation": "tanh"}, "activation must be one of"),
        ({"batch": 0}, "batch must be 'all', 'device' or"),
        ({"dtype": "floaty"}, "dtype must be floating, got 'floaty', which is no type"),
        ({"param_dtype": 5}, "param_dtype must be floating, got 5, which is no type"),
        ({"axis_index_groups": [0, 1]}, "axis_index_groups must be groups of numbers of devices"),
    ],
)
def test_the_constructor_refuses(settings, message):
    with pytest.raises(ValueError, match=message):
        BatchNorm(**{"num_features": 5, "rngs": nnx.Rngs(0)} | settings)


def test_integers_and_masks_of_another_kind_are_refused(promotion):
    layer = BatchNorm(5, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="x must be floating, got int32"):
        layer(jnp.ones((4, 5), jnp.int32))
    with pytest.raises(ValueError, match="mask must be bool, got float32"):
        layer(jnp.ones((4, 5)), mask=jnp.ones((4, 1)))


@pytest.mark.parametrize("x", [[[1.0]], {"image": jnp.ones((4, 5))}, "x", 1.0, None], ids=str)
@pytest.mark.parametrize("layer", [BatchNorm, BatchRenorm])
def test_what_is_no_array_is_refused(layer, x):
    said = rf"{layer.__name__} of 5 features: x must be an array, got {type(x).__name__}"
    with pytest.raises(ValueError, match=said):
        layer(5, rngs=nnx.Rngs(0))(x)


def test_statistics_from_algorithm_2():
    """`averaging="cumulative"` in a frozen network is the paper's population estimate."""
    layer = BatchNorm(5, averaging="cumulative", running_var="unbiased", rngs=nnx.Rngs(0))
    xs = batches((6, 5), 4)
    for x in xs:
        layer(x)
    expected = reference.algorithm_2(xs)
    assert_close(layer.mean[...], expected["mean"], CLOSE)
    assert_close(layer.var[...], expected["var"], CLOSE)
    assert bnjax.init_stats(5, averaging="cumulative").keys() == stats_of(layer).keys()
