"""What the models share: normalization before the nonlinearity, subsampling, convolution."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from bnjax.linen import BatchNorm
from bnjax.models import scaled_tanh
from bnjax.models.layers import NormActivation, Subsample, patch_convolution

EXACT = {"rtol": 1e-12, "atol": 1e-12}
PADDINGS = ["VALID", "SAME", 2, ((0, 3), (2, 1))]
LAYOUT = ("NHWC", "HWIO", "NHWC")


def as_pairs(padding):
    return ((padding, padding), (padding, padding)) if isinstance(padding, int) else padding


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
    np.testing.assert_allclose(seen.mean(0), np.zeros(4), atol=1e-6)
    np.testing.assert_allclose(seen.var(0), np.ones(4), atol=1e-4)


def test_nothing_is_kept_unless_asked_for():
    layer = NormActivation(BatchNorm, jnp.tanh)
    variables = layer.init(jax.random.key(0), jnp.zeros((2, 4)), train=False)
    _, updates = layer.apply(variables, jnp.ones((2, 4)), train=True, mutable=["batch_stats"])
    assert set(updates) == {"batch_stats"}


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("padding", PADDINGS, ids=str)
def test_patch_convolution_is_the_convolution(padding):
    """Values and both gradients, kernel and image not square. Red if rows and columns swap."""
    rng = np.random.default_rng(0)
    images, kernel = (jnp.asarray(rng.normal(size=s)) for s in ((2, 7, 6, 3), (3, 4, 3, 5)))

    pads = as_pairs(padding)
    xla = partial(lax.conv_general_dilated, dimension_numbers=LAYOUT)
    shape = jax.eval_shape(lambda *a: xla(*a, (1, 1), pads), images, kernel).shape
    weights = jnp.asarray(rng.normal(size=shape))

    @partial(jax.jit, static_argnums=0)
    def value_and_gradients(convolution):
        y, pull = jax.vjp(lambda *a: convolution(*a, (1, 1), pads), images, kernel)
        return y, *pull(weights)

    for ours, expected in zip(
        value_and_gradients(patch_convolution), value_and_gradients(xla), strict=True
    ):
        assert ours.dtype == jnp.float64
        np.testing.assert_allclose(ours, expected, **EXACT)


@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("padding", PADDINGS, ids=str)
def test_patch_convolution_serves_flax(padding):
    """Red if what `nn.Conv` passes is refused or misread."""
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(2, 7, 6, 3)))
    conv = {"features": 5, "kernel_size": (3, 4), "padding": padding, "param_dtype": jnp.float64}
    ours = nn.Conv(**conv, conv_general_dilated=patch_convolution)
    variables = {"params": {"kernel": rng.normal(size=(3, 4, 3, 5)), "bias": rng.normal(size=5)}}

    @jax.jit
    def both(variables, images):
        return ours.apply(variables, images), nn.Conv(**conv).apply(variables, images)

    np.testing.assert_allclose(*both(variables, images), **EXACT)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("window_strides", {"strides": (2, 2)}),
        ("window_strides", {"strides": (1, 2)}),
        ("lhs_dilation", {"input_dilation": (2, 1)}),
        ("rhs_dilation", {"kernel_dilation": (1, 2)}),
        ("feature_group_count", {"feature_group_count": 2}),
    ],
)
def test_patch_convolution_refuses_what_it_cannot_do(name, arguments):
    conv = nn.Conv(4, (3, 3), **arguments, conv_general_dilated=patch_convolution)
    with pytest.raises(ValueError, match=rf"cannot do {name}=.*2.*use XLA"):
        jax.eval_shape(conv.init, jax.random.key(0), jnp.zeros((1, 6, 6, 4)))


def test_patch_convolution_honours_the_precision():
    """Red if it is dropped, which CPUs would not notice and accelerators would."""
    conv = nn.Conv(
        4, (3, 3), precision=lax.Precision.HIGHEST, conv_general_dilated=patch_convolution
    )
    images = jnp.zeros((1, 6, 6, 2))
    text = str(jax.make_jaxpr(conv.init_with_output)(jax.random.key(0), images))
    assert "Precision.HIGHEST" in text
