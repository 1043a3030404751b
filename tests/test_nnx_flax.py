"""The NNX module in the place of Flax's: what Flax's layer accepts and does, call by call.

Values are compared with Flax's at use_fast_variance=False, and with float64.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from flax import nnx
from flax_layers import CLOSE, MASKS, complex_inputs, inputs, mask_of
from nnx_views import FLAX_12, pair, stats_of
from tolerances import EXACT, assert_close, assert_trees_close

from bnjax import linen
from bnjax.nnx import BatchNorm

# --- masks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", MASKS.values(), ids=MASKS)
def test_masks_broadcast_as_flaxs(shape):
    x, mask = inputs((6, 4, 5)), mask_of(shape)
    ours, theirs = pair()
    y, expected = ours(x, mask=mask), theirs(x, mask=mask)
    counted = np.broadcast_to(mask, x.shape).any((0, 1))  # elsewhere Flax's mean is NaN
    assert counted.sum() >= 2
    assert_close(y[..., counted], np.float64(expected[..., counted]), CLOSE)
    assert_close(y, reference.forward(x, None, None, mask=mask).y, CLOSE)
    for key in ("mean", "var"):
        expected = np.where(counted, getattr(theirs, key)[...], key == "var")
        assert_close(getattr(ours, key)[...], np.float64(expected), CLOSE)


@pytest.mark.parametrize("shape", [(6,), (6, 4), (1, 6, 4, 5)])
def test_masks_that_do_not_broadcast_are_refused(shape):
    x = inputs((6, 4, 5))
    with pytest.raises(ValueError, match=r"5 features: mask of shape .* does not broadcast to x"):
        pair()[0](x, mask=jnp.ones(shape, bool))


def test_masks_of_zeros_and_ones():
    x, mask = inputs((6, 5)), jnp.asarray([[1], [1], [0], [1], [1], [0]])
    by_integers, by_flags = pair()[0], pair()[0]
    np.testing.assert_array_equal(by_integers(x, mask=mask), by_flags(x, mask=mask == 1))


# --- one example of a mapped batch ------------------------------------------------------------


def test_one_example_under_vmap_is_flaxs():
    """Training, evaluation and the statistics, where the mapped axis alone holds the batch."""
    xs = inputs((6, 5))

    def run(kind, **settings):
        def each(x):
            layer = kind(5, axis_name="data", momentum=0.5, rngs=nnx.Rngs(0), **settings)
            return layer(x), stats_of(layer), layer(x, use_running_average=True)

        return jax.vmap(each, axis_name="data")(xs)

    ours, theirs = run(BatchNorm), run(nnx.BatchNorm, use_fast_variance=False)
    assert_trees_close(ours, jax.tree.map(np.float64, theirs), CLOSE)
    assert_close(ours[0], reference.forward(xs, None, None).y, CLOSE)


def test_one_example_alone_is_no_batch():
    layer = pair()[0]
    with pytest.raises(ValueError, match=r"5 features: .*leaves one value per feature"):
        layer(inputs((5,)))
    y = layer(inputs((5,)), use_running_average=True)
    assert_close(y, reference.population(inputs((1, 5)), None, None, 0, 1)[0], CLOSE)


# --- complex numbers --------------------------------------------------------------------------


@pytest.mark.filterwarnings(
    "ignore:scatter inputs have incompatible types", "ignore:Casting complex"
)
@pytest.mark.parametrize("dtype", [None, jnp.complex64])
def test_complex_inputs_are_flaxs(dtype, promotion):
    """But for the running mean: Flax 0.12 drops its imaginary part, so that inference is wrong."""
    x = complex_inputs((6, 4, 5))
    ours, theirs = pair(momentum=0.0, dtype=dtype)
    y, expected = ours(x), theirs(x)
    assert y.dtype == expected.dtype
    for part in ("real", "imag"):
        assert_close(getattr(y, part), np.float64(getattr(expected, part)), CLOSE)
    wide = np.asarray(x, np.complex128)
    mean, var = wide.mean((0, 1)), wide.var((0, 1))
    evaluated = ours(x, use_running_average=True)
    for part in ("real", "imag"):
        assert_close(getattr(ours.mean[...], part), getattr(mean, part), CLOSE)
        normalized = (wide - mean) / np.sqrt(var + 1e-5)
        assert_close(getattr(evaluated, part), getattr(normalized, part), CLOSE)
    assert_close(ours.var[...], var, CLOSE)
    assert_close(ours.var[...], np.float64(theirs.var[...]), CLOSE)


# --- the constructor's arguments --------------------------------------------------------------


@pytest.mark.skipif(not FLAX_12, reason="Flax 0.11's layer has no promote_dtype")
@pytest.mark.parametrize("settings", [{}, {"use_scale": False}, {"dtype": jnp.bfloat16}])
@pytest.mark.parametrize("running", [False, True])
def test_promotion_of_ones_own_is_called_as_flaxs(settings, running, promotion):
    """Once a call, with the same arguments; its results normalize."""
    calls = []

    def promote(arrays, *, dtype=None):
        calls.append([None if a is None else (a.shape, a.dtype) for a in arrays] + [dtype])
        return tuple(
            None if a is None else a.astype(jnp.bfloat16).astype(jnp.float32) for a in arrays
        )

    ours, theirs = pair(promote_dtype=promote, momentum=0.5, **settings)
    for layer in (ours, theirs):
        layer.mean[...] += 0.123456
    x = inputs((16, 5))
    results = [layer(x, use_running_average=running) for layer in (ours, theirs)]
    assert len(calls) == 2
    assert calls[0] == calls[1]
    assert results[0].dtype == results[1].dtype
    one_rounding = {"rtol": float(jnp.finfo(results[1].dtype).eps), "atol": 2e-6}
    assert_close(results[0], np.float64(results[1]), one_rounding)
    assert_trees_close(stats_of(ours), jax.tree.map(np.float64, stats_of(theirs)), CLOSE)


@pytest.mark.skipif(not FLAX_12, reason="Flax 0.11's layer has no promote_dtype")
def test_promotion_of_ones_own_sets_the_output(promotion):
    """Normalized by `x`, scale and bias as it returns them; the statistics take no part then."""

    def promote(arrays, *, dtype=None):
        x, mean, var, scale, _ = arrays
        return x.astype(jnp.bfloat16), mean, var, scale.astype(jnp.bfloat16), None

    ours, theirs = (layer(inputs((16, 5))) for layer in pair(promote_dtype=promote))
    assert ours.dtype == theirs.dtype == jnp.bfloat16
    assert_close(ours, np.float64(theirs), {"rtol": 2.0**-7, "atol": 2e-6})


def test_promotion_leaves_the_statistics_that_are_kept():
    """The statistics that normalize are rounded; those that the batch then moves are not."""

    def promote(arrays, *, dtype=None):
        return tuple(a.astype(jnp.bfloat16).astype(jnp.float32) for a in arrays)

    layer = BatchNorm(5, promote_dtype=promote, momentum=0.5, rngs=nnx.Rngs(0))
    layer.mean[...] += 0.123456
    x = inputs((16, 5)).astype(jnp.bfloat16).astype(jnp.float32)
    y = layer(x, use_running_average=True, update_statistics=True)
    rounded = np.float64(jnp.bfloat16(0.123456))
    assert_close(y, reference.population(x, None, None, np.full(5, rounded), np.ones(5)), CLOSE)
    expected = reference.ema([reference.forward(x, None, None).mean], 0.123456, 0.5)
    assert_close(layer.mean[...], expected, CLOSE)


@pytest.mark.parametrize("averaging", ["ema", "ema_debiased"])
def test_momentum_may_be_traced(averaging):
    """An argument of a jitted function, to the constructor or the attribute."""
    x = inputs((6, 5))

    @jax.jit
    def construct(momentum, x):
        layer = BatchNorm(5, momentum=momentum, averaging=averaging, rngs=nnx.Rngs(0))
        return layer(x), stats_of(layer)

    @nnx.jit
    def assign(layer, momentum, x):
        before, layer.momentum = layer.momentum, momentum
        y = layer(x)
        layer.momentum = before
        return y, stats_of(layer)

    layer = BatchNorm(5, averaging=averaging, rngs=nnx.Rngs(0))
    known = BatchNorm(5, momentum=0.7, averaging=averaging, rngs=nnx.Rngs(0))
    expected = jax.tree.map(np.float64, (known(x), stats_of(known)))
    assert_trees_close(construct(jnp.float32(0.7), x), expected, CLOSE)
    if FLAX_12:  # 0.11 keeps every array as part of the graph
        assert_trees_close(assign(layer, jnp.float32(0.7), x), expected, CLOSE)
        assert layer.momentum == 0.99


def test_attributes_may_be_set():
    """The same as in any NNX module: the next call obeys."""
    x = inputs((6, 5))
    for layer in pair():
        layer.momentum, layer.epsilon, layer.use_running_average = 0.5, 0.1, False
        y = layer(x)
        batch = reference.forward(x, None, None, epsilon=0.1)
        assert_close(y, batch.y, CLOSE)
        assert_close(layer.mean[...], batch.mean / 2, CLOSE)


# --- narrow statistics ------------------------------------------------------------------------


def narrow(layer, dtype):
    """Casts every variable, as `model.astype` of other libraries does."""
    state = nnx.state(layer)
    graph = nnx.graphdef(layer)
    return nnx.merge(graph, jax.tree.map(lambda a: a.astype(dtype), state))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_statistics_move_at_float32(dtype, promotion):
    """Kept narrow, as Flax 0.12 keeps them, they stick where an update is less than half a unit."""
    xs = [1 + inputs((64, 5), seed=seed) / 8 for seed in range(100)]
    layer = narrow(BatchNorm(5, momentum=0.999, rngs=nnx.Rngs(0)), dtype)
    train = nnx.jit(lambda layer, x: layer(x))
    for x in xs:
        train(layer, x)
    assert jax.tree.leaves(jax.tree.map(lambda a: a.dtype, stats_of(layer))) == [jnp.float32] * 2
    batches = [reference.forward(x, None, None) for x in xs]
    tolerance = {"rtol": 1e-5, "atol": 1e-6}
    mean = reference.ema([batch.mean for batch in batches], np.zeros(5), 0.999)
    assert_close(layer.mean[...], mean, tolerance)
    var = reference.ema([batch.var for batch in batches], np.ones(5), 0.999)
    assert_close(layer.var[...], var, tolerance)


def test_loops_that_carry_narrow_statistics_are_refused():
    """`lax.scan` carries one dtype: they are widened before, as the docstring says."""
    layer = narrow(BatchNorm(5, dtype=jnp.float32, rngs=nnx.Rngs(0)), jnp.bfloat16)

    @nnx.scan(in_axes=(nnx.Carry, 0), out_axes=(nnx.Carry, 0))
    def train(layer, x):
        y = layer(x)
        return layer, y

    xs = jnp.stack([inputs((6, 5))] * 2)
    with pytest.raises(TypeError, match=r"bfloat16.* float32"):
        train(layer, xs)
    train(narrow(layer, jnp.float32), xs)


# --- variables of other kinds -----------------------------------------------------------------


@pytest.mark.skipif(not FLAX_12, reason="Flax 0.12 has kinds of variables")
def test_variables_that_change_in_place():
    """References, under plain `jax.jit`."""
    x = inputs((6, 5))
    with nnx.var_defaults(ref=True):
        layer = BatchNorm(5, momentum=0.5, rngs=nnx.Rngs(0))
    y = jax.jit(lambda layer, x: layer(x))(layer, x)
    batch = reference.forward(x, None, None)
    assert_close(y, batch.y, CLOSE)
    assert_close(layer.mean[...], batch.mean / 2, CLOSE)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float16])
@pytest.mark.parametrize("param_dtype", [jnp.float32, jnp.float16])
@pytest.mark.parametrize("masked", [False, True])
def test_both_adapters_agree(dtype, param_dtype, masked, promotion):
    """Equal to the bit, with a mask of features too."""
    x = inputs((10, 5))
    mask = np.array([True, False, True, False, True]) if masked else None
    settings = {"dtype": dtype, "param_dtype": param_dtype}
    layer = BatchNorm(5, rngs=nnx.Rngs(0), **settings)
    other = linen.BatchNorm(use_running_average=False, **settings)
    expected, _ = other.apply(
        other.init(jax.random.key(0), x), x, mask=mask, mutable=["batch_stats"]
    )
    y = layer(x, mask=mask)
    assert y.dtype == expected.dtype == dtype
    np.testing.assert_array_equal(y, expected)
    assert np.isfinite(y).all()


def test_float64_outputs_of_float32(x64, promotion):
    """Summed in float64, as Flax's; the statistics stay float32."""
    x, (layer, _) = inputs((6, 5)), pair(dtype=jnp.float64)
    normalized = (np.float64(x) - np.float64(x).mean(0)) / np.sqrt(np.float64(x).var(0) + 1e-5)
    np.testing.assert_allclose(layer(x, use_running_average=False), normalized, **EXACT)
    mean, var = np.float64(layer.mean[...]), np.float64(layer.var[...])
    normalized = (np.float64(x) - mean) / np.sqrt(var + 1e-5)
    np.testing.assert_allclose(layer(x, use_running_average=True), normalized, **EXACT)
    assert layer.mean[...].dtype == layer.var[...].dtype == jnp.float32
