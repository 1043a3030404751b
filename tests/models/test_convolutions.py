"""Convolutions as matrix products: XLA's own, number by number, and refused where they are not."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from bnjax.models.convolutions import patch_convolution, pointwise_convolution

EXACT = {"rtol": 1e-12, "atol": 1e-12}
PADDINGS = ["VALID", "SAME", 2, ((0, 3), (2, 1))]
LAYOUT = ("NHWC", "HWIO", "NHWC")


def as_pairs(padding):
    return ((padding, padding), (padding, padding)) if isinstance(padding, int) else padding


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


@pytest.mark.usefixtures("x64")
def test_pointwise_convolution_is_the_convolution():
    """Values and both gradients, through `nn.Conv`."""
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(2, 4, 3, 5)))
    variables = {"params": {"kernel": rng.normal(size=(1, 1, 5, 7)), "bias": rng.normal(size=7)}}
    weights = jnp.asarray(rng.normal(size=(2, 4, 3, 7)))

    def all_of(convolution):
        conv = nn.Conv(7, (1, 1), param_dtype=jnp.float64, conv_general_dilated=convolution)
        y, pull = jax.vjp(conv.apply, variables, images)
        return jax.tree.leaves((y, pull(weights)))

    for ours, expected in zip(all_of(pointwise_convolution), all_of(None), strict=True):
        np.testing.assert_allclose(ours, expected, **EXACT)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strides": 2}, r"cannot do window_strides=\(2, 2\)"),
        ({"padding": 1}, r"cannot do padding=\[\(1, 1\), \(1, 1\)\]"),
        ({"kernel_size": (1, 3)}, r"with a kernel of \(1, 3, 4, 4\)"),
        ({"feature_group_count": 2}, "cannot do feature_group_count=2"),
    ],
)
def test_pointwise_convolution_refuses_what_it_cannot_do(arguments, message):
    arguments = {"kernel_size": (1, 1)} | arguments
    conv = nn.Conv(4, **arguments, conv_general_dilated=pointwise_convolution)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(conv.init, jax.random.key(0), jnp.zeros((1, 4, 4, 4)))
