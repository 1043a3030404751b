"""The Linen module in the place of Flax's: what Flax's layer accepts and does, call by call.

Values are compared with Flax's at use_fast_variance=False, and with float64.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from flax_layers import CLOSE, KEY, MASKS, complex_inputs, inputs, mask_of, pair
from marks import slow
from tolerances import EXACT, assert_close, assert_trees_close

import bnjax
from bnjax.linen import BatchNorm

# --- initialization ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"axis": 1},
        {"axis_name": "data"},
        {"axis_name": "data", "axis_index_groups": [[0], [1]]},
    ],
)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("running", [False, True])
def test_initialization_normalizes_as_flaxs(settings, masked, running):
    """The batch is what is given, whatever axis is named; nothing moves."""
    x = inputs((6, 4, 5))
    mask = jnp.arange(6)[:, None, None] < 4 if masked else None
    (y, variables), (expected, theirs) = (
        layer.init_with_output(KEY, x, running, mask=mask) for layer in pair(**settings)
    )
    assert_close(y, np.float64(expected), CLOSE)
    jax.tree.map(np.testing.assert_array_equal, variables, theirs)
    if not running:
        axis = settings.get("axis", -1)
        assert_close(y, reference.forward(x, None, None, axis=axis, mask=mask).y, CLOSE)


@pytest.mark.parametrize("batch", ["all", "device", 4])
def test_initialization_takes_the_given_examples_for_the_batch(batch):
    x = inputs((5, 3))
    layer = BatchNorm(use_running_average=False, axis_name="data", batch=batch)
    assert_close(layer.init_with_output(KEY, x)[0], reference.forward(x, None, None).y, CLOSE)


def test_initialization_does_not_repeat_an_update():
    """A layer that is called twice in init sees its own output, which is normalized already."""

    class Twice(nn.Module):
        layer: type

        @nn.compact
        def __call__(self, x):
            norm = self.layer(use_running_average=False, axis_name="data", name="norm")
            y = norm(x)
            return y, norm(y)

    x = inputs((4, 3, 2))
    results = [Twice(layer).init_with_output(KEY, x) for layer in (BatchNorm, nn.BatchNorm)]
    assert_trees_close(results[0], jax.tree.map(np.float64, results[1]), CLOSE)
    (once, twice), _ = results[0]
    assert_close(twice, np.float64(once), {"rtol": 1e-4, "atol": 1e-4})


@pytest.mark.parametrize("shape", [(1, 5), (1, 1, 1, 5), (0, 5)])
def test_initialization_by_one_value_per_feature(shape):
    """Flax's output would be `bias`, whatever `x`: ours is that of the initial statistics."""
    x = 3 + jnp.ones(shape)
    y, variables = BatchNorm(use_running_average=False).init_with_output(KEY, x)
    assert_close(y, reference.population(x, None, None, np.zeros(5), np.ones(5)), CLOSE)
    jax.tree.map(np.testing.assert_array_equal, variables["batch_stats"], bnjax.init_stats(5))


# --- masks ------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", MASKS.values(), ids=MASKS)
def test_masks_broadcast_as_flaxs(shape):
    x, mask = inputs((6, 4, 5)), mask_of(shape)
    ours, theirs = pair()
    variables = theirs.init(KEY, x, False)
    (y, updates), (expected, expected_updates) = (
        layer.apply(variables, x, False, mask=mask, mutable=["batch_stats"])
        for layer in (ours, theirs)
    )
    counted = np.broadcast_to(mask, x.shape).any((0, 1))  # elsewhere Flax's mean is NaN
    assert counted.sum() >= 2
    assert_close(y[..., counted], np.float64(expected[..., counted]), CLOSE)
    assert_close(y, reference.forward(x, None, None, mask=mask).y, CLOSE)
    for key, leaf in updates["batch_stats"].items():
        expected = np.where(counted, expected_updates["batch_stats"][key], key == "var")
        assert_close(leaf, np.float64(expected), CLOSE)


@pytest.mark.parametrize("shape", [(6,), (6, 4), (1, 6, 4, 5)])
def test_masks_that_do_not_broadcast_are_refused(shape):
    x = inputs((6, 4, 5))
    layer = BatchNorm(use_running_average=False)
    with pytest.raises(ValueError, match=r"\(top\): mask of shape .* does not broadcast to x"):
        layer.apply(layer.init(KEY, x), x, mask=jnp.ones(shape, bool), mutable=["batch_stats"])


@pytest.mark.filterwarnings("ignore:jnp.mean. where must be None")  # of Flax 0.11
@pytest.mark.parametrize("as_mask", [jnp.asarray, np.asarray])
def test_masks_of_zeros_and_ones(as_mask):
    x, mask = inputs((6, 5)), as_mask([[1], [1], [0], [1], [1], [0]])
    ours, theirs = pair()
    variables = theirs.init(KEY, x, False)
    results = [
        layer.apply(variables, x, False, mask=mask, mutable=True) for layer in (ours, theirs)
    ]
    assert_trees_close(results[0], jax.tree.map(np.float64, results[1]), CLOSE)
    with pytest.raises(ValueError, match="mask must be bool, got float32"):
        ours.apply(variables, x, False, mask=jnp.ones((6, 1)), mutable=True)


# --- one example of a mapped batch ------------------------------------------------------------


@pytest.mark.parametrize(("shape", "axis"), [slow((5,), -1), ((2, 3), (0, 1))])
@pytest.mark.parametrize("masked", [slow(False), True])
def test_one_example_under_vmap_is_flaxs(shape, axis, masked):
    """Training and evaluation, where the mapped axis alone holds the batch."""
    xs = inputs((6, *shape))
    masks = jnp.ones(xs.shape, bool).at[1:3].set(not masked)
    settings = {"axis": axis, "axis_name": "data", "momentum": 0.5}
    variables = BatchNorm(**settings).init(KEY, xs[0], True)

    def run(layer):
        def each(x, mask):
            y, updates = layer.apply(variables, x, False, mask=mask, mutable=["batch_stats"])
            return y, updates, layer.apply(variables | updates, x, True)

        return jax.vmap(each, axis_name="data")(xs, masks)

    ours, theirs = BatchNorm(**settings), nn.BatchNorm(use_fast_variance=False, **settings)
    (y, updates, evaluated), expected = run(ours), run(theirs)
    features = tuple(range(1, xs.ndim))
    of_float64 = reference.forward(xs, None, None, axis=features, mask=masks)
    assert_close(y, of_float64.y, CLOSE)
    if not masked:  # Flax divides by the number of devices, whatever they have masked
        assert_trees_close((y, updates, evaluated), jax.tree.map(np.float64, expected), CLOSE)
    assert_close(
        updates["batch_stats"]["mean"], np.broadcast_to(of_float64.mean / 2, xs.shape), CLOSE
    )


def test_initialization_by_one_example():
    """Without a mapped axis: normalized by the initial statistics, where Flax's output is zero."""
    x = inputs((5,))
    ours, theirs = (layer.init_with_output(KEY, x, False) for layer in pair(axis_name="data"))
    assert_close(ours[0], reference.population(x[None], None, None, 0, 1)[0], CLOSE)
    jax.tree.map(np.testing.assert_array_equal, ours[1], theirs[1])


def test_one_example_alone_is_no_batch():
    x = inputs((5,))
    layer = BatchNorm(use_running_average=False)
    with pytest.raises(ValueError, match=r"\(top\): .*leaves one value per feature"):
        layer.apply(layer.init(KEY, x), x, mutable=["batch_stats"])


# --- complex numbers --------------------------------------------------------------------------


def complex_moments(x, mask=True):
    """E x and E|x - E x|^2 over all axes but the last, in complex128."""
    x, keep = np.asarray(x, np.complex128), np.broadcast_to(mask, x.shape)
    axes, count = tuple(range(x.ndim - 1)), np.broadcast_to(mask, x.shape).sum((0, 1))
    mean = np.where(keep, x, 0).sum(axes) / count
    return mean, np.where(keep, np.abs(x - mean) ** 2, 0).sum(axes) / count


def assert_complex_close(actual, desired, tolerance=CLOSE):
    for part in ("real", "imag"):
        ours, theirs = (jax.tree.map(lambda a, p=part: getattr(a, p), t) for t in (actual, desired))
        jax.tree.map(lambda a, b: assert_close(a, b, tolerance), ours, theirs)


@pytest.mark.slow
@pytest.mark.parametrize("param_dtype", [jnp.float32, jnp.complex64])
@pytest.mark.parametrize("masked", [False, True])
def test_complex_inputs_are_flaxs(param_dtype, masked, promotion):
    """Output, statistics, evaluation and gradients."""
    x = complex_inputs((6, 4, 5))
    mask = jnp.arange(6)[:, None, None] < 4 if masked else None
    weights = complex_inputs(x.shape)[::-1]
    ours, theirs = pair(momentum=0.5, param_dtype=param_dtype)
    start = theirs.init(KEY, x, False)
    start["params"]["scale"] *= jnp.asarray(
        1 + 2j if param_dtype == jnp.complex64 else 3, param_dtype
    )

    def run(layer):
        def f(params, x):
            y, updates = layer.apply(
                start | {"params": params}, x, False, mask=mask, mutable=["batch_stats"]
            )
            return (weights * y).sum().real, (y, updates)

        grads, (y, updates) = jax.grad(f, argnums=(0, 1), has_aux=True)(start["params"], x)
        return y, updates, grads, layer.apply(start | updates, x, True)

    results, expected = run(ours), run(theirs)
    assert jax.tree.map(lambda a: a.dtype, results) == jax.tree.map(lambda a: a.dtype, expected)
    assert_complex_close(results, expected, {"rtol": 1e-5, "atol": 1e-5})
    mean, var = complex_moments(x, True if mask is None else mask)
    stats = results[1]["batch_stats"]
    assert_complex_close(stats, {"mean": mean / 2, "var": 0.5 + var / 2})
    y = (np.asarray(x, np.complex128) - mean) / np.sqrt(var + 1e-5)
    assert_complex_close(results[0], y * np.asarray(start["params"]["scale"], np.complex128))
    initialized = [layer.init_with_output(KEY, x, False, mask=mask) for layer in (ours, theirs)]
    assert_complex_close(*initialized)


@pytest.mark.slow
def test_complex_inputs_over_devices_and_groups():
    """At an offset, where Flax's E|x|^2 - |E x|^2 is lost; the same numbers on any devices."""
    x = complex_inputs((8, 4, 5)) + (300 - 200j)
    mean, var = complex_moments(x)
    layer = BatchNorm(use_running_average=False, axis_name="data", momentum=0.0, dtype=x.dtype)
    variables = layer.init(KEY, x[0])
    y, updates = jax.vmap(
        lambda x: layer.apply(variables, x, mutable=["batch_stats"]), axis_name="data"
    )(x)
    near = {"rtol": 1e-4, "atol": 1e-4}
    assert_complex_close(y, (np.asarray(x, np.complex128) - mean) / np.sqrt(var + 1e-5), near)
    assert_complex_close(updates["batch_stats"]["mean"][0], mean, near)
    assert_close(updates["batch_stats"]["var"][0], var, near)
    grouped = BatchNorm(use_running_average=False, batch=4, dtype=x.dtype)
    apart = [grouped.apply(variables, part, mutable=["batch_stats"])[0] for part in (x[:4], x[4:])]
    whole = grouped.apply(variables, x, mutable=["batch_stats"])[0]
    assert_complex_close(whole, jnp.concatenate(apart), near)


@pytest.mark.slow
def test_real_inputs_of_a_complex_layer(promotion):
    """Real numbers stay real where no complex number forms it, and none is cut."""
    x = inputs((6, 4, 5))
    layer = BatchNorm()
    start = layer.init(KEY, x, False)
    _, trained = layer.apply(start, complex_inputs(x.shape), False, mutable=["batch_stats"])
    y, again = layer.apply(start | trained, x, False, mutable=["batch_stats"])
    assert y.dtype == jnp.float32
    assert_close(y, reference.forward(x, None, None).y, CLOSE)
    imaginary = np.float64(trained["batch_stats"]["mean"].imag)
    assert_close(again["batch_stats"]["mean"].imag, 0.99 * imaginary, CLOSE)
    with pytest.raises(ValueError, match="dtype must be complex where x, scale, bias or the mean"):
        layer.apply(start | trained, x, True)
    converted = BatchNorm(dtype=jnp.complex64).apply(start | trained, x, True)
    assert converted.dtype == jnp.complex64
    with pytest.raises(ValueError, match="activation must be None for complex x, got 'relu'"):
        BatchNorm(activation="relu").init(KEY, complex_inputs(x.shape), True)


# --- the constructor's arguments --------------------------------------------------------------


@pytest.mark.parametrize("averaging", ["ema", "ema_debiased"])
def test_momentum_may_be_traced(averaging):
    """An argument of the jitted step: one program for every momentum."""
    x = inputs((6, 5))
    variables = BatchNorm(averaging=averaging).init(KEY, x, True)

    @jax.jit
    def train(momentum):
        layer = BatchNorm(momentum=momentum, averaging=averaging)
        return layer.apply(variables, x, False, mutable=["batch_stats"])

    for momentum in (0.0, 0.7):
        known = BatchNorm(momentum=momentum, averaging=averaging)
        expected = known.apply(variables, x, False, mutable=["batch_stats"])
        results = train(jnp.float32(momentum))
        assert_trees_close(results, jax.tree.map(np.float64, expected), CLOSE)
    assert train._cache_size() == 1
    initialized = jax.jit(lambda m: BatchNorm(momentum=m).init(KEY, x, False))(0.7)
    jax.tree.map(np.testing.assert_array_equal, initialized["batch_stats"], bnjax.init_stats(5))


def test_an_axis_named_twice_is_refused():
    with pytest.raises(ValueError, match=r"axis=\(-1, 1\) names an axis twice, for x of rank 2"):
        BatchNorm(axis=(-1, 1)).init(KEY, inputs((6, 5)), False)


# --- narrow statistics ------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_narrow_statistics_move_at_float32(dtype, promotion):
    """Cast by hand, with all else: kept narrow, they stick where an update is below half a unit."""
    xs = [1 + inputs((64, 5), seed=seed) / 8 for seed in range(100)]
    layer = BatchNorm(use_running_average=False, momentum=0.999)
    variables = jax.tree.map(lambda a: a.astype(dtype), layer.init(KEY, xs[0]))
    train = jax.jit(lambda variables, x: layer.apply(variables, x, mutable=["batch_stats"])[1])
    for x in xs:
        variables = variables | train(variables, x)
    stats = variables["batch_stats"]
    assert {leaf.dtype for leaf in jax.tree.leaves(stats)} == {jnp.dtype(jnp.float32)}
    batches = [reference.forward(x, None, None) for x in xs]
    tolerance = {"rtol": 1e-5, "atol": 1e-6}
    mean = reference.ema([batch.mean for batch in batches], np.zeros(5), 0.999)
    assert_close(stats["mean"], mean, tolerance)
    var = reference.ema([batch.var for batch in batches], np.ones(5), 0.999)
    assert_close(stats["var"], var, tolerance)


@pytest.mark.slow
def test_loops_that_carry_narrow_statistics_are_refused(promotion):
    """Refused by Flax's layer as by ours: `lax.scan` carries one dtype. They are widened before."""
    xs = jnp.stack([inputs((6, 5))] * 2)

    class Step(nn.Module):
        layer: type

        @nn.compact
        def __call__(self, carry, x):
            return carry, self.layer(use_running_average=False, dtype=jnp.float32, name="norm")(x)

    for layer in (BatchNorm, nn.BatchNorm):
        scan = nn.scan(Step, variable_broadcast="params", variable_carry="batch_stats")(layer)
        variables = Step(layer).init(KEY, (), xs[0])
        stats = jax.tree.map(lambda a: a.astype(jnp.bfloat16), variables["batch_stats"])
        with pytest.raises(TypeError, match=r"bfloat16.* float32"):
            scan.apply(variables | {"batch_stats": stats}, (), xs, mutable=["batch_stats"])
        scan.apply(variables, (), xs, mutable=["batch_stats"])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["real", "complex"])
def test_float64_outputs_of_float32(kind, x64, promotion):
    """Summed in float64; the statistics stay what they are, where Flax's become float64."""
    x = inputs((6, 5)) if kind == "real" else complex_inputs((6, 5))
    dtype = jnp.float64 if kind == "real" else jnp.complex128
    ours, theirs = pair(momentum=0.0, dtype=dtype)
    start = theirs.init(KEY, x, False)
    wide = np.asarray(x, dtype)
    for layer, stats_dtype in ((ours, jnp.float32), (theirs, jnp.float64)):
        y, moved = layer.apply(start, x, False, mutable=["batch_stats"])
        mean, var = moved["batch_stats"]["mean"], moved["batch_stats"]["var"]
        assert (y.dtype, var.dtype) == (dtype, stats_dtype)
        normalized = (wide - wide.mean(0)) / np.sqrt(wide.var(0) + 1e-5)
        np.testing.assert_allclose(y, normalized, **EXACT)
        y = layer.apply(start | moved, x, True)
        normalized = (wide - np.asarray(mean, dtype)) / np.sqrt(np.float64(var) + 1e-5)
        np.testing.assert_allclose(y, normalized, **EXACT)
