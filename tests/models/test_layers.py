"""What the models share: normalization before the nonlinearity, subsampling, dropout."""

import inspect
from functools import partial

import flax.linen as nn
import inception_reference
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from bnjax.linen import BatchNorm
from bnjax.models import InceptionV3, scaled_tanh
from bnjax.models.layers import (
    ConvNorm,
    DenseNorm,
    Dropout,
    NormActivation,
    Subsample,
    local_response_normalization,
    scaled,
)

EXACT = {"rtol": 1e-12, "atol": 1e-12}


def test_scaled_tanh_by_hand():
    x = jnp.array([0.0, 1.0, -1.0, 30.0])
    expected = [0, 1.7159 * np.tanh(2 / 3), -1.7159 * np.tanh(2 / 3), 1.7159]
    np.testing.assert_allclose(scaled_tanh(x), expected, rtol=1e-6)
    np.testing.assert_allclose(scaled_tanh(jnp.float32(1)), 1.0, rtol=1e-4)  # LeCun: f(1) = 1


def test_subsample_by_hand():
    """The sum of each window, not its mean; one coefficient and one bias for each map."""
    x = jnp.arange(32, dtype=jnp.float32).reshape(1, 4, 4, 2)
    params = {"coefficient": jnp.array([0.5, -2.0]), "bias": jnp.array([1.0, 10.0])}
    y = Subsample().apply({"params": params}, x)
    assert y.shape == (1, 2, 2, 2)
    # map 0, top left: pixels 0, 2, 8, 10; map 1, bottom right: pixels 21, 23, 29, 31
    assert y[0, 0, 0, 0] == 0.5 * (0 + 2 + 8 + 10) + 1
    assert y[0, 1, 1, 1] == -2 * (21 + 23 + 29 + 31) + 10


def test_subsample_begins_as_an_average():
    x = jax.random.normal(jax.random.key(0), (2, 4, 6, 3))
    y, variables = jax.jit(Subsample().init_with_output)(jax.random.key(0), x)
    assert {key: leaf.shape for key, leaf in variables["params"].items()} == {
        "coefficient": (3,),
        "bias": (3,),
    }
    means = x.reshape(2, 2, 2, 3, 2, 3).mean((2, 4))
    np.testing.assert_allclose(y, means, rtol=1e-6, atol=1e-6)


def test_preactivation_is_the_input_of_the_nonlinearity():
    """Red if it is kept before the normalization."""
    x = 3 + jax.random.normal(jax.random.key(0), (6, 4))
    layer = NormActivation(BatchNorm, jnp.tanh)
    variables = layer.init(jax.random.key(0), x, train=False)
    y, kept = layer.apply(variables, x, train=True, mutable=["batch_stats", "intermediates"])
    (seen,) = kept["intermediates"]["preactivation"]
    np.testing.assert_array_equal(y, jnp.tanh(seen))
    seen = np.asarray(seen)
    np.testing.assert_allclose(seen.mean(0), np.zeros(4), atol=1e-6)
    np.testing.assert_allclose(seen.var(0), np.ones(4), atol=1e-4)


def test_nothing_is_kept_unless_asked_for():
    layer = NormActivation(BatchNorm, jnp.tanh)
    variables = layer.init(jax.random.key(0), jnp.zeros((2, 4)), train=False)
    _, updates = jax.eval_shape(
        lambda x: layer.apply(variables, x, train=True, mutable=["batch_stats"]), jnp.ones((2, 4))
    )
    assert set(updates) == {"batch_stats"}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("options", [{}, {"size": 3, "alpha": 2.0, "beta": 0.5, "k": 2.0}], ids=str)
@pytest.mark.parametrize("channels", [1, 4, 9])
def test_local_response_normalization_against_float64(options, channels):
    """Red if alpha is not divided by the size, or the window is not centred."""
    x = 10 * np.random.default_rng(0).normal(size=(2, 3, channels))
    y = local_response_normalization(jnp.asarray(x), **options)
    expected = inception_reference.local_response_normalization(x, **options)
    np.testing.assert_allclose(y, expected, **EXACT)
    assert abs(x / expected - 1).max() > 1e-4  # it is no identity


def test_local_response_normalization_by_hand():
    x = jnp.array([[3.0, 4.0, 0.0]])
    y = local_response_normalization(x, size=3, alpha=3.0, beta=1.0, k=0.0)
    np.testing.assert_allclose(y, [[3 / 25, 4 / 25, 0]], rtol=1e-6)


def test_local_response_normalization_of_bfloat16_sums_in_float32():
    """Red if the sum is bfloat16: beside k = 1, it is lost."""
    x = jnp.full((1, 8), 6.15625, jnp.bfloat16)
    y = local_response_normalization(x)
    assert y.dtype == jnp.bfloat16
    expected = inception_reference.local_response_normalization(np.full((1, 8), 6.15625))
    half = 2**-6  # of a step of bfloat16 from 4 to 8
    assert abs(expected - 6.15625).max() > half
    np.testing.assert_allclose(y.astype(jnp.float32), expected, rtol=0, atol=half)


def make_variables(layer, x):
    rng = np.random.default_rng(0)
    abstract = jax.eval_shape(lambda: layer.init(jax.random.key(0), x, train=False))
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.uniform(0.5, 1.5, leaf.shape), leaf.dtype), abstract
    )


@pytest.mark.parametrize("norm", [None, BatchNorm], ids=["plain", "norm"])
@pytest.mark.parametrize("multiplier", [0, 2], ids=["dense", "separable"])
@pytest.mark.parametrize("padding", ["SAME", "SYMMETRIC", "VALID"])
def test_conv_norm_by_the_reference(norm, multiplier, padding):
    """A kernel and an image that are not square, stride 2, where the paddings differ."""
    x = jnp.asarray(np.random.default_rng(1).normal(size=(3, 8, 9, 2)), jnp.float32)
    layer = ConvNorm(5, (3, 5), 2, padding, depth_multiplier=multiplier, norm=norm)
    variables = make_variables(layer, x)
    params = variables["params"]
    assert set(params) == {"conv"} | ({"norm"} if norm else set()) | (
        {"depthwise"} if multiplier else set()
    )
    assert set(params["conv"]) == {"kernel"} | (set() if norm else {"bias"})

    y, kept = jax.jit(partial(layer.apply, train=False, mutable=["intermediates"]))(variables, x)
    expected, strides, at = np.asarray(x, np.float64), 2, padding
    if multiplier:
        kernel = np.asarray(params["depthwise"]["kernel"])
        assert kernel.shape == (3, 5, 1, 4)
        expected = inception_reference.depthwise(expected, kernel, 2, padding)
        strides, at = 1, "SAME"
    kernel = np.asarray(params["conv"]["kernel"])
    expected = inception_reference.convolve(expected, kernel, strides, at)
    if norm:
        stats = variables["batch_stats"]["norm"]
        expected = (expected - np.asarray(stats["mean"])) / np.sqrt(stats["var"] + 1e-5)
        expected = expected * np.asarray(params["norm"]["scale"]) + np.asarray(
            params["norm"]["bias"]
        )
    else:
        expected = expected + np.asarray(params["conv"]["bias"])
    np.testing.assert_allclose(y, np.maximum(expected, 0), rtol=1e-4, atol=1e-4)
    (seen,) = kept["intermediates"]["preactivation"]
    np.testing.assert_allclose(seen, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("norm", [None, BatchNorm], ids=["plain", "norm"])
def test_dense_norm_is_dense_then_norm_then_activation(norm):
    x = jnp.asarray(np.random.default_rng(1).normal(size=(6, 3)), jnp.float32)
    layer = DenseNorm(8, norm=norm, activation=jnp.tanh, width=0.5)
    variables = make_variables(layer, x)
    assert set(variables["params"]["dense"]) == {"kernel"} | (set() if norm else {"bias"})
    y, _ = jax.jit(partial(layer.apply, train=True, mutable=["batch_stats"]))(variables, x)
    expected = np.asarray(x, np.float64) @ np.asarray(variables["params"]["dense"]["kernel"])
    assert expected.shape == (6, 4)
    if norm:
        expected = (expected - expected.mean(0)) / np.sqrt(expected.var(0) + 1e-5)
        params = variables["params"]["norm"]
        expected = expected * np.asarray(params["scale"]) + np.asarray(params["bias"])
    else:
        expected = expected + np.asarray(variables["params"]["dense"]["bias"])
    np.testing.assert_allclose(y, np.tanh(expected), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("features", "width", "expected"),
    [(64, 0.25, 16), (10, 0.25, 3), (96, 1.0, 96), (16, 1 / 32, 1), (8, 0.01, 1), (3, 1.5, 5)],
)
def test_scaled_rounds_half_up_and_leaves_a_channel(features, width, expected):
    assert scaled(features, width) == expected


@pytest.mark.parametrize("activation", [nn.relu, nn.sigmoid])
def test_our_normalization_applies_the_activation_itself(activation):
    """The same numbers as one after the other; fewer bytes between the passes.

    Red if it is applied twice or not at all, or if watching the preactivation changes the output.
    """
    x = jax.random.normal(jax.random.key(0), (8, 6, 6, 5))
    weights = jax.random.normal(jax.random.key(1), x.shape)

    def run(activation):
        layer = NormActivation(norm=BatchNorm, activation=activation)
        variables = layer.init(jax.random.key(2), x, train=False)

        def outcome(x):
            y, new = layer.apply(variables, x, train=True, mutable=["batch_stats"])
            return jnp.sum(weights * y), (y, new)

        (_, (y, new)), dx = jax.jit(jax.value_and_grad(outcome, has_aux=True))(x)
        kept = jax.eval_shape(lambda x: jax.vjp(lambda x: outcome(x)[0], x)[1], x)
        size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(kept))
        watch = partial(layer.apply, train=True, mutable=["batch_stats", "intermediates"])
        return (y, new, dx), size, jax.jit(watch)(variables, x)

    together, size, (y, new) = run(activation)
    apart, more, _ = run(lambda x: activation(x))
    for one, other in zip(jax.tree.leaves(together), jax.tree.leaves(apart), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    assert size < more
    np.testing.assert_allclose(y, together[0], rtol=1e-6, atol=1e-6)
    (preactivation,) = new["intermediates"]["preactivation"]
    np.testing.assert_allclose(activation(preactivation), y, rtol=1e-6, atol=1e-6)


def test_dropout_drops_the_fraction_and_scales_the_rest():
    """Of 4,000 values 0.7 within four standard deviations; without training, or at rate 0, none."""
    x = jnp.asarray(np.random.default_rng(0).uniform(1, 2, (40, 100)), jnp.float32)
    rngs = {"dropout": jax.random.key(0)}
    y = np.asarray(Dropout(0.7).apply({}, x, train=True, rngs=rngs))
    dropped = y == 0
    assert abs(dropped.mean() - 0.7) < 4 * np.sqrt(0.7 * 0.3 / x.size)
    np.testing.assert_allclose(y[~dropped], np.asarray(x)[~dropped] / 0.3, rtol=1e-6)
    np.testing.assert_array_equal(Dropout(0.7).apply({}, x, train=False), x)
    np.testing.assert_array_equal(Dropout(0.0).apply({}, x, train=True), x)


@pytest.mark.parametrize("rate", [1.0, -0.5, float("nan")])
def test_a_rate_out_of_range_is_refused(rate):
    """1.0 gave gradients of NaN, and -0.5 scaled."""
    with pytest.raises(ValueError, match=rf"rate must be in \[0, 1\), got {rate}"):
        Dropout(rate)


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_dropout_on_a_mesh_is_dropout_on_one_device(kind):
    """Seen red on the explicit mesh, where what is drawn was not divided as the input is."""

    def drop(x):
        return Dropout(0.5).apply({}, x, train=True, rngs={"dropout": jax.random.key(1)})

    x = jnp.arange(1.0, 129.0).reshape(8, 16)
    mesh = jax.make_mesh((8,), ("data",), (kind,))
    with jax.set_mesh(mesh):
        divided = jax.device_put(x, jax.NamedSharding(mesh, jax.P("data")))
        got = jax.jit(drop)(divided)
        slope = jax.jit(jax.grad(lambda x: jnp.sum(jnp.square(drop(x)))))(divided)
    assert got.sharding.is_equivalent_to(divided.sharding, got.ndim)
    np.testing.assert_array_equal(got, drop(x))
    np.testing.assert_allclose(slope, 4 * np.asarray(drop(x)), rtol=1e-6)


def test_dropout_on_eight_devices_is_dropout_on_one():
    """Each takes its own rows of the same mask: red if all of them draw the first rows'."""
    x = jnp.asarray(np.random.default_rng(0).uniform(1, 2, (8, 3, 20)), jnp.float32)

    def apply(axis_name, x):
        return Dropout(0.5, axis_name).apply({}, x, train=True, rngs={"dropout": jax.random.key(1)})

    together = apply(None, x.reshape(24, 20))
    apart = jax.pmap(partial(apply, "devices"), axis_name="devices")(x)
    np.testing.assert_array_equal(apart.reshape(24, 20), together)


def test_helpers_are_no_calls():
    """Interceptors and captures see what is no `nn.nowrap`: as a layer of Flax, its call alone."""

    def below(module):
        return [module, *(each for child in module.__subclasses__() for each in below(child))]

    modules = [each for each in below(nn.Module) if each.__module__.startswith("bnjax.")]
    assert {NormActivation, BatchNorm, InceptionV3} <= {*modules}
    seen = [
        f"{module.__name__}.{name}"
        for module in modules
        for name, value in vars(module).items()
        if inspect.isfunction(value) and not name.startswith("__")
        if name not in module.__dataclass_fields__ and not hasattr(value, "nowrap")
    ]
    assert not seen


@pytest.mark.parametrize("rate", ["0.5", None, (0.5,)], ids=str)
def test_a_rate_that_is_no_number_is_refused(rate):
    with pytest.raises(ValueError, match="rate must be a number, got"):
        Dropout(rate)


@pytest.mark.parametrize("width", [float("inf"), float("nan"), 0.0, -1.0, "2"], ids=str)
def test_a_width_that_no_layer_has_is_refused(width):
    """Red for OverflowError at infinity, and one channel at -1."""
    layer = ConvNorm(4, (1, 1), norm=None, activation=nn.relu, width=width)
    with pytest.raises(ValueError, match=rf"width must be .*, got '?{width}"):
        jax.eval_shape(lambda: layer.init(jax.random.key(0), jnp.ones((2, 3, 3, 1)), train=False))
